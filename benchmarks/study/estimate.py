"""The estimated cost of a study's steps and their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks.results.formatting import format_duration
from benchmarks.study.steps import Share, Step, time_left

_GB = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The cost of one step; unknown values are None.

    Args:
        basis: of the estimate, or the reason why it is unknown.
        seconds: wall time.
        memory: bytes of one process, or of one GPU.
        disk: bytes of its outputs.
        most: peak bytes on disk, with checkpoints.
        gpu_hours: hours × GPUs.
    """

    basis: str
    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    most: float | None = None
    gpu_hours: float | None = None

    def describe(self) -> str:
        """The estimate as one line."""
        parts = [
            f"about {format_duration(self.seconds)}" if self.seconds is not None else "time unknown",
            f"{self.gpu_hours:,.3g} GPU hours" if self.gpu_hours is not None else "",
            f"{format_bytes(self.memory)} memory" if self.memory is not None else "memory unknown",
            f"{format_bytes(self.disk)} disk" if self.disk is not None else "",
            f"up to {format_bytes(self.most)} with checkpoints" if self.most is not None else "",
        ]
        return f"{', '.join(part for part in parts if part)} ({self.basis})"


def total_cost(estimates: Mapping[str, CostEstimate], steps: Sequence[Step], shares: Mapping[str, Share]) -> str:
    """The sum as one line, with the number of steps whose time is unknown.

    Args:
        estimates: of the steps that would run.
        steps: all steps of the study.
        shares: see ``ExecutorConfig.shares``.
    """
    costs = list(estimates.values())
    seconds = {name: cost.seconds for name, cost in estimates.items() if cost.seconds is not None}
    total, in_parallel = sum(seconds.values()), time_left(steps, seconds, shares)
    memory = [cost.memory for cost in costs if cost.memory is not None]
    hours = [cost.gpu_hours for cost in costs if cost.gpu_hours is not None]
    disk = [cost.disk for cost in costs if cost.disk is not None]
    checkpoints = max([cost.most - (cost.disk or 0) for cost in costs if cost.most is not None], default=0.0)
    parts = [f"total: about {format_duration(total)} of steps" if seconds else "total: time unknown"]
    if in_parallel < 0.99 * total:  # more than a rounding error
        parts.append(f"in parallel at least {format_duration(in_parallel)}")
    parts += [f"{sum(hours):,.3g} GPU hours"] if hours else []
    parts += [f"up to {format_bytes(max(memory))} memory in a step"] if memory else []
    parts += [f"{format_bytes(sum(disk))} disk"] if disk else []
    parts += [f"and {format_bytes(checkpoints)} for checkpoints"] if checkpoints > 0 else []
    unknown = len(costs) - len(seconds)
    return ", ".join(parts) + (f"; the time of {unknown} steps is unknown" if unknown and seconds else "")


def format_bytes(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit, name in ((1e12, "TB"), (_GB, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}"
    return f"{count / 1e3:,.3g} kB"
