"""Caches of recomputable results, keyed by a hash of all inputs: stale entries are never read, all can be deleted.

Processes write and read them concurrently, by atomic renames; what cannot be read, or has another checksum than when it
was written, counts as missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clips.core import durable
from clips.core.durable import atomic_output_path, open_to_umask, temp_path_for, write_errors_as_user_errors

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")
SHARD_BYTES = 2**28


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache(Generic[Value]):
    """Files named by the hash of their inputs (`clips.core.identity.digest`)."""

    directory: Path  # the files are in subdirectories named by the first two digits
    suffix: str
    read: Callable[[Path], Value]  # any error means that the file is invalid
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
        """Write an entry atomically.

        Raises:
            UserError: the directory is not writable.
        """
        with atomic_output_path(self.path(key)) as partial:
            self.write(partial, value)

    def put_first(self, key: str, value: Value) -> Value:
        """Write an entry unless another process has written it by now; return the entry's value.

        All processes that compute an entry at once get the same value, also if theirs differ by rounding. Raises

        Raises:
            UserError: the directory is not writable.
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

    def write(path: Path, value: Any) -> None:
        path.write_bytes(with_checksum(value).encode())

    return Cache(directory=directory, suffix=".json", read=read_with_checksum, write=write)


def with_checksum(value: Any) -> str:
    """Plain data with their checksum, as the text of a JSON file."""
    return json.dumps({"value": value, "checksum": _text_checksum(value)}, ensure_ascii=False, indent=1)


def read_with_checksum(path: Path) -> Any:
    """The plain data of a file with the text of `with_checksum`. Raises OSError or ValueError if missing or damaged."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or not stored.keys() & {"value", "checksum"}:
        return stored  # of an earlier version, which stored no checksum
    if stored.keys() != {"value", "checksum"} or _text_checksum(stored["value"]) != stored["checksum"]:
        raise ValueError("damaged")
    return stored["value"]


def _text_checksum(value: Any) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(value).encode())


def tensor_digest(*values: Tensor) -> str:
    """Hash of tensors: shapes, dtypes and contents."""
    import torch
    import xxhash

    total = xxhash.xxh3_128()  # 30 times as fast as a cryptographic hash, which took a tenth of a step on a CPU
    for value in values:
        total.update(f"{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def tensor_cache(directory: Path) -> Cache[Tensor]:
    """A cache of tensors, on the CPU."""

    def read(path: Path) -> Tensor:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as stored:
            return _checked(stored, "value")

    def write(path: Path, value: Tensor) -> None:
        import torch
        from safetensors.torch import save_file

        plain = value.detach().cpu().contiguous(memory_format=torch.contiguous_format)
        save_file({"value": plain}, path, metadata={"value": tensor_digest(plain)})

    return Cache(directory=directory, suffix=".safetensors", read=read, write=write)


def _checked(stored: Any, key: str) -> Tensor:
    """A tensor of an open safetensors file. Raises ValueError if it is not that whose checksum the file has."""
    value: Tensor = stored.get_tensor(key)
    if (stored.metadata() or {}).get(key) != tensor_digest(value):
        raise ValueError("damaged")
    return value


class TensorShards:
    """Tensors by key, in safetensors files of about ``shard_bytes``: one each would be half a million for a dataset.

    Tensors that a killed process has collected are lost, and computed again.

    Args:
        directory: contains the shards.
        shard_bytes: bytes of tensors that are collected before they are written.
    """

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory, self.shard_bytes = directory, shard_bytes
        self.shards: dict[Path, Any] = {}
        self.shard_of: dict[str, Path] = {}
        self.collected: dict[str, Tensor] = {}
        self.collected_bytes = 0
        self._changed = 0
        self._find_shards()

    def get(self, key: str) -> Tensor | None:
        """The tensor, on the CPU; None if it is missing or its shard is unreadable."""
        if key in self.collected:
            return self.collected[key]
        if key not in self.shard_of:
            self._find_shards()
        try:
            return _checked(self._open(self.shard_of[key]), key)
        except Exception:  # libraries raise errors of their own
            self.shard_of.pop(key, None)  # a lost shard: its tensors may be added again
            return None

    def add(self, key: str, value: Tensor) -> None:
        """Collect a tensor, and write a shard if there are enough; errors as `flush`."""
        if key in self.collected:
            return
        if key not in self.shard_of:
            self._find_shards()
        if key in self.shard_of and self.shard_of[key].is_file():
            return
        self.collected[key] = value.detach().cpu().clone()  # no view of a batch
        self.collected_bytes += value.nbytes
        if self.collected_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the collected tensors.

        Raises:
            UserError: the directory is not writable.
        """
        from safetensors.torch import save_file

        if self.collected:
            path = self.directory / f"{uuid.uuid4().hex}.safetensors"
            with atomic_output_path(path) as partial:
                plain = {key: value.contiguous() for key, value in self.collected.items()}
                save_file(plain, partial, metadata={key: tensor_digest(value) for key, value in plain.items()})
            self.shard_of |= dict.fromkeys(self.collected, path)
            self.collected, self.collected_bytes = {}, 0

    def _find_shards(self) -> None:
        # The directory's time changes with each shard that a process writes.
        changed = self.directory.stat().st_mtime_ns if self.directory.is_dir() else 0
        if changed == self._changed:
            return
        self._changed = changed
        for path in self.directory.glob("*.safetensors"):
            if path not in self.shards:
                try:
                    keys = self._open(path).keys()
                except Exception:  # a broken file of a full disk
                    keys = []
                self.shard_of |= dict.fromkeys(keys, path)

    def _open(self, path: Path) -> Any:
        from safetensors import safe_open

        if path not in self.shards:
            self.shards[path] = None  # not opened again if it is broken
            self.shards[path] = safe_open(path, framework="pt")
        return self.shards[path]
