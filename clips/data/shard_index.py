"""Index of a tar shard's samples: built once from the headers, small enough to keep for many shards."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clips.core.artifact import log_info
from clips.data.images import IMAGE_SUFFIXES
from clips.data.tar_index import index_tar, is_clutter
from clips.errors import UserError

Spans = Mapping[str, tuple[int, int]]
"""File extension → (offset, size) of its bytes in the tar."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The samples of a shard in the order of the tar, as arrays: 10,000 samples of three files take 0.8 MB.

    Args:
        keys: (samples,) names in UTF-8.
        starts: (samples + 1,) index of each sample's first file.
        kinds: (files,) index of each file's extension.
        spans: (files, 2) offset and size of each file's bytes.
        extensions: (distinct extensions,) in UTF-8.
    """

    keys: np.ndarray
    starts: np.ndarray
    kinds: np.ndarray
    spans: np.ndarray
    extensions: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        """The name of a sample."""
        return bytes(self.keys[sample]).decode(errors="backslashreplace")

    def files(self, sample: int) -> dict[str, tuple[int, int]]:
        """A sample's files by extension, see `Spans`."""
        first, last = self.starts[sample : sample + 2]
        names = (bytes(self.extensions[kind]).decode(errors="backslashreplace") for kind in self.kinds[first:last])
        return dict(zip(names, map(tuple, self.spans[first:last].tolist()), strict=True))

    def save(self, path: Path) -> None:
        """Write it for `load_index`."""
        with path.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


INDEX_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
"""Raised by `load_index` for an incomplete file, as after a power failure."""


def load_index(path: Path) -> ShardIndex:
    """Read the output of `ShardIndex.save`; raises one of `INDEX_READ_ERRORS` for anything else."""
    with np.load(path) as arrays:
        return ShardIndex(**{field.name: arrays[field.name] for field in dataclasses.fields(ShardIndex)})


def image_extension(files: Spans) -> str | None:
    """The extension of a sample's image; of several images it is the first in the order of `IMAGE_SUFFIXES`.

    Raises:
        UserError: there is no image, but one of the name ``KEY.anything.jpg``.
    """
    for suffix in IMAGE_SUFFIXES:
        if suffix[1:] in files:
            return suffix[1:]
    if longer := next((name for name in files if name.endswith(IMAGE_SUFFIXES)), None):
        extension = longer.rpartition(".")[2]
        raise UserError(f"no .{extension}, but .{longer}: a sample's name ends at the first dot")
    return None


def index_shard(shard: Path, *, allow_cut: bool = True) -> ShardIndex:
    """The samples of a local shard; of a truncated shard the complete ones, with a warning.

    As for the library ``webdataset``, a sample's name ends at the first dot of the file name, and files without a dot
    or with nothing before it are no samples; nor is anything else that `is_clutter`.

    Args:
        shard: the tar.
        allow_cut: whether the shard may be truncated.

    Raises:
        UserError: the shard is missing, not a tar, truncated, or two of its files have the same name.
    """
    index = index_tar(shard, allow_cut=allow_cut)
    files: dict[str, dict[str, tuple[int, int]]] = {}
    for name, span in index.members.items():
        if "." not in name.rpartition("/")[2] or is_clutter(name):
            continue
        key, extension = _split_name(name)
        if extension in files.setdefault(key, {}):  # 0.jpg and 0.JPG
            raise UserError(f"{shard}: expected different names, got {key}.{extension} twice")
        files[key][extension] = span
    if index.cut:
        if files:
            files.popitem()  # the last sample may be incomplete
        if not files:
            raise UserError(f"{shard}: expected a whole tar; it is truncated in its first sample")
        log_info(f"{shard}: truncated or damaged; its first {len(files)} samples are used")
    return _as_arrays(files)


def _as_arrays(files: Mapping[str, Spans]) -> ShardIndex:
    names = [extension for spans in files.values() for extension in spans]
    kinds = {extension: kind for kind, extension in enumerate(dict.fromkeys(names))}
    return ShardIndex(
        keys=np.array(list(map(_encode, files)), dtype=np.bytes_),
        starts=np.cumsum([0, *map(len, files.values())], dtype=np.int32),
        kinds=np.array([kinds[name] for name in names], dtype=np.int32),
        spans=np.array([span for spans in files.values() for span in spans.values()], dtype=np.int64).reshape(-1, 2),
        extensions=np.array(list(map(_encode, kinds)), dtype=np.bytes_),
    )


def _encode(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # as tarfile decodes names that are not UTF-8


def _split_name(name: str) -> tuple[str, str]:
    """``a/b.c.JPG`` → ("a/b", "c.jpg")."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()
