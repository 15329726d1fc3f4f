"""What is asked for of a dataset, what lies on the disk, and the records that its format yields."""

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
"""What a protocol says where there are no splits."""
IMAGE = "<image>"
"""Stands for an image in what is said."""

Record = TypeVar("Record")
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A dataset that is asked for.

    Args:
        path: a file, a directory, or with the format ``datasets`` a name on the hub.
        format: a name in ``FORMATS``; None: whichever fits what lies there.
        split: of formats that have any; ``all`` takes every one.
        image_root: folder of the images, for files that name them.
        language: of data in several languages.
        subset: a hub dataset's configuration (``datasets``).
        image_column: where the images are, or their names (``datasets``, ``table``).
        caption_columns: where the captions are (likewise); one that holds lists, or several.
        max_cache_gb: how much room copies of images in streamed tables may take on this disk.
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
    """Images, and captions each of which is right for all of them (a list of texts, checked by whoever takes them)."""

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
        images: where its images are.
        turns: who says what.
    """

    name: str
    images: Sequence[LazyImage]
    turns: Sequence[Turn]

    @property
    def text(self) -> str:
        """What is said, without who says it: for a tokenizer to learn from."""
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
    """Captions for one image or two, some of which nearly fit. Letters: P images, C captions.

    Args:
        name: unique within the dataset.
        kind: how the wrong captions differ; empty where not stated.
        pictures: (P,) images.
        captions: (C,) captions; caption i < P is of image i, those behind are of none.
    """

    name: str
    kind: str
    pictures: tuple[ImageRegion, ...]
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Generic[Record]):
    """What a format finds.

    Args:
        records: read as they are iterated; what is malformed is found then.
        split: which split that is; `WHOLE` where there are none.
        classes: of classification data: the format's own names of the classes.
        named_by: where those names are from, in words.
        skipped: kind of file → how many are left out.
    """

    records: Iterable[Record]
    split: str = WHOLE
    classes: Sequence[str] = ()
    named_by: str = ""
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Location:
    """A dataset that is asked for and what lies where it points to, read once and not before it is needed."""

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

    def lies_here(self, name: str) -> bool:
        """Whether it is a file of this name or a directory that holds one."""
        return self.file(name).name == name and self.file(name).is_file()

    def folder(self, *usual: str) -> Path:
        """The folder of the images: the one that was asked for, else the first of the usual ones that is there.

        Those are beside the file that names the images; the last resort is that file's own directory.

        Raises:
            UserError: the one that was asked for is no directory.
        """
        if self.asked.image_root:
            if not Path(self.asked.image_root).is_dir():
                raise UserError(
                    f"image_root: {self.asked.image_root}: expected the folder of the images; no such directory"
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

    def of_split(self, records: Iterable[tuple[str, Record]]) -> Iterator[Record]:
        """The records of the split that was asked for, of (split, record). Raises UserError where there is none."""
        wanted, seen, taken = self.asked.split, set(), False
        for split, record in records:
            seen.add(split)
            if wanted in {split, ALL}:
                taken = True
                yield record
        if not taken and seen:
            raise unknown_name_error(wanted, seen, f"split of {self.path}")

    def language(self, available: Iterable[str]) -> str:
        """The language that was asked for. Raises UserError where none was, or it is not among those available."""
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
