"""What a stage can train: parts at rates of their own, adapters, packed rows; under DeepSpeed's ways to share work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from safetensors.torch import load_file

from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training import launch as launching
from llava_bridge.training.train_config import LaunchConfig, LoraConfig, StageConfig

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).with_name("swap_driver.py")
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


def config(directory: Path, name: str, world: tuple[Path, Path, Path], stage: dict[str, Any], **fields: Any) -> Path:
    """A run of a single stage, instruct, on a finished encoder and LLM."""
    encoder, llm, talk = world
    data = [ConversationSourceConfig(path=str(talk / "talk.json"))]
    settings = {
        "data": data,
        "max_steps": 3,
        "global_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
    } | stage
    fields = {"stages": ["instruct"], "encoder": str(encoder), "llm": str(llm)} | fields
    return bridge_world.config_file(directory, name, talk, instruct=StageConfig(**settings), **fields)


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def world(bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path) -> tuple[Path, Path, Path]:
    return bridge_encoder, bridge_llm, bridge_talk


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world: tuple[Path, Path, Path]) -> Path:
    """LLaVAs that one process trained, each with other settings."""
    directory = tmp_path_factory.mktemp("runs")
    every = ["vision", "projector", "llm"]
    stages: dict[str, dict[str, Any]] = {
        "plain": {},
        "untrained": {"learning_rate": 1e-30},
        "packed": {"packing": True, "max_length": 120},
        "again": {"activation_checkpointing": True, "tunable_parts": every},
        "whole": {"tunable_parts": every},
        "rates": {"tunable_parts": every, "vision_tower_lr": 1e-30, "projector_lr": 1e-30},
        "lora": {"lora": LoraConfig(**LORA)},
        "dora": {"lora": LoraConfig(**LORA, use_dora=True, apply_to=["llm", "vision"], merge_weights=False)},
        "kept": {"cache_vision_features": True},
        "found": {"cache_vision_features": True, "packing": True, "max_length": 120},
        "queries": {"lora": LoraConfig(**LORA, target_modules=["q_proj"]), "projector_lr": 1e-30},
    }
    paths = [str(config(directory, name, world, stage)) for name, stage in stages.items()]
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    launched["XDG_CACHE_HOME"] = str(directory / "cache")
    done = bridge_world.run_python(str(DRIVER), *paths, **launched, MASTER_PORT=str(launching._free_port()))
    assert done.returncode == 0, done.stderr[-3000:]
    (directory / "printed.txt").write_text(done.stderr)
    return directory


def moved(runs: Path, name: str) -> set[str]:
    """Which parts differ from those before training."""
    before, after = weights(runs / "untrained"), weights(runs / name)
    parts = {"vision_tower": "vision", "multi_modal_projector": "projector", "language_model": "llm", "lm_head": "llm"}
    assert before.keys() == after.keys()
    return {
        part
        for key, part in parts.items()
        for weight in before
        if key in weight and (before[weight] - after[weight]).abs().max() > 1e-6
    }


def test_the_parts_that_learn_are_those_that_are_named(runs: Path) -> None:
    assert moved(runs, "plain") == {"projector", "llm"}
    assert moved(runs, "whole") == {"vision", "projector", "llm"}
    assert moved(runs, "rates") == {"llm"}
    assert moved(runs, "lora") == {"projector", "llm"}
    assert moved(runs, "queries") == {"llm"}
    printed = (runs / "printed.txt").read_text()
    assert "instruct: vision trains, " in printed
    assert "parameters of adapters beside" in printed


def test_what_is_saved_generates_with_a_cache(runs: Path) -> None:
    """transformers' trainer turns it off in the config, which would then be saved."""
    from llava_bridge import load_llava

    for name in ("plain", "again", "lora", "dora"):
        model, _ = load_llava(runs / name, device="cpu", adapter=False)
        saved = (model.config.text_config, model.generation_config)
        assert [each.use_cache for each in saved] == [True, True], name


def test_packed_rows_and_recomputed_activations_learn_the_same(runs: Path) -> None:
    assert losses(runs / "packed") == pytest.approx(losses(runs / "plain"), abs=1e-4)
    assert losses(runs / "again") == pytest.approx(losses(runs / "whole"), abs=1e-5)


def test_features_that_are_kept_are_those_that_are_computed(runs: Path) -> None:
    assert losses(runs / "kept") == losses(runs / "plain")
    assert losses(runs / "found") == pytest.approx(losses(runs / "plain"), abs=1e-4)
    kept = [path for path in (runs / "cache" / "clips" / "features").rglob("*") if path.is_file()]
    assert len(kept) == len(bridge_world.COLORS)  # all pictures of one color have the same pixels


