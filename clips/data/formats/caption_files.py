"""Formats of captions next to a directory of images: JSON, text, long captions, several languages."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.core.artifact import log_info
from clips.data.formats.dataset_format import ALL, WHOLE, Captioned, Dataset, Location, captioned
from clips.data.images import IMAGE_SUFFIXES, image_exists
from clips.data.lazy_images import FileImage
from clips.data.tar_index import is_clutter
from clips.errors import UserError
from clips.text_files import check_keys, read_json, read_json_lines, read_text_lines

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
    rows = _karpathy(path, content, location.image_root("images"), location.spec.split)
    return Dataset(records=location.rows_of_split(rows), split=location.spec.split)


def _karpathy(path: Path, content: Any, root: Path, requested: str) -> Iterator[tuple[str, Captioned]]:
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
    counts = Counter(row["split"] for row in rows)
    if requested == "train" and counts["restval"]:  # of COCO: 82,783 and 30,504 images
        log_info(
            f"{path}: split train has {counts['train']:,} images; the {counts['restval']:,} of restval are usually "
            "trained on too: split: train+restval"
        )


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
            if not isinstance(row["file_name"], str):
                raise UserError(f"{location.path}: images: expected a name as file_name, got {row['file_name']!r:.80}")
            names[row["id"]] = row["file_name"]
        captions: dict[Any, list[str]] = {number: [] for number in names}
        for row in content["annotations"]:
            if row["image_id"] not in captions:
                raise UserError(
                    f"{location.path}: annotations: expected the id of one of the images as image_id, "
                    f"got {row['image_id']!r}"
                )
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
    return location.path.suffix.lower() == ".jsonl"


def read_jsonl(location: Location) -> Dataset[Captioned]:
    """Objects with ``image`` or ``images`` and ``caption`` or ``captions``: this suite's own format.

    ``captions`` may be an object from a language to its captions. Of rows with ``split``, those of the requested one.
    """
    has_splits = location.rows_state_split()

    def rows() -> Iterator[tuple[str, Captioned]]:
        for number, row in read_json_lines(location.path, texts=("split",) if has_splits else ()):
            read = _row(root, row, f"{location.path} line {number}")
            if isinstance(read.captions, dict) and "raw" not in read.captions:
                read = Captioned(read.images, read.captions[location.language(read.captions)])
            yield row["split"] if has_splits else location.spec.split, read

    root = location.image_root()
    return Dataset(records=location.rows_of_split(rows()), split=location.spec.split if has_splits else WHOLE)


def _row(root: Path, row: Any, where: str) -> Captioned:
    """One image and its captions, or one caption and all images that it describes."""
    several = isinstance(row, dict) and "images" in row
    named = "caption" if isinstance(row, dict) and "captions" not in row and "caption" in row else "captions"
    check_keys(row, where, texts=() if several else ("image",), others=(named, *(("images",) if several else ())))
    images = row["images"] if several else [row["image"]]
    if not (isinstance(images, list) and images and all(isinstance(name, str) and name for name in images)):
        raise UserError(f"{where}: images: expected a list of images, got {images!r:.80}")
    return Captioned([FileImage(root, name) for name in images], row[named])


def is_flickr(location: Location) -> bool:
    """``.txt`` or ``.token``."""
    return location.path.suffix.lower() in {".txt", ".token"} and location.path.is_file()


def read_flickr(location: Location) -> Dataset[Captioned]:
    """``image.jpg,caption`` below a header (CLIP_benchmark's Flickr files); Flickr's ``image.jpg#0<tab>caption``.

    The first is CSV if all of its rows have two cells, as in Kaggle's ``captions.txt`` of Flickr8k, whose captions with
    commas are in quotes. CLIP_benchmark's are not.
    """
    return Dataset(records=_flickr(location.path, location.image_root("images", "Images", "flickr30k-images")))


def _flickr(path: Path, root: Path) -> Iterator[Captioned]:
    lines = read_text_lines(path)
    if lines[0].strip().lower() == "image,caption":
        try:
            rows = list(filter(None, csv.reader((f"{line}\n" for line in lines[1:]), strict=True)))
        except csv.Error:  # a quotation mark of a caption
            rows = []
        if rows and all(len(row) == 2 for row in rows):
            yield from (captioned(root, image, [caption]) for image, caption in rows)
            return
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match:
            yield captioned(root, match["image"], [match["caption"]])
        elif line.strip() and number > 1:  # the first may be a header
            raise UserError(f"{path} line {number}: expected an image and a caption, got {line.strip()!r:.80}")


_SHAREGPT4V_TEST = 1000
_DOCCI, _IIW = "docci_descriptions.jsonlines", "data.jsonl"


def is_urban1k(location: Location) -> bool:
    """Directories ``caption`` and ``image``."""
    return "caption" in location.names and bool({"image", "images"} & location.names)


def read_urban1k(location: Location) -> Dataset[Captioned]:
    """A text file for each image, of the same name; Long-CLIP uses the first line of each."""
    return Dataset(records=_urban1k(location, location.image_root("image", "images")))


def _urban1k(location: Location, root: Path) -> Iterator[Captioned]:
    files = (path for path in (location.path / "caption").iterdir() if not is_clutter(path.name))
    for file in sorted(path for path in files if path.suffix.lower() == ".txt"):
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
        has_suffix = row[key].lower().endswith(IMAGE_SUFFIXES)
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
        if not location.has_requested(split):
            yield from ((split, Captioned([], [])) for _ in files[:1])  # for the error about an unknown split
            continue
        for file in files:
            path = location.path / "annotations" / file
            row = read_json(path)
            check_keys(row, str(path), texts=("image", "short_caption"), others=("extra_caption",))
            yield split, captioned(root, row["image"], [f"{row['short_caption']}\n{row['extra_caption']}"])


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
