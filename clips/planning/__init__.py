"""Estimates of the memory, time, GPUs and storage that a training needs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Estimated resources of a training or other work; None if unknown.

    Args:
        basis: source of the numbers, or why there are none.
        seconds: wall time.
        gpu_hours: hours × GPUs.
        memory: bytes of one GPU, or of one process.
        disk: bytes on disk afterwards.
        most: peak bytes on disk during the run, with checkpoints.
    """

    basis: str
    seconds: float | None = None
    gpu_hours: float | None = None
    memory: float | None = None
    disk: float | None = None
    most: float | None = None
