"""torch.compile of a LLaVA's layers: losses and gradients of the eager ones, and graphs in the first steps only."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import bridge_world
import pytest
import torch
from bridge_world import Parts
from safetensors.torch import load_file
from test_bridge_objective import TEXT, batch_of, learned, parts
from torch import nn
from torch._dynamo.utils import counters

from clips.model.layers import compile_modules
from llava_bridge.training.setup import modules_to_compile, recompute_layers
from llava_bridge.training.train_config import DistributedConfig, LoraConfig

assert parts  # a fixture
STEPS = 16


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize(("recomputed", "room"), [(False, None), (True, None), (False, 10_000)])
def test_batches_of_any_length_have_the_graphs_of_the_first_steps(recomputed, room, parts, monkeypatch):
    eager, processor, items = copy.deepcopy(parts)
    eager.train()
    if recomputed:
        recompute_layers(eager)
    compiled = copy.deepcopy(eager)
    compile_layer = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda layer: compile_layer(layer, backend="aot_eager"))
    compile_modules(modules_to_compile(compiled))
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    torch._dynamo.reset()  # else graphs of earlier tests count
    before, graphs, lengths = counters["stats"]["unique_graphs"], [], set()
    for step in range(STEPS):
        texts = [{**TEXT, **{key: TEXT[key] * size for key in ("input_ids", "labels")}} for size in (1, step + 2)]
        batch = batch_of([*(items[: 1 + step % 2] if step % 4 else []), *texts], processor, room)
        lengths.add(batch["input_ids"].shape)
        (loss, gradients), (expected, wanted) = learned(compiled, batch), learned(eager, batch)
        assert loss == pytest.approx(expected, abs=1e-5)
        assert gradients.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert len(lengths) > STEPS // 2
    assert 5 <= graphs[5] == graphs[-1] < 30


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_saves_what_an_eager_one_does(tmp_path: Path, bridge_parts: Parts) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, merge_weights=False)
    runs = [tmp_path / "eager", tmp_path / "compiled"]
    for run in runs:
        distributed = DistributedConfig(torch_compile=run.name == "compiled")
        path = bridge_world.instruct_file(tmp_path, run.name, bridge_parts, {"lora": lora}, distributed=distributed)
        graphs = tmp_path / f"{run.name}-graphs"
        bridge_world.trained_alone(path, TORCHINDUCTOR_CACHE_DIR=str(graphs))
        assert any(graphs.glob("*")) == distributed.torch_compile
    bridge_world.assert_same_training(*runs, 1e-5)
    eager, compiled = (load_file(run / "adapter" / "adapter_model.safetensors") for run in runs)
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4, msg=name)
