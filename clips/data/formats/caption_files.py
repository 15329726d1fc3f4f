"""Captions in JSON or text files next to a directory of images: the formats of COCO, Flickr30k, Flickr8k."""

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


def is_karpathy(location: Location) -> bool:
    """``{"images": [{"filename", "split", "sentences"}]}``."""
    return isinstance(location.json, dict) and "annotations" not in location.json and "image_paths" not in location.json


def read_karpathy(location: Location) -> Dataset[Captioned]:
    """The unprocessed captions (``raw``) of a file of Karpathy's, or of the only ``dataset_*.json`` in a directory."""
    path = location.path
    if path.is_dir():
        files = sorted(path.glob("dataset_*.json"))
        if len(files) != 1:
            raise UserError(f"{path}: expected one dataset_*.json in Karpathy's format, found {len(files)}")
        path = files[0]
    content = location.json if path == location.path and location.json is not None else read_json(path)
    rows = _karpathy(path, content, location.image_root("images"))
    return Dataset(records=location.rows_of_split(rows), split=location.spec.split)


def _karpathy(path: Path, content: Any, root: Path) -> Iterator[tuple[str, Captioned]]:
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected Karpathy's format, an object with 'images'")
    try:
        for number, row in enumerate(rows):
            check_keys(row, f"{path} image {number}", texts=("filename", "split"), others=("sentences",))
            directory, file = row.get("filepath", ""), row["filename"]
            name = file if not directory or image_exists(root, file) else f"{directory}/{file}"
            yield row["split"], captioned(root, name.removeprefix("/"), [each["raw"] for each in row["sentences"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected Karpathy's format; an image lacks {error}") from None


def is_coco(location: Location) -> bool:
    """``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``."""
    return isinstance(location.json, dict) and "annotations" in location.json


def read_coco(location: Location) -> Dataset[Captioned]:
    """COCO's own annotations, one file per split, as in CLIP_benchmark's coco_test_karpathy.json."""
    return Dataset(records=_coco(location, location.image_root("images", "val2014", "val2017")))


def _coco(location: Location, root: Path) -> Iterator[Captioned]:
    content = location.json if location.json is not None else read_json(location.path)
    names: dict[Any, str] = {}
    try:
        for row in content["images"]:
            if row["id"] in names:
                raise UserError(
                    f"{location.path}: images: expected different ids, got {row['id']!r} twice "
                    f"({names[row['id']]}, {row['file_name']})"
                )
            names[row["id"]] = row["file_name"]
        captions: dict[Any, list[str]] = {number: [] for number in names}
        for row in content["annotations"]:
            captions[row["image_id"]].append(row["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{location.path}: expected COCO's format; an image or annotation lacks {error}") from None
    yield from (captioned(root, name, captions[number]) for number, name in names.items())


def is_list(location: Location) -> bool:
    """``[{"image", "caption"}]``."""
    return isinstance(location.json, list)


def read_list(location: Location) -> Dataset[Captioned]:
    """ALBEF's and BLIP's files (``coco_karpathy_test.json``): a caption or a list of captions per image."""
    rows, root = location.json if isinstance(location.json, list) else [], location.image_root("images")
    return Dataset(records=(_row(root, row, f"{location.path} row {number}") for number, row in enumerate(rows, 1)))


def is_jsonl(location: Location) -> bool:
    """``.jsonl``."""
    return location.path.suffix == ".jsonl"


def read_jsonl(location: Location) -> Dataset[Captioned]:
    """Objects with ``image`` or ``images`` and ``caption`` or ``captions``: this suite's own format.

    ``captions`` may be an object from a language to its captions.
    """

    def rows() -> Iterator[Captioned]:
        for number, row in read_json_lines(location.path):
            read = _row(root, row, f"{location.path} line {number}")
            several = isinstance(read.captions, dict)
            yield Captioned(read.images, read.captions[location.language(read.captions)]) if several else read

    root = location.image_root()
    return Dataset(records=rows())


def _row(root: Path, row: Any, where: str) -> Captioned:
    """One image and its captions, or one caption and all images that it describes."""
    several = isinstance(row, dict) and "images" in row
    named = "caption" if isinstance(row, dict) and "captions" not in row and "caption" in row else "captions"
    check_keys(row, where, texts=() if several else ("image",), others=(named, *(("images",) if several else ())))
    images = row["images"] if several else [row["image"]]
    if not (isinstance(images, list) and images and all(isinstance(name, str) and name for name in images)):
        raise UserError(f"{where}: images: expected a list of images, got {images!r:.80}")
    captions = [row[named]] if isinstance(row[named], str) else row[named]
    return Captioned([FileImage(root, name) for name in images], captions)


def is_flickr(location: Location) -> bool:
    """``.txt`` or ``.token``."""
    return location.path.suffix in {".txt", ".token"} and location.path.is_file()


def read_flickr(location: Location) -> Dataset[Captioned]:
    """``image.jpg,caption`` below a header (CLIP_benchmark's Flickr files); Flickr's ``image.jpg#0<tab>caption``."""
    return Dataset(records=_flickr(location.path, location.image_root("images", "Images", "flickr30k-images")))


def _flickr(path: Path, root: Path) -> Iterator[Captioned]:
    for number, line in enumerate(read_text_lines(path), 1):
        match = _LINE.fullmatch(line)
        if match:
            yield captioned(root, match["image"], [match["caption"]])
        elif line.strip() and number > 1:  # the first may be a header
            raise UserError(f"{path} line {number}: expected an image and a caption, got {line.strip()!r:.80}")
