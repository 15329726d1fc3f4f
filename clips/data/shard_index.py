"""Index of a tar shard's samples: built once from the headers, small enough to keep for many shards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clips.core.artifact import log_info
from clips.core.content import file_stamp
from clips.core.parent_death import end_with_parent, start_python, usable_cores
from clips.data.images import IMAGE_SUFFIXES
from clips.data.remote_files import ShardCache, is_remote
from clips.data.tar_index import index_tar, is_clutter
from clips.errors import UserError

Spans = Mapping[str, tuple[int, int]]
"""File extension → (offset, size) of its bytes in the tar."""
_SMALL = 1e6  # bytes of a local shard, whose index takes no longer to build than to read
_WORTH_WORKERS = 1e9  # bytes of shards: of small samples about 5 s of one core


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The samples of a shard in the order of the tar, as arrays: 10,000 samples of three files take 0.8 MB.

    Args:
        keys: (samples,) names in UTF-8.
        starts: (samples + 1,) index of each sample's first file.
        kinds: (files,) index of each file's extension.
        spans: (files, 2) offset and size of each file's bytes.
        extensions: (distinct extensions,) in UTF-8.
        cut: (), whether the shard is truncated; the samples are the complete ones.
    """

    keys: np.ndarray
    starts: np.ndarray
    kinds: np.ndarray
    spans: np.ndarray
    extensions: np.ndarray
    cut: np.ndarray

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

    def warn_if_cut(self, path: Path) -> None:
        """Say so if the shard is truncated."""
        if self.cut:
            log_info(f"{path}: truncated or damaged; its first {len(self)} samples are used")

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
    """The samples of a local shard; of a truncated shard the complete ones.

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
        if is_clutter(name):
            continue
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")  # a/b.c.JPG is the file c.jpg of the sample a/b
        if not dot:
            continue
        key, extension = f"{folder}{slash}{stem}", extension.lower()
        if extension in files.setdefault(key, {}):  # 0.jpg and 0.JPG
            raise UserError(f"{shard}: expected different names, got {key}.{extension} twice")
        files[key][extension] = span
    if index.cut:
        if files:
            files.popitem()  # the last sample may be incomplete
        if not files:
            raise UserError(f"{shard}: expected a whole tar; it is truncated in its first sample")
    names = [extension for spans in files.values() for extension in spans]
    kinds = {extension: kind for kind, extension in enumerate(dict.fromkeys(names))}
    return ShardIndex(
        keys=np.array(list(map(_encode, files)), dtype=np.bytes_),
        starts=np.cumsum([0, *map(len, files.values())], dtype=np.int32),
        kinds=np.array([kinds[name] for name in names], dtype=np.int32),
        spans=np.array([span for spans in files.values() for span in spans.values()], dtype=np.int64).reshape(-1, 2),
        extensions=np.array(list(map(_encode, kinds)), dtype=np.bytes_),
        cut=np.array(index.cut),
    )


def _encode(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # as tarfile decodes names that are not UTF-8


class Shards:
    """Local or remote tar shards and their indexes, which are built once for all processes of a node.

    An index stays in the cache next to the copies of remote shards. One that is older than its shard is not used.

    Args:
        shards: paths and URLs.
        cache: directory of copies and indexes.
        max_indexes: maximum number of indexes that this process has in memory.
    """

    def __init__(self, shards: Sequence[str], cache: ShardCache, max_indexes: int) -> None:
        self.shards, self.cache, self.max_indexes = shards, cache, max_indexes
        self.index = functools.lru_cache(maxsize=max_indexes)(self._read_index)

    def __reduce__(self) -> tuple[type[Shards], tuple[Sequence[str], ShardCache, int]]:
        return Shards, (self.shards, self.cache, self.max_indexes)  # without the indexes

    def _read_index(self, shard: int) -> ShardIndex:
        """The index of a shard, from the cache or built. Raises UserError for a shard that cannot be read."""
        path = self.cache.path(self.shards[shard])
        is_small = not is_remote(self.shards[shard]) and path.is_file() and path.stat().st_size < _SMALL
        index = index_shard(path) if is_small else self.cached_index(shard, path)
        index.warn_if_cut(path)
        return index

    def cached_index(self, shard: int, path: Path) -> ShardIndex:
        """The index of the shard at ``path``; it is in the cache afterwards if that can be written.

        Raises as `index_shard`.
        """
        is_local, built = not is_remote(self.shards[shard]), list[ShardIndex]()

        def build(file: Path) -> None:
            built.append(index_shard(path))
            built[-1].save(file)

        try:
            key, name = self._index_key(shard, path)
            return load_index(self.cache.made(key, name, build, retry=not is_local))
        except UserError:
            if is_local and built:  # the shard was read, and the index not written
                return built[-1]
            raise
        except (*INDEX_READ_ERRORS, NotImplementedError):  # also without disk space or locks
            return built[-1] if built else index_shard(path)

    def _index_key(self, shard: int, path: Path) -> tuple[str, str]:
        """What identifies the index in the cache, and the name of its file."""
        # the local copy of a remote shard may be downloaded again
        version = f"{path.stat().st_size} bytes" if is_remote(self.shards[shard]) else file_stamp(path)
        return f"index 3 of {self.shards[shard]}, {version}", f"{path.name}.index"  # 3: of what `index_shard` returns

    def build_indexes(self) -> None:
        """Build the missing indexes of many large local shards with all cores, while other processes wait for them.

        Errors are left to the reader of each index.
        """
        with contextlib.suppress(OSError, NotImplementedError), self.cache.lock("indexes"):
            sizes = {
                shard: path.stat().st_size
                for shard, path in enumerate(map(Path, self.shards))
                if path.is_file() and not self.cache.target(*self._index_key(shard, path)).exists()
            }
            missing = [shard for shard, size in sizes.items() if size >= _SMALL]
            workers = min(len(missing), usable_cores())
            if workers < 2 or sum(map(sizes.__getitem__, missing)) < _WORTH_WORKERS:
                return
            log_info(f"reading the headers of {len(missing):,} shards in {workers} processes")
            processes = [start_python("from clips.data.shard_index import main; main()") for _ in range(workers)]
            try:
                for number, (_, stdin) in enumerate(processes):
                    with stdin:
                        share = [self.shards, str(self.cache.directory), self.cache.limit, missing[number::workers]]
                        stdin.write(json.dumps(share).encode())
                for process, _ in processes:
                    process.wait()
            finally:
                for process, _ in processes:
                    process.kill()


def main() -> None:
    """A process of `Shards.build_indexes`."""
    end_with_parent()
    shards, directory, limit, missing = json.load(sys.stdin)
    found = Shards(shards, ShardCache(Path(directory), limit), max_indexes=1)
    for shard in missing:
        with contextlib.suppress(UserError):
            found.cached_index(shard, Path(shards[shard]))
