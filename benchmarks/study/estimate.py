"""What one step of a study takes, as far as known, and what all take together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks.results.formatting import format_duration
from benchmarks.study.steps import Share, Step, time_left

_GB = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What one step takes; None where that is not known.

    Args:
        basis: what it rests on, or why nothing is known.
        seconds: wall time.
        memory: bytes of one process, or of one GPU.
        disk: bytes that it leaves.
        most: bytes on disk while it runs, where checkpoints make them more.
        gpu_hours: hours × GPUs.
    """

    basis: str
    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    most: float | None = None
    gpu_hours: float | None = None

    def words(self) -> str:
        """The estimate in a line."""
        parts = [
            f"about {format_duration(self.seconds)}" if self.seconds is not None else "time unknown",
            f"{self.gpu_hours:,.3g} GPU hours" if self.gpu_hours is not None else "",
            f"{format_bytes(self.memory)} memory" if self.memory is not None else "memory unknown",
            f"{format_bytes(self.disk)} disk" if self.disk is not None else "",
            f"up to {format_bytes(self.most)} with checkpoints" if self.most is not None else "",
        ]
        return f"{', '.join(part for part in parts if part)} ({self.basis})"


def total_cost(estimates: Mapping[str, CostEstimate], steps: Sequence[Step], shares: Mapping[str, Share]) -> str:
    """The sum in a line; what is not known is counted.

    Args:
        estimates: of the steps that would run.
        steps: all of the study.
        shares: how much of the executor each takes.
    """
    known = list(estimates.values())
    rests = {name: one.seconds for name, one in estimates.items() if one.seconds is not None}
    seconds, least = list(rests.values()), time_left(steps, rests, shares)
    memory = [one.memory for one in known if one.memory is not None]
    hours = [one.gpu_hours for one in known if one.gpu_hours is not None]
    kept = [one.disk for one in known if one.disk is not None]
    more = max([one.most - (one.disk or 0) for one in known if one.most is not None], default=0.0)
    parts = [f"in all about {format_duration(sum(seconds))} of steps" if seconds else "in all: time unknown"]
    if least < 0.99 * sum(seconds):  # not by rounding alone
        parts.append(f"side by side not less than {format_duration(least)}")
    parts += [f"{sum(hours):,.3g} GPU hours"] if hours else []
    parts += [f"at most {format_bytes(max(memory))} memory at once in a step"] if memory else []
    parts += [f"{format_bytes(sum(kept))} disk"] if kept else []
    parts += [f"and {format_bytes(more)} for checkpoints"] if more > 0 else []
    lacking = len(known) - len(seconds)
    return ", ".join(parts) + (f"; the time of {lacking} steps is unknown" if lacking and seconds else "")


def format_bytes(count: float) -> str:
    """Bytes in words."""
    for unit, name in ((1e12, "TB"), (_GB, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}"
    return f"{count / 1e3:,.3g} kB"
