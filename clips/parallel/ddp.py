"""Every process holds the full model: the base of the other strategies."""

from __future__ import annotations

import contextlib
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clips.method.clips_model import ClipsModel
from clips.method.optimizer import OptimizerConfig, build_optimizer
from clips.parallel.distributed import DistributedContext

ADAM_STATE_NAMES = ("exp_avg", "exp_avg_sq")
"""AdamW's state per parameter, besides its step count."""


class DDPStrategy:
    """Every process holds the full model; gradients are averaged (torch's DDP).

    Args:
        encoder: the model, on the device.
        optim: the optimizer's settings.
        processes: the processes of the training.
    """

    shards_weights = False

    def __init__(self, encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext) -> None:
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
        self.zero_grad()
        self.encoder.clamp_logit_scale()
        self.share_buffers()
        return None

    def share_buffers(self) -> None:
        """Batch norms' statistics are the main process's, everywhere: so they are the same after a resume."""
        for buffer in self._statistics if self.processes.count > 1 else ():
            dist.broadcast(buffer, 0)

    @functools.cached_property
    def _statistics(self) -> list[Tensor]:
        kept = self.encoder.state_dict().keys()
        return [buffer for name, buffer in self.encoder.named_buffers() if name in kept]

    def zero_grad(self) -> None:
        """Let the gradient go without following it."""
        self.optimizer.zero_grad()

    # ---- checkpoint contents: called by all processes together

    def own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of ``state``, of `weights` or similar, that this process writes: its shards, or a part of the
        replicated tensors.
        """
        return {name: value for name, value in state.items() if isinstance(value, DTensor) or self._is_mine(name)}

    def _is_mine(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % self.processes.count == self.processes.rank

    def weights(self) -> dict[str, Tensor]:
        """The model's state by name, as far as this process holds it."""
        return self.encoder.state_dict()

    def held(self) -> dict[str, Tensor]:
        """What a running average is taken of: the model's state by name, or this process's shards of it."""
        return self.weights()

    def gathered(self, held: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state like `held` as one like `weights`."""
        return held

    def load_ema_state_dict(self, held: Mapping[str, Tensor], load: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Fill a state like `held` by ``load``, which fills full tensors or DTensor shards."""
        load(held)

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state by name, ``NAME.exp_avg`` and so on, as far as this process writes it."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name}.{key}"] = value
        return self.own(found)

    def empty_optimizer_state_dict(self) -> dict[str, Tensor]:
        """Tensors like those of `moments`, for a checkpoint to fill."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                found |= {f"{name}.{key}": torch.zeros_like(parameter.detach()) for key in ADAM_STATE_NAMES}
                found[f"{name}.step"] = torch.zeros((), device=parameter.device)
        return found

    def load_optimizer_state_dict(self, moments: Mapping[str, Tensor]) -> None:
        """Take over the optimizer's state of those parameters that have one."""
        for name, parameter in self.encoder.named_parameters():
            if f"{name}.step" in moments:
                self.optimizer.state[parameter] = {key: moments[f"{name}.{key}"] for key in ("step", *ADAM_STATE_NAMES)}


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: modules of one class in a list or sequence."""
    found: list[nn.Module] = []
    for child in model.children():
        inner = list(child.children())
        repeated = isinstance(child, nn.ModuleList | nn.Sequential) and len(inner) > 1
        if repeated and len({type(layer) for layer in inner}) == 1:
            found += inner
        else:
            found += repeated_layers(child)
    return found


def whole(value: Tensor) -> Tensor:
    """The full tensor of which this process may hold a shard; called by all processes together."""
    return value.full_tensor() if isinstance(value, DTensor) else value
