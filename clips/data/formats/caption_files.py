"""Captions in JSON or in lines of text next to a directory of images: the formats of COCO, Flickr30k, Flickr8k."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.data.formats.dataset_format import Captioned, Dataset, Location, captioned
from clips.data.images import IMAGE_SUFFIXES, image_exists
from clips.data.lazy_images import FileImage
from clips.data.text_files import check_keys, read_json, read_json_lines, read_text_lines
from clips.errors import UserError

_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_LINE = re.compile(rf"(?P<image>.+?(?:{_SUFFIX}))(?:#\d+)?[\t,](?P<caption>.*)", re.IGNORECASE)


def is_karpathy(found: Location) -> bool:
    """``{"images": [{"filename", "split", "sentences"}]}``."""
    return isinstance(found.json, dict) and "annotations" not in found.json and "image_paths" not in found.json


def read_karpathy(found: Location) -> Dataset[Captioned]:
    """Karpathy's splits of COCO, Flickr30k and Flickr8k; the unprocessed captions (``raw``).

    A directory stands for the one ``dataset_*.json`` in it.
    """
    path = found.path
    if path.is_dir():
        files = sorted(path.glob("dataset_*.json"))
        if len(files) != 1:
            raise UserError(f"{path}: expected one dataset_*.json in Karpathy's format, found {len(files)}")
        path = files[0]
    content = found.json if path == found.path and found.json is not None else read_json(path)
    rows = _karpathy(path, content, found.folder("images"))
    return Dataset(records=found.rows_of_split(rows), split=found.asked.split)


def _karpathy(path: Path, content: Any, root: Path) -> Iterator[tuple[str, Captioned]]:
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected Karpathy's format, an object with 'images'")
    try:
        for number, row in enumerate(rows):
            check_keys(row, f"{path} image {number}", texts=("filename", "split"), others=("sentences",))
            folder, file = row.get("filepath", ""), row["filename"]
            name = file if not folder or image_exists(root, file) else f"{folder}/{file}"
            yield row["split"], captioned(root, name.removeprefix("/"), [each["raw"] for each in row["sentences"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected Karpathy's format; an image lacks {error}") from None


def is_coco(found: Location) -> bool:
    """``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``."""
    return isinstance(found.json, dict) and "annotations" in found.json


def read_coco(found: Location) -> Dataset[Captioned]:
    """COCO's own annotations, one split a file, as in CLIP_benchmark's coco_test_karpathy.json."""
    return Dataset(records=_coco(found, found.folder("images", "val2014", "val2017")))


def _coco(found: Location, root: Path) -> Iterator[Captioned]:
    content = found.json if found.json is not None else read_json(found.path)
    names: dict[Any, str] = {}
    try:
        for row in content["images"]:
            if row["id"] in names:
                raise UserError(
                    f"{found.path}: images: expected different ids, got {row['id']!r} twice "
                    f"({names[row['id']]}, {row['file_name']})"
                )
            names[row["id"]] = row["file_name"]
        captions: dict[Any, list[str]] = {number: [] for number in names}
        for row in content["annotations"]:
            captions[row["image_id"]].append(row["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{found.path}: expected COCO's format; an image or annotation lacks {error}") from None
    yield from (captioned(root, name, captions[number]) for number, name in names.items())


def is_list(found: Location) -> bool:
    """``[{"image", "caption"}]``."""
    return isinstance(found.json, list)


def read_list(found: Location) -> Dataset[Captioned]:
    """ALBEF's and BLIP's files (``coco_karpathy_test.json``), a caption or a list of them an image."""
    rows, root = found.json if isinstance(found.json, list) else [], found.folder("images")
    return Dataset(records=(_row(root, row, f"{found.path} row {number}") for number, row in enumerate(rows, 1)))


def is_jsonl(found: Location) -> bool:
    """``.jsonl``."""
    return found.path.suffix == ".jsonl"


def read_jsonl(found: Location) -> Dataset[Captioned]:
    """Objects with ``image`` or ``images`` and ``caption`` or ``captions``: this suite's own format.

    ``captions`` may be an object from a language to its captions.
    """

    def rows() -> Iterator[Captioned]:
        for number, row in read_json_lines(found.path):
            read = _row(root, row, f"{found.path} line {number}")
            several = isinstance(read.captions, dict)
            yield Captioned(read.images, read.captions[found.language(read.captions)]) if several else read

    root = found.folder()
    return Dataset(records=rows())


def _row(root: Path, row: Any, where: str) -> Captioned:
    """One image and its captions, or one caption and all images for which it is right."""
    several = isinstance(row, dict) and "images" in row
    named = "caption" if isinstance(row, dict) and "captions" not in row and "caption" in row else "captions"
    check_keys(row, where, texts=() if several else ("image",), others=(named, *(("images",) if several else ())))
    images = row["images"] if several else [row["image"]]
    if not (isinstance(images, list) and images and all(isinstance(name, str) and name for name in images)):
        raise UserError(f"{where}: images: expected a list of images, got {images!r:.80}")
    captions = [row[named]] if isinstance(row[named], str) else row[named]
    return Captioned([FileImage(root, name) for name in images], captions)


def is_flickr(found: Location) -> bool:
    """``.txt`` or ``.token``."""
    return found.path.suffix in {".txt", ".token"} and found.path.is_file()


def read_flickr(found: Location) -> Dataset[Captioned]:
    """``image.jpg,caption`` below a head (CLIP_benchmark's Flickr files); Flickr's ``image.jpg#0<tab>caption``."""
    return Dataset(records=_flickr(found.path, found.folder("images", "Images", "flickr30k-images")))


def _flickr(path: Path, root: Path) -> Iterator[Captioned]:
    for number, line in enumerate(read_text_lines(path), 1):
        match = _LINE.fullmatch(line)
        if match:
            yield captioned(root, match["image"], [match["caption"]])
        elif line.strip() and number > 1:  # the first may be a head
            raise UserError(f"{path} line {number}: expected an image and a caption, got {line.strip()!r:.80}")
