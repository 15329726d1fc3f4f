"""The log of a training, `clips train` or `llava-bridge train`: JSON lines in ``metrics.jsonl``, and its trackers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from clips.core.artifact import atomic_write, write_errors_as_user_errors
from clips.core.trackers import Trackers, open_trackers
from clips.text_files import safe_json_loads
from clips.typed_data import to_plain

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """The log of one run, which only the main process writes; leaving the block finishes the trackers.

    Args:
        directory: of metrics.jsonl.
        trackers: those in addition to it.
        writes: whether this is the main process.
    """

    def __init__(self, directory: str | Path, trackers: Trackers | None = None, *, writes: bool = True) -> None:
        self.path, self.trackers, self.writes = Path(directory) / METRICS_FILE, trackers or Trackers(), writes

    @classmethod
    def of(cls, config: Any, directory: str | Path, *, writes: bool) -> RunLog:
        """Open the log with the trackers of a training's ``config``; see `open_trackers` for the errors."""
        name = Path(config.output).name
        trackers = open_trackers(config.report_to, directory, name, to_plain(config)) if writes else None
        return cls(directory, trackers, writes=writes)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.trackers.finish()

    def resume(self, is_retained: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Remove the entries of lost work, and those in which ``is_retained`` misses a field; return the rest."""
        entries = []
        for entry in read_entries(self.path) if self.writes else ():
            with contextlib.suppress(KeyError, TypeError):
                if is_retained(entry):
                    entries.append(entry)
        if self.writes and self.path.is_file():
            atomic_write(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))
        return entries

    def write(self, entry: Mapping[str, Any], step: int, tracked: Mapping[str, Any] | None = None) -> None:
        """Append an entry, and pass its numbers, or those ``tracked`` instead, to the trackers at ``step``."""
        if self.writes:
            with write_errors_as_user_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
            self.trackers.log(entry if tracked is None else tracked, step)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; empty without the file.

    Lines that cannot be read are skipped: a crash leaves the last one incomplete, a fault of the disk damages any.
    """
    entries = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with contextlib.suppress(ValueError):
            entry = safe_json_loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries
