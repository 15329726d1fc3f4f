"""Random access to tar files: their members, read once from the headers, and the samples of tar shards.

The index of a large shard is built once for all processes of a node, and small enough to keep for many shards.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clips.commandline.progress import Progress
from clips.core.identity import digest, file_stamp
from clips.core.parent_death import end_with_parent, start_python, usable_cores
from clips.data.remote_files import COUNTS_SUFFIX, INDEX_SUFFIX, BadCopyError, ShardCache, is_remote
from clips.errors import UserError, error_reason
from clips.safe_text import log_info
from clips.text_files import reject_named_pipe

Spans = Mapping[str, tuple[int, int]]
"""Name of a member, or extension of a sample's file → (offset, size) of its bytes in the tar."""
MAX_MEMBER_BYTES = 256 * 2**20  # of a member that is read into memory; images and texts are smaller
_BLOCK, _ZEROS = 512, bytes(512)
_PAX = ord("x")  # the type of a header for the next one
_CLUTTER = {"readme", "readme.md", "readme.txt", "thumbs.db"}
# the octal fields of a header: mode, user, group, size, time, checksum, device (2)
_NUMBERS = ((100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (148, 156), (329, 337), (337, 345))
_CHECKSUM = slice(148, 156)
_PAX_TIMES = re.compile(rb"(?:\d+ [acm]time=[-+.\de]*\n)+")  # all that webdataset's writer states in pax headers
_SMALL = 1e6  # bytes of a local shard, whose index takes no longer to build than to read
_WORTH_WORKERS = 1e9  # bytes of shards: of small samples about 5 s of one core


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The regular files in one uncompressed tar."""

    path: Path
    members: Spans  # in the order of the tar
    cut: bool = False  # whether the tar is truncated; the members are the complete ones

    def read(self, name: str) -> bytes:
        """The content of member ``name``. Raises FileNotFoundError."""
        try:
            offset, size = self.members[name]
        except KeyError:
            raise FileNotFoundError(f"{self.path}/{name}") from None
        return read_byte_range(self.path, offset, size)


def read_byte_range(path: Path, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset``. Raises OSError for more than ``MAX_MEMBER_BYTES``."""
    if size > MAX_MEMBER_BYTES:
        raise OSError(f"{size / 2**20:,.0f} MB, expected at most {MAX_MEMBER_BYTES // 2**20}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def check_download(path: Path) -> None:
    """Raise `BadCopyError` for a file that is not a whole tar: a login page, nothing, or the beginning of a tar."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        first = stream.read(_BLOCK)
        stream.seek(max(0, size - _BLOCK))
        is_ended = stream.read() == _ZEROS
    try:
        if first != _ZEROS:
            tarfile.TarInfo.frombuf(first, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        shown = f", which begin with {first[:40]!r}" if first else ""
        raise BadCopyError(f"expected an uncompressed tar, got {size:,} bytes{shown}") from None
    if not is_ended:
        raise BadCopyError(f"expected a whole tar, got {size:,} bytes without its end")


def is_clutter(name: str) -> bool:
    """Whether a file or member is no data but lies beside them: hidden (``._0.jpg``), a README, in ``__MACOSX``."""
    folder, _, file = name.rpartition("/")
    return file.startswith(".") or file.lower() in _CLUTTER or "__MACOSX" in folder.split("/") or file == "__MACOSX"


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to a tar that is open for writing."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def index_tar(path: str | Path, *, allow_cut: bool = False) -> TarIndex:
    """Read the headers of an uncompressed tar, or of several concatenated ones. A hard link has its file's bytes.

    Raises:
        UserError: the file is missing, compressed, not a tar, or two of its members have the same name; or it is
            damaged or truncated, unless ``allow_cut`` and there is a complete member.
    """
    path = Path(path)
    reject_named_pipe(path)
    problem, is_plain = None, False
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            members = plain_members(stream)
            is_plain = members is not None
            if members is None:
                members = {}
                start: int | None = 0
                while start is not None:
                    stream.seek(start)
                    with tarfile.open(fileobj=stream, mode="r:") as tar:
                        for member in tar:
                            _add(members, member, path)
                        end = tar.offset
                    start = _find_next_tar(stream, end)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: expected an uncompressed tar ({error.strerror or error})") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        problem = f"expected a whole, uncompressed tar; it is broken or truncated ({error})"
    members = members or {}
    if not is_plain or (members and sum(next(reversed(members.values()))) > size):  # plain ones are in order
        members = {name: span for name, span in members.items() if sum(span) <= size}
    if problem is not None and not (allow_cut and members):
        raise UserError(f"{path}: {problem}")
    return TarIndex(path, members, cut=problem is not None)


def plain_members(stream: BinaryIO) -> dict[str, tuple[int, int]] | None:
    """The members of a whole tar of regular files, read six times as fast as by ``tarfile``.

    With ``tarfile`` alone, the first start of a training on 40,000 samples takes 1.2 to 1.5 times as long.

    None if ``tarfile`` has to judge: for links, long names, sparse files, numbers in base 256, two files of one name,
    and for anything damaged. A pax header may state times, as those of webdataset's writer do.
    """
    members: dict[str, tuple[int, int]] = {}
    headers: list[bytes] = []  # that are still to be checked
    spans: list[tuple[int, int]] = []
    descriptor, offset, count, is_extended, pread = stream.fileno(), 0, 0, False, os.pread
    while True:
        header = pread(descriptor, _BLOCK, offset)
        at_end = header == _ZEROS
        if at_end or len(headers) == 4096:
            names = _plain_names(headers)
            if names is None:
                return None
            members.update(zip(names, spans, strict=True))
            count += len(names)
            if len(members) < count:
                return None
            headers, spans = [], []
        if at_end:
            following = None if is_extended else _find_next_tar(stream, offset)
            if following is None:
                return None if is_extended else members
            offset = following
            continue
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError:
            return None
        if size < 0 or len(header) < _BLOCK:
            return None
        start = offset + _BLOCK
        if header[156] == _PAX and not is_extended and size <= 4096:
            records = pread(descriptor, size, start)
            lines = records.splitlines(keepends=True)
            if not _PAX_TIMES.fullmatch(records) or any(int(line.split()[0]) != len(line) for line in lines):
                return None
            if not _are_plain([header]):
                return None
            is_extended = True
        else:
            headers.append(header)
            spans.append((start, size))
            is_extended = False
        offset = start + -(-size // _BLOCK) * _BLOCK


def _plain_names(headers: Sequence[bytes]) -> list[str] | None:
    """The names in the headers of regular files; None if one is anything else."""
    if not headers:
        return []
    rows = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, _BLOCK)
    if not (_are_plain(headers) and np.isin(rows[:, 156], (ord("0"), 0)).all()):
        return None
    short, folders = rows[:, :100], rows[:, 345:500]
    if any(((texts[:, :-1] == 0) & (texts[:, 1:] != 0)).any() for texts in (short, folders)):  # behind the end
        return None
    files: list[bytes] = np.ascontiguousarray(short).view("S100")[:, 0].tolist()
    if folders[:, 0].any():
        prefixes: list[bytes] = np.ascontiguousarray(folders).view("S155")[:, 0].tolist()
        files = [prefix + b"/" + name if prefix else name for prefix, name in zip(prefixes, files, strict=True)]
    names = [name.decode(tarfile.ENCODING, "surrogateescape").removeprefix("./") for name in files]
    return None if any(not name or name.endswith("/") for name in names) else names


def _are_plain(headers: Sequence[bytes]) -> bool:
    # the numbers are octal digits and then blanks or zeros, and the checksums right
    rows = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, _BLOCK)
    for first, last in _NUMBERS:
        field = rows[:, first:last]
        is_digit = (field >= ord("0")) & (field <= ord("7"))
        is_blank = (field == 0) | (field == ord(" "))
        if not (is_digit | is_blank).all() or (is_blank[:, :-1] & is_digit[:, 1:]).any():
            return False
    stated = np.zeros(len(rows), np.int64)
    for column in rows[:, _CHECKSUM].T.astype(np.int64):
        stated = np.where(column >= ord("0"), 8 * stated + column - ord("0"), stated)
    sums = rows.sum(1, dtype=np.int64) - rows[:, _CHECKSUM].sum(1, dtype=np.int64)
    blanks = ord(" ") * (_CHECKSUM.stop - _CHECKSUM.start)  # for which the checksum itself counts
    return bool((sums + blanks == stated).all())


def _add(members: dict[str, tuple[int, int]], member: tarfile.TarInfo, path: Path) -> None:
    if member.size < 0:  # would cause an endless loop
        raise tarfile.ReadError("a member of negative size")
    if member.issparse():  # whose bytes are not those in the tar
        raise UserError(f"{path}: expected whole files, got {member.name}, which is sparse")
    name = member.name.removeprefix("./")
    if name in members and (member.isreg() or member.islnk()) and not is_clutter(name):
        raise UserError(f"{path}: expected different names, got {name} twice")
    if member.isreg():
        members[name] = (member.offset_data, member.size)
    elif member.islnk() and (target := member.linkname.removeprefix("./")) in members:
        members[name] = members[target]


def _find_next_tar(stream: BinaryIO, end: int) -> int | None:
    """The start of the tar after the end mark at ``end``; None if only zeros follow. Raises ReadError for no end mark.

    tarfile ends silently at any header but the first that it cannot read.
    """
    stream.seek(end)
    mark = stream.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise tarfile.ReadError("no end mark")
    if mark != _ZEROS:
        raise tarfile.ReadError("invalid header")
    position = end + _BLOCK
    while content := stream.read(2**20):
        if rest := content.lstrip(b"\0"):
            return position + (len(content) - len(rest)) // _BLOCK * _BLOCK
        position += len(content)
    return None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The samples of a shard in the order of the tar, as arrays: 10,000 samples of three files take 0.8 MB."""

    keys: np.ndarray  # (samples,) names in UTF-8
    starts: np.ndarray  # (samples + 1,) index of each sample's first file
    kinds: np.ndarray  # (files,) index of each file's extension
    spans: np.ndarray  # (files, 2) offset and size of each file's bytes
    extensions: np.ndarray  # (distinct extensions,) in UTF-8
    cut: np.ndarray  # (), whether the shard is truncated; the samples are the complete ones

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        """The name of a sample."""
        return bytes(self.keys[sample]).decode(errors="backslashreplace")

    def files(self, sample: int) -> dict[str, tuple[int, int]]:
        """A sample's files by extension."""
        first, last = self.starts[sample : sample + 2]
        names = (bytes(self.extensions[kind]).decode(errors="backslashreplace") for kind in self.kinds[first:last])
        return dict(zip(names, map(tuple, self.spans[first:last].tolist()), strict=True))

    def __iter__(self) -> Iterator[tuple[str, Spans]]:
        return ((self.key(sample), self.files(sample)) for sample in range(len(self)))

    def warn_if_cut(self, path: Path) -> None:
        """Log that the shard is truncated, if it is."""
        if self.cut:
            log_info(f"{path}: truncated or damaged; its first {len(self)} samples are used")

    def save(self, path: Path) -> None:
        """Write it for `load_index`."""
        with path.open("wb") as file:
            for field in dataclasses.fields(self):
                np.save(file, getattr(self, field.name))


def load_index(path: Path) -> ShardIndex:
    """Read the output of `ShardIndex.save`."""
    with path.open("rb") as file:  # one array after the other: a quarter of the time of an npz
        return ShardIndex(**{field.name: np.load(file) for field in dataclasses.fields(ShardIndex)})


def index_shard(shard: Path, *, allow_cut: bool = True) -> ShardIndex:
    """The samples of a local shard; of a truncated shard, if allowed, the complete ones. Raises as `index_tar`.

    As for the library ``webdataset``, a sample's name ends at the first dot of the file name, and files without a dot
    or with nothing before it are no samples; nor is anything else that `is_clutter`.
    """
    index = index_tar(shard, allow_cut=allow_cut)
    files: dict[str, dict[str, tuple[int, int]]] = {}
    for name, span in index.members.items():
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")  # a/b.c.JPG is the file c.jpg of the sample a/b
        if not stem or not dot or file.lower() in _CLUTTER or ("__MACOSX" in name and is_clutter(name)):
            continue
        key, extension = f"{folder}{slash}{stem}", extension.lower()
        sample = files.setdefault(key, {})
        if extension in sample:  # 0.jpg and 0.JPG
            raise UserError(f"{shard}: expected different names, got {key}.{extension} twice")
        sample[extension] = span
    if index.cut:
        if files:
            files.popitem()  # the last sample may be incomplete
        if not files:
            raise UserError(f"{shard}: expected a whole tar; it is truncated in its first sample")

    def encoded(texts: Iterable[str]) -> np.ndarray:  # tarfile decodes names that are not UTF-8 with surrogates
        return np.array([text.encode(errors="surrogateescape") for text in texts], dtype=np.bytes_)

    names = [extension for spans in files.values() for extension in spans]
    kinds = {extension: kind for kind, extension in enumerate(dict.fromkeys(names))}
    return ShardIndex(
        keys=encoded(files),
        starts=np.cumsum([0, *map(len, files.values())], dtype=np.int32),
        kinds=np.array([kinds[name] for name in names], dtype=np.int32),
        spans=np.array([span for spans in files.values() for span in spans.values()], dtype=np.int64).reshape(-1, 2),
        extensions=encoded(kinds),
        cut=np.array(index.cut),
    )


class Shards:
    """Local or remote tar shards and their indexes, which are built once for all processes of a node.

    An index stays in the cache next to the copies of remote shards. One that is older than its shard is not used. This
    process has up to ``max_indexes`` in memory.
    """

    def __init__(self, shards: Sequence[str], cache: ShardCache, max_indexes: int) -> None:
        self.shards, self.cache, self.max_indexes = shards, cache, max_indexes
        self.index = functools.lru_cache(maxsize=max_indexes)(self._read_index)

    def __reduce__(self) -> tuple[type[Shards], tuple[Sequence[str], ShardCache, int]]:
        return Shards, (self.shards, self.cache, self.max_indexes)  # without the indexes

    def _read_index(self, shard: int) -> ShardIndex:
        path = self.cache.path(self.shards[shard], check_download)
        is_small = not is_remote(self.shards[shard]) and path.is_file() and path.stat().st_size < _SMALL
        index = index_shard(path) if is_small else self.cached_index(shard, path)
        index.warn_if_cut(path)
        return index

    def cached_index(self, shard: int, path: Path) -> ShardIndex:
        """The index of the shard at ``path``; afterwards it is in the cache if that can be written."""
        is_local, built = not is_remote(self.shards[shard]), list[ShardIndex]()

        def build(file: Path) -> None:
            built.append(index_shard(path))
            built[-1].save(file)

        try:
            # the local copy of a remote shard may be downloaded again
            version = f"{path.stat().st_size} bytes" if is_remote(self.shards[shard]) else file_stamp(path)
            key = f"index 4 of {self.shards[shard]}, {version}"  # 4: of what `ShardIndex.save` writes
            return load_index(self.cache.made(key, f"{path.name}{INDEX_SUFFIX}", build, retry=not is_local))
        except UserError:
            if is_local and built:  # the shard was read, and the index not written
                return built[-1]
            raise
        # without disk space or locks; or the index is incomplete, as after a power failure
        except (OSError, RuntimeError, EOFError, ValueError):
            return built[-1] if built else index_shard(path)

    def count(self) -> tuple[list[int], dict[int, str]]:
        """Samples in each local shard; and of unreadable ones, which have 0, the errors.

        They are counted by all cores, and once for all processes of a node and all later starts: the counts lie in the
        cache, for these shards with these stamps. No index stays in memory.
        """
        stamps: list[Any] = []
        for shard in self.shards:
            try:
                stamps.append(file_stamp(shard))
            except OSError as error:
                stamps.append(error_reason(error))
        key, counted = digest(["counts 1", *zip(map(ascii, self.shards), stamps, strict=True)]), list[Counted]()

        def build(file: Path) -> None:
            counted.extend(self._count(stamps))
            file.write_text(json.dumps(counted), encoding="utf-8")

        try:
            made = self.cache.made(key, f"shards{COUNTS_SUFFIX}", build, retry=False)
            if not counted:  # but once; a shard that could not be read may be readable now
                stored = json.loads(made.read_text(encoding="utf-8"))
                again = [number for number, _, error in stored if error]
                counted += [entry for entry in stored if not entry[-1]]
                counted += _counted([self.shards[number] for number in again], self.cache, again)
        except (OSError, RuntimeError, ValueError, UserError):  # the cache cannot be written, or is damaged
            counted = counted or self._count(stamps)
        counts = sorted((number, count, error) for number, count, error in counted)  # JSON has lists
        return [count for _, count, _ in counts], {number: error for number, _, error in counts if error}

    def _count(self, stamps: Sequence[Any]) -> list[Counted]:
        sizes = [stamp[0] if isinstance(stamp, tuple) else 0 for stamp in stamps]
        workers = min(len(sizes), usable_cores())
        numbers = range(len(sizes))
        if workers < 2 or sum(sizes) < _WORTH_WORKERS:
            return [*_counted(self.shards, self.cache, numbers)]
        log_info(f"reading the headers of {len(sizes):,} shards in {workers} processes, once")
        processes = []
        with tempfile.TemporaryDirectory() as folder, Progress("reading headers", len(sizes), "shards") as progress:
            outputs = [Path(folder, str(number)) for number in range(workers)]
            try:
                for number, output in enumerate(outputs):
                    output.touch()
                    process, stdin = start_python("from clips.data.tar_index import main; main()")
                    processes.append(process)
                    part = {shard: self.shards[shard] for shard in numbers[number::workers]}
                    with stdin:
                        stdin.write(
                            json.dumps([part, str(self.cache.directory), self.cache.limit, str(output)]).encode()
                        )
                while any(process.poll() is None for process in processes):
                    time.sleep(0.1)
                    progress.advance(sum(output.read_bytes().count(b"\n") for output in outputs) - progress.done)
            finally:
                for process in processes:
                    process.kill()
            lines = [line for output in outputs for line in output.read_text(encoding="utf-8").splitlines()]
            counted = [json.loads(line) for line in lines]
        missing = [*set(numbers) - {number for number, _, _ in counted}]  # a process was killed for memory, for example
        return [*counted, *_counted([self.shards[number] for number in missing], self.cache, missing)]


Counted = tuple[int, int, str]
"""The number of a shard, its samples, and why it cannot be read."""


def _counted(shards: Iterable[str], cache: ShardCache, numbers: Iterable[int]) -> Iterator[Counted]:
    """Count shards, whose indexes are in the cache afterwards."""
    for shard, number in zip(shards, numbers, strict=True):
        try:
            yield number, len(Shards([shard], cache, max_indexes=1).index(0)), ""
        except UserError as error:
            yield number, 0, str(error)


def main() -> None:
    """A process of `Shards.count`."""
    end_with_parent()
    part, directory, limit, output = json.load(sys.stdin)
    with Path(output).open("a", encoding="utf-8") as file:
        for counted in _counted(part.values(), ShardCache(Path(directory), limit), map(int, part)):
            file.write(json.dumps(counted) + "\n")
            file.flush()
