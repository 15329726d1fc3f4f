"""The JSON lines that a training logs, ``metrics.jsonl``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clips.core.artifact import atomic_write
from clips.text_files import safe_json_loads

METRICS_FILE = "metrics.jsonl"


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


def retain_entries(path: Path, is_retained: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Remove the other entries of a log, and those in which ``is_retained`` misses a field; return the rest."""
    entries = []
    for entry in read_entries(path):
        with contextlib.suppress(KeyError, TypeError):
            if is_retained(entry):
                entries.append(entry)
    if path.is_file():
        atomic_write(path, "".join(json.dumps(entry) + "\n" for entry in entries))
    return entries
