"""HF's Trainer for a model sharded by :func:`clips.parallel.fsdp.shard_model` (FSDP2) instead of DeepSpeed.

accelerate's own FSDP2 silently does nothing on CPU, where this is tested, and shards the output layer separately, whose
weights the loss uses outside the layer's forward. The model is therefore sharded before HF's Trainer wraps it.
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

from clips.parallel.fsdp import full_tensor
from llava_bridge.training.launch import is_main_process
from llava_bridge.training.work_dir import SHARDS_DIR

_SCHEDULER = "scheduler.pt"
_TRAINABLE = StateDictOptions(ignore_frozen_params=True, strict=False)


class ShardedTrainer(Trainer):
    """HF's Trainer for a sharded model; any number of processes can read its checkpoints."""

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        return _PreparedModel(model)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        trainable: Iterable[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        return full_tensor(nn.utils.clip_grad_norm_(trainable, self.args.max_grad_norm))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        dcp.save(self._state(), checkpoint_id=Path(output_dir) / SHARDS_DIR)
        scheduler: Any = self.lr_scheduler
        if is_main_process():
            torch.save(scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing: the weights are loaded with the optimizer's state."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state, scheduler = self._state(), self.lr_scheduler
        _load(state, Path(checkpoint) / SHARDS_DIR)
        set_state_dict(
            *self._model_and_optimizer(),
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_TRAINABLE,
        )
        assert scheduler is not None
        scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    def _state(self) -> dict[str, Any]:
        """The trainable weights and their optimizer state, by the names of the weights."""
        model, optimizer = get_state_dict(*self._model_and_optimizer(), options=_TRAINABLE)
        return {"model": model, "optimizer": optimizer}

    def _model_and_optimizer(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        accelerated: Any = self.optimizer
        assert self.model is not None
        return self.model, accelerated.optimizer


def _load(state: dict[str, Any], shards: Path) -> None:
    """Read a checkpoint into ``state``; weights that had no gradient have no optimizer state in it."""
    saved = dcp.FileSystemReader(shards).read_metadata().state_dict_metadata
    if missing := [name for name in state["model"] if f"model.{name}" not in saved]:
        raise RuntimeError(f"{shards} has no weights of {missing[0]}")
    dcp.load(state, checkpoint_id=shards, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))


class _PreparedModel(nn.Module):
    """A wrapper from which HF's Trainer infers that the model needs no other one, such as DDP."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)
