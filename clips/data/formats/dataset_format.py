"""The specification of a dataset, its location on disk, and the records that its format yields."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from clips.data.lazy_images import FileImage, LazyImage
from clips.data.text_files import parse_object, read_json
from clips.errors import UserError, unknown_name_error

ALL = "all"
"""As a split: every one that there is."""
WHOLE = "taken whole"
"""The split's name in protocols of datasets without splits."""
IMAGE = "<image>"
"""Placeholder of an image in the text."""

Record = TypeVar("Record")
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The specification of a dataset.

    Args:
        path: a file, a directory, or with the format ``datasets`` a name on the Hub.
        format: a name in ``FORMATS``; None detects it.
        split: for formats with splits; ``all`` reads every split.
        image_root: directory of the images, for files that name them.
        language: for multilingual data.
        subset: a hub dataset's configuration (``datasets``).
        image_column: column of the images or their names (``datasets``, ``table``).
        caption_columns: columns of the captions (likewise); one column of lists, or several.
        max_cache_gb: limit of the disk cache for images of streamed tables.
    """

    path: str
    format: str | None = None
    split: str = "test"
    image_root: str | None = None
    language: str | None = None
    subset: str | None = None
    image_column: str = "image"
    caption_columns: tuple[str, ...] = ()
    max_cache_gb: float = 100.0


@dataclasses.dataclass(frozen=True, slots=True)
class Captioned:
    """Images, and captions that are right for all of them (a list of strings, checked by the caller)."""

    images: Sequence[LazyImage]
    captions: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation about images; ``<image>`` in the text stands for each of them in order.

    Args:
        name: for messages about it.
        images: its images.
        turns: its messages.
    """

    name: str
    images: Sequence[LazyImage]
    turns: Sequence[Turn]

    @property
    def text(self) -> str:
        """The text without roles, for tokenizer training."""
        return " ".join(turn.content for turn in self.turns)


@dataclasses.dataclass(frozen=True, slots=True)
class Classified:
    """An image, its name and the number of its class."""

    name: str
    image: LazyImage
    target: int


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRegion:
    """An image, or the part of it within ``box``: left, upper, right and lower edge in pixels."""

    image: LazyImage
    box: Box | None = None

    @property
    def reference(self) -> str:
        """What the dataset calls the image."""
        return self.image.name


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Captions for one image or two, including near-miss captions. Letters: P images, C captions.

    Args:
        name: unique within the dataset.
        kind: category of the wrong captions; empty if not stated.
        pictures: (P,) images.
        captions: (C,) captions; caption i < P is of image i, the others match no image.
    """

    name: str
    kind: str
    pictures: tuple[ImageRegion, ...]
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Generic[Record]):
    """A dataset as read by its format.

    Args:
        records: read while iterated; malformed records raise then.
        split: the split; `WHOLE` if there are none.
        classes: the format's own class names, for classification data.
        named_by: source of those names, as text.
        skipped: file type → number of skipped files.
    """

    records: Iterable[Record]
    split: str = WHOLE
    classes: Sequence[str] = ()
    named_by: str = ""
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Location:
    """A dataset specification and its files on disk, read once and lazily."""

    asked: DatasetSpec

    @property
    def path(self) -> Path:
        """The file or directory."""
        return Path(self.asked.path)

    @functools.cached_property
    def names(self) -> set[str]:
        """What a directory holds; empty for a file."""
        return {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()

    def file(self, name: str) -> Path:
        """``name`` in the directory, or the file itself where the spec points to one."""
        return self.path / name if self.path.is_dir() else self.path

    def has_file(self, name: str) -> bool:
        """Whether it is a file of this name or a directory that holds one."""
        return self.file(name).name == name and self.file(name).is_file()

    def folder(self, *usual: str) -> Path:
        """The directory of the images: the requested one, else the first existing default.

        The defaults are next to the file that names the images; the last one is that file's own directory.

        Raises:
            UserError: the requested one is no directory.
        """
        if self.asked.image_root:
            if not Path(self.asked.image_root).is_dir():
                raise UserError(
                    f"image_root: {self.asked.image_root}: expected the directory of the images; no such directory"
                )
            return Path(self.asked.image_root)
        base = self.path if self.path.is_dir() else self.path.parent
        return next((base / name for name in usual if (base / name).is_dir()), base)

    def first_row(self, name: str = "") -> dict[str, Any]:
        """The first object of a JSON lines file; empty where there is none, or it is broken."""
        path = self.file(name)
        if path.suffix not in {".jsonl", ".jsonlines"} or not path.is_file():
            return {}
        with path.open("rb") as stream:
            line = next((line for line in stream if line.strip()), b"")
        try:
            return parse_object(line, str(path))
        except UserError:
            return {}

    @functools.cached_property
    def json(self) -> Any:
        """The content of a ``.json`` file; None for anything else. Raises UserError where it is no JSON."""
        return read_json(self.path) if self.path.suffix == ".json" and not self.path.is_dir() else None

    def rows_of_split(self, records: Iterable[tuple[str, Record]]) -> Iterator[Record]:
        """The records of the requested split, from (split, record). Raises UserError if there is none."""
        wanted, seen, taken = self.asked.split, set(), False
        for split, record in records:
            seen.add(split)
            if wanted in {split, ALL}:
                taken = True
                yield record
        if not taken and seen:
            raise unknown_name_error(wanted, seen, f"split of {self.path}")

    def language(self, available: Iterable[str]) -> str:
        """The requested language. Raises UserError if it is missing or not among those available."""
        known = list(available)
        if self.asked.language is None:
            listed = ", ".join(itertools.islice(sorted(known), 60))
            raise UserError(f"language: expected one of those of {self.path} ({listed}), got none")
        if self.asked.language not in known:
            raise unknown_name_error(self.asked.language, known, f"language of {self.path}")
        return self.asked.language


def texts_of(captions: Any, where: str) -> list[str]:
    """The captions of a record. Raises UserError where they are no list of texts."""
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise UserError(f"{where}: expected a list of captions, got {captions!r:.80}")
    return captions


def captioned(root: Path, name: str, captions: Any) -> Captioned:
    """One image file below ``root`` and its captions."""
    return Captioned([FileImage(root, name)], captions)
