"""Data sets in several languages, as their authors and CLIP_benchmark keep them; ``language`` chooses one.

CLIP_benchmark's readers (``crossmodal3600.py``, ``flickr30k_200.py``, ``xtd200.py``, ``multilingual_mscoco.py``) say
which files there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.data.json_files import check_keys, read_lines
from benchmarks.data.source import Files, Found, OnDisk, Row
from benchmarks.data.text_files import read_text_lines
from clips.errors import UserError

_XM3600 = "captions.jsonl"
_INDICES = ("filenames.txt", "test_image_names.txt")
_XTD10 = "test_1kcaptions_"


def is_xm3600(found: OnDisk) -> bool:
    """``captions.jsonl`` with ``image/key``."""
    first = found.first_row(_XM3600)
    return "image/key" in first and "IIW" not in first


def read_xm3600(found: OnDisk) -> Found:
    """Crossmodal-3600: 36 languages, about two captions a picture in each (CLIP_benchmark takes the first)."""
    return Found(Files(found.folder("images")), _xm3600(found))


def _xm3600(found: OnDisk) -> Iterator[Row]:
    path = found.file(_XM3600)
    for number, row in read_lines(path, texts=("image/key",)):
        language = found.language(name for name, value in row.items() if isinstance(value, dict))
        check_keys(row[language], f"{path} line {number}: {language}", texts=(), others=("caption",))
        yield [f"{row['image/key']}.jpg"], row[language]["caption"]


def is_parallel(found: OnDisk) -> bool:
    """``filenames.txt`` or ``test_image_names.txt``."""
    return any(name in found.names for name in _INDICES)


def read_parallel(found: OnDisk) -> Found:
    """Flickr30k-200, XTD200, XTD10 (multilingual COCO): a file of captions a language, line by line as the pictures."""
    return Found(Files(found.folder("images")), _parallel(found))


def _parallel(found: OnDisk) -> Iterator[Row]:
    index = next((name for name in _INDICES if name in found.names), _INDICES[0])
    files = {
        name.removeprefix(_XTD10).removesuffix(".txt"): found.path / name
        for name in found.names - set(_INDICES)
        if name.endswith(".txt")
    }
    captions = files[found.language(files)]
    pictures, texts = _lines(found.path / index), _lines(captions)
    if len(pictures) != len(texts):
        raise UserError(
            f"{captions}: expected {len(pictures)} captions, one for each line of {index}, got {len(texts)}"
        )
    yield from (([picture], [text]) for picture, text in zip(pictures, texts, strict=True))


def _lines(path: Path) -> list[str]:
    lines = read_text_lines(path)
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines


def is_paired(found: OnDisk) -> bool:
    """``{"image_paths", "annotations"}``."""
    return isinstance(found.json, dict) and "image_paths" in found.json


def read_paired(found: OnDisk) -> Found:
    """What CLIP_benchmark writes for one language of these (``flickr30k_200-deu_Latn.json``).

    Its paths are those of the machine that wrote it; of each the name is kept, in the folder of the pictures.
    """
    paths, captions = found.json["image_paths"], found.json.get("annotations")
    if not isinstance(paths, list) or not isinstance(captions, list) or len(paths) != len(captions):
        raise UserError(f"{found.path}: expected as many annotations as image_paths")
    rows = (([Path(str(path)).name], [caption]) for path, caption in zip(paths, captions, strict=True))
    return Found(Files(found.folder("images")), rows)
