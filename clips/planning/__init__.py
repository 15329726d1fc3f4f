"""What a training will need before it costs anything: memory, time, GPUs and storage."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training, or another piece of work, takes; None where that is not known.

    Args:
        basis: what the numbers rest on, or why there are none.
        seconds: wall time.
        gpu_hours: hours × GPUs.
        memory: bytes of one GPU, or of one process.
        disk: bytes that it leaves.
        most: bytes on disk while it runs, where checkpoints make them more.
    """

    basis: str
    seconds: float | None = None
    gpu_hours: float | None = None
    memory: float | None = None
    disk: float | None = None
    most: float | None = None
