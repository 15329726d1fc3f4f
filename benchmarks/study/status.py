"""The progress of a study, read from its files, and its display in a terminal."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.results.formatting import format_duration, strip_control_chars
from benchmarks.study.build_steps import StudyPlan
from benchmarks.study.locks import LOCK, is_locked
from benchmarks.study.runner import PLAN
from benchmarks.study.state import StepRecord, log_tail, read_record, step_state
from benchmarks.study.steps import Step

if TYPE_CHECKING:
    from rich.console import Console, Group

_COUNTED = re.compile(r"(?:step |: )([\d,]+)(?:/| of )([\d,]+)")
STATE_STYLES = {"done": "green", "failed": "red", "cannot run": "red", "running": "cyan", "waiting": "dim"}
_ENDED = {"done", "failed", "cannot run"}
_OPTIONAL_COLUMNS = ("memory", "time", "progress")  # omitted in a narrow terminal, in this order


@dataclass(frozen=True, kw_only=True)
class StepStatus:
    """The progress of one step.

    Args:
        name: of the step.
        state: see `state.step_state`; with a runner at work also ``waiting`` and ``cannot run``.
        record: of its last job.
        seconds: elapsed time.
        left: estimated remaining seconds; None if unknown.
        progress: such as ``40/150 27 %``, from its log; empty if unknown.
        last: the last line of its log while it runs or after a failure.
    """

    name: str
    state: str
    record: StepRecord | None = None
    seconds: float = 0.0
    left: float | None = None
    progress: str = ""
    last: str = ""


def read_statuses(plan: StudyPlan, *, running: bool | None = None) -> list[StepStatus]:
    """The current status of every step; ``running``, whether a runner is at work, is checked if not given."""
    output = plan.study.directory
    running = is_locked(output / LOCK) if running is None else running
    try:
        began = float(json.loads((output / PLAN).read_text(encoding="utf-8"))["began"])  # the last `study run`
    except (OSError, ValueError, KeyError):
        began = 0.0
    records = {step.name: read_record(output, step.name) for step in plan.steps}
    taken = {name: record.seconds for name, record in records.items() if record and record.status == "done"}
    of_kind: dict[str, list[float]] = {}
    for step in plan.steps:
        if step.name in taken:
            of_kind.setdefault(step.kind, []).append(taken[step.name])
    found: dict[str, StepStatus] = {}
    for step in plan.steps:
        record, state = records[step.name], step_state(step)
        if running and state not in {"done", "running"} and not (record and record.started >= began):
            parents = {found[parent].state for parent in step.parents}
            state = "cannot run" if parents & {"failed", "cannot run"} else "waiting"
        has_begun = state not in {"new", "waiting", "cannot run"}
        seconds = record.seconds if record and has_begun else 0.0
        left = statistics.mean(of_kind[step.kind]) if step.kind in of_kind else None
        left, progress, last = taken.get(step.name, left), "", ""
        if record is not None and state == "running":
            lines = log_tail(step.directory)
            seconds += time.time() - record.started
            left = left if left is None else max(left - seconds, 0.0)
            progress, last = _progress(lines), lines[-1] if lines else ""
        elif record is not None and record.log_tail and has_begun and state != "done":
            last = record.log_tail[-1]
        found[step.name] = StepStatus(
            name=step.name, state=state, record=record, seconds=seconds, left=left, progress=progress, last=last
        )
    return list(found.values())


def _progress(lines: Sequence[str]) -> str:
    """``40/150 27 %`` from the last line with ``step 40/150`` or ``1,000 of 9,000``; else empty."""
    for line in reversed(lines):
        if found := _COUNTED.search(line):
            done, total = (int(text.replace(",", "")) for text in found.groups())
            return f"{done:,}/{total:,} {100 * done // max(total, 1)} %"
    return ""


def time_left(steps: Sequence[Step], jobs: int, statuses: Sequence[StepStatus]) -> float | None:
    """Estimated seconds until all running and waiting steps are done; None if the time of one is unknown.

    The longest chain of steps, or all steps' time divided by ``jobs``, whichever is longer.
    """
    left = {status.name: status.left for status in statuses if status.state in {"waiting", "running"}}
    if None in left.values():
        return None
    ends: dict[str, float] = {}
    for step in steps:
        ends[step.name] = (left.get(step.name) or 0.0) + max((ends[each] for each in step.parents), default=0.0)
    return max(sum(seconds or 0.0 for seconds in left.values()) / jobs, *ends.values())


def progress_view(plan: StudyPlan, statuses: Sequence[StepStatus], width: int) -> Group:
    """A table of the steps, a summary, and the last log lines of running and failed steps.

    Args:
        plan: the study.
        statuses: of its steps.
        width: of the terminal; a narrow one gets fewer columns, but whole names of steps.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = []
    for status in statuses:
        peak = status.record.peak_memory_mb if status.record else None
        rows.append(
            {
                "step": status.name,
                "state": status.state,
                "progress": status.progress,
                "time": format_duration(status.seconds) if status.seconds else "",
                "left": format_duration(status.left) if status.left and status.state == "running" else "",
                "memory": f"{peak / 1024:.1f} GB" if peak else "",
            }
        )
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) + 2 for name in rows[0]} if rows else {}
    columns = list(widths)
    for name in _OPTIONAL_COLUMNS:
        if sum(widths[column] for column in columns) > width:
            columns.remove(name)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in {"time", "left", "memory"} else "left", no_wrap=True)
    for row, status in zip(rows, statuses, strict=True):
        style = STATE_STYLES.get(status.state, "yellow")
        table.add_row(*(Text(row[name], style=style if name in {"step", "state"} else "") for name in columns))
    states = [status.state for status in statuses]
    summary = [f"{states.count('done')} of {len(states)} done"]
    summary += [f"{states.count('failed')} failed"] if "failed" in states else []
    if {"waiting", "running"} & set(states):
        left = time_left(plan.steps, plan.study.jobs, statuses)
        summary += [f"about {format_duration(left)} left"] if left else []
    elif len(states) > states.count("done"):
        summary.append("nothing is running")
    parts: list[Table | Text] = [table, Text(", ".join(summary), style="bold")]
    for status in statuses:
        if status.last and status.state != "done":
            parts.append(Text(f"{status.name}: {strip_control_chars(status.last, 160)}", style="dim"))
    return Group(*parts)


