"""How a training is spread over processes, and what memory is traded for: settings that leave its result alone."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clips.errors import UserError

Parallel = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]

ZERO_REDUCE_BUCKET_SIZE = 100_000_000
"""Numbers in the buffer that ZeRO packs gradients into, held as a whole; DeepSpeed's default is five times as many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How the work is spread, and what is traded for memory. The result is the same but for rounding.

    Args:
        strategy: ddp (every process holds the whole model), fsdp (parameters, gradients and optimizer state in shards,
            torch's FSDP2), or DeepSpeed's ZeRO with shards of the optimizer state (zero1), of the gradients too
            (zero2), of the parameters too (zero3). A run may resume under another one, and on more or fewer processes.
        activation_checkpointing: keep each layer's input only and compute its activations again in the backward pass.
        torch_compile: compile the layers with torch.compile; pays on GPUs.
        hang_timeout: seconds that a process may hang before the training ends and names it.
        device_peak_tflops: what a device can reach in the training's precision, in 1e12 FLOP/s, for the log's ``mfu``;
            by default the data sheet's of the GPU. Of a CPU, ``scripts/bench/mfu.py`` measures it.
    """

    strategy: Parallel = "ddp"
    activation_checkpointing: bool = False
    torch_compile: bool = False
    hang_timeout: float = 1800
    device_peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if not self.hang_timeout > 0:
            raise UserError(f"distributed.hang_timeout: expected seconds above 0, got {self.hang_timeout}")
        if self.device_peak_tflops is not None and not self.device_peak_tflops > 0:
            raise UserError(
                f"distributed.device_peak_tflops: expected 1e12 FLOP/s above 0, got {self.device_peak_tflops}"
            )
