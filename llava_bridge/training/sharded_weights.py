"""Weights that may lie in parts: under ZeRO-3 and FSDP each process holds a part of every one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llava_bridge.training.launch import is_main_process


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights lie in parts."""
    return any(hasattr(weight, "ds_tensor") or isinstance(weight, DTensor) for weight in model.parameters())


def fits_bf16(weight: Tensor) -> bool:
    """Whether bf16 holds ``weight`` as it is; of 4 bits it does."""
    return not weight.is_floating_point() or torch.equal(weight, weight.bfloat16().to(weight.dtype))


def frozen_fits_bf16(module: nn.Module) -> bool:
    """Whether bf16 holds the frozen weights of ``module`` as they are."""
    return all(fits_bf16(weight) for weight in module.parameters() if not weight.requires_grad)


def finer_than_bf16(model: nn.Module) -> dict[str, Tensor]:
    """The weights that learn and that bf16 does not hold, by name; DeepSpeed puts rounded ones in their place."""
    learn = ((name, weight.data) for name, weight in model.named_parameters() if weight.requires_grad)
    return {name: value for name, value in learn if not fits_bf16(value)}


def set_masters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Let DeepSpeed's float32 copies of these weights, which the optimizer moves, begin with ``values``.

    DeepSpeed makes them of the weights that it has rounded to bf16 before. From there, updates below half a step of
    bf16 leave what is computed with as it is until they add up; from the exact values some of them cross at once.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    weights: dict[str, Any] = dict(model.named_parameters())
    for name, value in values.items():
        weight = weights[name]
        if not hasattr(weight, "ds_tensor"):
            safe_set_full_fp32_param(weight, value)
            continue
        part, rank = weight.ds_tensor.numel(), torch.distributed.get_rank()
        own = value.flatten()[part * rank : part * (rank + 1)]
        safe_set_local_fp32_param(weight, nn.functional.pad(own, (0, part - own.numel())))


def gather_trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that have learned and all that is persistent beside weights, by name, whole, on the CPU.

    Called in every process; only the main process gets them. One weight is whole at a time.
    """
    found: dict[str, Tensor] = {}
    kept = model.state_dict().keys()
    learned = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    for name, value in [*learned, *((name, value) for name, value in model.named_buffers() if name in kept)]:
        with _whole(value) as all_of_it:
            if is_main_process():
                found[name] = all_of_it.detach().cpu().clone()
    return found


@contextlib.contextmanager
def _whole(value: Tensor) -> Iterator[Tensor]:
    if not hasattr(value, "ds_tensor"):
        yield value.full_tensor() if isinstance(value, DTensor) else value
        return
    from deepspeed import zero

    with zero.GatheredParameters([value]):
        yield value


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What of ``module`` must not change in training: weights without gradients, and buffers if it has no others.

    Of weights in parts it is this process's part.
    """
    weights = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    learns = len(weights) < len(list(module.parameters()))
    buffers = {} if learns else dict(module.named_buffers())
    return {name: _own_part(value) for name, value in {**weights, **buffers}.items()}


def _own_part(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else getattr(value, "ds_tensor", value)


def tensors_hash(values: dict[str, Tensor]) -> str:
    """SHA-256 of all ``values``, bit for bit."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
