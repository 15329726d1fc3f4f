"""WebDataset's tar shards, here or anywhere that fsspec reads, at random through an index of their headers."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clips.core.artifact import MANIFEST, directory_hash, log_info
from clips.data.formats.tar_shards import list_shards
from clips.data.images import IMAGE_SUFFIXES, BadSampleError
from clips.data.remote_files import ShardCache, UnreachableError, is_remote, read_file
from clips.data.shard_index import INDEX_READ_ERRORS, ShardIndex, Spans, index_shard, load_index
from clips.data.sources.source import Record, Sample, SourceConfig, choose_nonempty, sample_caption
from clips.data.tar_index import read_byte_range
from clips.errors import UserError, error_reason, unknown_name_error
from clips.jsontext import safe_json_loads

SIZES_FILE = "sizes.json"
"""Beside the shards: {shard's name: samples in it}, as webdataset and open_clip have it."""
_TRIED_SAMPLES = 20  # before training, for the keys that they have
_IMAGE_EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_INDEXES_KEPT = 128  # of shards whose sizes are known: more than the usual shuffle window has
_UNREADABLE_SHARE = 0.02  # of the shards may be so when they are counted; more are the user's mistake

ReadSpan = Callable[[tuple[int, int]], bytes]


class WebDatasetSource:
    """Tar shards; where their sizes are known beforehand (`SIZES`), a shard is not opened until it is needed."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.cache = ShardCache(Path(config.cache_dir).expanduser(), config.max_cache_gb * 1e9)
        self.shards = list_shards(config.path)
        sizes = _known_sizes(config.shard_sizes, self.shards)
        self.many = sizes is not None
        self.indexes_kept = _INDEXES_KEPT if self.many else len(self.shards)
        self._index = functools.lru_cache(maxsize=self.indexes_kept)(self._read_index)
        self.unreadable: dict[int, str] = {}  # shard's number → what is wrong with it
        self.sizes = sizes or self._counted()
        self.ends = np.cumsum(self.sizes)
        self._check_keys()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._index = functools.lru_cache(maxsize=self.indexes_kept)(self._read_index)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def blocks(self) -> list[int]:
        """Samples of each shard."""
        return self.sizes

    @property
    def from_afar(self) -> bool:
        """See `Afar`."""
        return any(map(is_remote, self.shards))

    @property
    def copies(self) -> ShardCache:
        """See `Afar`."""
        return self.cache

    def fetch(self, block: int) -> Path:
        """See `Afar`. Its index is made by readers, since the fetching process has other work than that."""
        return self.cache.path(self.shards[block])

    def _counted(self) -> list[int]:
        """Samples in each shard, 0 in one that cannot be read; of those there may be few."""
        sizes = []
        for number in range(len(self.shards)):
            try:
                sizes.append(len(self._index(number)))
            except UserError as error:
                self.unreadable[number] = str(error)
                if number == 0 or len(self.unreadable) > _UNREADABLE_SHARE * len(self.shards):
                    raise
                log_info(f"{error}; none of its samples is used")
                sizes.append(0)
        return sizes

    def _samples_of(self, shard: int) -> ShardIndex:
        """Those of a shard; BadSampleError for each of one that cannot be read, though it can be reached."""
        if shard not in self.unreadable:
            try:
                return self._index(shard)
            except UnreachableError:
                raise
            except UserError as error:
                self.unreadable[shard] = str(error)
        raise BadSampleError(self.unreadable[shard])

    def name(self, index: int) -> str:
        """See `Source`."""
        shard, place = self._locate(index)
        key = str(place)
        if shard not in self.unreadable and place < len(samples := self._index(shard)):
            key = samples.key(place)
        return f"{_file_name(self.shards[shard])}/{key}"

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        shard, place = self._locate(index)
        samples = self._samples_of(shard)
        if place >= len(samples):
            raise BadSampleError(f"missing, though {SIZES_FILE} counts it")
        spans = samples.files(place)
        image = next((spans[extension] for extension in _IMAGE_EXTENSIONS if extension in spans), None)
        if image is None:
            raise BadSampleError("no picture")
        read = functools.partial(self._bytes, shard)
        captions = _captions(spans, read)
        web = self._caption(self.config.web_caption, captions, spans, read, rng)
        synthetic = choose_nonempty(
            [self._caption(name, captions, spans, read, rng) for name in self.config.synthetics], rng
        )
        if not web and not synthetic:
            raise BadSampleError(f"no caption '{self.config.web_caption}'")
        return Sample(read(image), web, synthetic)

    def _bytes(self, shard: int, span: tuple[int, int]) -> bytes:
        for _ in range(2):  # another process may have made room in between
            try:
                return read_byte_range(self.cache.path(self.shards[shard]), *span)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BadSampleError(f"unreadable ({error_reason(error)})") from None
        raise BadSampleError("gone while it was read")

    def record(self, index: int) -> Record:
        """See `Source`."""
        shard, place = self._locate(index)
        samples = self._index(shard)
        key, spans = samples.key(place), samples.files(place)
        read = functools.partial(self._bytes, shard)
        others = {name: span for name, span in spans.items() if name not in (*_IMAGE_EXTENSIONS, "json")}
        return Record(key, _captions(spans, read), files={name: read(span) for name, span in others.items()})

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard]) + self.sizes[shard]

    def _read_index(self, shard: int) -> ShardIndex:
        """Of many shards it is kept on disk, since every reader of the machine needs those of nearly all."""
        if self.many:
            with contextlib.suppress(*INDEX_READ_ERRORS):  # or no place to keep it: then every reader makes its own
                return load_index(self._index_file(shard))
        return index_shard(self.cache.path(self.shards[shard]))

    def _index_file(self, shard: int) -> Path:
        path = self.cache.path(self.shards[shard])
        facts = path.stat()
        key = f"index of {self.shards[shard]}, {facts.st_size} bytes"
        if not is_remote(self.shards[shard]):
            key += f" of {facts.st_mtime_ns}"
        return self.cache.made(key, f"{path.name}.index", lambda file: index_shard(path).save(file))

    @staticmethod
    def _caption(
        wanted: str, captions: Mapping[str, Any], spans: Spans, read: ReadSpan, rng: np.random.Generator
    ) -> str:
        """The caption under ``wanted``, "" where it is empty or missing."""
        if not wanted.startswith("."):
            return sample_caption(captions.get(wanted), wanted, rng)
        span = spans.get(wanted[1:])
        try:
            return sample_caption(read(span).decode("utf-8") if span else None, wanted, rng)
        except UnicodeDecodeError as error:
            raise BadSampleError(f"{wanted} is not UTF-8 text ({error.reason})") from None

    def _check_keys(self) -> None:
        """A key that no sample has is the user's mistake, and is told before training; a few bad samples are not."""
        extensions: dict[str, None] = {}
        keys: dict[str, None] = {}
        index = self._index(0)
        for spans in map(index.files, range(min(_TRIED_SAMPLES, len(index)))):
            extensions |= dict.fromkeys(spans)
            try:
                keys |= dict.fromkeys(_captions(spans, functools.partial(self._bytes, 0)))
            except BadSampleError:
                continue
        for field, wanted in [
            ("web_caption", self.config.web_caption),
            *(("synthetic_caption", name) for name in self.config.synthetics),
        ]:
            what = f"{self.config.path}: data source's '{field}' expects"
            if wanted.startswith("."):
                if wanted[1:] not in extensions:
                    found = ", ".join(f".{name}" for name in extensions)
                    raise UserError(f"{what} a {wanted} file (found {found})")
            elif "json" not in extensions:
                raise UserError(f"{what} key '{wanted}' in a .json file; none")
            elif keys and wanted not in keys:
                raise UserError(
                    f"{self.config.path}: {unknown_name_error(wanted, keys, f'key for data source field {field}')}"
                )

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        described = {"path": self.config.path, "shards": len(self.shards), "samples": len(self)}
        root = Path(self.config.path)
        if not is_remote(self.config.path) and (root / MANIFEST).is_file():
            return described | {"hash": directory_hash(root)}
        digest = hashlib.sha256()
        for shard, size in zip(self.shards, self.sizes, strict=True):
            bytes_here = None if is_remote(shard) else Path(shard).stat().st_size
            digest.update(json.dumps([_file_name(shard), size, bytes_here]).encode())
        return described | {"index_hash": digest.hexdigest()}


def _known_sizes(path: str | None, shards: list[str]) -> list[int] | None:
    """Samples in each shard, from a JSON file; None where there is none beside shards of this machine.

    Args:
        path: the file; None means `SIZES` beside the shards.
        shards: the shards.

    Raises:
        UserError: it lacks a shard, or it is missing although it was named or the shards are not here.
    """
    file = path or f"{shards[0].rpartition('/')[0] or '.'}/{SIZES_FILE}"
    may_count = path is None and not is_remote(shards[0])
    try:
        sizes = safe_json_loads(read_file(file))
        return [int(sizes[_file_name(shard)]) for shard in shards]
    except KeyError as error:
        if may_count:
            return None
        raise UserError(
            f"{file}: expected the number of samples in {error.args[0]}; `clips data index` counts them"
        ) from None
    except ImportError as error:
        raise UserError(f"{file}: cannot be read ({error_reason(error)})") from None
    except OSError as error:
        if may_count:
            return None
        missing = isinstance(error, FileNotFoundError)
        raise UserError(
            f"{file}: {'no such file' if missing else f'cannot be read ({error_reason(error)})'}; shards from "
            f"afar need "
            "this count of their samples: `clips data index SHARDS --output sizes.json` writes it, data source's "
            "'sizes' names it where it does not lie beside them"
        ) from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{file}: expected JSON of shard: number of its samples") from None


def _captions(spans: Spans, read: ReadSpan) -> dict[str, Any]:
    if "json" not in spans:
        return {}
    try:
        captions = safe_json_loads(read(spans["json"]))
    except (ValueError, RecursionError):
        raise BadSampleError("broken JSON") from None
    if not isinstance(captions, dict):
        raise BadSampleError("broken JSON")
    return captions


def _file_name(address: str) -> str:
    # A command may go on after the name.
    return address.rpartition("/")[2].split(" ")[0]
