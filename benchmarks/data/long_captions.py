"""Data sets of long captions, as their authors publish them.

What is read follows those who measured on them first: Long-CLIP (``eval/retrieval/Urban1k.py``,
``train/sharegpt4v.py``) for Urban-1k and ShareGPT4V, DCI's own ``get_extended_caption``, the README files of DOCCI and
ImageInWords.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.data.json_files import check_keys, read_json, read_lines
from benchmarks.data.source import ALL, Files, Found, OnDisk, Row
from benchmarks.data.text_files import read_text_lines
from clips.errors import UserError

_SHAREGPT4V_TEST = 1000
_DOCCI, _IIW = "docci_descriptions.jsonlines", "data.jsonl"


def is_urban1k(found: OnDisk) -> bool:
    """Folders ``caption`` and ``image``."""
    return "caption" in found.names and bool({"image", "images"} & found.names)


def read_urban1k(found: OnDisk) -> Found:
    """A text a picture of the same name; Long-CLIP takes the first line of each."""
    return Found(Files(found.folder("image", "images")), _urban1k(found))


def _urban1k(found: OnDisk) -> Iterator[Row]:
    files = (path for path in (found.path / "caption").iterdir() if not path.name.startswith("."))
    for file in sorted(path for path in files if path.suffix == ".txt"):
        yield [f"{file.stem}.jpg"], read_text_lines(file)[:1]


def is_sharegpt4v(found: OnDisk) -> bool:
    """``[{"image", "conversations"}]``."""
    first = found.json[0] if isinstance(found.json, list) and found.json else None
    return isinstance(first, dict) and "conversations" in first


def read_sharegpt4v(found: OnDisk) -> Found:
    """The first 1,000 as the split ``test``, which Long-CLIP kept out of its training; or ``all``."""
    return Found(Files(found.folder("data", "images")), _sharegpt4v(found), found.asked.split)


def _sharegpt4v(found: OnDisk) -> Iterator[Row]:
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
        yield [row["image"]], [answer]


def is_docci(found: OnDisk) -> bool:
    """``docci_descriptions.jsonlines``."""
    return found.lies_here(_DOCCI)


def read_docci(found: OnDisk) -> Found:
    """Pictures of 15 k with one description by a person each; the split ``test`` has 5,000."""
    rows = read_lines(found.file(_DOCCI), texts=("split", "image_file", "description"))
    parted = ((row["split"], ([row["image_file"]], [row["description"]])) for _, row in rows)
    return Found(Files(found.folder("images")), found.of_split(parted), found.asked.split)


def is_iiw(found: OnDisk) -> bool:
    """``data.jsonl`` with ``IIW``."""
    return "IIW" in found.first_row(_IIW)


def read_iiw(found: OnDisk) -> Found:
    """ImageInWords: the description by people. The pictures of IIW-400 are DOCCI's ``images_aar``."""
    return Found(Files(found.folder("images_aar", "images")), _iiw(found))


def _iiw(found: OnDisk) -> Iterator[Row]:
    path = found.file(_IIW)
    for number, row in read_lines(path, texts=("IIW",)):
        key = "image" if "image" in row else "image/key"
        check_keys(row, f"{path} line {number}", texts=(key,))
        name = row[key]
        yield [name if name.lower().endswith((".jpg", ".png")) else f"{name}.jpg"], [row["IIW"]]


def is_dci(found: OnDisk) -> bool:
    """``splits.json`` beside ``annotations`` and ``photos``."""
    return {"splits.json", "annotations", "photos"} <= found.names


def read_dci(found: OnDisk) -> Found:
    """Densely Captioned Images: the short caption and its extension. Papers take all 7,805 pictures: ``split: all``."""
    return Found(Files(found.folder("photos")), found.of_split(_dci(found)), found.asked.split)


def _dci(found: OnDisk) -> Iterator[tuple[str, Row]]:
    splits = read_json(found.path / "splits.json")
    if not isinstance(splits, dict):
        raise UserError(f"{found.path / 'splits.json'}: expected an object from a split to its annotations")
    for split, files in splits.items():
        if found.asked.split not in {split, ALL}:
            yield from ((split, ([], [])) for _ in files[:1])  # named where the split asked for is not there
            continue
        for file in files:
            path = found.path / "annotations" / file
            row = read_json(path)
            check_keys(row, str(path), texts=("image", "short_caption"), others=("extra_caption",))
            yield split, ([row["image"]], [f"{row['short_caption']}\n{row['extra_caption']}"])
