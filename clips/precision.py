"""What a model computes in: float32, or bfloat16 activations over float32 parameters."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def choose_precision(wanted: Precision, device: torch.device) -> tuple[Literal["fp32", "bf16"], str]:
    """What to compute in, and why. ``auto`` takes bf16 where the hardware multiplies it faster than float32.

    It goes by the machine's instructions, not by a stop-watch: two runs of one comparison must not differ in it.
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
