"""Multilingual datasets in the formats of their authors and of CLIP_benchmark; ``language`` selects one.

CLIP_benchmark's readers (``crossmodal3600.py``, ``flickr30k_200.py``, ``xtd200.py``, ``multilingual_mscoco.py``) define
the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clips.data.formats.dataset_format import Captioned, Dataset, Location, captioned
from clips.data.text_files import check_keys, read_json_lines, read_text_lines
from clips.errors import UserError

_XM3600 = "captions.jsonl"
_INDICES = ("filenames.txt", "test_image_names.txt")
_XTD10 = "test_1kcaptions_"


def is_xm3600(location: Location) -> bool:
    """``captions.jsonl`` with ``image/key``."""
    first = location.first_row(_XM3600)
    return "image/key" in first and "IIW" not in first


def read_xm3600(location: Location) -> Dataset[Captioned]:
    """Crossmodal-3600: 36 languages, about two captions per image in each (CLIP_benchmark uses the first)."""
    return Dataset(records=_xm3600(location, location.image_root("images")))


def _xm3600(location: Location, root: Path) -> Iterator[Captioned]:
    path = location.file(_XM3600)
    for number, row in read_json_lines(path, texts=("image/key",)):
        language = location.language(name for name, value in row.items() if isinstance(value, dict))
        check_keys(row[language], f"{path} line {number}: {language}", texts=(), others=("caption",))
        yield captioned(root, f"{row['image/key']}.jpg", row[language]["caption"])


def is_parallel(location: Location) -> bool:
    """``filenames.txt`` or ``test_image_names.txt``."""
    return any(name in location.names for name in _INDICES)


def read_parallel(location: Location) -> Dataset[Captioned]:
    """Flickr30k-200, XTD200, XTD10 (multilingual COCO): a file of captions per language, line i for image i."""
    return Dataset(records=_parallel(location, location.image_root("images")))


def _parallel(location: Location, root: Path) -> Iterator[Captioned]:
    index = next((name for name in _INDICES if name in location.names), _INDICES[0])
    files = {
        name.removeprefix(_XTD10).removesuffix(".txt"): location.path / name
        for name in location.names - set(_INDICES)
        if name.endswith(".txt")
    }
    captions = files[location.language(files)]
    images, texts = _lines(location.path / index), _lines(captions)
    if len(images) != len(texts):
        raise UserError(f"{captions}: expected {len(images)} captions, one for each line of {index}, got {len(texts)}")
    yield from (captioned(root, image, [text]) for image, text in zip(images, texts, strict=True))


def _lines(path: Path) -> list[str]:
    lines = read_text_lines(path)
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines


def is_paired(location: Location) -> bool:
    """``{"image_paths", "annotations"}``."""
    return isinstance(location.json, dict) and "image_paths" in location.json


def read_paired(location: Location) -> Dataset[Captioned]:
    """CLIP_benchmark's file for one language (``flickr30k_200-deu_Latn.json``).

    Its paths are absolute on the host that wrote it; only the file names are used, in the directory of the images.
    """
    paths, captions = location.json["image_paths"], location.json.get("annotations")
    if not isinstance(paths, list) or not isinstance(captions, list) or len(paths) != len(captions):
        raise UserError(f"{location.path}: expected as many annotations as image_paths")
    root = location.image_root("images")
    both = zip(paths, captions, strict=True)
    return Dataset(records=(captioned(root, Path(str(path)).name, [caption]) for path, caption in both))
