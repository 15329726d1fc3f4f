"""How far a study is, from its files as they are at one moment, and how that looks in a terminal."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results.formatting import format_duration, strip_control_chars
from benchmarks.study.locks import is_at_work, runner_lives
from benchmarks.study.step_state import StepKey, StepRecord, is_done, log_tail, read_record
from benchmarks.study.steps import Share, Step, time_left

if TYPE_CHECKING:
    from rich.console import Console, Group

_COUNTED = re.compile(r"(?:step |: )([\d,]+)(?:/| of )([\d,]+)")
_STYLES = {"done": "green", "failed": "red", "cannot run": "red", "running": "cyan", "waiting": "dim"}
_ENDED = {"done", "failed", "cannot run"}
_EXPENDABLE = ("memory", "time", "progress")  # columns to leave out in a narrow terminal, in this order


@dataclass(frozen=True, kw_only=True)
class StepStatus:
    """How far one step is.

    Args:
        name: of the step.
        state: ``new``, ``changed: …``, ``missing`` (its outputs are gone), ``failed``, ``interrupted``, ``stopped``
            (its record says that it runs, and nothing does), ``running`` or ``done``; what a runner has still to do is
            ``waiting`` or ``cannot run``.
        record: of its last run.
        seconds: since it began, or that it took.
        left: seconds, guessed; None where nothing tells.
        progress: ``40/150 27 %``, where its log tells.
        last: the last line of its log, where it runs or failed.
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


class StudyWatch:
    """Looks at a study again and again.

    Args:
        steps: of the study, parents first.
        keys: step → its current key.
        output: the study's directory.
        shares: step → how much of the executor it takes, for the time left.
    """

    def __init__(
        self, steps: Sequence[Step], keys: Mapping[str, StepKey], output: Path, shares: Mapping[str, Share]
    ) -> None:
        self.steps, self.keys, self.output, self.shares = steps, keys, output, shares
        self.began = {step.name: read_record(output, step.name) for step in steps}

    def look(self, *, running: bool | None = None) -> list[StepStatus]:
        """The steps as they are now.

        Args:
            running: whether a runner is at work; found out where None.
        """
        running = runner_lives(self.output) if running is None else running
        found: dict[str, StepStatus] = {}
        durations = self._durations()
        for step in self.steps:
            state = step_state(step, self.keys[step.name], self.output)
            record = read_record(self.output, step.name)
            if running and state not in {"done", "running"} and record == self.began[step.name]:
                above = {found[parent].state for parent in step.parents}
                state = "cannot run" if above & {"failed", "cannot run"} else "waiting"
            found[step.name] = self._status(step, state, record, durations)
        return list(found.values())

    def _status(self, step: Step, state: str, record: StepRecord | None, durations: Mapping[str, float]) -> StepStatus:
        guess = durations.get(step.name, durations.get(step.kind))
        if record is None or state in {"new", "waiting", "cannot run"}:
            return StepStatus(name=step.name, state=state, record=record, left=guess)
        if state != "running":
            last = record.log_tail[-1] if record.log_tail else ""
            return StepStatus(name=step.name, state=state, record=record, seconds=record.seconds, last=last, left=guess)
        lines = log_tail(self.output, step.name)
        seconds = record.previous_seconds + time.time() - record.started
        return StepStatus(
            name=step.name,
            state=state,
            record=record,
            seconds=seconds,
            left=None if guess is None else max(guess - seconds, 0.0),
            progress=_progress(lines),
            last=lines[-1] if lines else "",
        )

    def _durations(self) -> dict[str, float]:
        """What steps took, and the means of their kinds."""
        records = {step.name: read_record(self.output, step.name) for step in self.steps}
        own = {name: record.seconds for name, record in records.items() if record and record.status == "done"}
        kinds: dict[str, list[float]] = {}
        for step in self.steps:
            if step.name in own:
                kinds.setdefault(step.kind, []).append(own[step.name])
        return own | {kind: statistics.mean(values) for kind, values in kinds.items()}

    def left(self, seen: Sequence[StepStatus]) -> float | None:
        """Seconds until all that runs or waits is done, guessed; None where the time of a step is not known."""
        rests = {status.name: status.left for status in seen if status.state in {"waiting", "running"}}
        known = {name: rest for name, rest in rests.items() if rest is not None}
        return time_left(self.steps, known, self.shares) if len(known) == len(rests) else None

    def lines(self, before: Sequence[StepStatus], now: Sequence[StepStatus]) -> list[str]:
        """What has changed, a line each: ``[3/15] encoder-clips-s0: done after 12 s``."""
        states = {status.name: status.state for status in before}
        ended = sum(status.state in _ENDED for status in before)
        said = []
        for status in now:
            if status.state == states.get(status.name) or status.state == "waiting":
                continue
            ended += (status.state in _ENDED) - (states.get(status.name) in _ENDED)
            line = f"[{ended}/{len(now)}] {status.name}: {status.state}"
            if status.record is not None and status.state == "running":
                line += f" ({status.record.command})"
            elif status.record is not None and status.state != "cannot run":
                line += f" after {format_duration(status.seconds)}"
            said.append(line)
            if status.record is not None and status.state == "failed":
                said += [f"{status.name} failed: {status.record.command}"]
                said += [f"    {strip_control_chars(text)}" for text in status.record.log_tail]
        return said

    def view(self, seen: Sequence[StepStatus], width: int) -> Group:
        """A table of the steps, and the last lines of those that run or failed.

        Args:
            seen: what ``look`` returned.
            width: of the terminal; columns are left out where it is narrow, names of steps never cut.
        """
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = [_row(status) for status in seen]
        heads = _fitting(rows, width)
        table = Table(box=None, pad_edge=False)
        for head in heads:
            table.add_column(head, justify="right" if head in {"time", "left", "memory"} else "left", no_wrap=True)
        for row, status in zip(rows, seen, strict=True):
            style = _STYLES.get(status.state, "yellow")
            table.add_row(*(Text(row[head], style=style if head in {"step", "state"} else "") for head in heads))
        parts: list[Table | Text] = [table, Text(self._summary(seen), style="bold")]
        for status in seen:
            if status.last and status.state != "done":
                parts.append(Text(f"{status.name}: {strip_control_chars(status.last, 160)}", style="dim"))
        return Group(*parts)

    def _summary(self, seen: Sequence[StepStatus]) -> str:
        """``3 of 9 done, 1 failed, about 4 min 10 s left``."""
        failed = sum(status.state == "failed" for status in seen)
        parts = [f"{sum(status.state == 'done' for status in seen)} of {len(seen)} done"]
        parts += [f"{failed} failed"] if failed else []
        if any(status.state in {"waiting", "running"} for status in seen):
            left = self.left(seen)
            parts += [f"about {format_duration(left)} left"] if left else []
        elif len(seen) > sum(status.state == "done" for status in seen):
            parts.append("nothing is running")
        return ", ".join(parts)


