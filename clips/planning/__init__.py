"""What a training will need before it costs anything: memory, time, GPUs and storage."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Estimated resources of a training or other work; None if unknown.

    Args:
        basis: the basis of the numbers, or why there are none.
        seconds: wall time.
        gpu_hours: hours × GPUs.
        memory: bytes of one GPU, or of one process.
        disk: bytes on disk afterwards.
        most: bytes on disk while it runs, if checkpoints make it more.
    """

    basis: str
    seconds: float | None = None
    gpu_hours: float | None = None
    memory: float | None = None
    disk: float | None = None
    most: float | None = None
