"""torch.compile of the layers: graphs that are compiled in the first steps, and none afterwards."""

from __future__ import annotations

from pathlib import Path

import clips_world
import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from clips import train as training

STEPS = 60


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_no_graph_is_compiled_after_the_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Graphs of earlier tests in this process count, take up the limit, and leave sizes that then count as dynamic.
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    compile_layer, train_step = nn.Module.compile, training.train_step
    graphs: list[int] = []

    def count_graphs(*arguments: object) -> object:
        metrics = train_step(*arguments)
        graphs.append(counters["stats"]["unique_graphs"] - before)
        return metrics

    # The same guards and graphs as with Inductor, without generating code.
    monkeypatch.setattr(nn.Module, "compile", lambda layer: compile_layer(layer, backend="eager"))
    monkeypatch.setattr(training, "train_step", count_graphs)
    data = clips_world.write_shards(tmp_path / "train")
    clips_world.train(
        clips_world.train_config(
            data,
            tmp_path / "output",
            recipe={"name": "clips"},
            global_batch_size=52,
            micro_batch_size=32,  # the last one is smaller; all texts are in two groups by length, or one
            max_steps=STEPS,
            validation={"source": {"path": str(data)}, "eval_steps": 5, "num_samples": 20, "batch_size": 16},
            distributed={"torch_compile": True},
        )
    )
    assert len(graphs) == STEPS
    assert 8 < graphs[10] == graphs[-1] < 40
