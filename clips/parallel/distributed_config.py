"""Config of distributed training, memory saving and compilation, which do not change the result."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clips.errors import UserError
from clips.ranges import Positive, PositiveFloat

TIMEOUT = 1800.0
"""Seconds that processes wait for another: more than the main process takes to hash a large model's checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Settings of distributed training and memory saving. The result is the same except for rounding.

    Args:
        strategy: ddp (every process holds the full model) or fsdp (shards of parameters, gradients and optimizer state,
            torch's FSDP2). A run may resume with another strategy or number of processes.
        shard_group_size: under fsdp, number of processes that share one set of shards, such as the GPUs of a node; the
            other groups hold copies (HSDP), so that weights are gathered within a node and only gradients are averaged
            between nodes. null is all processes, for the least memory.
        activation_checkpointing: store only each layer's input and recompute its activations in the backward pass.
        torch_compile: compile the layers with torch.compile; faster on GPUs.
        hang_timeout: seconds that processes wait for another, which hangs or works alone, before the training ends.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    shard_group_size: Positive | None = None
    activation_checkpointing: bool = False
    torch_compile: bool = False
    hang_timeout: PositiveFloat = TIMEOUT

    def __post_init__(self) -> None:
        if self.shard_group_size is not None and self.strategy != "fsdp":
            raise UserError(
                "distributed.shard_group_size: expected null, or a number of processes with strategy: fsdp; "
                f"got {self.shard_group_size} with {self.strategy}"
            )


def check_shard_group_size(size: int | None, processes: int) -> None:
    """Raise UserError unless ``processes`` form groups of ``size``, see `DistributedConfig`."""
    if size is not None and processes % size:
        raise UserError(f"distributed.shard_group_size: expected a divisor of the {processes} processes, got {size}")