class Progress:
    """What a runner shows: the table, redrawn, in a terminal; a line for each change elsewhere.

    Args:
        watch: the study.
        console: where to.
    """

    def __init__(self, watch: StudyWatch, console: Console) -> None:
        from rich.live import Live

        self.watch, self.console = watch, console
        self.seen = watch.look(running=True)
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = 0.0

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._shown = 0.0
        self.show()
        if self.live:
            self.live.stop()

    def show(self) -> None:
        """Look, and show what is new, not more than twice a second."""
        if time.monotonic() - self._shown < 0.5:
            return
        self._shown = time.monotonic()
        before, self.seen = self.seen, self.watch.look(running=True)
        if self.live:
            self.live.update(self.watch.view(self.seen, self.console.width), refresh=True)
        else:
            for line in self.watch.lines(before, self.seen):
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


def _fitting(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """The columns that there is room for."""
    widths = {head: max([len(head), *(len(row[head]) for row in rows)]) + 2 for head in rows[0]} if rows else {}
    heads = list(widths)
    for head in _EXPENDABLE:
        if sum(widths[each] for each in heads) > width:
            heads.remove(head)
    return heads


def _progress(lines: Sequence[str]) -> str:
    """``40/150 27 %`` from ``step 40/150`` or ``1,000 of 9,000`` in the last line that has it."""
    for line in reversed(lines):
        if found := _COUNTED.search(line):
            done, total = (int(text.replace(",", "")) for text in found.groups())
            return f"{done:,}/{total:,} {100 * done // max(total, 1)} %"
    return ""
