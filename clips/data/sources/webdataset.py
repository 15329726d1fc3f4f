"""WebDataset's tar shards, here or anywhere that fsspec reads, at random through an index of their headers."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clips.artifact import MANIFEST, directory_hash, say
from clips.data.files import ShardCache, expand, is_remote, read_file
from clips.data.sources.base import BadSampleError, Record, Sample, SourceConfig, drawn
from clips.data.tars import index_tar, read_span
from clips.errors import UserError, reason_of, suggest

SIZES = "sizes.json"
"""Beside the shards: {shard's name: samples in it}, as webdataset and open_clip have it."""
_TRIED_SAMPLES = 20  # before training, for the keys that they have
_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_INDEXES_KEPT = 64
_UNREADABLE_SHARE = 0.02  # of the shards may be so when they are counted; more are the user's mistake

Spans = Mapping[str, tuple[int, int]]


class WebDataset:
    """Tar shards; where their sizes are known beforehand (`SIZES`), a shard is not opened until it is needed."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.cache = ShardCache(Path(config.cache).expanduser(), config.cache_gb * 1e9)
        self.shards = list_shards(config.path)
        sizes = _known_sizes(config.sizes, self.shards)
        self.indexes_kept = _INDEXES_KEPT if sizes else len(self.shards)
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
    def room(self) -> float:
        """See `Afar`."""
        return self.cache.limit

    def fetch(self, block: int) -> Path:
        """See `Afar`."""
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
                say(f"{error}; none of its samples is used")
                sizes.append(0)
        return sizes

    def _samples_of(self, shard: int) -> list[tuple[str, Spans]]:
        """Those of a shard; BadSampleError for each of one that cannot be read."""
        if shard not in self.unreadable:
            try:
                return self._index(shard)
            except UserError as error:
                self.unreadable[shard] = str(error)
        raise BadSampleError(self.unreadable[shard])

    def name(self, index: int) -> str:
        """See `Source`."""
        shard, place = self._locate(index)
        samples = [] if shard in self.unreadable else self._index(shard)
        return f"{_file_name(self.shards[shard])}/{samples[place][0] if place < len(samples) else place}"

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        shard, place = self._locate(index)
        samples = self._samples_of(shard)
        if place >= len(samples):
            raise BadSampleError(f"missing, though {SIZES} counts it")
        spans = samples[place][1]
        image = next((spans[extension] for extension in _IMAGE_EXTENSIONS if extension in spans), None)
        if image is None:
            raise BadSampleError("no picture")
        path = self.cache.path(self.shards[shard])
        captions = _captions(path, spans)
        web = self._caption(self.config.web, captions, path, spans, rng)
        if not web:
            raise BadSampleError(f"no caption '{self.config.web}'")
        synthetic = self._caption(self.config.synthetic, captions, path, spans, rng) if self.config.synthetic else ""
        return Sample(read_span(path, *image), web, synthetic)

    def record(self, index: int) -> Record:
        """See `Source`."""
        shard, place = self._locate(index)
        key, spans = self._index(shard)[place]
        path = self.cache.path(self.shards[shard])
        others = {name: span for name, span in spans.items() if name not in (*_IMAGE_EXTENSIONS, "json")}
        return Record(
            key, _captions(path, spans), files={name: read_span(path, *span) for name, span in others.items()}
        )

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard]) + self.sizes[shard]

    def _read_index(self, shard: int) -> list[tuple[str, Spans]]:
        """(key, file extension → where its bytes lie) of each sample of a shard, in the order of the tar."""
        return _samples(self.cache.path(self.shards[shard]))

    @staticmethod
    def _caption(wanted: str, captions: Mapping[str, Any], path: Path, spans: Spans, rng: np.random.Generator) -> str:
        """The caption under ``wanted``, "" where it is empty."""
        if not wanted.startswith("."):
            return drawn(captions.get(wanted, 0), wanted, rng)
        span = spans.get(wanted[1:])
        return drawn(read_span(path, *span).decode("utf-8", "replace") if span else 0, wanted, rng)

    def _check_keys(self) -> None:
        """A key that no sample has is the user's mistake, and is told before training; a few bad samples are not."""
        extensions: dict[str, None] = {}
        keys: dict[str, None] = {}
        for _, spans in self._index(0)[:_TRIED_SAMPLES]:
            extensions |= dict.fromkeys(spans)
            try:
                keys |= dict.fromkeys(_captions(self.cache.path(self.shards[0]), spans))
            except BadSampleError:
                continue
        for field in ("web", "synthetic"):
            wanted, what = getattr(self.config, field), f"{self.config.path}: data source's '{field}' expects"
            if wanted is None:
                continue
            if wanted.startswith("."):
                if wanted[1:] not in extensions:
                    found = ", ".join(f".{name}" for name in extensions)
                    raise UserError(f"{what} a {wanted} file (found {found})")
            elif "json" not in extensions:
                raise UserError(f"{what} key '{wanted}' in a .json file; none")
            elif keys and wanted not in keys:
                raise UserError(f"{self.config.path}: {suggest(wanted, keys, f'key for data source field {field}')}")

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


def count_samples(shard: Path) -> int:
    """The number of samples in a shard of this machine, see `_samples`."""
    return len(_samples(shard))


def _samples(shard: Path) -> list[tuple[str, Spans]]:
    """The samples of a shard; of one that is cut short those before the cut, which is told.

    Raises:
        UserError: there is none, or this is no tar.
    """
    index = index_tar(shard, allow_cut=True)
    files: dict[str, dict[str, tuple[int, int]]] = {}
    for name, span in index.members.items():
        key, extension = _split_name(name)
        files.setdefault(key, {})[extension] = span
    if index.cut:
        files.popitem()  # of the last one something may be missing
        if not files:
            raise UserError(f"{shard}: expected a whole tar; it is cut short in its first sample")
        say(f"{shard}: cut short; its first {len(files)} samples are used")
    return list(files.items())


def list_shards(path: str) -> list[str]:
    """The shards that ``path`` names: a directory's .tar files, or those of a range of names, here or from afar.

    Raises:
        UserError: there are none.
    """
    found = expand(path)
    if is_remote(path):
        return found
    if len(found) == 1 and Path(path).is_dir():
        found = sorted(map(str, Path(path).glob("*.tar")))
        if not found:
            raise UserError(f"{path}: expected .tar shards in this directory, found none")
    for shard in found:
        if not Path(shard).exists():
            raise UserError(f"{shard}: no such file or directory")
    return found


def _known_sizes(path: str | None, shards: list[str]) -> list[int] | None:
    """Samples in each shard, from a JSON file; None where there is none beside shards of this machine.

    Args:
        path: the file; None means `SIZES` beside the shards.
        shards: the shards.

    Raises:
        UserError: it lacks a shard, or it is missing although it was named or the shards are not here.
    """
    file = path or f"{shards[0].rpartition('/')[0] or '.'}/{SIZES}"
    try:
        sizes = json.loads(read_file(file))
        return [int(sizes[_file_name(shard)]) for shard in shards]
    except KeyError as error:
        raise UserError(f"{file}: expected the number of samples in {error.args[0]}") from None
    except (OSError, ImportError) as error:
        if path is None and not is_remote(shards[0]):
            return None
        raise UserError(
            f"{file}: expected JSON of shard: number of its samples, which shards from afar need ({reason_of(error)})"
        ) from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{file}: expected JSON of shard: number of its samples") from None


def _captions(path: Path, spans: Spans) -> dict[str, Any]:
    if "json" not in spans:
        return {}
    try:
        captions = json.loads(read_span(path, *spans["json"]))
    except (ValueError, RecursionError):
        raise BadSampleError("broken JSON") from None
    if not isinstance(captions, dict):
        raise BadSampleError("broken JSON")
    return captions


def _file_name(address: str) -> str:
    # A command may go on after the name.
    return address.rpartition("/")[2].split(" ")[0]


def _split_name(name: str) -> tuple[str, str]:
    """``a/b.c.jpg`` → ("a/b", "c.jpg"): WebDataset's key ends at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()
