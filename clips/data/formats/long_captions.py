"""Datasets of long captions, in their authors' formats.

The readers follow the first publications that evaluated on them: Long-CLIP (``eval/retrieval/Urban1k.py``,
``train/sharegpt4v.py``) for Urban-1k and ShareGPT4V, DCI's own ``get_extended_caption``, the README files of DOCCI and
ImageInWords.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clips.data.formats.dataset_format import ALL, Captioned, Dataset, Location, captioned
from clips.data.text_files import check_keys, read_json, read_json_lines, read_text_lines
from clips.errors import UserError

_SHAREGPT4V_TEST = 1000
_DOCCI, _IIW = "docci_descriptions.jsonlines", "data.jsonl"


def is_urban1k(location: Location) -> bool:
    """Directories ``caption`` and ``image``."""
    return "caption" in location.names and bool({"image", "images"} & location.names)


def read_urban1k(location: Location) -> Dataset[Captioned]:
    """A text file for each image, of the same name; Long-CLIP uses the first line of each."""
    return Dataset(records=_urban1k(location, location.image_root("image", "images")))


def _urban1k(location: Location, root: Path) -> Iterator[Captioned]:
    files = (path for path in (location.path / "caption").iterdir() if not path.name.startswith("."))
    for file in sorted(path for path in files if path.suffix == ".txt"):
        yield captioned(root, f"{file.stem}.jpg", read_text_lines(file)[:1])


def read_sharegpt4v(location: Location) -> Dataset[Captioned]:
    """The first 1,000 as the split ``test``, which Long-CLIP excluded from training; or ``all``."""
    root = location.image_root("data", "images")
    return Dataset(records=_sharegpt4v(location, root), split=location.spec.split)


def _sharegpt4v(location: Location, root: Path) -> Iterator[Captioned]:
    split = location.spec.split
    if split not in {"test", ALL}:
        choices = f"test, the first {_SHAREGPT4V_TEST}, or {ALL}"
        raise UserError(f"{location.path}: has no split '{split}' (expected {choices})")
    rows = location.json if split == ALL else location.json[:_SHAREGPT4V_TEST]
    for number, row in enumerate(rows, 1):
        check_keys(row, f"{location.path} row {number}", texts=("image",), others=("conversations",))
        try:
            answer = row["conversations"][1]["value"].replace("\n", " ")
        except (IndexError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{location.path} row {number}: expected conversations of a question and an answer"
            ) from None
        yield captioned(root, row["image"], [answer])


def is_docci(location: Location) -> bool:
    """``docci_descriptions.jsonlines``."""
    return location.has_file(_DOCCI)


def read_docci(location: Location) -> Dataset[Captioned]:
    """15,000 images with one human description each; the split ``test`` has 5,000."""
    rows = read_json_lines(location.file(_DOCCI), texts=("split", "image_file", "description"))
    root = location.image_root("images")
    records = ((row["split"], captioned(root, row["image_file"], [row["description"]])) for _, row in rows)
    return Dataset(records=location.rows_of_split(records), split=location.spec.split)


def is_iiw(location: Location) -> bool:
    """``data.jsonl`` with ``IIW``."""
    return "IIW" in location.first_row(_IIW)


def read_iiw(location: Location) -> Dataset[Captioned]:
    """ImageInWords: the human description. The images of IIW-400 are DOCCI's ``images_aar``."""
    return Dataset(records=_iiw(location, location.image_root("images_aar", "images")))


def _iiw(location: Location, root: Path) -> Iterator[Captioned]:
    path = location.file(_IIW)
    for number, row in read_json_lines(path, texts=("IIW",)):
        key = "image" if "image" in row else "image/key"
        check_keys(row, f"{path} line {number}", texts=(key,))
        has_suffix = row[key].lower().endswith((".jpg", ".png"))
        yield captioned(root, row[key] if has_suffix else f"{row[key]}.jpg", [row["IIW"]])


def is_dci(location: Location) -> bool:
    """``splits.json`` next to ``annotations`` and ``photos``."""
    return {"splits.json", "annotations", "photos"} <= location.names


def read_dci(location: Location) -> Dataset[Captioned]:
    """Densely Captioned Images: the short caption and its extension. Papers use all 7,805 images: ``split: all``."""
    root = location.image_root("photos")
    return Dataset(records=location.rows_of_split(_dci(location, root)), split=location.spec.split)


def _dci(location: Location, root: Path) -> Iterator[tuple[str, Captioned]]:
    splits = read_json(location.path / "splits.json")
    if not isinstance(splits, dict):
        raise UserError(f"{location.path / 'splits.json'}: expected an object from a split to its annotations")
    for split, files in splits.items():
        if location.spec.split not in {split, ALL}:
            yield from ((split, Captioned([], [])) for _ in files[:1])  # for the error about an unknown split
            continue
        for file in files:
            path = location.path / "annotations" / file
            row = read_json(path)
            check_keys(row, str(path), texts=("image", "short_caption"), others=("extra_caption",))
            yield split, captioned(root, row["image"], [f"{row['short_caption']}\n{row['extra_caption']}"])
