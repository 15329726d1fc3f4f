"""Caches of recomputable results, keyed by a hash of all inputs, so that stale entries are never read.

Entries are written by an atomic rename: processes that write the same entry concurrently leave one complete entry. An
unreadable entry counts as missing. A cache can be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clips.core import durable
from clips.core.artifact import (
    atomic_output_path,
    open_to_umask,
    temp_path_for,
    write_errors_as_user_errors,
)

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
_TENSOR = "value"  # name of the tensor in a safetensors file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache(Generic[Value]):
    """Files named by the hash of their inputs (`clips.core.identity.digest`).

    Args:
        directory: contains the files, in subdirectories named by the first two digits.
        suffix: file suffix.
        read: reads the value of a file; any error means that the file is invalid.
        write: writes a value to a path.
    """

    directory: Path
    suffix: str
    read: Callable[[Path], Value]
    write: Callable[[Path, Value], Any]

    def path(self, key: str) -> Path:
        """The file of an entry, which may not exist."""
        return self.directory / key[:2] / f"{key}{self.suffix}"

    def get(self, key: str) -> Value | None:
        """The value of an entry; None if it is missing or invalid."""
        try:
            return self.read(self.path(key))
        except Exception:  # libraries raise errors of their own
            return None

    def put(self, key: str, value: Value) -> None:
        """Write an entry atomically. Raises UserError if the directory is not writable."""
        with atomic_output_path(self.path(key)) as partial:
            self.write(partial, value)

    def put_first(self, key: str, value: Value) -> Value:
        """Write an entry unless another process has written it by now; return the entry's value.

        All processes that compute an entry at once get the same value, also if theirs differ by rounding. Raises
        UserError if the directory is not writable.
        """
        path = self.path(key)
        partial = temp_path_for(path)
        with write_errors_as_user_errors(path):
            durable.make_directory(path.parent)
            try:
                self.write(partial, value)
                open_to_umask(partial)
                durable.sync(partial)
                try:
                    os.link(partial, path)
                except OSError:  # the entry exists, or the file system has no links
                    if (stored := self.get(key)) is not None:
                        return stored
                    partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        return value


def json_cache(directory: Path) -> Cache[Any]:
    """A cache of plain data."""
    return Cache(
        directory=directory,
        suffix=".json",
        read=lambda path: json.loads(path.read_text(encoding="utf-8")),
        write=lambda path, value: path.write_bytes(json.dumps(value, ensure_ascii=False, indent=1).encode()),
    )


def tensor_cache(directory: Path) -> Cache[torch.Tensor]:
    """A cache of tensors, on the CPU."""

    def read(path: Path) -> torch.Tensor:
        from safetensors.torch import load_file

        return load_file(path)[_TENSOR]

    def write(path: Path, value: torch.Tensor) -> None:
        import torch
        from safetensors.torch import save_file

        save_file({_TENSOR: value.detach().cpu().contiguous(memory_format=torch.contiguous_format)}, path)

    return Cache(directory=directory, suffix=".safetensors", read=read, write=write)
