"""A model, its optimizer and its average over a training's processes: a replica in each (DDP), or shards (FSDP2)."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clips.method.clips_model import ClipsModel
from clips.method.optimizer import OptimizerConfig, build_optimizer
from clips.model.compute import bf16_weights, checkpoint_layers, compile_modules, repeated_layers
from clips.parallel.distributed import DistributedContext
from clips.safe_text import log_info
from clips.training.train_config import DistributedConfig

FLOAT32 = MixedPrecisionPolicy()  # weights are gathered as they are


class ParallelModel:
    """The model to call with a batch, and the update of its weights.

    Args:
        encoder: the model, on the device; changed in place.
        distributed, optim: settings.
        processes: the processes of the training.
        bf16: the model will be called with activations in bf16.
    """

    def __init__(
        self,
        encoder: ClipsModel,
        distributed: DistributedConfig,
        optim: OptimizerConfig,
        processes: DistributedContext,
        *,
        bf16: bool = False,
    ) -> None:
        if distributed.activation_checkpointing:
            count = checkpoint_layers(encoder)
            if processes.is_main:
                log_info(f"distributed.activation_checkpointing: {count} layers recompute their activations")
        if distributed.torch_compile:
            captions = [] if encoder.captioner is None else [encoder.captioner.head.cross_entropy]
            compile_modules([*repeated_layers(encoder), *captions])
        self.encoder, self.processes, self.shards_weights = encoder, processes, distributed.strategy == "fsdp"
        self.model: Any = encoder
        if self.shards_weights:
            # Repeated layers are gathered one at a time, all other weights together. Weights stay float32, gradients
            # are reduced in it. Consecutive processes form a group with a full set of shards; other groups hold copies.
            policy = bf16_gathers(encoder) if bf16 else FLOAT32
            size = distributed.shard_group_size or processes.count
            shape = {"replicate": processes.count // size} if processes.count > size else {}
            shape["shard"] = size
            mesh = init_device_mesh(processes.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
            for module in [*repeated_layers(encoder), encoder]:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        elif processes.count > 1:
            self.model = DistributedDataParallel(encoder)
        # After the sharding, so that its state has the weights' shards.
        self.optimizer: Any = build_optimizer(encoder, optim, encoder.no_decay_names())
        self._skips = torch.zeros((), device=processes.device)  # 1 after a step with a value that is not finite
        saved = encoder.state_dict().keys()
        self._buffers = [buffer for name, buffer in encoder.named_buffers() if name in saved]

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Enclose forward and backward pass of a micro-batch; gradients are all-reduced in the ``last`` one only."""
        if self.shards_weights:
            self.model.set_requires_gradient_sync(last)
        elif isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def clip_grad_norm(self, limit: float | None) -> Tensor:
        """Clip the gradient to the norm ``limit``; returns its norm () before."""
        parameters = [value for value in self.encoder.parameters() if value.grad is not None]
        norm = nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])
        if limit is not None:  # otherwise torch would multiply every gradient by 1
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return full_tensor(norm)

    def optimizer_step(self, rate: float, *, is_finite: Tensor) -> None:
        """Update the weights, reset the gradient, and copy the main process's batch norm statistics.

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
        self.encoder.clamp_logit_scale()
        self.optimizer.zero_grad()
        for buffer in self._buffers if self.processes.count > 1 else ():  # so that a resumed run has the same
            dist.broadcast(buffer, 0)

    # ---- checkpoints, whose tensors have the names of the model's parameters, so that either strategy resumes them

    def select_own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a state dict that this process writes: its shards, and its part of the others."""
        count, rank = self.processes.count, self.processes.rank
        return {
            name: value
            for name, value in state.items()
            if isinstance(value, DTensor) or zlib.crc32(name.encode()) % count == rank
        }

    def optimizer_state_dict(self) -> dict[str, Tensor]:
        """Return AdamW's tensors by name: ``PARAMETER.exp_avg`` …; to fill if there was no step, where they are 0."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                known = self.optimizer.state[parameter]
                if not known:  # as the optimizer creates it in the first step
                    moments = {key: torch.zeros_like(parameter.detach()) for key in ("exp_avg", "exp_avg_sq")}
                    known |= {"step": torch.zeros((), device=parameter.device), **moments}
                state |= {f"{name}.{key}": value for key, value in known.items()}
        return state


class ModelEma:
    """The exponential moving average (EMA) of a state dict of full tensors or shards.

    Args:
        decay: weight of the previous average in an update.
        state: the state before the first step, or a checkpoint's average.
        updates: number of updates so far; the first one copies the state.
    """

    def __init__(self, decay: float, state: Mapping[str, Tensor], *, updates: int = 0) -> None:
        self.decay, self.updates = decay, updates
        self.state = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        """Update with the state after a step; integer tensors are copied."""
        weight = 1 - self.decay if self.updates else 1.0
        averaged = [name for name, value in state.items() if value.is_floating_point()]
        averages, values = (
            # this process's shards, which share their memory, or full tensors
            [value.to_local() if isinstance(value := tensors[name], DTensor) else value.detach() for name in averaged]
            for tensors in (self.state, state)
        )
        torch._foreach_lerp_(averages, values, weight)  # one kernel for many tensors
        for name in state.keys() - set(averaged):
            self.state[name].copy_(state[name])
        self.updates += 1


def bf16_gathers(model: nn.Module) -> MixedPrecisionPolicy:
    """Return the policy that gathers in bf16 the weights that autocast would cast to it, and no others.

    Half the bytes are sent, no second copy of the weights is made, and norms, embeddings and the logit scale stay
    float32 as under autocast. Before torch 2.15, which can gather both in one layer, all are gathered as float32.
    """
    if "param_dtype_override_fn" not in {field.name for field in dataclasses.fields(MixedPrecisionPolicy)}:
        return FLOAT32
    cast = set(bf16_weights(model))
    return MixedPrecisionPolicy(
        torch.bfloat16,
        torch.float32,
        cast_forward_inputs=False,
        param_dtype_override_fn=lambda weight: None if weight in cast else weight.dtype,
    )


def full_tensor(value: Tensor) -> Tensor:
    """Return the full tensor of a shard, and other tensors unchanged; a collective call."""
    return value.full_tensor() if isinstance(value, DTensor) else value
