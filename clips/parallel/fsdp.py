"""Every process holds shards of the model, gathered layer by layer (torch's FSDP2)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from clips.model.layers import bf16_weights, repeated_layers
from clips.parallel.distributed import DistributedContext
from clips.parallel.distributed_config import check_shard_group_size

FLOAT32 = MixedPrecisionPolicy()
"""Weights are gathered as they are."""


def gathers_bf16() -> bool:
    """Whether this torch can gather some weights of a layer in bf16 and others in float32: 2.15 or later."""
    return "param_dtype_override_fn" in {field.name for field in dataclasses.fields(MixedPrecisionPolicy)}


def bf16_gathers(model: nn.Module) -> MixedPrecisionPolicy:
    """Return the policy that gathers in bf16 the weights that autocast would cast to it, and no others.

    Half the bytes are sent, no second copy of the weights is made, and norms, embeddings and the logit scale stay
    float32 as under autocast. See `gathers_bf16`: otherwise they are gathered as float32.
    """
    if not gathers_bf16():
        return FLOAT32
    cast = set(bf16_weights(model))
    return MixedPrecisionPolicy(
        torch.bfloat16,
        torch.float32,
        cast_forward_inputs=False,
        param_dtype_override_fn=lambda weight: None if weight in cast else weight.dtype,
    )


def shard_model(
    model: nn.Module,
    processes: DistributedContext,
    *,
    policy: MixedPrecisionPolicy = FLOAT32,
    group_size: int | None = None,
) -> nn.Module:
    """Shard a model's weights; repeated layers are gathered one at a time, all other weights together.

    Weights stay float32, gradients are reduced in float32.

    Args:
        model: unsharded; changed in place.
        processes: the processes of the training.
        policy: the dtype of gathered weights.
        group_size: number of consecutive processes that share a full set of shards; other groups hold copies of it, and
            the gradients are averaged over all (HSDP). None is all processes.

    Raises:
        UserError: the number of processes is no multiple of ``group_size``.
    """
    check_shard_group_size(group_size, processes.count)
    size = group_size or processes.count
    shape = {"replicate": processes.count // size, "shard": size}
    shape = {name: length for name, length in shape.items() if name == "shard" or length > 1}
    mesh = init_device_mesh(processes.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
    for module in [*repeated_layers(model), model]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return model


def full_tensor(value: Tensor) -> Tensor:
    """Return the full tensor of a shard, and other tensors unchanged; a collective call."""
    return value.full_tensor() if isinstance(value, DTensor) else value
