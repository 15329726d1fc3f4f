"""The duration of each step, as bars on one time axis without the pauses between runs.

A step that was interrupted and resumed is drawn as if it had run without a break up to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results.formatting import format_duration
from benchmarks.study.step_state import StepRecord

_MAX_IDLE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class TimelineBar:
    """One step; ``left`` and ``width`` are per cent of the axis."""

    name: str
    kind: str
    status: str
    left: float
    width: float
    duration: str
    memory: str
    log_tail: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All steps, the wall time without pauses, and the sum of the steps' times."""

    bars: tuple[TimelineBar, ...]
    wall: str
    work: str


def build_timeline(records: Sequence[StepRecord]) -> Timeline | None:
    """The bars of the steps; None without any."""
    if not records:
        return None
    begins = [record.started - record.previous_seconds for record in records]
    spans = [(begin, begin + record.seconds) for begin, record in zip(begins, records, strict=True)]
    starts, end = compress_idle_time(spans)
    bars = tuple(
        TimelineBar(
            name=record.name,
            kind=record.kind,
            status=record.status,
            left=round(100 * start / end, 3),
            width=round(max(100 * record.seconds / end, 0.4), 3),
            duration=format_duration(record.seconds),
            memory=f"{record.peak_memory_mb / 1024:.1f} GB" if record.peak_memory_mb else "",
            log_tail=record.log_tail,
        )
        for record, start in zip(records, starts, strict=True)
    )
    return Timeline(
        bars=bars, wall=format_duration(end), work=format_duration(sum(record.seconds for record in records))
    )


def compress_idle_time(spans: Sequence[tuple[float, float]]) -> tuple[list[float], float]:
    """The start of each span (start, end) and the end of all, after idle times of more than 30 s are removed."""
    first = busy_until = offset = min(start for start, _ in spans)
    offsets = [(first, offset)]  # (start, seconds to subtract from then on)
    for start, end in sorted(spans):
        if start - busy_until > _MAX_IDLE_SECONDS:
            offset += start - busy_until
            offsets.append((start, offset))
        busy_until = max(busy_until, end)

    def shifted(time: float) -> float:
        return time - [seconds for since, seconds in offsets if since <= time][-1]

    return [shifted(start) for start, _ in spans], max(shifted(start) + end - start for start, end in spans) or 1.0
