"""Ways to train one model in many processes: every process holds all of it, or shards of it.

Each is an entry of ``PARALLELISMS`` and answers the same questions: what is called with a batch, how a gradient is
made, clipped and followed, and what a checkpoint keeps. Tensors for a checkpoint go by the names of the model's
parameters, so that a run may go on under another entry.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clips.distributed import Processes
from clips.model import ClipsModel
from clips.optim import OptimConfig, build_optimizer
from clips.scale import Parallel, ScaleConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter beside the number of its steps."""


class DataParallel:
    """Every process holds the whole model; gradients are averaged (torch's DDP).

    Args:
        encoder: the model, on the device.
        optim: the optimizer's settings.
        processes: who shares the work.
    """

    shards_weights = False

    def __init__(self, encoder: ClipsModel, optim: OptimConfig, processes: Processes) -> None:
        self.encoder, self.processes = encoder, processes
        self.model: Any = self._wrapped()
        self.optimizer: Any = build_optimizer(encoder, optim, encoder.no_decay_names())

    def _wrapped(self) -> nn.Module:
        return self.encoder if self.processes.count == 1 else nn.parallel.DistributedDataParallel(self.encoder)

    # ---- a step

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a part of a batch; processes exchange gradients in the last one only."""
        waits = isinstance(self.model, nn.parallel.DistributedDataParallel) and not last
        return self.model.no_sync() if waits else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to the parameters'."""
        loss.backward()

    def clip(self, limit: float | None) -> Tensor | None:
        """Scale the gradient down to the norm ``limit``; the norm () it had, or None where only `update` knows it."""
        return whole(nn.utils.clip_grad_norm_(self.encoder.parameters(), limit or math.inf))

    def update(self, rate: float) -> float | None:
        """Move the weights along the gradient and forget it; returns the gradient's norm where `clip` did not."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.forget_gradient()
        self.encoder.clamp_logit_scale()
        return None

    def forget_gradient(self) -> None:
        """Let the gradient go without following it."""
        self.optimizer.zero_grad()

    # ---- what a checkpoint keeps: all processes ask together

    def weights(self) -> dict[str, Tensor]:
        """The model's state by name, as far as this process holds it."""
        return self.encoder.state_dict()

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state by name, ``NAME.exp_avg`` and so on, as far as this process holds it."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name}.{key}"] = value
        return found

    def empty_moments(self) -> dict[str, Tensor]:
        """Tensors like those of `moments`, for a checkpoint to fill."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                found |= {f"{name}.{key}": torch.zeros_like(parameter.detach()) for key in MOMENTS}
                found[f"{name}.step"] = torch.zeros((), device=parameter.device)
        return found

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take over the optimizer's state of those parameters that have one."""
        for name, parameter in self.encoder.named_parameters():
            if f"{name}.step" in moments:
                self.optimizer.state[parameter] = {key: moments[f"{name}.{key}"] for key in ("step", *MOMENTS)}


class FullySharded(DataParallel):
    """Parameters, gradients and optimizer state in shards, gathered layer by layer (torch's FSDP2)."""

    shards_weights = True

    def _wrapped(self) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.processes.device.type, (self.processes.count,))
        for layer in layers_of(self.encoder):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.encoder, mesh=mesh)
        return self.encoder

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """See `DataParallel`."""
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()


def _zero(encoder: ClipsModel, optim: OptimConfig, processes: Processes, *, stage: int) -> DataParallel:
    from clips.zero import Zero, Zero3  # takes seconds to import

    return Zero3(encoder, optim, processes) if stage == 3 else Zero(encoder, optim, processes, stage=stage)


PARALLELISMS: dict[Parallel, Callable[[ClipsModel, OptimConfig, Processes], DataParallel]] = {
    "ddp": DataParallel,
    "fsdp": FullySharded,
    "zero1": functools.partial(_zero, stage=1),
    "zero2": functools.partial(_zero, stage=2),
    "zero3": functools.partial(_zero, stage=3),
}


def spread(encoder: ClipsModel, scale: ScaleConfig, optim: OptimConfig, processes: Processes) -> DataParallel:
    """Make ``encoder``, with its weights in it, a model that many processes train; it is changed in place."""
    if scale.activation_checkpointing:
        encoder.checkpoint_activations()
    if scale.compile:
        for layer in layers_of(encoder):
            layer.compile()
    return PARALLELISMS[scale.parallel](encoder, optim, processes)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: what stands several times, of one class, in a list or sequence of modules."""
    found: list[nn.Module] = []
    for child in model.children():
        inner = list(child.children())
        repeated = isinstance(child, nn.ModuleList | nn.Sequential) and len(inner) > 1
        if repeated and len({type(layer) for layer in inner}) == 1:
            found += inner
        else:
            found += layers_of(child)
    return found


def whole(value: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a shard; all processes ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value
