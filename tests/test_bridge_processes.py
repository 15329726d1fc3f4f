"""What each training process begins with: its own GPU, and adapters that depend on the seed alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_bridge.training import distributed, trainer
from llava_bridge.training.train_config import LoraConfig, StageConfig


def test_each_process_takes_the_gpu_of_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    asked: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda dist_backend, **_: asked.append(dist_backend))
    distributed.init_process_group()
    assert asked == [3, "nccl"]  # the device first, or all would join with the first GPU


@pytest.mark.parametrize("drawn_before", [0, 7])
def test_adapters_begin_with_the_seed_whatever_was_drawn_before(
    drawn_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def set_up(*_: Any) -> None:
        torch.rand(drawn_before)  # a projector is made anew, or read from the stage before

    def choose_what_learns(*_: Any) -> None:
        raise Begun(torch.rand(1).item())

    monkeypatch.setattr(trainer, "setup_stage", set_up)
    monkeypatch.setattr(trainer, "set_trainable_parts", choose_what_learns)
    stage = StageConfig(lora=LoraConfig())
    config: Any = SimpleNamespace(seed=5, precision="fp32", stage=lambda _: stage)
    with pytest.raises(Begun) as begun:
        trainer.train_stage(config, "instruct", tmp_path, stop=None)  # type: ignore[arg-type]
    torch.manual_seed(5)
    assert begun.value.args == (torch.rand(1).item(),)
