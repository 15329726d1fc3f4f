"""A training goes on in another number of processes than it was stopped in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from safetensors.torch import load_file
from test_bridge_fsdp import config, losses, torchrun

from clips.errors import UserError
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training import launch as launching
from llava_bridge.training.checkpoints import convert_to_universal, needs_universal_conversion
from llava_bridge.training.train_config import LaunchConfig, LoraConfig, StageConfig


def checkpoint(directory: Path, part: str) -> Path:
    """What two processes under DeepSpeed leave, but for what is in it."""
    place = directory / "checkpoint-4"
    (place / "global_step4").mkdir(parents=True)
    (place / "global_step4" / part).touch()
    (place / "latest").write_text("global_step4")
    (place / "complete").write_text(json.dumps({"processes": "2", "bad": {}}))
    return place


def test_a_checkpoint_knows_for_how_many_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = checkpoint(tmp_path, "mp_rank_00_model_states.pt")
    for processes, others in (("2", False), ("1", True)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        assert needs_universal_conversion(place) == others
    (place / "shards").mkdir()  # FSDP's
    assert not needs_universal_conversion(place)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", r"since it is ZeRO-3's"),
        ("mp_rank_00_model_states.pt", r"as DeepSpeed cannot convert it \(.+\)"),
    ],
)
def test_what_cannot_be_made_one_for_any_number_is_refused_and_kept(
    part: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = checkpoint(tmp_path, part)
    monkeypatch.setenv("WORLD_SIZE", "1")
    message = f"launch.num_processes: expected 2, as when {place} was written, got 1, {why}; or remove {tmp_path}, and"
    with pytest.raises(UserError, match=message):
        convert_to_universal(place)
    assert (place / "global_step4" / part).is_file()


@pytest.mark.slow
def test_stopped_in_two_processes_zero_2_goes_on_in_one_as_if_it_had_never_stopped(
    tmp_path: Path, bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path
) -> None:
    world = bridge_encoder, bridge_llm, bridge_talk
    (tmp_path / "whole").mkdir()
    path = config(tmp_path, "plain", world, "deepspeed", save_steps=0)
    assert "stopped after step 4; the same command goes on" in torchrun("stop_driver.py", str(path), "3").stderr
    whole = config(tmp_path / "whole", "plain", world, "deepspeed")
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    driver = str(Path(__file__).with_name("swap_driver.py"))
    port = str(launching._free_port())
    done = bridge_world.run_python(driver, str(whole), **one, MASTER_PORT=port)
    assert done.returncode == 0, done.stderr[-3000:]
    done = bridge_world.run_python("-m", "llava_bridge", "train", "--config", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "one for any number of processes: 2 have written it" in done.stderr
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "whole" / "plain"), abs=1e-5)
    expected = load_file(tmp_path / "whole" / "plain" / "model.safetensors")
    for name, value in load_file(tmp_path / "plain" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "lora"), [("zero2", LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1)), ("zero3", None)])
def test_two_processes_that_were_stopped_learn_bit_for_bit_the_same(
    way: str, lora: LoraConfig | None, tmp_path: Path, bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path
) -> None:
    world = bridge_encoder, bridge_llm, bridge_talk
    (tmp_path / "whole").mkdir()
    data = [ConversationSourceConfig(path=str(bridge_talk / "talk.json"))]
    stage = StageConfig(data=data, max_steps=6, global_batch_size=4, learning_rate=1e-3, warmup_ratio=0.0, lora=lora)
    fields: dict[str, Any] = {"launch": LaunchConfig(deepspeed=way), "instruct": stage}
    path = config(tmp_path, "plain", world, "deepspeed", save_steps=0, **fields)
    assert "stopped after step 4; the same command goes on" in torchrun("stop_driver.py", str(path), "3").stderr
    whole = config(tmp_path / "whole", "plain", world, "deepspeed", **fields)
    for one in (path, whole):
        done = torchrun("swap_driver.py", str(one))
        assert done.returncode == 0, done.stderr[-3000:]
    expected = load_file(tmp_path / "whole" / "plain" / "model.safetensors")
    for name, value in load_file(tmp_path / "plain" / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name
    assert losses(tmp_path / "plain") == losses(tmp_path / "whole" / "plain")
