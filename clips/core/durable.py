"""Files that survive a loss of power: their content is on the disk before their name, and the name before more is done.

A file system may write a rename before the data of the renamed file, which is then empty or zeros after a power cut.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # file systems that cannot sync directories, and directories that may be written, but not read
        if not path.is_dir() or error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}:
            raise


def sync_tree(root: Path) -> None:
    """Flush a file, or a directory with everything below it; links are not followed."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            if path.is_file() and not path.is_symlink():  # opening a pipe would wait for its other end
                sync(path)
        sync(Path(folder))
    if root.is_file():
        sync(root)


def replace(source: Path, target: Path) -> None:
    """Rename a file or directory, all of it flushed, to ``target``; on return the name is on the disk, too."""
    sync_tree(source)
    source.replace(target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents; on return the names of those are on the disk."""
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)
