"""Progress of a training and of other long work: a bar in a terminal, else log lines; what all of it would take."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO, TypeVar

from clips import safe_text
from clips.safe_text import log_info

_FIRST_SECONDS, _LOG_SECONDS = 2.0, 30.0  # before the first log line, and between two
SILENT_SECONDS = 2.0
"""Of a block that prints no line, before one is printed for it."""
Item = TypeVar("Item")


class Progress:
    """Counts finished items; a context manager.

    Args:
        what: description of the work, ``"making scenes"``.
        total: number of items.
        unit: name of the items, ``"images"``.
        stream: output stream; by default standard error.
    """

    def __init__(self, what: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.stream = stream or sys.stderr
        self.done = 0
        self.others: Counter[str] = Counter()
        self._bar: Any = None
        self._wait = _FIRST_SECONDS

    def __enter__(self) -> Progress:
        self._start = self._last_line = time.monotonic()
        if self.stream.isatty():
            from rich import progress
            from rich.console import Console

            columns = (progress.TextColumn("{task.description}"), progress.BarColumn(30), progress.MofNCompleteColumn())
            more = (progress.TextColumn("{task.fields[rates]}"), progress.TimeRemainingColumn())
            self._bar = progress.Progress(*columns, *more, console=Console(file=self.stream), transient=True)
            self._task = self._bar.add_task(self.what, total=self.total, rates="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1, **others: int) -> None:
        """Count finished items, and ``others``, such as ``tokens=31``."""
        self.done += count
        self.others.update(others)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rates=self.rates())
        elif time.monotonic() - self._last_line > self._wait:
            self._last_line, self._wait = time.monotonic(), _LOG_SECONDS
            left = (self.total - self.done) * (self._last_line - self._start) / max(1, self.done)
            done = f"{self.done:,} of {self.total:,} {self.unit}"
            text = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            print(f"{self.what}: {done} · {self.rates()} · {text} left", file=self.stream, flush=True)

    def rates(self) -> str:
        """``"3.1 samples/s · 912.0 tokens/s"`` since the start."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        counts = {self.unit: self.done, **self.others}
        return " · ".join(rate_text(count / seconds, name) for name, count in counts.items() if count)


def rate_text(rate: float, unit: str) -> str:
    """``"912.0 tokens/s"``; a rate below 1 has two digits that are not 0."""
    return f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{rate:.2g} {unit}/s"


def progress_iter(items: Collection[Item], what: str, unit: str) -> Iterator[Item]:
    """Iterate over ``items``, named ``unit``, and show the progress."""
    with Progress(what, len(items), unit) as progress:
        for item in items:
            yield item
            progress.advance()


@contextlib.contextmanager
def log_if_slow(message: str) -> Iterator[None]:
    """Print a log line when the block has taken two seconds without one: nobody waits before an empty screen."""
    before = safe_text.num_lines

    def log() -> None:
        if safe_text.num_lines == before:
            log_info(message)

    timer = threading.Timer(SILENT_SECONDS, log)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class ProgressLine:
    """The progress of a training on standard error: a bar in a terminal, else a line for each entry of its log.

    Args:
        step: the step from which the run resumes.
        steps: the last step.
        quiet: show nothing, as on all processes except the main one.
    """

    def __init__(self, step: int, steps: int, *, quiet: bool = False) -> None:
        self.steps, self.quiet, self.lines = steps, quiet, 0
        self.bar: Any = None
        if not quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (progress.MofNCompleteColumn(), progress.BarColumn(30), progress.TextColumn("{task.description}"))
            left = (progress.TimeRemainingColumn(), progress.TextColumn("left"))
            self.bar = progress.Progress(*columns, *left, console=Console(stderr=True))
            self.task = self.bar.add_task("", total=steps, completed=step)

    def __enter__(self) -> ProgressLine:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self) -> None:
        """Count a completed step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def show(self, entry: Mapping[str, Any]) -> None:
        """Show the loss, the throughput and, after a validation, the recalls of an entry of the log."""
        if self.quiet:
            return
        recalls = [
            f"{name.removeprefix('val_').removesuffix('_t2i_r1')} {100 * value:.1f}"
            for name, value in entry.items()
            if name.startswith("val_") and name.endswith("_t2i_r1")
        ]
        validation = f" · T→I R@1 {', '.join(recalls)}" if recalls else ""
        summary = f"loss {entry['loss']:.3f} · {rate_text(entry['samples_per_second'], 'samples')}{validation}"
        if self.bar is not None:
            self.bar.update(self.task, description=summary)
            return
        self.lines += 1
        left = ""
        if self.lines > 1:  # the rate of the first includes the start of the workers and the first, slow steps
            rate = max(entry["samples_per_second"], 1e-9)
            seconds = int((self.steps - entry["step"]) * entry["samples_seen"] / max(1, entry["step"]) / rate)
            left = f" · {seconds // 60}:{seconds % 60:02d} left"
        log_info(f"step {entry['step']}/{self.steps} · {summary}{left}")


def log_estimate(
    *,
    part: int,
    total: int,
    seconds: float,
    tokens: tuple[int, int],
    prices: tuple[float, float] | None,
    concurrent: tuple[str, int],
    processes: int = 1,
) -> None:
    """Print what the whole job would take.

    Args:
        part: how many of the ``total`` images or questions were done.
        seconds: what they took, without loading.
        tokens: of their prompts and of the texts that were generated; both 0 if they are not known.
        prices: of a million tokens of either.
        concurrent: the setting that limits how many are processed at a time, and its value.
        processes: those that share the job.
    """
    scale, (field, limit) = total / part, concurrent
    hours = seconds * scale / 3600
    shared = f", {hours / processes:.2f} h in {processes:,}" if processes > 1 else ""
    log_info(f"estimate for all {total:,}, from {part:,}: {hours:.2f} h in one process{shared}")
    if part < limit:
        log_info(f"the time is too long: expected an estimate from {limit} or more ({field})")
    if any(tokens):
        prompts, generated = (count * scale for count in tokens)
        log_info(f"tokens: {prompts:,.0f} of prompts, {generated:,.0f} generated")
        if prices:
            log_info(f"cost: {(prices[0] * prompts + prices[1] * generated) / 1e6:,.2f}")
