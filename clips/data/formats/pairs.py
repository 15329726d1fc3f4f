"""Images with matching and near-miss captions, in the formats of compositional benchmarks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clips.data.formats.dataset_format import WHOLE, Dataset, ImageRegion, Location, Pair, register, whole
from clips.data.formats.rows import is_datasets, open_rows, utf8_rows
from clips.data.lazy_images import FileImage, ImageColumn, TableImage, image_exists
from clips.errors import UserError
from clips.text_files import read_json, read_json_lines

_WINOGROUND = ("caption_0", "caption_1")


@register("jsonl", "pairs")
def read_jsonl(location: Location) -> Dataset[Pair]:
    """JSON lines of {image, caption, negative, kind}; ``negative`` is a string or a list."""
    path, has_splits = location.path, location.rows_state_split()
    root = location.image_root_of(location.first_row().get("image"))

    def pairs() -> Iterator[tuple[str, Pair]]:
        texts = ("image", "caption", "split") if has_splits else ("image", "caption")
        rows = read_json_lines(path, texts=texts, others=("negative",))
        for number, (line, row) in enumerate(rows):
            negative = row["negative"]
            wrong = [negative] if isinstance(negative, str) else negative
            if not isinstance(wrong, list) or not wrong or not all(isinstance(text, str) and text for text in wrong):
                where = f"{path} line {line}: negative"
                raise UserError(f"{where}: expected a string, or a list of strings, got {negative!r:.80}")
            pair = _pair(
                f"{number}/{row['image']}", str(row.get("kind") or ""), root, row["image"], (row["caption"], *wrong)
            )
            yield row["split"] if has_splits else location.spec.split, pair

    return Dataset(records=location.rows_of_split(pairs()), split=location.spec.split if has_splits else WHOLE)


@register("sugarcrepe", "pairs")
@whole
def read_sugarcrepe(location: Location) -> Iterator[Pair]:
    """A JSON file per category: number → {filename, caption, negative_caption}."""
    root = location.image_root("images")
    for file, number, row in _objects(location.path):
        text = functools.partial(_text, f"{file}: {number}", row)
        captions = (text("caption"), text("negative_caption"))
        yield _pair(f"{file.stem}/{number}", file.stem, root, text("filename"), captions)


@register("aro_relation", "pairs")  # ARO's VG-Relation
@register("aro_attribution", "pairs")  # ARO's VG-Attribution
@whole
def read_aro(location: Location) -> Iterator[Pair]:
    """A JSON list of {image_path, true_caption, false_caption, bbox_x, bbox_y, bbox_w, bbox_h, …}; crops to the box."""
    path, root = location.path, location.image_root("images")
    if path.is_dir():
        raise UserError(f"{path}: expected the .json file, got a directory")
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of objects, one for each case")
    for number, row in enumerate(rows):
        where = f"{path}: {number}"
        text = functools.partial(_text, where, row)
        box = [row.get(f"bbox_{side}") for side in "xywh"]
        numbers = [int(side) for side in box if isinstance(side, int | float)]
        if len(numbers) < 4 or min(numbers[2:]) <= 0:
            raise UserError(f"{where}: expected numbers bbox_x, bbox_y, bbox_w and bbox_h, got {box}")
        left, top, width, height = numbers
        region = ImageRegion(FileImage(root, text("image_path")), (left, top, left + width, top + height))
        kind = row.get("relation_name") or "_".join(map(str, row.get("attributes") or []))
        captions = (text("true_caption"), text("false_caption"))
        yield Pair(f"{number}/{region.reference}", kind, (region,), captions)


@register("valse", "pairs")
@whole
def read_valse(location: Location) -> Iterator[Pair]:
    """A JSON file per instrument: name → {image_file, dataset, caption, foil, mturk}.

    Only pairs that are valid by the authors' definition are used: at least two of three annotators chose the caption
    over the foil. Pairs without annotations are used too. Images are in the directory, or in a subdirectory named
    after their dataset.
    """
    root = location.image_root("images")
    for file, name, row in _objects(location.path):
        text = functools.partial(_text, f"{file}: {name}", row)
        votes = row.get("mturk")
        if isinstance(votes, dict):
            chosen = votes.get("caption", 0)
            if not isinstance(chosen, int):
                raise UserError(f"{file}: {name}: mturk.caption: expected a number, got {chosen!r:.80}")
            if chosen < 2:
                continue
        image, nested = text("image_file"), f"{row.get('dataset', '')}/{row['image_file']}"
        image = nested if not image_exists(root, image) and image_exists(root, nested) else image
        yield _pair(f"{file.stem}/{name}", file.stem, root, image, (text("caption"), text("foil")))


@register("winoground", "pairs")
@whole
def read_winoground(location: Location) -> Iterator[Pair]:
    """The Hub's dataset: parquet with its images, or ``examples.jsonl`` with a directory of PNGs."""
    if is_datasets(location):
        rows = open_rows(location.spec.path, location.spec.subset, location.spec.split)
        for column in ("image_0", "image_1", *_WINOGROUND):
            if column not in rows.features:
                raise UserError(f"{location.path}: expected the columns image_0, image_1, caption_0 and caption_1")
        columns = [ImageColumn(rows, f"image_{side}", location.spec.path, location.path) for side in (0, 1)]
        other_columns = [name for name in rows.features if not name.startswith("image_")]
        for number, row in enumerate(utf8_rows(location.spec.path, rows.select_columns(other_columns))):
            text = functools.partial(_text, f"{location.path}: row {number}", row)
            yield _winoground(
                number, row, [TableImage(column, number, label=f"{number}/{column.name}") for column in columns], text
            )
        return
    file, root = location.file("examples.jsonl"), location.image_root("images")
    for line, row in read_json_lines(file, texts=("image_0", "image_1", *_WINOGROUND)):
        names = (row["image_0"], row["image_1"])
        images = [FileImage(root, name if Path(name).suffix else f"{name}.png") for name in names]
        yield _winoground(line, row, images, row.__getitem__)


def _winoground(number: int, row: Mapping[str, Any], images: list[Any], text: Callable[[str], str]) -> Pair:
    kind = str(row.get("collapsed_tag") or "")
    captions = tuple(text(name) for name in _WINOGROUND)
    return Pair(str(row.get("id", number)), kind, tuple(map(ImageRegion, images)), captions)


def _pair(name: str, kind: str, root: Path, image: str, captions: tuple[str, ...]) -> Pair:
    return Pair(name, kind, (ImageRegion(FileImage(root, image)),), captions)


def _objects(path: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """(file, name, object) of all JSON files of named objects in a directory, or of one such file."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: expected a .json file for each category, found none")
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
            raise UserError(f"{file}: expected an object of objects, one for each case")
        yield from ((file, name, row) for name, row in content.items())


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {key}: expected a string, got {value!r:.80}")
    return value
