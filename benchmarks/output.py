"""The directories that commands write into."""

from __future__ import annotations

import tempfile
from pathlib import Path

from clips.core.artifact import writing


def writable_directory(path: str | Path) -> Path:
    """``path``, made where it is missing, before any work is done that could not be stored there.

    Raises:
        UserError: it cannot be made or written.
    """
    directory = Path(path)
    with writing(path):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()  # the sure test: permissions say nothing of /proc
    return directory
