"""What a runner shows: a table that is redrawn in a terminal, one line per event elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.study.runner import Observer, log_tail
from benchmarks.study.state import StepRecord, read_record
from benchmarks.study.steps import Share, Step, time_left
from benchmarks.wording import duration, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {
    "waiting": "dim",
    "present": "dim green",
    "queued": "cyan",
    "running": "bold cyan",
    "done": "green",
    "failed": "bold red",
    "blocked": "red",
    "interrupted": "yellow",
}
_WORDS = {"present": "done before", "blocked": "cannot run"}
_REDRAW_SECONDS = 0.5


class Estimates:
    """How long steps take, guessed from their last runs, and from steps of the same kind that have ended."""

    def __init__(self, steps: Sequence[Step], output: Path) -> None:
        self._own = {
            step.name: record.seconds
            for step in steps
            if (record := read_record(output, step.name)) is not None and record.outcome == "done"
        }
        self._kinds: dict[str, list[float]] = {}
        for step in steps:
            if step.name in self._own:
                self._kinds.setdefault(step.kind, []).append(self._own[step.name])

    def note(self, step: Step, record: StepRecord) -> None:
        """A step has ended well."""
        self._own[step.name] = record.seconds
        self._kinds.setdefault(step.kind, []).append(record.seconds)

    def seconds(self, step: Step) -> float | None:
        """A guess; None where nothing is known."""
        known = self._own.get(step.name)
        if known is not None:
            return known
        alike = self._kinds.get(step.kind)
        return statistics.mean(alike) if alike else None


class Progress(Observer):
    """Shows steps with state, elapsed time and time left.

    Args:
        steps: in the order of the study.
        output: the study's directory.
        shares: step → how much of the executor it takes, for the time left.
        console: where to; standard error where None.
    """

    def __init__(
        self, steps: Sequence[Step], output: Path, *, shares: Mapping[str, Share], console: Console | None = None
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self.steps, self.output, self.shares = steps, output, shares
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.states: dict[str, str] = {step.name: "waiting" for step in steps}
        self.records: dict[str, StepRecord] = {}
        self.estimates = Estimates(steps, output)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self.live:
            self._draw()
            self.live.stop()

    def changed(self, step: Step, outcome: str, record: StepRecord | None) -> None:
        """Note the new state of a step; say it where nothing is redrawn."""
        self.states[step.name] = outcome
        if record is not None:
            self.records[step.name] = record
            if outcome == "done":
                self.estimates.note(step, record)
        if self.live is None and outcome != "present":
            self._say(step, outcome, record)
        elif outcome == "failed" and record is not None:
            self._show_failure(step, record)
        self._drawn = 0.0

    def tick(self) -> None:
        """Redraw, not more than twice a second."""
        if self.live and time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw()

    def left(self) -> float | None:
        """Seconds until all is done, guessed; None where the time of a step is not known."""
        rests: dict[str, float] = {}
        for step in self.steps:
            if self.states[step.name] not in {"waiting", "queued", "running"}:
                continue
            guess = self.estimates.seconds(step)
            if guess is None:
                return None
            passed = self._elapsed(step.name) if self.states[step.name] == "running" else 0.0
            rests[step.name] = max(guess - passed, 0.0)
        return time_left(self.steps, rests, self.shares)

    def _elapsed(self, name: str) -> float:
        record = self.records.get(name)
        if record is None:
            return 0.0
        return record.earlier + time.time() - record.started if self.states[name] == "running" else record.seconds

    def _say(self, step: Step, outcome: str, record: StepRecord | None) -> None:
        ended = sum(state in {"present", "done", "failed", "blocked"} for state in self.states.values())
        line = f"[{ended}/{len(self.steps)}] {step.name}: {_WORDS.get(outcome, outcome)}"
        if outcome == "queued" and record:
            line += f" as job {record.job}" if record.job else ""
        elif outcome == "running" and record:
            line += f" ({record.command})"
        elif record:
            line += f" after {duration(record.seconds)}"
        self.console.print(line, markup=False, soft_wrap=True)
        if outcome == "failed" and record:
            self._show_failure(step, record)

    def _show_failure(self, step: Step, record: StepRecord) -> None:
        from rich.text import Text

        self.console.print(Text(f"{step.name} failed: {record.command}", style="bold red"), soft_wrap=True)
        for line in record.log_tail:
            self.console.print(Text(f"    {visible(line)}"), soft_wrap=True)

    def _draw(self) -> None:
        assert self.live is not None
        self._drawn = time.monotonic()
        self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        left = self.left()
        title = "all done" if left == 0 else f"about {duration(left)} left" if left is not None else ""
        table = Table(box=None, pad_edge=False, caption=title, caption_justify="left")
        for head in ("step", "state", "time", "left", ""):
            table.add_column(head, justify="right" if head in {"time", "left"} else "left", no_wrap=True)
        for step in self.steps:
            state = self.states[step.name]
            elapsed = duration(self._elapsed(step.name)) if step.name in self.records else ""
            rest, activity = "", ""
            if state == "running":
                guess = self.estimates.seconds(step)
                rest = duration(max(guess - self._elapsed(step.name), 0)) if guess else ""
                activity = next(reversed(log_tail(self.output, step.name)), "")
            style = _STYLES.get(state, "")
            table.add_row(
                Text(step.name, style=style),
                Text(_WORDS.get(state, state), style=style),
                elapsed,
                rest,
                Text(visible(activity, 70), style="dim"),
            )
        return table
