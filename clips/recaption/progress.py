"""How far the captions are: a bar where someone looks, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from clips.artifact import say

if TYPE_CHECKING:
    from clips.recaption.describer import Said
    from clips.recaption.shards import OpenShard

_SECONDS = 30.0  # between lines


class Progress:
    """Counts samples and tokens of this process.

    Args:
        samples: to come.
        shards: to come.
    """

    def __init__(self, samples: int, shards: int) -> None:
        self.samples, self.shards = samples, shards
        self.done, self.finished, self.tokens = 0, 0, 0
        self.bar: Any = None

    def __enter__(self) -> Progress:
        self.began = self.told = time.monotonic()
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (progress.MofNCompleteColumn(), progress.BarColumn(30), progress.TextColumn("{task.description}"))
            left = (progress.TimeRemainingColumn(), progress.TextColumn("left"))
            self.bar = progress.Progress(*columns, *left, console=Console(stderr=True))
            self.task = self.bar.add_task("", total=self.samples)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, said: Sequence[Said]) -> None:
        """One more sample is through, ``said`` of it."""
        self.done += 1
        self.tokens += sum(one.tokens for one in said)
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=self.rate())
        elif time.monotonic() - self.told > _SECONDS:
            self.told = time.monotonic()
            left = (self.samples - self.done) * (self.told - self.began) / self.done
            say(f"{self.done:,}/{self.samples:,} samples · {self.rate()} · {left / 3600:.1f} h left")

    def rate(self) -> str:
        """Samples and tokens a second so far."""
        passed = max(time.monotonic() - self.began, 1e-9)
        return f"{self.done / passed:.1f} samples/s · {self.tokens / passed:,.0f} tokens/s"

    def shard_done(self, shard: OpenShard) -> None:
        """Tell of a finished shard and what was dropped from it."""
        self.finished += 1
        dropped = "".join(f"; {count:,} × {reason}" for reason, count in shard.dropped.most_common())
        say(f"{shard.target.name} ({self.finished}/{self.shards}): {shard.written:,} captions{dropped} · {self.rate()}")
