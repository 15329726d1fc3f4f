"""Pictures with captions that fit and captions that nearly fit, from the layouts of compositional benchmarks.

Letters: P pictures of a case (one, or two in Winoground), C captions of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data.aro_relations import SYMMETRIC
from benchmarks.data.caption_sets import read_lines
from benchmarks.data.hub_tables import holds_table, open_table, picture_bytes
from benchmarks.data.source import Files
from clips.errors import UserError
from clips.jsontext import parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]
_LEAST_OF_KIND = 25  # ARO's VG-Attribution leaves pairs of attributes out of its mean that are rarer


@dataclass(frozen=True)
class Picture:
    """A picture, or a part of one.

    Args:
        reference: below the root of its set.
        box: left, upper, right and lower edge in pixels of the part that is meant.
    """

    reference: str
    box: Box | None = None


@dataclass(frozen=True)
class Case:
    """Captions for one picture or two.

    Args:
        name: unique within the set.
        kind: how the wrong captions differ; empty where not stated.
        pictures: (P,) pictures.
        captions: (C,) captions; caption i < P is of picture i, those behind are of none.
    """

    name: str
    kind: str
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Cases and their pictures.

    Args:
        root: what was read, for messages.
        cases: at least one; all have equally many pictures.
        averaged: the kinds that enter the mean over kinds.
        by_kinds: whether its authors report that mean, not the share of all cases.
        read: reference → the picture file's bytes.
        available: cases that there are without ``limit``.
    """

    root: Path
    cases: Sequence[Case]
    averaged: frozenset[str]
    by_kinds: bool
    read: Callable[[str], bytes]
    available: int

    @functools.cached_property
    def pictures(self) -> list[Picture]:
        """Every different picture, in the order of the cases."""
        return list(dict.fromkeys(picture for case in self.cases for picture in case.pictures))

    def open(self, picture: Picture) -> Image:
        """A picture, or the part that is meant, as RGB."""
        from clips.data.images import BadImageError, decode_image

        try:
            image = decode_image(self.read(picture.reference))
        except BadImageError as error:
            raise UserError(f"{self.root}: {picture.reference}: {error}") from None
        return image if picture.box is None else image.crop(picture.box)

    @functools.cached_property
    def contents(self) -> dict[Picture, str]:
        """What each of `pictures` shows: SHA-256 of its file, and the part that is meant."""
        references = dict.fromkeys(picture.reference for picture in self.pictures)
        hashes = {reference: hashlib.sha256(self.read(reference)).hexdigest() for reference in references}
        return {picture: json.dumps([hashes[picture.reference], picture.box]) for picture in self.pictures}

    @functools.cached_property
    def pictures_hash(self) -> str:
        """SHA-256 over what the pictures show, in order."""
        return hashlib.sha256("".join(self.contents.values()).encode()).hexdigest()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the captions, kinds and pictures, the same wherever they lie and however they are called."""
        digest = hashlib.sha256()
        for case in self.cases:
            shown = [parse_json(self.contents[picture]) for picture in case.pictures]
            digest.update(json.dumps([case.kind, case.captions, shown], ensure_ascii=False).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Layout:
    """How a benchmark's data come.

    Args:
        cases: (data, folder of the pictures or None) → (cases, reader of their pictures).
        averaged: how often each kind is there → the kinds that enter the mean over kinds.
        by_kinds: as of :class:`PairSet`.
    """

    cases: Callable[[Path, Path | None], tuple[Iterator[Case], Callable[[str], bytes]]]
    averaged: Callable[[Mapping[str, int]], frozenset[str]] = frozenset
    by_kinds: bool = False


def load_pair_set(data: str, layout: str, *, images: str | None = None, limit: int | None = None) -> PairSet:
    """Read a compositional benchmark.

    Args:
        data: its file, or the directory of its files.
        layout: a name in :data:`LAYOUTS`.
        images: folder of the pictures; by default ``images`` beside the file, or where the file is.
        limit: the first so many cases.

    Raises:
        UserError: missing or malformed, naming the place.
    """
    path = Path(data)
    if not path.exists():
        raise UserError(f"{data}: no such file or directory")
    found, read = LAYOUTS[layout].cases(path, Path(images) if images else None)
    everything = list(found)
    cases = everything[:limit]
    if not cases:
        raise UserError(f"{data}: holds no pair of captions")
    kinds = Counter(case.kind for case in cases if case.kind)
    averaged = LAYOUTS[layout].averaged(kinds)
    return PairSet(
        root=path,
        cases=cases,
        averaged=averaged,
        by_kinds=LAYOUTS[layout].by_kinds,
        read=read,
        available=len(everything),
    )


def _from_lines(path: Path, images: Path | None) -> tuple[Iterator[Case], Callable[[str], bytes]]:
    """JSON lines of {image, caption, negative, kind}; ``negative`` is a text or several."""

    def cases() -> Iterator[Case]:
        for number, (line, row) in enumerate(read_lines(path, texts=("image", "caption"), others=("negative",))):
            negative = row["negative"]
            wrong = [negative] if isinstance(negative, str) else negative
            where = f"{path} line {line}"
            if not isinstance(wrong, list) or not wrong or not all(isinstance(text, str) and text for text in wrong):
                raise UserError(f"{where}: negative: expected a text, or a list of texts, got {negative!r:.80}")
            name = f"{number}/{row['image']}"
            yield Case(name, str(row.get("kind", "")), (Picture(row["image"]),), (row["caption"], *wrong))

    return cases(), _files(images or path.parent)


def _from_sugarcrepe(path: Path, images: Path | None) -> tuple[Iterator[Case], Callable[[str], bytes]]:
    """A JSON for each kind, number → {filename, caption, negative_caption}."""

    def cases() -> Iterator[Case]:
        for file in _json_files(path):
            for number, row in _rows(file).items():
                text = functools.partial(_text, f"{file}: {number}", row)
                captions = (text("caption"), text("negative_caption"))
                yield Case(f"{file.stem}/{number}", file.stem, (Picture(text("filename")),), captions)

    return cases(), _files(images or _beside(path))


def _from_aro(path: Path, images: Path | None) -> tuple[Iterator[Case], Callable[[str], bytes]]:
    """A JSON list of {image_path, true_caption, false_caption, bbox_x, bbox_y, bbox_w, bbox_h, …}, the box cut out."""

    def cases() -> Iterator[Case]:
        for number, row in enumerate(_list(path)):
            where = f"{path}: {number}"
            text = functools.partial(_text, where, row)
            sides = [row.get(f"bbox_{side}") for side in "xywh"]
            numbers = [int(side) for side in sides if isinstance(side, int | float)]
            if len(numbers) < 4 or min(numbers[2:]) <= 0:
                raise UserError(f"{where}: expected numbers bbox_x, bbox_y, bbox_w and bbox_h, got {sides}")
            left, top, width, height = numbers
            box = (left, top, left + width, top + height)
            kind = row.get("relation_name") or "_".join(map(str, row.get("attributes") or []))
            picture = Picture(text("image_path"), box)
            captions = (text("true_caption"), text("false_caption"))
            yield Case(f"{number}/{picture.reference}", kind, (picture,), captions)

    return cases(), _files(images or _beside(path))


def _from_valse(path: Path, images: Path | None) -> tuple[Iterator[Case], Callable[[str], bytes]]:
    """A JSON for each instrument, name → {image_file, dataset, caption, foil, mturk}.

    Taken are the cases of which at least two of three people chose the caption and not the foil, which is what the
    authors call valid; a case that nobody was asked about is taken. Pictures lie in the folder, or in one in it that is
    called as the data set which they are from.
    """
    folder = images or _beside(path)

    def cases() -> Iterator[Case]:
        from clips.data.images import has_reference

        for file in _json_files(path):
            for name, row in _rows(file).items():
                text = functools.partial(_text, f"{file}: {name}", row)
                votes = row.get("mturk")
                if isinstance(votes, dict):
                    chosen = votes.get("caption", 0)
                    if not isinstance(chosen, int):
                        raise UserError(f"{file}: {name}: mturk.caption: expected a number, got {chosen!r:.80}")
                    if chosen < 2:
                        continue
                picture, within = text("image_file"), f"{row.get('dataset', '')}/{row['image_file']}"
                found = within if not has_reference(folder, picture) and has_reference(folder, within) else picture
                captions = (text("caption"), text("foil"))
                yield Case(f"{file.stem}/{name}", file.stem, (Picture(found),), captions)

    return cases(), _files(folder)


def _from_winoground(path: Path, images: Path | None) -> tuple[Iterator[Case], Callable[[str], bytes]]:
    """The hub's data set: parquet with its pictures, or ``examples.jsonl`` with a folder of PNGs."""
    texts = ("caption_0", "caption_1")
    if path.is_dir() and holds_table(path):
        table = open_table(path, "test")
        for column in ("image_0", "image_1", *texts):
            if column not in table.features:
                raise UserError(f"{path}: expected the columns image_0, image_1, caption_0 and caption_1")
        said = table.select_columns([name for name in table.features if not name.startswith("image_")])

        def from_table() -> Iterator[Case]:
            for number, row in enumerate(said):
                text = functools.partial(_text, f"{path}: row {number}", row)
                shown = tuple(Picture(f"{number}/image_{side}") for side in (0, 1))
                kind = str(row.get("collapsed_tag") or "")
                yield Case(str(row.get("id", number)), kind, shown, tuple(text(name) for name in texts))

        def read(reference: str) -> bytes:
            number, _, column = reference.partition("/")
            return picture_bytes(table[int(number)][column], path)

        return from_table(), read

    file = path / "examples.jsonl" if path.is_dir() else path

    def cases() -> Iterator[Case]:
        for line, row in read_lines(file, texts=("image_0", "image_1", *texts)):
            names = (row["image_0"], row["image_1"])
            shown = tuple(Picture(name if Path(name).suffix else f"{name}.png") for name in names)
            captions = tuple(row[name] for name in texts)
            kind = str(row.get("collapsed_tag") or "")
            yield Case(str(row.get("id", line)), kind, shown, captions)

    return cases(), _files(images or _beside(file))


