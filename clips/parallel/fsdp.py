"""Every process holds shards of the model, gathered layer by layer (torch's FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from clips.method.clips_model import ClipsModel
from clips.method.optimizer import OptimizerConfig, build_optimizer
from clips.model.layers import repeated_layers
from clips.parallel.ddp import Strategy
from clips.parallel.distributed import DistributedContext


def shard_model(
    model: nn.Module,
    processes: DistributedContext,
    *,
    bf16: bool = False,
    exact: Sequence[nn.Module] = (),
    unsharded: Sequence[nn.Module] = (),
) -> nn.Module:
    """Shard a model's weights; repeated layers are gathered one at a time, all other weights together.

    Weights stay float32, gradients are reduced in float32.

    Args:
        model: unsharded; changed in place.
        processes: the processes of the training.
        bf16: cast weights and inputs of the layers to bf16 when they compute.
        exact: modules with float32 weights and inputs, because they enter autocast themselves.
        unsharded: modules that stay replicated, because not all processes call them in every step.
    """
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    ignored = {weight for module in unsharded for weight in module.to(processes.device).parameters()}
    all_unsharded, all_exact = ({inner for one in some for inner in one.modules()} for some in (unsharded, exact))
    for module in [*repeated_layers(model), *exact]:
        if module not in all_unsharded:
            own = MixedPrecisionPolicy(cast_forward_inputs=False) if module in all_exact else policy
            fully_shard(module, mesh=mesh, mp_policy=own)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=ignored)
    return model


class FSDPStrategy(Strategy):
    """Parameters, gradients and optimizer state in shards. Arguments as `DDPStrategy`."""

    shards_weights = True

    def __init__(self, encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext) -> None:
        model = shard_model(encoder, processes)  # the optimizer's state is sharded as the weights are
        super().__init__(encoder, processes, model, build_optimizer(encoder, optim, encoder.no_decay_names()))

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """See `Strategy`."""
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
