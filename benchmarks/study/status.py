"""The progress of a study, read from its files, and its display in a terminal."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results.formatting import format_duration, strip_control_chars
from benchmarks.study.locks import LOCK, is_locked
from benchmarks.study.runner import PLAN
from benchmarks.study.state import StepKey, StepRecord, log_tail, read_record, step_state
from benchmarks.study.steps import Step

if TYPE_CHECKING:
    from rich.console import Console, Group

_COUNTED = re.compile(r"(?:step |: )([\d,]+)(?:/| of )([\d,]+)")
_STYLES = {"done": "green", "failed": "red", "cannot run": "red", "running": "cyan", "waiting": "dim"}
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


class StudyMonitor:
    """Reads the progress of a study repeatedly.

    Args:
        steps: of the study, parents first.
        keys: step → its current key.
        output: the study's directory.
        jobs: how many steps run side by side; for the remaining time.
    """

    def __init__(self, steps: Sequence[Step], keys: Mapping[str, StepKey], output: Path, jobs: int) -> None:
        self.steps, self.keys, self.output, self.jobs = steps, keys, output, jobs

    def statuses(self, *, running: bool | None = None) -> list[StepStatus]:
        """The current status of every step; ``running``, whether a runner is at work, is checked if not given."""
        running = is_locked(self.output / LOCK) if running is None else running
        began = _began(self.output)
        records = {step.name: read_record(self.output, step.name) for step in self.steps}
        usual = _usual_seconds(self.steps, records)
        found: dict[str, StepStatus] = {}
        for step in self.steps:
            record, state = records[step.name], step_state(step, self.keys[step.name], self.output)
            if running and state not in {"done", "running"} and not (record and record.started >= began):
                parents = {found[parent].state for parent in step.parents}
                state = "cannot run" if parents & {"failed", "cannot run"} else "waiting"
            seconds, progress, last = record.seconds if record else 0.0, "", ""
            if record is not None and state == "running":
                lines = log_tail(self.output, step.name)
                seconds += time.time() - record.started
                progress, last = _progress(lines), lines[-1] if lines else ""
            elif record is not None and record.log_tail and state not in {"new", "waiting", "cannot run", "done"}:
                last = record.log_tail[-1]
            whole = usual.get(step.name, usual.get(step.kind))
            found[step.name] = StepStatus(
                name=step.name,
                state=state,
                record=record,
                seconds=0.0 if state in {"new", "waiting", "cannot run"} else seconds,
                left=whole if whole is None or state != "running" else max(whole - seconds, 0.0),
                progress=progress,
                last=last,
            )
        return list(found.values())

    def time_left(self, statuses: Sequence[StepStatus]) -> float | None:
        """Estimated seconds until all running and waiting steps are done; None if the time of one is unknown.

        The longest chain of steps, or all steps' time divided by ``jobs``, whichever is longer.
        """
        left = {status.name: status.left for status in statuses if status.state in {"waiting", "running"}}
        if None in left.values():
            return None
        ends: dict[str, float] = {}
        for step in self.steps:
            ends[step.name] = (left.get(step.name) or 0.0) + max((ends[each] for each in step.parents), default=0.0)
        return max(sum(seconds or 0.0 for seconds in left.values()) / self.jobs, *ends.values())

    def changes(self, before: Sequence[StepStatus], now: Sequence[StepStatus]) -> list[str]:
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

    def view(self, statuses: Sequence[StepStatus], width: int) -> Group:
        """A table of the steps, a summary, and the last log lines of running and failed steps.

        Args:
            statuses: of the steps.
            width: of the terminal; a narrow one gets fewer columns, but whole names of steps.
        """
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = [_row(status) for status in statuses]
        widths = {name: max([len(name), *(len(row[name]) for row in rows)]) + 2 for name in rows[0]} if rows else {}
        columns = list(widths)
        for name in _OPTIONAL_COLUMNS:
            if sum(widths[column] for column in columns) > width:
                columns.remove(name)
        table = Table(box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in {"time", "left", "memory"} else "left", no_wrap=True)
        for row, status in zip(rows, statuses, strict=True):
            style = _STYLES.get(status.state, "yellow")
            table.add_row(*(Text(row[name], style=style if name in {"step", "state"} else "") for name in columns))
        states = [status.state for status in statuses]
        summary = [f"{states.count('done')} of {len(states)} done"]
        summary += [f"{states.count('failed')} failed"] if "failed" in states else []
        if {"waiting", "running"} & set(states):
            summary += [f"about {format_duration(left)} left"] if (left := self.time_left(statuses)) else []
        elif len(states) > states.count("done"):
            summary.append("nothing is running")
        parts: list[Table | Text] = [table, Text(", ".join(summary), style="bold")]
        for status in statuses:
            if status.last and status.state != "done":
                parts.append(Text(f"{status.name}: {strip_control_chars(status.last, 160)}", style="dim"))
        return Group(*parts)


def _usual_seconds(steps: Sequence[Step], records: Mapping[str, StepRecord | None]) -> dict[str, float]:
    """Step → recorded seconds, and type of step → their mean."""
    own = {name: record.seconds for name, record in records.items() if record and record.status == "done"}
    kinds: dict[str, list[float]] = {}
    for step in steps:
        if step.name in own:
            kinds.setdefault(step.kind, []).append(own[step.name])
    return own | {kind: statistics.mean(values) for kind, values in kinds.items()}


def _began(output: Path) -> float:
    """When the last ``study run`` began; 0 if there was none."""
    try:
        return float(json.loads((output / PLAN).read_text(encoding="utf-8"))["began"])
    except (OSError, ValueError, KeyError):
        return 0.0


class ProgressDisplay:
    """The runner's display: in a terminal a table that is redrawn, elsewhere a line for each change.

    Args:
        monitor: of the study.
        console: for the output.
    """

    def __init__(self, monitor: StudyMonitor, console: Console) -> None:
        from rich.live import Live

        self.monitor, self.console = monitor, console
        self.statuses = monitor.statuses(running=True)
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
        before, self.statuses = self.statuses, self.monitor.statuses(running=True)
        if self.live:
            self.live.update(self.monitor.view(self.statuses, self.console.width), refresh=True)
        else:
            for line in self.monitor.changes(before, self.statuses):
                self.console.print(line, markup=False, soft_wrap=True)


def _row(status: StepStatus) -> dict[str, str]:
    peak = status.record.peak_memory_mb if status.record else None
    return {
        "step": status.name,
        "state": status.state,
        "progress": status.progress,
        "time": format_duration(status.seconds) if status.seconds else "",
        "left": format_duration(status.left) if status.left and status.state == "running" else "",
        "memory": f"{peak / 1024:.1f} GB" if peak else "",
    }


def _progress(lines: Sequence[str]) -> str:
    """``40/150 27 %`` from the last line with ``step 40/150`` or ``1,000 of 9,000``; else empty."""
    for line in reversed(lines):
        if found := _COUNTED.search(line):
            done, total = (int(text.replace(",", "")) for text in found.groups())
            return f"{done:,}/{total:,} {100 * done // max(total, 1)} %"
    return ""
