"""The specification of a dataset, its location on disk, and the records that its format yields."""

from __future__ import annotations

import dataclasses
import functools
import html
import itertools
import math
import numbers
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from clips.data.images import InvalidSampleError
from clips.data.lazy_images import LazyImage, image_exists
from clips.errors import UserError, unknown_name_error
from clips.text_files import parse_object, read_json

ALL = "all"  # as a split: every split of the dataset
WHOLE = "taken whole"  # the split's name in protocols of datasets without splits
WHOLE_REQUESTS = {"test", "train", ALL}  # stand for such a dataset: the defaults of benchmarks and training, and all
SPLIT, LANGUAGE = ("split", "image_root"), ("image_root", "language")  # what formats with these take
IMAGE = "<image>"  # placeholder of an image in the text
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode's categories of controls, zero-width characters and blanks

Kind = Literal["captions", "conversations", "classes", "pairs"]
Record = TypeVar("Record")
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The specification of a dataset.

    Args:
        path: a file, a directory, or a Hub repo id with the format ``datasets``.
        format: a name in ``FORMATS``; None detects it.
        split: for formats with splits; ``train+restval`` reads two of them, ``all`` every one.
        image_root: directory of the images, for files that name them.
        language: for multilingual data.
        subset: configuration of a Hub dataset (``datasets``).
        image_column: column of the images or their names (``datasets``, ``table``); None: the first with a usual name.
        caption_columns: columns of the captions (``datasets``, ``table``); one column of lists, or several columns.
    """

    path: str
    format: str | None = None
    split: str = "test"
    image_root: str | None = None
    language: str | None = None
    subset: str | None = None
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Captioned:
    """Images, and what `captions_of` reads as the captions that are right for all of them."""

    images: Sequence[LazyImage]
    captions: Any


class Turn(NamedTuple):
    """One message of a conversation; an answer that is not ``trained`` is context for later ones."""

    role: Literal["user", "assistant", "system"]
    content: str
    trained: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation about images, each with an ``<image>`` in the text, in order; errors refer to it by ``name``.

    One that is malformed has no turns but a ``fault``, with which training counts it as invalid. ``unread`` are the
    keys of its row, and as ``messages.KEY`` of its messages, that no reader reads.
    """

    name: str
    images: Sequence[LazyImage]
    turns: Sequence[Turn]
    fault: str = ""
    unread: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Classified:
    """An image, its name, and the index of its class."""

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
        """The dataset's name of the image."""
        return self.image.name


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Captions for P images (1 or 2), including near-miss captions."""

    name: str  # unique within the dataset
    kind: str  # category of the wrong captions; empty if not stated
    images: tuple[ImageRegion, ...]  # P
    captions: tuple[str, ...]  # caption i < P is of image i, the others match no image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Generic[Record]):
    """A dataset as read by its format."""

    records: Iterable[Record]  # read while iterated; malformed records raise then
    split: str = WHOLE  # as protocols name it
    classes: Sequence[str] = ()  # the format's own class names
    named_by: str = ""  # source of the class names, human-readable
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)  # file type → number of skipped files


@dataclasses.dataclass(frozen=True)
class Location:
    """A dataset specification and its files on disk, read once and lazily."""

    spec: DatasetSpec

    @property
    def path(self) -> Path:
        """The file or directory."""
        return Path(self.spec.path)

    @property
    def suffix(self) -> str:
        """The extension of a file or directory, in lower case."""
        return self.path.suffix.lower()

    @functools.cached_property
    def names(self) -> set[str]:
        """The names of the entries of a directory; empty for a file."""
        return {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()

    def file(self, name: str) -> Path:
        """``name`` in the directory, or the file itself where the spec points to one."""
        return self.path / name if self.path.is_dir() else self.path

    def has_file(self, name: str) -> bool:
        """Whether it is a file of this name or a directory that contains it."""
        return self.file(name).name == name and self.file(name).is_file()

    def image_root(self, *defaults: str) -> Path:
        """The directory of the images: the requested one, else the first existing default, else the dataset's own.

        The defaults are relative to the dataset's directory.

        Raises:
            UserError: the requested one is no directory.
        """
        if requested := self.spec.image_root:
            if not Path(requested).is_dir():
                raise UserError(f"image_root: {requested}: expected the directory of the images; no such directory")
            return Path(requested)
        base = self.path if self.path.is_dir() else self.path.parent
        return next((base / name for name in defaults if (base / name).is_dir()), base)

    def image_root_of(self, name: object) -> Path:
        """The directory of the images: ``images`` as of `image_root`, unless ``name`` exists without it."""
        own, inner = self.image_root(), self.image_root("images")
        return own if isinstance(name, str) and image_exists(own, name) else inner

    def first_row(self, name: str = "") -> dict[str, Any]:
        """The first object of a JSON lines file; empty if there is none, or it is malformed."""
        path = self.file(name)
        if path.suffix.lower() not in {".jsonl", ".jsonlines"} or not path.is_file():
            return {}
        with path.open("rb") as stream:
            line = next((line for line in stream if line.strip()), b"")
        try:
            return parse_object(line, str(path))
        except UserError:
            return {}

    def rows_state_split(self) -> bool:
        """Whether the objects of a JSON lines file have ``split``.

        Raises:
            UserError: it states none, but one is requested.
        """
        has_split = "split" in self.first_row()
        if not has_split and self.spec.split not in WHOLE_REQUESTS:
            raise UserError(f"split: {self.path}: expected 'split' in each line, found none in the first")
        return has_split

    @functools.cached_property
    def json(self) -> Any:
        """The content of a ``.json`` file; None for anything else.

        Raises:
            UserError: invalid JSON.
        """
        return read_json(self.path) if self.suffix == ".json" and not self.path.is_dir() else None

    @property
    def json_object(self) -> dict[str, Any]:
        """`json` if it is an object, else an empty one."""
        return self.json if isinstance(self.json, dict) else {}

    def rows_of_split(self, records: Iterable[tuple[str, Record]]) -> Iterator[Record]:
        """The records of the requested split or splits, from (split, record).

        Raises:
            UserError: there is none.
        """
        seen = set()
        for split, record in records:
            seen.add(split)
            if self.has_requested(split):
                yield record
        for requested in self.spec.split.split("+") if seen else ():
            if requested not in {*seen, ALL}:
                raise unknown_name_error(requested, seen, f"split of {self.path}")

    def has_requested(self, split: str) -> bool:
        """Whether a split is the requested one, or one of ``train+restval``."""
        return self.spec.split == ALL or split in self.spec.split.split("+")

    def language(self, available: Iterable[str]) -> str:
        """The requested language.

        Raises:
            UserError: it is missing or not among those available.
        """
        known = list(available)
        if self.spec.language is None:
            listed = ", ".join(itertools.islice(sorted(known), 60))
            raise UserError(f"language: expected one of those of {self.path} ({listed}), got none")
        if self.spec.language not in known:
            raise unknown_name_error(self.spec.language, known, f"language of {self.path}")
        return self.spec.language


def captions_of(value: Any) -> list[str]:
    """The captions in a value of a dataset, for training and benchmarks alike.

    Args:
        value: a text, an object with the text as ``raw`` (COCO's sentences), or a list of captions; None, NaN and texts
            that show nothing (blanks, zero-width characters, ``&nbsp;``) are no captions.

    Raises:
        InvalidSampleError: anything else, such as a number.
    """
    if isinstance(value, str):
        text = value.removeprefix("\ufeff")  # a byte order mark
        shown = html.unescape(text) if "&" in text else text
        return [text] if any(unicodedata.category(char) not in _INVISIBLE for char in shown) else []
    if isinstance(value, list | tuple | np.ndarray):
        return [text for each in value for text in captions_of(each)]
    if isinstance(value, Mapping) and "raw" in value:
        return captions_of(value["raw"])
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    is_number = isinstance(value, numbers.Number) and not isinstance(value, bool)
    kind = "a number" if is_number else "an object" if isinstance(value, Mapping) else type(value).__name__
    raise InvalidSampleError(f"expected text as a caption, got {kind}")


def captions_by_image(records: Iterable[Captioned]) -> Iterable[tuple[LazyImage, list[Any]]]:
    """Each image once, with the captions of all its records: some files have a row for each caption."""
    images: dict[str, tuple[LazyImage, list[Any]]] = {}
    for record in records:
        for image in record.images:
            images.setdefault(image.name, (image, []))[1].append(record.captions)
    return images.values()


def strict_captions(value: Any, where: str) -> list[str]:
    """`captions_of`, at least one. Raises UserError."""
    try:
        captions = captions_of(value)
    except InvalidSampleError as error:
        raise UserError(f"{where}: {error}") from None
    if not captions:
        raise UserError(f"{where}: expected a caption, got none")
    return captions


def whole(read: Callable[[Location], Iterator[Record]]) -> Callable[[Location], Dataset[Record]]:
    """The reader of a format without splits, from a function that yields its records."""

    @functools.wraps(read)
    def dataset(location: Location) -> Dataset[Record]:
        return Dataset(records=read(location))

    return dataset


def of_split(read: Callable[[Location], Iterator[tuple[str, Record]]]) -> Callable[[Location], Dataset[Record]]:
    """The reader of a format with splits, from a function that yields each record with its split."""

    @functools.wraps(read)
    def dataset(location: Location) -> Dataset[Record]:
        return Dataset(records=location.rows_of_split(read(location)), split=location.spec.split)

    return dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One format: what `register` gathers from its readers.

    Args:
        takes: the fields of `DatasetSpec` that it reads, besides path and format.
        fits: detects the format of a path; None if it cannot be detected.
        is_general: whether ``fits`` is true of other formats' data, too: these are detected first.
        captions: reads images with captions.
        conversations: reads conversations about images.
        classes: reads images with one class each.
        pairs: reads images with matching and near-miss captions.
        source: the class for training, with random access (`clips.data.formats.source.Source`); None: all captions are
            listed in memory, and each image is a file.
        web_caption: the default location of its short web caption in training.
        synthetic_caption: the default location of its long synthetic caption, or of several.
    """

    takes: tuple[str, ...] = ("image_root",)
    fits: Callable[[Location], bool] | None = None
    is_general: bool = False
    captions: Callable[[Location], Dataset[Captioned]] | None = None
    conversations: Callable[[Location], Dataset[Conversation]] | None = None
    classes: Callable[[Location], Dataset[Classified]] | None = None
    pairs: Callable[[Location], Dataset[Pair]] | None = None
    source: Callable[[Any], Any] | None = None
    web_caption: str = "random_sentence"
    synthetic_caption: str | tuple[str, ...] = "other_sentences"


FORMATS: dict[str, Format] = {}
"""The dataset formats by name; `clips.data.formats` imports the readers, which register themselves."""
Reader = TypeVar("Reader", bound=Callable[..., Any])


def register(name: str, role: Kind | Literal["source"], **fields: Any) -> Callable[[Reader], Reader]:
    """Decorator of what reads the records of a kind, or of the class of sources, of the format ``name``.

    Args:
        name: the format. What several readers register for one name adds up.
        role: the field of `Format` that the reader is.
        fields: others of its fields.
    """

    def add(reader: Reader) -> Reader:
        settings: dict[str, Any] = {role: reader, **fields}
        FORMATS[name] = dataclasses.replace(FORMATS.get(name, Format()), **settings)
        return reader

    return add
