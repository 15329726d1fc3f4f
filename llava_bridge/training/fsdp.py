"""PyTorch's FSDP2 in place of DeepSpeed: every process holds a shard of each weight and of its optimizer state.

accelerate has a way to FSDP2 of its own, but leaves it out without a word on CPU, where this is tested, and wraps the
output layer alone, whose weights the loss uses beside that layer's forward. So the model is sharded before HF's
Trainer sees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import Trainer

from clips.parallel.base import layers_of, whole
from llava_bridge.training.launch import is_main_process
from llava_bridge.training.workspace import SHARDS

_SCHEDULER = "scheduler.pt"
_OF_WHAT_LEARNS = StateDictOptions(ignore_frozen_params=True, strict=False)


def shard(
    model: nn.Module, *, bf16: bool, exact: Sequence[nn.Module] = (), apart: Sequence[nn.Module] = ()
) -> nn.Module:
    """Leave this process a shard of each weight; repeated layers are put together one at a time, the rest as one.

    Weights stay float32, gradients are summed in float32; with ``bf16`` all is computed in bf16, as under DeepSpeed.

    Args:
        model: whole, on the CPU; changed in place.
        bf16: whether to compute in bf16.
        exact: its modules that are given float32 weights even so, as they enter bf16 themselves.
        apart: its modules of which every process keeps the whole, as not all call them in every step.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (int(os.environ["WORLD_SIZE"]),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    kept = {weight for module in apart for weight in module.to(device).parameters()}
    whole_ones, exact_ones = ({inner for one in some for inner in one.modules()} for some in (apart, exact))
    for module in [*layers_of(model), *exact]:
        if module not in whole_ones:
            own = MixedPrecisionPolicy(cast_forward_inputs=False) if module in exact_ones else policy
            fully_shard(module, mesh=mesh, mp_policy=own)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=kept)
    return model


class ShardedTrainer(Trainer):
    """HF's Trainer for a model that `shard` has made; its checkpoints are read by any number of processes."""

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        return _Prepared(model)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        learns: Iterable[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        return whole(nn.utils.clip_grad_norm_(learns, self.args.max_grad_norm))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        dcp.save(self._state(), checkpoint_id=Path(output_dir) / SHARDS)
        scheduler: Any = self.lr_scheduler
        if is_main_process():
            torch.save(scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing yet: the weights come with the optimizer's state."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state, scheduler = self._state(), self.lr_scheduler
        _load(state, Path(checkpoint) / SHARDS)
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
        """What has learnt, and the optimizer's state of it, by the names of the model's weights."""
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