LAYOUTS: dict[str, Layout] = {
    "lines": Layout(_from_lines),
    "sugarcrepe": Layout(_from_sugarcrepe),
    "aro_relation": Layout(_from_aro, lambda counts: frozenset(counts) - SYMMETRIC, by_kinds=True),
    "aro_attribution": Layout(
        _from_aro,
        lambda counts: frozenset(kind for kind, count in counts.items() if count >= _LEAST_OF_KIND),
        by_kinds=True,
    ),
    "valse": Layout(_from_valse),
    "winoground": Layout(_from_winoground),
}


def _files(root: Path) -> Callable[[str], bytes]:
    return Files(root).read


def _beside(path: Path) -> Path:
    """Where pictures lie unless the config says it: in ``images`` beside the file, or beside it."""
    folder = path if path.is_dir() else path.parent
    return folder / "images" if (folder / "images").is_dir() else folder


def _json_files(path: Path) -> list[Path]:
    found = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not found:
        raise UserError(f"{path}: expected a .json file for each kind, found none")
    return found


def _content(file: Path) -> Any:
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None


def _rows(file: Path) -> dict[str, dict[str, Any]]:
    content = _content(file)
    if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
        raise UserError(f"{file}: expected an object of objects, one for each case")
    return content


def _list(file: Path) -> list[dict[str, Any]]:
    if file.is_dir():
        raise UserError(f"{file}: expected the .json file, got a directory")
    content = _content(file)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{file}: expected a list of objects, one for each case")
    return content


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {key}: expected a text, got {value!r:.80}")
    return value
