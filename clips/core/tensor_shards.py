"""A cache of many tensors in few files, which several processes write and read concurrently.

A file per tensor would be half a million files for an image dataset. Writers collect tensors and write each shard by an
atomic rename; tensors that a killed process has collected are lost, and computed again. The cache can be deleted at any
time.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.core.artifact import atomic_output_path

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 2**28


class TensorShards:
    """Tensors by key, in safetensors files of about ``shard_bytes``.

    Args:
        directory: contains the shards.
        shard_bytes: bytes of tensors that are collected before they are written.
    """

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory = directory
        self.shard_bytes = shard_bytes
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
            return self._open(self.shard_of[key]).get_tensor(key)
        except Exception:  # libraries raise errors of their own
            self.shard_of.pop(key, None)  # a lost shard: its tensors may be added again
            return None

    def add(self, key: str, value: Tensor) -> None:
        """Collect a tensor, and write a shard if there are enough.

        Raises:
            UserError: the directory is not writable.
        """
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
        """Write the collected tensors. Raises UserError if the directory is not writable."""
        from safetensors.torch import save_file

        if self.collected:
            path = self.directory / f"{uuid.uuid4().hex}.safetensors"
            with atomic_output_path(path) as partial:
                save_file({key: value.contiguous() for key, value in self.collected.items()}, partial)
            self.shard_of |= dict.fromkeys(self.collected, path)
            self.collected, self.collected_bytes = {}, 0

    def _find_shards(self) -> None:
        """Read the keys of shards that processes have written since the last call."""
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
            self.shards[path] = None
            self.shards[path] = safe_open(path, framework="pt")
        return self.shards[path]
