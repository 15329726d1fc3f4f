"""HF's Trainer for a model that `clips.parallel.fsdp.shard_model` has sharded (torch's FSDP2) in place of DeepSpeed.

accelerate supports FSDP2 itself, but silently skips it on CPU, where this is tested, and wraps the output layer
separately, whose weights the loss uses outside that layer's forward. So the model is sharded before HF's Trainer sees
it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from transformers import Trainer

from clips.parallel.ddp import full_tensor
from llava_bridge.training.launch import is_main_process
from llava_bridge.training.work_dir import SHARDS_DIR

_SCHEDULER = "scheduler.pt"
_OF_WHAT_LEARNS = StateDictOptions(ignore_frozen_params=True, strict=False)


class ShardedTrainer(Trainer):
    """HF's Trainer for a sharded model; any number of processes can read its checkpoints."""

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        return _Prepared(model)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        learns: Iterable[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        return full_tensor(nn.utils.clip_grad_norm_(learns, self.args.max_grad_norm))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        dcp.save(self._state(), checkpoint_id=Path(output_dir) / SHARDS_DIR)
        scheduler: Any = self.lr_scheduler
        if is_main_process():
            torch.save(scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing yet: the weights come with the optimizer's state."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state, scheduler = self._state(), self.lr_scheduler
        _load(state, Path(checkpoint) / SHARDS_DIR)
        model, optimizer = self._learning()
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_OF_WHAT_LEARNS,
        )
        assert scheduler is not None
        scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    def _state(self) -> dict[str, Any]:
        """What has learned, and the optimizer's state of it, by the names of the model's weights."""
        model, optimizer = get_state_dict(*self._learning(), options=_OF_WHAT_LEARNS)
        return {"model": model, "optimizer": optimizer}

    def _learning(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model, and the optimizer within accelerate's."""
        prepared: Any = self.optimizer
        assert self.model is not None
        return self.model, prepared.optimizer


def _load(state: dict[str, Any], shards: Path) -> None:
    """Read a checkpoint into ``state``; of weights that no gradient has reached the optimizer had nothing to save."""
    saved = dcp.FileSystemReader(shards).read_metadata().state_dict_metadata
    if missing := [name for name in state["model"] if f"model.{name}" not in saved]:
        raise RuntimeError(f"{shards} has no weights of {missing[0]}")
    dcp.load(state, checkpoint_id=shards, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))


class _Prepared(nn.Module):
    """A model as it is, in a shell by which HF's Trainer sees that it needs no other wrapper (DDP, say)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)
