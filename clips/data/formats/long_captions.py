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


def is_urban1k(found: Location) -> bool:
    """Directories ``caption`` and ``image``."""
    return "caption" in found.names and bool({"image", "images"} & found.names)


def read_urban1k(found: Location) -> Dataset[Captioned]:
    """A text an image of the same name; Long-CLIP takes the first line of each."""
    return Dataset(records=_urban1k(found, found.folder("image", "images")))


def _urban1k(found: Location, root: Path) -> Iterator[Captioned]:
    files = (path for path in (found.path / "caption").iterdir() if not path.name.startswith("."))
    for file in sorted(path for path in files if path.suffix == ".txt"):
        yield captioned(root, f"{file.stem}.jpg", read_text_lines(file)[:1])


def is_sharegpt4v(found: Location) -> bool:
    """``[{"image", "conversations"}]``."""
    first = found.json[0] if isinstance(found.json, list) and found.json else None
    return isinstance(first, dict) and "conversations" in first


def read_sharegpt4v(found: Location) -> Dataset[Captioned]:
    """The first 1,000 as the split ``test``, which Long-CLIP excluded from training; or ``all``."""
    root = found.folder("data", "images")
    return Dataset(records=_sharegpt4v(found, root), split=found.asked.split)


def _sharegpt4v(found: Location, root: Path) -> Iterator[Captioned]:
    if found.asked.split not in {"test", ALL}:
        raise UserError(
            f"{found.path}: has no split '{found.asked.split}' (expected test, the first {_SHAREGPT4V_TEST}, or {ALL})"
        )
    rows = found.json if found.asked.split == ALL else found.json[:_SHAREGPT4V_TEST]
    for number, row in enumerate(rows, 1):
        check_keys(row, f"{found.path} row {number}", texts=("image",), others=("conversations",))
        try:
            answer = row["conversations"][1]["value"].replace("\n", " ")
        except (IndexError, KeyError, TypeError, AttributeError):
            raise UserError(f"{found.path} row {number}: expected conversations of a question and an answer") from None
        yield captioned(root, row["image"], [answer])


def is_docci(found: Location) -> bool:
    """``docci_descriptions.jsonlines``."""
    return found.has_file(_DOCCI)


def read_docci(found: Location) -> Dataset[Captioned]:
    """Images of 15 k with one description by a person each; the split ``test`` has 5,000."""
    rows = read_json_lines(found.file(_DOCCI), texts=("split", "image_file", "description"))
    root = found.folder("images")
    parted = ((row["split"], captioned(root, row["image_file"], [row["description"]])) for _, row in rows)
    return Dataset(records=found.rows_of_split(parted), split=found.asked.split)


def is_iiw(found: Location) -> bool:
    """``data.jsonl`` with ``IIW``."""
    return "IIW" in found.first_row(_IIW)


def read_iiw(found: Location) -> Dataset[Captioned]:
    """ImageInWords: the description by people. The images of IIW-400 are DOCCI's ``images_aar``."""
    return Dataset(records=_iiw(found, found.folder("images_aar", "images")))


def _iiw(found: Location, root: Path) -> Iterator[Captioned]:
    path = found.file(_IIW)
    for number, row in read_json_lines(path, texts=("IIW",)):
        key = "image" if "image" in row else "image/key"
        check_keys(row, f"{path} line {number}", texts=(key,))
        name = row[key]
        whole = name.lower().endswith((".jpg", ".png"))
        yield captioned(root, name if whole else f"{name}.jpg", [row["IIW"]])


def is_dci(found: Location) -> bool:
    """``splits.json`` next to ``annotations`` and ``photos``."""
    return {"splits.json", "annotations", "photos"} <= found.names


def read_dci(found: Location) -> Dataset[Captioned]:
    """Densely Captioned Images: the short caption and its extension. Papers take all 7,805 images: ``split: all``."""
    root = found.folder("photos")
    return Dataset(records=found.rows_of_split(_dci(found, root)), split=found.asked.split)


def _dci(found: Location, root: Path) -> Iterator[tuple[str, Captioned]]:
    splits = read_json(found.path / "splits.json")
    if not isinstance(splits, dict):
        raise UserError(f"{found.path / 'splits.json'}: expected an object from a split to its annotations")
    for split, files in splits.items():
        if found.asked.split not in {split, ALL}:
            yield from ((split, Captioned([], [])) for _ in files[:1])  # listed if the requested split does not exist
            continue
        for file in files:
            path = found.path / "annotations" / file
            row = read_json(path)
            check_keys(row, str(path), texts=("image", "short_caption"), others=("extra_caption",))
            yield split, captioned(root, row["image"], [f"{row['short_caption']}\n{row['extra_caption']}"])
