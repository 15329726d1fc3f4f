"""How long each step took, as bars on one time axis from which the pauses between runs are cut.

A step that went on after interruptions is drawn as though it had run at one go up to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results.formatting import format_duration
from benchmarks.study.step_state import StepRecord

_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, kw_only=True)
class TimelineBar:
    """One step. ``left`` and ``width`` are per cent of the axis."""

    name: str
    kind: str
    outcome: str
    left: float
    width: float
    duration: str
    memory: str
    log_tail: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All steps, the wall time without pauses and the sum of the steps' times."""

    bars: tuple[TimelineBar, ...]
    wall: str
    work: str


def build_timeline(records: Sequence[StepRecord]) -> Timeline | None:
    """The bars of the steps that ran; None where none did."""
    if not records:
        return None
    begins = [record.started - record.previous_seconds for record in records]
    spans = [(begin, begin + record.seconds) for begin, record in zip(begins, records, strict=True)]
    starts, end = compress_idle_time(spans)
    bars = tuple(
        TimelineBar(
            name=record.name,
            kind=record.kind,
            outcome=record.status,
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
    """Where each span (start, end) begins, and where all end, once idle time beyond 30 s is cut to nothing."""
    cut: list[tuple[float, float]] = []  # (from when on, seconds cut so far)
    busy_until = min(start for start, _ in spans)
    total = busy_until
    for start, end in sorted(spans):
        if start - busy_until > _LONGEST_PAUSE:
            total += start - busy_until
            cut.append((start, total))
        busy_until = max(busy_until, end)
    first = min(start for start, _ in spans)

    def shifted(moment: float) -> float:
        gone = [seconds for since, seconds in cut if since <= moment]
        return moment - (gone[-1] if gone else first)

    return [shifted(start) for start, _ in spans], max(shifted(start) + end - start for start, end in spans) or 1.0
