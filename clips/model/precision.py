"""Compute precision of a model: float32, or bfloat16 activations with float32 parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from clips.model.architectures import Precision


def resolve_precision(wanted: Precision, device: torch.device) -> tuple[Literal["fp32", "bf16"], str]:
    """Return the precision and the reason. ``auto`` selects bf16 if the hardware multiplies it faster than float32.

    The criterion is the instruction set, not a timing, so that all runs on a machine have the same precision.
    """
    if wanted != "auto":
        return wanted, "as configured"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
    else:
        fast = _cpu_multiplies_bf16()
        name = "this CPU"
    return ("bf16", f"{name} multiplies it faster") if fast else ("fp32", f"{name} is not faster with bf16")


def _cpu_multiplies_bf16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


@contextlib.contextmanager
def fast_sdpa_backend(device: torch.device, precision: Literal["fp32", "bf16"]) -> Iterator[None]:
    """Use attention by plain matrix products for bf16 on a CPU, where training is faster with them.

    The backward pass of the fused kernel takes three to ten times as long at the lengths of small towers. Enclose
    forward and backward pass together: recomputed activations must come from the same kernel.
    """
    if device.type != "cpu" or precision != "bf16":
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # affects CPUs, too, despite its name
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # otherwise it computes in float32, in twice the time
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
