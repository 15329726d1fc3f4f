"""Random access to local and remote WebDataset tar shards through an index of their headers."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clips.core.artifact import MANIFEST, directory_hash, log_info
from clips.data.formats.tar_shards import list_shards
from clips.data.images import IMAGE_SUFFIXES, InvalidSampleError
from clips.data.remote_files import ShardCache, UnreachableError, is_remote, read_file
from clips.data.shard_index import ShardIndex, Shards, Spans, image_extension
from clips.data.sources.source import Record, Sample, SourceConfig, choose_nonempty, sample_caption
from clips.data.tar_index import read_byte_range
from clips.errors import UserError, error_reason, unknown_name_error
from clips.text_files import decode_lines, safe_json_loads

SIZES_FILE = "sizes.json"
"""A file next to the shards: {shard name: number of samples}, as in webdataset and open_clip."""
_CHECKED_SHARDS, _CHECKED_SAMPLES = 16, 20  # shards, and samples of each, whose keys are checked before training
_MAX_CACHED_INDEXES = 128  # more than the usual number of shards in a shuffle window
_MAX_UNREADABLE_RATIO = 0.02  # of the shards when they are counted; more are a user error

ReadSpan = Callable[[tuple[int, int]], bytes]


class WebDatasetSource:
    """Tar shards; with a file of their sizes (`SIZES_FILE`), a shard is opened only when it is needed."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.cache = ShardCache(Path(config.cache_dir).expanduser(), config.max_cache_gb * 1e9)
        self.shards = list_shards(config.path)
        sizes = _known_sizes(config.shard_sizes, self.shards)
        self.tars = Shards(self.shards, self.cache, _MAX_CACHED_INDEXES if sizes else len(self.shards))
        self.unreadable: dict[int, str] = {}  # shard index → its error
        self.sizes = sizes or self._count_samples()
        self.ends = np.cumsum(self.sizes)
        self._check_keys()

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def blocks(self) -> list[int]:
        """Samples of each shard."""
        return self.sizes

    @property
    def is_remote(self) -> bool:
        """See `RemoteSource`."""
        return any(map(is_remote, self.shards))

    @property
    def copies(self) -> ShardCache:
        """See `RemoteSource`."""
        return self.cache

    def fetch(self, block: int) -> Path:
        """See `RemoteSource`. The index is built later, by DataLoader workers."""
        return self.cache.path(self.shards[block])

    def _count_samples(self) -> list[int]:
        """Samples in each shard, 0 for one of the few that may be unreadable."""
        self.tars.build_indexes()
        sizes = []
        for shard in range(len(self.shards)):
            try:
                sizes.append(len(self.tars.index(shard)))
            except UserError as error:
                self.unreadable[shard] = str(error)
                if len(self.unreadable) > _MAX_UNREADABLE_RATIO * len(self.shards):
                    raise
                log_info(f"{error}; none of its samples is used")
                sizes.append(0)
        return sizes

    def _samples_of(self, shard: int) -> ShardIndex:
        """The index of a shard. Raises InvalidSampleError (unreadable) or UnreachableError."""
        if shard not in self.unreadable:
            try:
                return self.tars.index(shard)
            except UnreachableError:
                raise
            except UserError as error:
                self.unreadable[shard] = str(error)
        raise InvalidSampleError(self.unreadable[shard])

    def name(self, index: int) -> str:
        """See `Source`."""
        shard, sample = self._locate(index)
        key = str(sample)
        if shard not in self.unreadable and sample < len(samples := self.tars.index(shard)):
            key = samples.key(sample)
        return f"{_file_name(self.shards[shard])}/{key}"

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        shard, sample = self._locate(index)
        samples = self._samples_of(shard)
        if sample >= len(samples):
            raise InvalidSampleError(f"missing, but counted in {SIZES_FILE}")
        spans = samples.files(sample)
        try:
            extension = image_extension(spans)
        except UserError as error:
            raise InvalidSampleError(str(error)) from None
        if extension is None:
            raise InvalidSampleError("no image")
        read = functools.partial(self._bytes, shard)
        captions = _captions(spans, read)
        web = self._caption(self.config.web_caption, captions, spans, read, rng)
        synthetics = [self._caption(name, captions, spans, read, rng) for name in self.config.synthetics]
        synthetic = choose_nonempty(synthetics, rng)
        if not web and not synthetic:
            raise InvalidSampleError(f"no caption '{self.config.web_caption}'")
        return Sample(read(spans[extension]), web, synthetic)

    def _bytes(self, shard: int, span: tuple[int, int]) -> bytes:
        for _ in range(2):  # another process may have freed space in between
            try:
                return read_byte_range(self.cache.path(self.shards[shard]), *span)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise InvalidSampleError(f"unreadable ({error_reason(error)})") from None
        raise InvalidSampleError("deleted while it was read")

    def record(self, index: int) -> Record:
        """See `Source`."""
        shard, sample = self._locate(index)
        samples = self.tars.index(shard)
        key, spans = samples.key(sample), samples.files(sample)
        read = functools.partial(self._bytes, shard)
        others = {name: span for name, span in spans.items() if f".{name}" not in (*IMAGE_SUFFIXES, ".json")}
        return Record(key, _captions(spans, read), files={name: read(span) for name, span in others.items()})

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard]) + self.sizes[shard]

    @staticmethod
    def _caption(name: str, captions: Mapping[str, Any], spans: Spans, read: ReadSpan, rng: np.random.Generator) -> str:
        """The caption of a key or extension, "" if it is empty or missing."""
        if not name.startswith("."):
            return sample_caption(captions.get(name), name, rng)
        span = spans.get(name[1:])
        try:
            return sample_caption(decode_lines(read(span)) if span else None, name, rng)
        except UnicodeDecodeError as error:
            raise InvalidSampleError(f"{name} is not UTF-8 text ({error.reason})") from None

    def _check_keys(self) -> None:
        """Raise UserError for a caption key that none of the first samples of the first shards has."""
        extensions: dict[str, None] = {}
        keys: dict[str, None] = {}
        synthetics = [("synthetic_caption", name) for name in self.config.synthetics]
        wanted = [("web_caption", self.config.web_caption), *synthetics]
        unreadable = ""
        for shard in itertools.islice(np.flatnonzero(self.sizes).tolist(), _CHECKED_SHARDS):
            try:
                index = self._samples_of(shard)
            except InvalidSampleError as error:
                unreadable = unreadable or str(error)
                continue
            for spans in map(index.files, range(min(_CHECKED_SAMPLES, len(index)))):
                extensions |= dict.fromkeys(spans)
                with contextlib.suppress(InvalidSampleError):
                    keys |= dict.fromkeys(_captions(spans, functools.partial(self._bytes, shard)))
            if all(key in keys or (key.startswith(".") and key[1:] in extensions) for _, key in wanted):
                return
        if unreadable and not extensions:
            raise UserError(unreadable)
        found = ", ".join(f".{name}" for name in extensions)
        for field, key in wanted if extensions else []:  # without samples, `open_source` says so
            what = f"{self.config.path}: data source's '{field}' expects"
            if key.startswith("."):
                if key[1:] not in extensions:
                    raise UserError(f"{what} a {key} file (found {found})")
            elif "json" not in extensions:
                raise UserError(f"{what} key '{key}' in a .json file; none (found {found})")
            elif keys and key not in keys:
                wrong = unknown_name_error(key, keys, f"key for data source field {field}")
                raise UserError(f"{self.config.path}: {wrong}")

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        described = {"path": self.config.path, "shards": len(self.shards), "samples": len(self)}
        root = Path(self.config.path)
        if not is_remote(self.config.path) and (root / MANIFEST).is_file():
            return described | {"hash": directory_hash(root)}
        digest = hashlib.sha256()
        for shard, size in zip(self.shards, self.sizes, strict=True):
            num_bytes = None if is_remote(shard) else Path(shard).stat().st_size
            digest.update(json.dumps([_file_name(shard), size, num_bytes]).encode())
        return described | {"index_hash": digest.hexdigest()}


def _known_sizes(path: str | None, shards: list[str]) -> list[int] | None:
    """Samples in each shard, from the JSON file ``path`` or `SIZES_FILE` next to the shards.

    None if there is no such file next to local shards, or it lacks one of them.
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
            f"{file}: {'no such file' if missing else f'cannot be read ({error_reason(error)})'}; remote shards need "
            "this count of their samples: `clips data index SHARDS --output sizes.json` writes it; set the data "
            "source's 'shard_sizes' if it is not next to them"
        ) from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{file}: expected a JSON object of shard name → number of samples") from None


def _captions(spans: Spans, read: ReadSpan) -> dict[str, Any]:
    if "json" not in spans:
        return {}
    try:
        captions = safe_json_loads(read(spans["json"]))
    except (ValueError, RecursionError):
        captions = None
    if not isinstance(captions, dict):
        raise InvalidSampleError("broken JSON")
    return captions


def _file_name(url: str) -> str:
    return url.rpartition("/")[2].split(" ")[0]  # a command may continue after the name
