"""What a power cut would leave: contents as of the last fsync of a file, names as of that of its directory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(root: Path) -> dict[str, str]:
    """Path below ``root`` → hash of every file."""
    return {path.relative_to(root).as_posix(): digest(path) for path in sorted(root.rglob("*")) if path.is_file()}


class Disk:
    """A strict disk: it has nothing but what was flushed.

    Args:
        base: a directory that counts as flushed.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.names: dict[int, dict[str, int]] = {}
        self.files: dict[int, str] = {}
        self.before_deletions: list[tuple[str, dict[str, str]]] = []
        """Of each file or directory that was deleted, its path, and what the disk had then."""
        self._flush(base)

    def _flush(self, path: Path) -> None:
        number = path.stat().st_ino  # maybe once that of something deleted
        if path.is_dir():
            self.names[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.names.pop(number, None)
            self.files[number] = digest(path)

    def contents(self, number: int | None = None, prefix: str = "") -> dict[str, str]:
        """What would be left: path below the base → hash of every file."""
        found: dict[str, str] = {}
        for name, inner in self.names.get(number or self.base.stat().st_ino, {}).items():
            if inner in self.names:
                found |= self.contents(inner, f"{prefix}{name}/")
            else:
                found[prefix + name] = self.files.get(inner, "nothing")
        return found

    @contextlib.contextmanager
    def recording(self) -> Iterator[Disk]:
        """Record what this process flushes and deletes."""
        fsync, rmtree, unlink = os.fsync, shutil.rmtree, os.unlink
        held: list[int] = []

        def keeping_its_number(remove: Callable[..., None], target: int) -> Callable[..., None]:
            # an inode that is open is not given to a new file, which would count as flushed with its old contents
            def keep(*paths: Any, **options: Any) -> None:
                with contextlib.suppress(FileNotFoundError):
                    held.append(os.open(paths[target], os.O_PATH | os.O_NOFOLLOW, dir_fd=options.get("dir_fd")))
                remove(*paths, **options)

            return keep

        def flush(handle: int) -> None:
            fsync(handle)
            self._flush(Path(f"/proc/self/fd/{handle}").readlink())

        def note(path: Any) -> None:
            if Path(path).exists() and Path(path).is_relative_to(self.base):
                self.before_deletions.append((Path(path).relative_to(self.base).as_posix(), self.contents()))

        def remove_tree(path: Any, *arguments: Any, **options: Any) -> None:
            note(path)
            rmtree(path, *arguments, **options)

        def remove(path: Any, **options: Any) -> None:
            if not options:
                note(path)
            keeping_its_number(unlink, 0)(path, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", flush)
            patch.setattr(shutil, "rmtree", remove_tree)
            patch.setattr(os, "unlink", remove)
            patch.setattr(os, "rmdir", keeping_its_number(os.rmdir, 0))
            for name in ("rename", "replace"):
                patch.setattr(os, name, keeping_its_number(getattr(os, name), 1))
            try:
                yield self
            finally:
                for handle in held:
                    os.close(handle)


@contextlib.contextmanager
def failing_disk(error: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writing fails as with a limit on the size of files or their number, or on a disk with a fault."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if error == errno.EIO:
        with patch.context() as faulty:
            faulty.setattr(os, "fsync", fail)
            yield
        return
    kind = {errno.EFBIG: resource.RLIMIT_FSIZE, errno.EMFILE: resource.RLIMIT_NOFILE}[error]
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, ({errno.EFBIG: 64, errno.EMFILE: 3}[error], hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
