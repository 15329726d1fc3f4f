"""The base class of the strategies, and data parallelism: every process holds the full model."""

from __future__ import annotations

import abc
import contextlib
import functools
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
"""AdamW's tensors for each parameter, in addition to the step count."""
_STATE_NAMES = ("step", *ADAM_STATE_NAMES)


class Strategy(abc.ABC):
    """A model and its optimizer, distributed over processes.

    Args:
        encoder: the model, on the device.
        processes: the processes of the training.
        model: ``encoder``, wrapped; the module to call with a batch.
        optimizer: of the wrapped model.
    """

    shards_weights = False

    def __init__(self, encoder: ClipsModel, processes: DistributedContext, model: Any, optimizer: Any) -> None:
        self.encoder, self.processes, self.model, self.optimizer = encoder, processes, model, optimizer
        self._skips = torch.zeros((), device=processes.device)  # 1 after a step with a value that is not finite

    # ---- a step

    @abc.abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Enclose forward and backward pass of a micro-batch; gradients are all-reduced in the ``last`` one only."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to the parameters'."""
        loss.backward()

    def clip_grad_norm(self, limit: float | None) -> Tensor | None:
        """Clip the gradient to the norm ``limit``; returns its norm () before, or None if `optimizer_step` does."""
        parameters = [value for value in self.encoder.parameters() if value.grad is not None]
        norm = nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])
        if limit is not None:  # otherwise torch would multiply every gradient by 1
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return full_tensor(norm)

    def optimizer_step(self, rate: float, *, is_finite: Tensor) -> float | None:
        """Update the weights and reset the gradient; returns the gradient's norm if `clip_grad_norm` does not.

        Args:
            rate: the learning rate.
            is_finite: () bool on the device, whether losses and gradient are; if not, neither this step nor any later
                one changes the weights.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._skips = torch.maximum(self._skips, (~is_finite).float())
        self.optimizer.found_inf, self.optimizer.grad_scale = self._skips, None  # as torch's GradScaler does
        self.optimizer.step()
        self.zero_grad()
        self.encoder.clamp_logit_scale()
        self.broadcast_buffers()
        return None

    def broadcast_buffers(self) -> None:
        """Copy the main process's batch norm statistics to all, so that a resumed run has the same."""
        for buffer in self._saved_buffers if self.processes.count > 1 else ():
            dist.broadcast(buffer, 0)

    @functools.cached_property
    def _saved_buffers(self) -> list[Tensor]:
        saved = self.encoder.state_dict().keys()
        return [buffer for name, buffer in self.encoder.named_buffers() if name in saved]

    def zero_grad(self) -> None:
        """Reset the gradient."""
        self.optimizer.zero_grad()

    # ---- checkpoint contents: collective calls

    def select_own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a state dict that this process writes: its shards, and its part of the others."""
        return {name: value for name, value in state.items() if isinstance(value, DTensor) or self._is_own(name)}

    def _is_own(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % self.processes.count == self.processes.rank

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state dict, with the tensors or shards that this process can write."""
        return self.encoder.state_dict()

    def local_state_dict(self) -> dict[str, Tensor]:
        """Return the model's tensors or shards on this process, of which an EMA is computed."""
        return self.state_dict()

    def gather_state_dict(self, local: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Convert the format of `local_state_dict` to that of `state_dict`."""
        return local

    def load_ema_state_dict(self, local: Mapping[str, Tensor], load: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Fill tensors in the format of `local_state_dict` by ``load``, which fills full tensors or DTensor shards."""
        load(local)

    def optimizer_state_dict(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors that this process writes, by name: ``PARAMETER.exp_avg`` …"""
        state: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            state |= {f"{name}.{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return self.select_own(state)

    def empty_optimizer_state_dict(self) -> dict[str, Tensor]:
        """Return zeros in the format of `optimizer_state_dict`, for a checkpoint to fill."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                for key in _STATE_NAMES:
                    shaped = parameter.detach() if key != "step" else parameter.detach().new_zeros(())
                    state[f"{name}.{key}"] = torch.zeros_like(shaped)
        return state

    def load_optimizer_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the optimizer's state of the parameters in ``state``."""
        for name, parameter in self.encoder.named_parameters():
            found = {key: state.get(f"{name}.{key}") for key in _STATE_NAMES}
            if all(value is not None for value in found.values()):
                self.optimizer.state[parameter] = found


class DDPStrategy(Strategy):
    """Every process holds the full model; gradients are averaged (torch's DDP).

    Args:
        encoder: the model, on the device.
        optim: the optimizer's settings.
        processes: the processes of the training.
    """

    def __init__(self, encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext) -> None:
        model = encoder if processes.count == 1 else nn.parallel.DistributedDataParallel(encoder)
        super().__init__(encoder, processes, model, build_optimizer(encoder, optim, encoder.no_decay_names()))

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """See `Strategy`."""
        skips_sync = isinstance(self.model, nn.parallel.DistributedDataParallel) and not last
        return self.model.no_sync() if skips_sync else contextlib.nullcontext()


def full_tensor(value: Tensor) -> Tensor:
    """Return the full tensor of a shard, and other tensors unchanged; a collective call."""
    return value.full_tensor() if isinstance(value, DTensor) else value
