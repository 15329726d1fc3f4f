"""What is asked for of a data set of pictures and captions, what lies on the disk, and what a layout finds in it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.data.json_files import parse_object, read_json
from clips.errors import UserError, suggest

ALL = "all"
"""As a split: every one that there is."""
WHOLE = "taken whole"
"""What a protocol says where there are no splits."""

Row = tuple[Sequence[str], Any]
"""References of pictures, and captions each of which is right for all of them (a list of texts, checked later)."""


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Where pictures and captions come from.

    Args:
        data: a file, a directory, or with the layout ``datasets`` a name on the hub.
        layout: a name in ``layouts.LAYOUTS``; None: whichever fits what lies there.
        split: of layouts that have any; ``all`` takes every one.
        images: folder of the pictures, for files that name them.
        language: of data in several languages.
        subset: a data set's configuration (``datasets``).
        image_column: where the pictures are, or their names (``datasets``, ``table``).
        caption_columns: where the captions are (likewise); one that holds lists, or several.
    """

    data: str
    layout: str | None = None
    split: str = "test"
    images: str | None = None
    language: str | None = None
    subset: str | None = None
    image_column: str = "image"
    caption_columns: tuple[str, ...] = ()


class Pictures(Protocol):
    """Encoded pictures by reference."""

    def read(self, reference: str) -> bytes:
        """The encoded picture. Raises UserError naming one that is not there."""
        ...


@dataclass(frozen=True)
class Files:
    """Pictures that are files below ``root``, or ``shard.tar/member`` in tars there."""

    root: Path

    def read(self, reference: str) -> bytes:
        """See `Pictures`."""
        from clips.data.images import read_reference

        try:
            return read_reference(self.root, reference)
        except UserError as error:
            if ".tar/" in reference:
                raise
            place = self.root.absolute()
            raise UserError(f"{error} (looked for in {place}; give 'images: FOLDER' if it is elsewhere)") from None


@dataclass(frozen=True)
class Found:
    """What a layout finds.

    Args:
        pictures: what the references are read from.
        rows: references and captions.
        split: which split that is; `WHOLE` where there are none.
    """

    pictures: Pictures
    rows: Iterable[Row]
    split: str = WHOLE


@dataclass(frozen=True)
class OnDisk:
    """A source and what lies where it points to, read once and not before it is needed."""

    asked: CaptionSource

    @property
    def path(self) -> Path:
        """The file or directory."""
        return Path(self.asked.data)

    @functools.cached_property
    def names(self) -> set[str]:
        """What a directory holds; empty for a file."""
        return {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()

    def file(self, name: str) -> Path:
        """``name`` in the directory, or the file itself where the source points to one."""
        return self.path / name if self.path.is_dir() else self.path

    def lies_here(self, name: str) -> bool:
        """Whether the source is a file of this name or a directory that holds one."""
        return self.file(name).name == name and self.file(name).is_file()

    def folder(self, *usual: str) -> Path:
        """The folder of the pictures: the one that was asked for, else the first of the usual ones that is there.

        Those are beside the file that names the pictures; the last resort is that file's own directory.
        """
        if self.asked.images:
            return Path(self.asked.images)
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
        return read_json(self.path) if self.path.suffix == ".json" and self.path.is_file() else None

    def of_split(self, rows: Iterable[tuple[str, Row]]) -> Iterator[Row]:
        """The rows of the split that was asked for, of (split, row). Raises UserError where there is no such split."""
        wanted, seen, taken = self.asked.split, set(), False
        for split, row in rows:
            seen.add(split)
            if wanted in {split, ALL}:
                taken = True
                yield row
        if not taken and seen:
            raise UserError(f"{self.path}: has no split '{wanted}' (it has: {', '.join(sorted(seen))})")

    def language(self, available: Iterable[str]) -> str:
        """The language that was asked for. Raises UserError where none was, or it is not among those available."""
        known = list(available)
        if self.asked.language is None:
            listed = ", ".join(itertools.islice(sorted(known), 60))
            raise UserError(f"language: expected one of those of {self.path} ({listed}), got none")
        if self.asked.language not in known:
            raise suggest(self.asked.language, known, f"language of {self.path}")
        return self.asked.language
