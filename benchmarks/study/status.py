"""The progress of a study, read from its files, and its display in a terminal."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.formatting import format_duration, strip_control_chars
from benchmarks.study.job import PLAN
from benchmarks.study.locks import is_at_work, runner_lives
from benchmarks.study.step_state import StepKey, StepRecord, is_done, log_tail, read_record
from benchmarks.study.steps import Share, Step, time_left

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
        state: ``new``, ``changed: …``, ``missing`` (without its outputs, or with hollow ones), ``failed``,
            ``interrupted``, ``stopped`` (recorded as running, without a process), ``running`` or ``done``; with a
            runner at work also ``waiting`` and ``cannot run``.
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


def step_state(step: Step, key: StepKey, output: Path) -> str:
    """The state of a step, see ``StepStatus``."""
    record = read_record(output, step.name)
    if is_at_work(output, step.name) and (record is None or record.status == "running"):
        return "running" if record is not None else "new"
    if record is None:
        return "new"
    if record.key != key.key:
        changes = ", ".join(key.changes(record))
        return f"changed: {changes}" if changes else "changed"
    if record.status == "running":
        return "stopped"
    return record.status if record.status != "done" or is_done(step, key, output) else "missing"


class StudyMonitor:
    """Reads the progress of a study repeatedly.

    Args:
        steps: of the study, parents first.
        keys: step → its current key.
        output: the study's directory.
        shares: see ``ExecutorConfig.shares``; for the remaining time.
    """

    def __init__(
        self, steps: Sequence[Step], keys: Mapping[str, StepKey], output: Path, shares: Mapping[str, Share]
    ) -> None:
        self.steps, self.keys, self.output, self.shares = steps, keys, output, shares

    def statuses(self, *, running: bool | None = None) -> list[StepStatus]:
        """The current status of every step.

        Args:
            running: whether a runner is at work; by default it is checked.
        """
        running = runner_lives(self.output) if running is None else running
        run = _current_run(self.output)
        statuses: dict[str, StepStatus] = {}
        durations = self._durations()
        for step in self.steps:
            state = step_state(step, self.keys[step.name], self.output)
            record = read_record(self.output, step.name)
            if running and state not in {"done", "running"} and not _is_of(run, record):
                parents = {statuses[parent].state for parent in step.parents}
                state = "cannot run" if parents & {"failed", "cannot run"} else "waiting"
            statuses[step.name] = self._status(step, state, record, durations)
        return list(statuses.values())

    def _status(self, step: Step, state: str, record: StepRecord | None, durations: Mapping[str, float]) -> StepStatus:
        duration = durations.get(step.name, durations.get(step.kind))
        status = StepStatus(name=step.name, state=state, record=record, left=duration)
        if record is None or state in {"new", "waiting", "cannot run"}:
            return status
        if state != "running":
            last = record.log_tail[-1] if record.log_tail else ""
            return dataclasses.replace(status, seconds=record.seconds, last=last)
        lines = log_tail(self.output, step.name)
        seconds = record.previous_seconds + time.time() - record.started
        left = None if duration is None else max(duration - seconds, 0.0)
        last = lines[-1] if lines else ""
        return dataclasses.replace(status, seconds=seconds, left=left, progress=_progress(lines), last=last)

    def _durations(self) -> dict[str, float]:
        """Step → recorded seconds, and type of step → their mean."""
        records = {step.name: read_record(self.output, step.name) for step in self.steps}
        own = {name: record.seconds for name, record in records.items() if record and record.status == "done"}
        kinds: dict[str, list[float]] = {}
        for step in self.steps:
            if step.name in own:
                kinds.setdefault(step.kind, []).append(own[step.name])
        return own | {kind: statistics.mean(values) for kind, values in kinds.items()}

    def time_left(self, statuses: Sequence[StepStatus]) -> float | None:
        """Estimated seconds until all running and waiting steps are done; None if the time of one is unknown."""
        left = {status.name: status.left for status in statuses if status.state in {"waiting", "running"}}
        known = {name: seconds for name, seconds in left.items() if seconds is not None}
        return time_left(self.steps, known, self.shares) if len(known) == len(left) else None

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
        """A table of the steps, and the last log lines of running and failed ones.

        Args:
            width: of the terminal; a narrow one gets fewer columns, but whole names of steps.
        """
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = [_row(status) for status in statuses]
        columns = _fitting_columns(rows, width)
        table = Table(box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in {"time", "left", "memory"} else "left", no_wrap=True)
        for row, status in zip(rows, statuses, strict=True):
            style = _STYLES.get(status.state, "yellow")
            table.add_row(*(Text(row[name], style=style if name in {"step", "state"} else "") for name in columns))
        parts: list[Table | Text] = [table, Text(self._summary(statuses), style="bold")]
        for status in statuses:
            if status.last and status.state != "done":
                parts.append(Text(f"{status.name}: {strip_control_chars(status.last, 160)}", style="dim"))
        return Group(*parts)

    def _summary(self, statuses: Sequence[StepStatus]) -> str:
        """Such as ``3 of 9 done, 1 failed, about 4 min 10 s left``."""
        states = [status.state for status in statuses]
        done, failed = states.count("done"), states.count("failed")
        parts = [f"{done} of {len(states)} done", *([f"{failed} failed"] if failed else [])]
        if {"waiting", "running"} & set(states):
            left = self.time_left(statuses)
            parts += [f"about {format_duration(left)} left"] if left else []
        elif len(states) > done:
            parts.append("nothing is running")
        return ", ".join(parts)


def _current_run(output: Path) -> dict[str, Any]:
    """The plan of the last ``study run`` (`RunPlan` as plain data); empty if there is none."""
    try:
        plan: dict[str, Any] = json.loads((output / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plan


def _is_of(run: Mapping[str, Any], record: StepRecord | None) -> bool:
    """Whether the last job of a step belongs to a run: started by it, or at work when it began."""
    if record is None or not run:
        return False
    return bool(record.run_id == run.get("run") or run.get("jobs", {}).get(record.name, {}).get("is_adopted"))


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


def _fitting_columns(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) + 2 for name in rows[0]} if rows else {}
    columns = list(widths)
    for name in _OPTIONAL_COLUMNS:
        if sum(widths[column] for column in columns) > width:
            columns.remove(name)
    return columns


def _progress(lines: Sequence[str]) -> str:
    """``40/150 27 %`` from the last line with ``step 40/150`` or ``1,000 of 9,000``; else empty."""
    for line in reversed(lines):
        if found := _COUNTED.search(line):
            done, total = (int(text.replace(",", "")) for text in found.groups())
            return f"{done:,}/{total:,} {100 * done // max(total, 1)} %"
    return ""
