"""FSDP2 in place of DeepSpeed: two processes under torchrun learn, save and stop as they do under ZeRO-2."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import losses
from safetensors.torch import load_file

from clips.errors import UserError
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.train_config import LaunchConfig, LoraConfig, StageConfig

EVERY = ["vision", "projector", "llm"]
STAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"lora": LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, apply_to=["llm", "vision"])},
    "parts": {"micro_batch_size": 1, "activation_checkpointing": True, "tunable_parts": EVERY},
    "half": {"tunable_parts": EVERY, "packing": True, "max_length": 120},
    "tied": {},
    "norms": {},
    "tiles": {"max_length": 400},
}
# Adam makes noise of gradients that are 0 but for rounding, as those of the keys' biases; ZeRO sums bf16 in bf16.
WITHIN = {
    "plain": 1e-6,
    "lora": 1e-6,
    "tied": 1e-6,
    "tiles": 1e-6,
    "parts": 1e-5,
    "stages": 1e-5,
    "half": 0.1,
    "norms": 0.1,
}


def config(directory: Path, name: str, world: tuple[Path, Path, Path], way: str, **fields: Any) -> Path:
    """A run of six steps; ``name`` says what its stage trains."""
    encoder, llm, talk = world
    data = [ConversationSourceConfig(path=str(talk / "talk.json"))]
    settings = {
        "data": data,
        "max_steps": 6,
        "global_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
    } | STAGES.get(name, {})
    run = {"stages": ["instruct"], "encoder": str(encoder), "llm": str(llm), "launch": LaunchConfig(strategy=way)}  # type: ignore[arg-type]
    run |= {"precision": "bf16" if name in {"half", "norms"} else "fp32"} | fields
    run |= {"image_aspect_ratio": "anyres"} if name == "tiles" else {}
    return bridge_world.config_file(directory, name, talk, **{"instruct": StageConfig(**settings), **run})


def torchrun(driver: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    torch_run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return bridge_world.run_python(*torch_run, str(Path(__file__).with_name(driver)), *arguments, **environment)


def assert_equal(one: Path, other: Path, atol: float) -> None:
    """The same model, within ``atol``, learned by the same losses."""
    assert losses(one) == pytest.approx(losses(other), abs=atol)
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value.to(ours[name].dtype), atol=atol, rtol=atol, msg=name)


@pytest.fixture(scope="module")
def world(bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path) -> tuple[Path, Path, Path]:
    return bridge_encoder, bridge_llm, bridge_talk


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world: tuple[Path, Path, Path]) -> Path:
    """The same runs of two processes under FSDP and under ZeRO-2, each in a folder of its own."""
    encoder, llm, talk = world
    directory = tmp_path_factory.mktemp("runs")
    tied = bridge_world.make_llm(directory / "tied_llm", tied=True)
    trunk = directory / "trunk"  # its batch norms have float32 buffers
    bridge_world.make_encoder(trunk, bridge_world.TRUNK)
    roomy = bridge_world.make_llm(directory / "roomy_llm", context=400)
    worlds = {"tied": (encoder, tied, talk), "norms": (trunk, llm, talk), "tiles": (encoder, roomy, talk)}
    for way in ("fsdp", "deepspeed"):
        (directory / way).mkdir()
        paths = [str(config(directory / way, name, worlds.get(name, world), way)) for name in STAGES]
        paths.append(str(config(directory / way, "stages", world, way, stages=["llm_pretrain", "align", "instruct"])))
        if way == "fsdp":
            kept = StageConfig(
                data=[ConversationSourceConfig(path=str(talk / "talk.json"))],
                max_steps=6,
                global_batch_size=4,
                learning_rate=1e-3,
                warmup_ratio=0.0,
                cache_vision_features=True,
            )
            paths.append(str(config(directory / way, "kept", world, way, instruct=kept)))
        done = torchrun("swap_driver.py", *paths, XDG_CACHE_HOME=str(directory / "cache"))
        assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHIN)
def test_two_processes_learn_what_they_do_under_zero_2(name: str, runs: Path) -> None:
    assert_equal(runs / "fsdp" / name, runs / "deepspeed" / name, WITHIN[name])


@pytest.mark.slow
def test_what_is_learned_moves(runs: Path) -> None:
    for name in STAGES:
        assert losses(runs / "fsdp" / name)[-1] < losses(runs / "fsdp" / name)[0]
    assert losses(runs / "fsdp" / "half") != pytest.approx(losses(runs / "fsdp" / "parts"), abs=1e-5)


@pytest.mark.slow
def test_processes_that_find_their_features_do_not_wait_for_those_that_compute_them(runs: Path) -> None:
    assert_equal(runs / "fsdp" / "kept", runs / "deepspeed" / "plain", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "parts"])  # of an encoder that learns the last block gets no gradient
def test_stopped_in_two_processes_it_goes_on_in_one(
    name: str, tmp_path: Path, world: tuple[Path, Path, Path], runs: Path
) -> None:
    path = config(tmp_path, name, world, "fsdp", save_steps=0)
    stopped = torchrun("stop_driver.py", str(path), "3")
    assert "instruct: stopped after step 4; the same command goes on" in stopped.stderr
    assert not (tmp_path / name).exists()
    done = bridge_world.run_python("-m", "llava_bridge", "train", "--config", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on with the unfinished run" in done.stderr
    assert_equal(tmp_path / name, runs / "deepspeed" / name, 2e-5)


def test_fsdp_takes_no_settings_of_deepspeed() -> None:
    with pytest.raises(UserError, match=r"launch.deepspeed: expected none with strategy: fsdp, got zero3"):
        LaunchConfig(strategy="fsdp", deepspeed="zero3")
