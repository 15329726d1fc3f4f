"""Where pictures and their captions come from: one class a format, entered in FORMATS.

A source is a sequence of samples by index: which of them comes when is `clips.data.order`'s matter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clips.artifact import MANIFEST, directory_hash, file_hash
from clips.data.tars import index_tar, read_span
from clips.errors import UserError, suggest

_TRIED_SAMPLES = 20  # before training, for the keys that they have
_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Pictures with captions.

    Args:
        format: "webdataset" (tar shards of pictures with JSON or text files of the same name) or
            "karpathy" (one JSON file of Karpathy's layout and a folder of pictures).
        path: webdataset: a directory of .tar files, or one .tar; karpathy: the JSON file.
        web: where the short web caption is found. webdataset: a key of the sample's JSON, or ".txt" for the text
            file; a list of captions there means one drawn at random each time. karpathy: "drawn_sentence" (another
            human sentence each epoch) or "first_sentence".
        synthetic: where the long synthetic caption is found, null if there is none. karpathy: "other_sentences"
            (all but the web caption, joined: a stand-in for a long caption) or "all_sentences".
        split: karpathy: the split to read.
        images: karpathy: the folder of pictures; null means "images" beside the JSON file.
    """

    format: str = "webdataset"
    path: str
    web: str = "web_caption"
    synthetic: str | None = "synthetic_caption"
    split: str = "train"
    images: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise suggest(self.format, FORMATS, "format of a data source")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture, still encoded, with its captions ("" where the source has no synthetic ones)."""

    image: bytes
    web: str
    synthetic: str


class BadSampleError(Exception):
    """A sample without a usable part; the message is a short reason, the same for all samples with that fault."""


class Source(Protocol):
    """A sequence of samples."""

    def __len__(self) -> int:
        """The number of samples, bad ones included."""

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; ``rng`` draws captions. Raises BadSampleError."""

    def name(self, index: int) -> str:
        """How people find the sample again."""

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the source: its path, size and hash."""


def open_source(config: SourceConfig) -> Source:
    """The source that ``config`` names, its first samples tried.

    Raises:
        UserError: a file is missing or broken, or all of the first samples lack what ``config`` names.
    """
    source = FORMATS[config.format](config)
    if not len(source):
        raise UserError(f"{config.path}: no samples")
    return source


class WebDataset:
    """Tar shards on a local disk, read at random through an index of their headers."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.shards = [index_tar(path) for path in _shards(Path(config.path))]
        self.samples: list[tuple[int, str, dict[str, tuple[int, int]]]] = []
        for number, shard in enumerate(self.shards):
            files: dict[str, dict[str, tuple[int, int]]] = {}
            for name, span in shard.members.items():
                key, extension = _split_name(name)
                files.setdefault(key, {})[extension] = span
            self.samples += [(number, key, spans) for key, spans in files.items()]
        self._check_keys()

    def _check_keys(self) -> None:
        """A key that no sample has is the user's mistake, and is told before training; a few bad samples are not."""
        extensions: dict[str, None] = {}
        keys: dict[str, None] = {}
        for shard, _, spans in self.samples[:_TRIED_SAMPLES]:
            extensions |= dict.fromkeys(spans)
            try:
                keys |= dict.fromkeys(self._captions(shard, spans))
            except BadSampleError:
                continue
        for field in ("web", "synthetic"):
            wanted = getattr(self.config, field)
            if wanted is None:
                continue
            if wanted.startswith("."):
                if wanted[1:] not in extensions:
                    found = ", ".join(f".{name}" for name in extensions)
                    raise UserError(
                        f"{self.config.path}: data source's '{field}' expects a {wanted} file (found {found})"
                    )
            elif "json" not in extensions:
                raise UserError(
                    f"{self.config.path}: data source's '{field}' expects key '{wanted}' in a .json file; none"
                )
            elif keys and wanted not in keys:
                raise UserError(f"{self.config.path}: {suggest(wanted, keys, f'key for data source field {field}')}")

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """See `Source`."""
        shard, key, _ = self.samples[index]
        return f"{self.shards[shard].path.name}/{key}"

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        shard, _, spans = self.samples[index]
        image = next((spans[extension] for extension in _IMAGE_EXTENSIONS if extension in spans), None)
        if image is None:
            raise BadSampleError("no picture")
        captions = self._captions(shard, spans)
        web = self._caption(self.config.web, captions, shard, spans, rng)
        if not web:
            raise BadSampleError(f"no caption '{self.config.web}'")
        synthetic = self._caption(self.config.synthetic, captions, shard, spans, rng) if self.config.synthetic else ""
        return Sample(read_span(self.shards[shard].path, *image), web, synthetic)

    def _captions(self, shard: int, spans: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        if "json" not in spans:
            return {}
        try:
            captions = json.loads(read_span(self.shards[shard].path, *spans["json"]))
        except (ValueError, RecursionError):
            raise BadSampleError("broken JSON") from None
        if not isinstance(captions, dict):
            raise BadSampleError("broken JSON")
        return captions

    def _caption(
        self,
        wanted: str,
        captions: Mapping[str, Any],
        shard: int,
        spans: Mapping[str, tuple[int, int]],
        rng: np.random.Generator,
    ) -> str:
        """The caption under ``wanted``, "" where it is empty."""
        if wanted.startswith("."):
            span = spans.get(wanted[1:])
            found = read_span(self.shards[shard].path, *span).decode("utf-8", "replace") if span else 0
        else:
            found = captions.get(wanted, 0)
        if isinstance(found, list):
            found = found[rng.integers(len(found))] if found else None
        if not isinstance(found, str | None):
            raise BadSampleError(f"no caption '{wanted}'")
        return (found or "").strip()

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        root = Path(self.config.path)
        described = {"path": str(root), "shards": len(self.shards), "samples": len(self)}
        if (root / MANIFEST).is_file():
            return described | {"hash": directory_hash(root)}
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(json.dumps([shard.path.name, shard.members]).encode())
        return described | {"index_hash": digest.hexdigest()}


def _shards(path: Path) -> list[Path]:
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise UserError(f"{path}: expected .tar shards in this directory, found none")
        return shards
    if not path.is_file():
        raise UserError(f"{path}: no such file or directory")
    return [path]


def _split_name(name: str) -> tuple[str, str]:
    """``a/b.c.jpg`` → ("a/b", "c.jpg"): WebDataset's key ends at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


class Karpathy:
    """Karpathy's JSON layout (COCO, Flickr30k, Flickr8k): pictures in a folder, about five sentences each."""

    WEB = ("drawn_sentence", "first_sentence")
    SYNTHETIC = ("other_sentences", "all_sentences")

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.path = Path(config.path)
        if config.web not in self.WEB:
            raise suggest(config.web, self.WEB, "'web' of a karpathy data source")
        if config.synthetic is not None and config.synthetic not in self.SYNTHETIC:
            raise suggest(config.synthetic, self.SYNTHETIC, "'synthetic' of a karpathy data source")
        self.folder = Path(config.images) if config.images else self.path.parent / "images"
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: expected the folder of pictures (data source's 'images')")
        self.samples = read_karpathy(self.path, config.split)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """See `Source`."""
        return self.samples[index][0]

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        file, sentences = self.samples[index]
        if not sentences:
            raise BadSampleError("no sentences")
        web = int(rng.integers(len(sentences))) if self.config.web == "drawn_sentence" else 0
        kept = [
            _as_sentence(sentence)
            for number, sentence in enumerate(sentences)
            if number != web or self.config.synthetic == "all_sentences"
        ]
        synthetic = " ".join(kept) if self.config.synthetic else ""
        try:
            return Sample((self.folder / file).read_bytes(), sentences[web], synthetic)
        except OSError:
            raise BadSampleError("missing picture") from None

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "path": str(self.path),
            "split": self.config.split,
            "samples": len(self),
            "hash": file_hash(self.path),
        }


def read_karpathy(path: str | Path, split: str) -> list[tuple[str, list[str]]]:
    """The (picture's path in the folder, sentences) pairs of one split of a file of Karpathy's layout.

    Raises:
        UserError: the file is missing or of another layout, or has no such split.
    """
    try:
        images = json.loads(Path(path).read_text(encoding="utf-8"))["images"]
        splits = {image["split"] for image in images}
        samples = [
            (
                str(Path(image.get("filepath", "")) / image["filename"]),
                [sentence["raw"].strip() for sentence in image["sentences"] if sentence["raw"].strip()],
            )
            for image in images
            if image["split"] == split
        ]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f'{path}: expected Karpathy\'s layout: {{"images": [{{"filename", "split", "sentences": [{{"raw"}}]}}]}}'
        ) from None
    if split not in splits:
        raise suggest(split, splits, f"split of {path}")
    return samples


def _as_sentence(text: str) -> str:
    """Sentences must be told apart again when a caption is cut into sub-captions."""
    text = text.rstrip(" .!")
    return f"{text}."


FORMATS: dict[str, Callable[[SourceConfig], Source]] = {"webdataset": WebDataset, "karpathy": Karpathy}