def test_adapters_are_merged_into_the_weights_and_only_where_they_are(runs: Path) -> None:
    before, after = weights(runs / "untrained"), weights(runs / "queries")
    changed = {name for name, value in after.items() if (value - before[name]).abs().max() > 1e-6}
    assert changed
    assert all(name.endswith("q_proj.weight") for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= LORA["r"]
    assert losses(runs / "lora")[-1] < losses(runs / "lora")[0]


def test_adapters_that_are_not_merged_lie_beside_the_model(runs: Path) -> None:
    import peft

    from llava_bridge import answer, load_llava

    assert moved(runs, "dora") == {"projector"}
    model, processor = load_llava(runs / "dora")
    plain = answer(model, processor, [None], ["What color is it?"], max_new_tokens=4)
    again, _ = load_llava(runs / "dora", adapter=False)
    adapted = peft.PeftModel.from_pretrained(again, runs / "dora" / "adapter").merge_and_unload()
    names = dict(adapted.named_parameters())
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, names[name], msg=name)
    assert answer(adapted, processor, [None], ["What color is it?"], max_new_tokens=4) == plain
    assert any("vision_tower" in name for name in load_file(runs / "dora" / "adapter" / "adapter_model.safetensors"))


def train(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return bridge_world.run_python("-m", "llava_bridge", "train", "--config", str(path), *flags)


@pytest.mark.parametrize("kind", ["whole", "lora", "tied"])
def test_zero_3_in_two_processes_saves_what_zero_2_does(
    kind: str, tmp_path: Path, world: tuple[Path, Path, Path]
) -> None:
    stage: dict[str, Any] = {"lora": LoraConfig(**LORA)} if kind == "lora" else {}
    if kind == "tied":
        world = world[0], bridge_world.make_llm(tmp_path / "llm", tied=True), world[2]
    for way in ("zero2", "zero3"):
        launch = LaunchConfig(num_processes=2, deepspeed=way)
        done = train(config(tmp_path, way, world, {"learning_rate": 1e-3} | stage, launch=launch))
        assert done.returncode == 0, done.stderr[-3000:]
    one, other = weights(tmp_path / "zero2"), weights(tmp_path / "zero3")
    assert one.keys() == other.keys()
    within = 1e-4 if kind == "tied" else 1e-6  # Adam makes noise of gradients of words that hardly occur
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=within, rtol=within, msg=name)
    assert losses(tmp_path / "zero3") == pytest.approx(losses(tmp_path / "zero2"), abs=1e-6)


@pytest.mark.parametrize("way", ["zero2_offload", "zero3_offload"])
def test_offload_learns_the_same(way: str, tmp_path: Path, world: tuple[Path, Path, Path], runs: Path) -> None:
    done = train(config(tmp_path, "run", world, {}, launch=LaunchConfig(deepspeed=way)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(runs / "plain"), abs=1e-5)


def test_sigterm_to_the_command_saves_and_the_same_command_goes_on(
    tmp_path: Path, world: tuple[Path, Path, Path]
) -> None:
    stage = {"max_steps": 2000, "learning_rate": 1e-3}
    path = config(tmp_path, "stopped", world, stage, launch=LaunchConfig(num_processes=2), save_steps=0)
    command = [sys.executable, "-m", "llava_bridge", "train", "--config", str(path)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / ".stopped.work" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 4):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=100)[1]
    assert process.returncode == 75, printed
    assert "instruct: stopped after step" in printed
    assert "Traceback" not in printed
    (mark,) = (tmp_path / ".stopped.work").glob("instruct/checkpoints/checkpoint-*/complete")
    step = int(mark.parent.name.rpartition("-")[2])
    refused = train(path, "--instruct.learning_rate", "0.5")
    assert refused.returncode == 2
    assert "holds another run: instruct.learning_rate is 0.001 there and 0.5 now" in refused.stderr
    assert mark.is_file()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and f'"step": {step + 3}' not in metrics.read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=100)[1]
    assert process.returncode == 130, printed
    assert "going on with the unfinished run" in printed
    assert f'"step": {step + 1}' in metrics.read_text()


def test_sigterm_to_every_process_of_a_job_saves_readers_of_data_included(
    tmp_path: Path, world: tuple[Path, Path, Path]
) -> None:
    path = config(tmp_path, "job", world, {"max_steps": 2000, "learning_rate": 1e-3}, save_steps=0, num_workers=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-m", "llava_bridge", "train", "--config", str(path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    metrics = tmp_path / ".job.work" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 4):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to the groups of both processes
    process.wait(timeout=100)
    printed = (tmp_path / "log").read_text()
    assert "instruct: stopped after step" in printed
    assert "DataLoader worker" not in printed
    assert list((tmp_path / ".job.work").glob("instruct/checkpoints/checkpoint-*/complete"))
