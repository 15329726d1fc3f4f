"""Index of a tar shard's samples: built once from the headers, small enough to hold for many shards."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clips.core.artifact import log_info
from clips.data.tar_index import index_tar
from clips.errors import UserError

Spans = Mapping[str, tuple[int, int]]
"""File extension → (offset, size) of its bytes in the tar."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The samples of a shard in the order of the tar, as arrays: 10,000 samples of three files take 0.8 MB.

    Args:
        keys: (samples,) names in UTF-8.
        starts: (samples + 1,) start of each sample's files among all files.
        kinds: (files,) each file's index in ``extensions``.
        spans: (files, 2) offset and size of each file's bytes.
        extensions: (file types,) in UTF-8.
    """

    keys: np.ndarray
    starts: np.ndarray
    kinds: np.ndarray
    spans: np.ndarray
    extensions: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, place: int) -> str:
        """The name of a sample."""
        return bytes(self.keys[place]).decode(errors="backslashreplace")

    def files(self, place: int) -> dict[str, tuple[int, int]]:
        """A sample's files by extension, see `Spans`."""
        first, last = self.starts[place : place + 2]
        names = (bytes(self.extensions[kind]).decode(errors="backslashreplace") for kind in self.kinds[first:last])
        return dict(zip(names, map(tuple, self.spans[first:last].tolist()), strict=True))

    def save(self, path: Path) -> None:
        """Write it for `load_index`."""
        with path.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


INDEX_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
"""Raised by `load_index` for an incomplete file, as after a power failure."""


def load_index(path: Path) -> ShardIndex:
    """What `ShardIndex.save` wrote; one of `UNREADABLE_INDEX` of anything else."""
    with np.load(path) as arrays:
        return ShardIndex(**{field.name: arrays[field.name] for field in dataclasses.fields(ShardIndex)})


def index_shard(shard: Path) -> ShardIndex:
    """The samples of a local shard; of a truncated one those before the cut, with a warning.

    Raises:
        UserError: the shard is missing, or no tar.
    """
    index = index_tar(shard, allow_cut=True)
    files: dict[str, dict[str, tuple[int, int]]] = {}
    for name, span in index.members.items():
        key, extension = _split_name(name)
        files.setdefault(key, {})[extension] = span
    if index.cut:
        files.popitem()  # of the last one something may be missing
        if not files:
            raise UserError(f"{shard}: expected a whole tar; it is truncated in its first sample")
        log_info(f"{shard}: truncated; its first {len(files)} samples are used")
    return _as_arrays(files)


def _as_arrays(files: Mapping[str, Spans]) -> ShardIndex:
    extensions = dict.fromkeys(name for one in files.values() for name in one)
    number = {extension: place for place, extension in enumerate(extensions)}
    return ShardIndex(
        keys=np.array([_encoded(key) for key in files], dtype=np.bytes_),
        starts=np.cumsum([0, *map(len, files.values())], dtype=np.int32),
        kinds=np.array([number[name] for one in files.values() for name in one], dtype=np.int32),
        spans=np.array([span for one in files.values() for span in one.values()], dtype=np.int64).reshape(-1, 2),
        extensions=np.array([_encoded(name) for name in number], dtype=np.bytes_),
    )


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # tarfile's way with names that are not UTF-8


def _split_name(name: str) -> tuple[str, str]:
    """``a/b.c.jpg`` → ("a/b", "c.jpg"): WebDataset's key ends at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()
