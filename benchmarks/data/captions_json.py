"""Captions in JSON or in lines of text beside a folder of pictures: the usual layouts of COCO, Flickr30k, Flickr8k."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.json_files import check_keys, read_lines
from benchmarks.data.source import Files, Found, OnDisk, Row
from benchmarks.data.text_files import read_text_lines
from clips.data.images import IMAGE_SUFFIXES
from clips.errors import UserError

_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_LINE = re.compile(rf"(?P<image>.+?(?:{_SUFFIX}))(?:#\d+)?[\t,](?P<caption>.*)", re.IGNORECASE)


def is_karpathy(found: OnDisk) -> bool:
    """``{"images": [{"filename", "split", "sentences"}]}``."""
    return isinstance(found.json, dict) and "annotations" not in found.json and "image_paths" not in found.json


def read_karpathy(found: OnDisk) -> Found:
    """Karpathy's splits of COCO, Flickr30k and Flickr8k; captions as people wrote them (``raw``)."""
    root = found.folder("images")
    return Found(Files(root), found.of_split(_karpathy(found, root)), found.asked.split)


def _karpathy(found: OnDisk, root: Path) -> Iterator[tuple[str, Row]]:
    rows = found.json.get("images") if isinstance(found.json, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{found.path}: expected Karpathy's layout, an object with 'images'")
    try:
        for row in rows:
            folder, file = row.get("filepath", ""), row["filename"]
            name = file if not folder or (root / file).exists() else f"{folder}/{file}"
            yield row["split"], ([name.removeprefix("/")], [sentence["raw"] for sentence in row["sentences"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{found.path}: expected Karpathy's layout; a picture lacks {error}") from None


def is_coco(found: OnDisk) -> bool:
    """``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``."""
    return isinstance(found.json, dict) and "annotations" in found.json


def read_coco(found: OnDisk) -> Found:
    """COCO's own annotations, one split a file, as in CLIP_benchmark's coco_test_karpathy.json."""
    return Found(Files(found.folder("images", "val2014", "val2017")), _coco(found))


def _coco(found: OnDisk) -> Iterator[Row]:
    names: dict[Any, str] = {}
    try:
        for row in found.json["images"]:
            if row["id"] in names:
                raise UserError(
                    f"{found.path}: images: expected different ids, got {row['id']!r} twice "
                    f"({names[row['id']]}, {row['file_name']})"
                )
            names[row["id"]] = row["file_name"]
        captions: dict[Any, list[str]] = {number: [] for number in names}
        for row in found.json["annotations"]:
            captions[row["image_id"]].append(row["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{found.path}: expected COCO's layout; an image or annotation lacks {error}") from None
    yield from (([name], captions[number]) for number, name in names.items())


def is_list(found: OnDisk) -> bool:
    """``[{"image", "caption"}]``."""
    return isinstance(found.json, list)


def read_list(found: OnDisk) -> Found:
    """ALBEF's and BLIP's files (``coco_karpathy_test.json``), a caption or a list of them a picture."""
    rows = found.json if isinstance(found.json, list) else []
    return Found(Files(found.folder("images")), (_row(row, f"{found.path} row {n}") for n, row in enumerate(rows, 1)))


def is_lines(found: OnDisk) -> bool:
    """``.jsonl``."""
    return found.path.suffix == ".jsonl"


def read_json_lines(found: OnDisk) -> Found:
    """Objects with ``image`` or ``images`` and ``caption`` or ``captions``: what the suite itself writes."""
    rows = (
        _of_language(found, _row(row, f"{found.path} line {number}"))
        for number, row in read_lines(found.path, texts=())
    )
    return Found(Files(found.folder()), rows)


def _row(row: Any, where: str) -> Row:
    """One picture and its captions, or one caption and all pictures for which it is right."""
    several = isinstance(row, dict) and "images" in row
    named = "caption" if isinstance(row, dict) and "captions" not in row and "caption" in row else "captions"
    check_keys(row, where, texts=() if several else ("image",), others=(named, *(("images",) if several else ())))
    pictures = row["images"] if several else [row["image"]]
    if not (isinstance(pictures, list) and pictures and all(isinstance(name, str) and name for name in pictures)):
        raise UserError(f"{where}: images: expected a list of pictures, got {pictures!r:.80}")
    captions = row[named]
    return pictures, [captions] if isinstance(captions, str) else captions


def _of_language(found: OnDisk, row: Row) -> Row:
    """``captions`` may be an object from a language to its captions."""
    pictures, captions = row
    return (pictures, captions[found.language(captions)]) if isinstance(captions, dict) else row


def is_text(found: OnDisk) -> bool:
    """``.txt`` or ``.token``."""
    return found.path.suffix in {".txt", ".token"} and found.path.is_file()


def read_text(found: OnDisk) -> Found:
    """``picture.jpg,caption`` below a head (CLIP_benchmark's Flickr files); Flickr's ``picture.jpg#0<tab>caption``."""
    return Found(Files(found.folder("images", "Images", "flickr30k-images")), _text(found.path))


def _text(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text_lines(path), 1):
        match = _LINE.fullmatch(line)
        if match:
            yield [match["image"]], [match["caption"]]
        elif line.strip() and number > 1:  # the first may be a head
            raise UserError(f"{path} line {number}: expected a picture and a caption, got {line.strip()!r:.80}")
