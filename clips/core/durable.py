"""Files that survive crashes and a loss of power: the old or the new one, and on the disk before more is done.

A file system may write a rename before the data of the renamed file, which is then empty or zeros after a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from clips.errors import UserError

UUID_PATTERN = "[0-9a-f]{32}"
"""Pattern of the unique part in the names of `temp_path_for`."""


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


def temp_path_for(path: Path) -> Path:
    """A hidden, globally unique temporary name for ``path``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write ``content``, a string as UTF-8, so that a crash or power cut leaves either the old or the new file."""
    with atomic_output_path(Path(path)) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_output_path(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path``, which replaces ``path`` when the block succeeds, and is then on the disk."""
    partial = temp_path_for(path)
    with write_errors_as_user_errors(path):
        make_directory(path.parent)
        try:
            yield partial
            open_to_umask(partial)
            replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def writable_directory(path: str | Path) -> Path:
    """``path``, created if missing.

    Raises:
        UserError: it is not writable, before any work is lost.
    """
    directory = Path(path)
    with write_errors_as_user_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()  # permissions are no reliable test, for example in /proc
    return directory


@contextlib.contextmanager
def write_errors_as_user_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError into a UserError, except that of a full disk, which `clips.commandline.commands` reports."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        if error.errno in {errno.EEXIST, errno.ENOTDIR}:
            reject_files(path)
        raise UserError(f"{path}: cannot write here ({error.strerror or error})") from None


def reject_files(path: str | Path) -> None:
    """Raise UserError if a path, or one of its parents, is a file."""
    for place in (Path(path), *Path(path).parents):
        if place.is_file():
            raise UserError(f"{place}: is a file; expected a directory to write")


def open_to_umask(root: Path) -> None:
    """Set the umask's permissions on a file, or all files below a directory, if their mode is 0600.

    safetensors and `tempfile` write with that mode.
    """
    files = [root] if root.is_file() else [path for path in root.rglob("*") if not path.is_symlink() and path.is_file()]
    for path in files:
        if stat.S_IMODE(path.stat().st_mode) == 0o600:
            path.chmod(default_mode(path.parent))


@functools.cache
def default_mode(directory: Path) -> int:
    """A new file's mode in a directory: a probe's, as the umask cannot be read without setting it for all threads."""
    probe = temp_path_for(directory / "umask")
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()
