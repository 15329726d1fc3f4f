"""Training processes and their weights: under ZeRO-3 each process has a shard of every weight."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llava_bridge.training.launch import is_main_process


def init_process_group() -> None:
    """Join the process group of the launcher, and select this process's GPU."""
    import deepspeed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    # On CPU DeepSpeed would first compile a shared-memory all-reduce for a minute; gloo needs none.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def barrier() -> None:
    """Wait for all processes."""
    torch.distributed.barrier()


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded."""
    return any(hasattr(weight, "ds_tensor") for weight in model.parameters())


def fits_bf16(weight: Tensor) -> bool:
    """Whether bf16 represents ``weight`` exactly; true for 4 bits."""
    return not weight.is_floating_point() or torch.equal(weight, weight.bfloat16().to(weight.dtype))


def frozen_fits_bf16(module: nn.Module) -> bool:
    """Whether bf16 represents the frozen weights of ``module`` exactly."""
    return all(fits_bf16(weight) for weight in module.parameters() if not weight.requires_grad)


def finer_than_bf16(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights, by name, that bf16 does not represent exactly; DeepSpeed rounds them."""
    trainable = ((name, weight.data) for name, weight in model.named_parameters() if weight.requires_grad)
    return {name: value for name, value in trainable if not fits_bf16(value)}


def set_masters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set DeepSpeed's float32 master weights to ``values``.

    DeepSpeed initializes them from the weights rounded to bf16. Small updates from rounded values change the bf16
    weights only after they have accumulated; from exact values some change them immediately.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    weights: dict[str, Any] = dict(model.named_parameters())
    for name, value in values.items():
        weight = weights[name]
        if not hasattr(weight, "ds_tensor"):
            safe_set_full_fp32_param(weight, value)
            continue
        size, rank = weight.ds_tensor.numel(), torch.distributed.get_rank()
        shard = value.flatten()[size * rank : size * (rank + 1)]
        safe_set_local_fp32_param(weight, nn.functional.pad(shard, (0, size - shard.numel())))


def gather_trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights and the persistent buffers, by name, unsharded, on the CPU.

    Called in every process; only the main process returns them. One weight is unsharded at a time.
    """
    gathered: dict[str, Tensor] = {}
    persistent = model.state_dict().keys()
    values: list[tuple[str, Tensor]] = [
        (name, value) for name, value in model.named_parameters() if value.requires_grad
    ]
    values += [(name, value) for name, value in model.named_buffers() if name in persistent]
    for name, value in values:
        with _unsharded(value) as full:
            if is_main_process():
                gathered[name] = full.detach().cpu().clone()
    return gathered


@contextlib.contextmanager
def _unsharded(value: Tensor) -> Iterator[Tensor]:
    if not hasattr(value, "ds_tensor"):
        yield value
        return
    from deepspeed import zero

    with zero.GatheredParameters([value]):
        yield value


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that training must not change: frozen weights, and the buffers if all weights are frozen.

    Of a sharded weight this process's shard.
    """
    weights = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    all_frozen = len(weights) == len(list(module.parameters()))
    buffers = dict(module.named_buffers()) if all_frozen else {}
    return {name: getattr(value, "ds_tensor", value) for name, value in {**weights, **buffers}.items()}


def tensors_hash(values: dict[str, Tensor]) -> str:
    """SHA-256 of all ``values``, bit for bit."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