def follow_progress(plan: StudyPlan, console: Console, wait: Callable[[], None]) -> None:
    """Redraw the progress of a study until no step runs; ``wait`` is called between two updates."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = read_statuses(plan)
            live.update(progress_view(plan, statuses, console.width), refresh=True)
            if not any(status.state in {"waiting", "running"} for status in statuses):
                return
            wait()


class ProgressDisplay:
    """The runner's display: in a terminal a table that is redrawn, elsewhere a line for each change.

    Args:
        plan: the study.
        console: for the output.
    """

    def __init__(self, plan: StudyPlan, console: Console) -> None:
        from rich.live import Live

        self.plan, self.console = plan, console
        self.statuses = read_statuses(plan, running=True)
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._shown = 0.0
        self.show()
        if self.live:
            self.live.stop()

    def show(self) -> None:
        """Update the display, at most twice a second."""
        if time.monotonic() - self._shown < 0.5:
            return
        self._shown = time.monotonic()
        before, self.statuses = self.statuses, read_statuses(self.plan, running=True)
        if self.live:
            self.live.update(progress_view(self.plan, self.statuses, self.console.width), refresh=True)
        else:
            for line in _changes(before, self.statuses):
                self.console.print(line, markup=False, soft_wrap=True)


def _changes(before: Sequence[StepStatus], now: Sequence[StepStatus]) -> list[str]:
    """Lines such as ``[3/15] encoder-clips-s0: done after 12 s`` for changed states, with the log of failures."""
    states = {status.name: status.state for status in before}
    ended = sum(status.state in _ENDED for status in before)
    lines = []
    for status in now:
        if status.state == states.get(status.name) or status.state == "waiting":
            continue
        ended += (status.state in _ENDED) - (states.get(status.name) in _ENDED)
        line = f"[{ended}/{len(now)}] {status.name}: {status.state}"
        if status.record is not None and status.state == "running":
            line += f" ({status.record.command})"
        elif status.record is not None and status.state != "cannot run":
            line += f" after {format_duration(status.seconds)}"
        lines.append(line)
        if status.record is not None and status.state == "failed":
            lines.append(f"{status.name} failed: {status.record.command}")
            lines += [f"    {strip_control_chars(text)}" for text in status.record.log_tail]
    return lines
