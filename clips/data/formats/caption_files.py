"""Formats of captions next to a directory of images: JSON, text, long captions, several languages."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.core.artifact import log_info
from clips.data.formats.dataset_format import ALL, WHOLE, Captioned, Dataset, Location, of_split, whole
from clips.data.images import IMAGE_SUFFIXES, image_exists
from clips.data.lazy_images import FileImage
from clips.data.tar_index import is_clutter
from clips.errors import UserError
from clips.text_files import check_keys, read_json, read_json_lines, read_text_lines

_PARALLEL = ("filenames.txt", "test_image_names.txt")  # of Flickr30k-200 and XTD200, of XTD10
_XTD10 = "test_1kcaptions_"
_SHAREGPT4V_TEST = 1000
_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_FLICKR_LINE = re.compile(rf"(?P<image>.+?(?:{_SUFFIX}))(?:#\d+)?[\t,](?P<caption>.*)", re.IGNORECASE)


def _captioned(root: Path, name: str, captions: Any) -> Captioned:
    return Captioned([FileImage(root, name)], captions)


@of_split
def read_karpathy(location: Location) -> Iterator[tuple[str, Captioned]]:
    """The unprocessed captions (``raw``) of a file of Karpathy's, or of the only ``dataset_*.json`` in a directory."""
    path, root, content = location.path, location.image_root("images"), location.json
    if path.is_dir():
        files = sorted(path.glob("dataset_*.json"))
        if len(files) != 1:
            raise UserError(f"{path}: expected one dataset_*.json in Karpathy's format, found {len(files)}")
        (path,) = files
    if content is None:
        content = read_json(path)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected Karpathy's format, an object with 'images'")
    try:
        for number, row in enumerate(rows):
            check_keys(row, f"{path} image {number}", texts=("filename", "split"), others=("sentences",))
            directory, file = row.get("filepath", ""), row["filename"]
            name = file if not directory or image_exists(root, file) else f"{directory}/{file}"
            yield row["split"], _captioned(root, name.removeprefix("/"), [each["raw"] for each in row["sentences"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected Karpathy's format; an image lacks {error}") from None
    counts = Counter(row["split"] for row in rows)
    if location.spec.split == "train" and counts["restval"]:  # of COCO: 82,783 and 30,504 images
        log_info(
            f"{path}: split train has {counts['train']:,} images; the {counts['restval']:,} of restval are usually "
            "trained on too: split: train+restval"
        )


@whole
def read_coco(location: Location) -> Iterator[Captioned]:
    """COCO's own annotations, one file per split, as in CLIP_benchmark's coco_test_karpathy.json."""
    path, root = location.path, location.image_root("images", "val2014", "val2017")
    content = location.json if location.json is not None else read_json(path)
    names: dict[Any, str] = {}
    try:
        for row in content["images"]:
            number, name = row["id"], row["file_name"]
            if number in names:
                raise UserError(
                    f"{path}: images: expected different ids, got {number!r} twice ({names[number]}, {name})"
                )
            if not isinstance(name, str):
                raise UserError(f"{path}: images: expected a name as file_name, got {name!r:.80}")
            names[number] = name
        captions: dict[Any, list[str]] = {number: [] for number in names}
        for row in content["annotations"]:
            if (number := row["image_id"]) not in captions:
                expected = "expected the id of one of the images as image_id"
                raise UserError(f"{path}: annotations: {expected}, got {number!r}")
            captions[number].append(row["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: expected COCO's format; an image or annotation lacks {error}") from None
    yield from (_captioned(root, name, captions[number]) for number, name in names.items())


@whole
def read_list(location: Location) -> Iterator[Captioned]:
    """ALBEF's and BLIP's files (``coco_karpathy_test.json``): a caption or a list of captions per image."""
    root = location.image_root("images")
    for number, row in enumerate(location.json if isinstance(location.json, list) else [], 1):
        yield _read_row(root, row, f"{location.path} row {number}")


def read_jsonl(location: Location) -> Dataset[Captioned]:
    """Objects with ``image`` or ``images`` and ``caption`` or ``captions``: this suite's own format.

    ``captions`` may be an object from a language to its captions. Of rows with ``split``, those of the requested one.
    """
    has_splits, root = location.rows_state_split(), location.image_root()

    def rows() -> Iterator[tuple[str, Captioned]]:
        for number, row in read_json_lines(location.path, texts=("split",) if has_splits else ()):
            read = _read_row(root, row, f"{location.path} line {number}")
            if isinstance(read.captions, dict) and "raw" not in read.captions:
                read = Captioned(read.images, read.captions[location.language(read.captions)])
            yield row["split"] if has_splits else location.spec.split, read

    return Dataset(records=location.rows_of_split(rows()), split=location.spec.split if has_splits else WHOLE)


def _read_row(root: Path, row: Any, where: str) -> Captioned:
    """One image and its captions, or one caption and all images that it describes."""
    several = isinstance(row, dict) and "images" in row
    named = "caption" if isinstance(row, dict) and "captions" not in row and "caption" in row else "captions"
    check_keys(row, where, texts=() if several else ("image",), others=(named, *(("images",) if several else ())))
    images = row["images"] if several else [row["image"]]
    if not (isinstance(images, list) and images and all(isinstance(name, str) and name for name in images)):
        raise UserError(f"{where}: images: expected a list of images, got {images!r:.80}")
    return Captioned([FileImage(root, name) for name in images], row[named])


@whole
def read_flickr(location: Location) -> Iterator[Captioned]:
    """``image.jpg,caption`` below a header (CLIP_benchmark's Flickr files); Flickr's ``image.jpg#0<tab>caption``.

    The first is CSV if all of its rows have two cells, as in Kaggle's ``captions.txt`` of Flickr8k, whose captions with
    commas are in quotes. CLIP_benchmark's are not.
    """
    root, lines = location.image_root("images", "Images", "flickr30k-images"), read_text_lines(location.path)
    if lines[0].strip().lower() == "image,caption":
        try:
            rows = list(filter(None, csv.reader((f"{line}\n" for line in lines[1:]), strict=True)))
        except csv.Error:  # a quotation mark of a caption
            rows = []
        if rows and all(len(row) == 2 for row in rows):
            yield from (_captioned(root, image, [caption]) for image, caption in rows)
            return
    for number, line in enumerate(lines, 1):
        if match := _FLICKR_LINE.fullmatch(line):
            yield _captioned(root, match["image"], [match["caption"]])
        elif line.strip() and number > 1:  # the first may be a header
            raise UserError(f"{location.path} line {number}: expected an image and a caption, got {line.strip()!r:.80}")


@whole
def read_urban1k(location: Location) -> Iterator[Captioned]:
    """A text file for each image, of the same name; Long-CLIP uses the first line of each."""
    root = location.image_root("image", "images")
    files = (path for path in (location.path / "caption").iterdir() if not is_clutter(path.name))
    for file in sorted(path for path in files if path.suffix.lower() == ".txt"):
        yield _captioned(root, f"{file.stem}.jpg", read_text_lines(file)[:1])


def read_sharegpt4v(location: Location) -> Dataset[Captioned]:
    """The first 1,000 as the split ``test``, which Long-CLIP excluded from training; or ``all``."""
    root, split = location.image_root("data", "images"), location.spec.split

    def records() -> Iterator[Captioned]:
        if split not in {"test", ALL}:
            choices = f"test, the first {_SHAREGPT4V_TEST}, or {ALL}"
            raise UserError(f"{location.path}: has no split '{split}' (expected {choices})")
        for number, row in enumerate(location.json if split == ALL else location.json[:_SHAREGPT4V_TEST], 1):
            where = f"{location.path} row {number}"
            check_keys(row, where, texts=("image",), others=("conversations",))
            try:
                answer = row["conversations"][1]["value"].replace("\n", " ")
            except (IndexError, KeyError, TypeError, AttributeError):
                raise UserError(f"{where}: expected conversations of a question and an answer") from None
            yield _captioned(root, row["image"], [answer])

    return Dataset(records=records(), split=split)


@of_split
def read_docci(location: Location) -> Iterator[tuple[str, Captioned]]:
    """15,000 images with one human description each; the split ``test`` has 5,000."""
    root = location.image_root("images")
    for _, row in read_json_lines(
        location.file("docci_descriptions.jsonlines"), texts=("split", "image_file", "description")
    ):
        yield row["split"], _captioned(root, row["image_file"], [row["description"]])


@whole
def read_iiw(location: Location) -> Iterator[Captioned]:
    """ImageInWords: the human description. The images of IIW-400 are DOCCI's ``images_aar``."""
    root, path = location.image_root("images_aar", "images"), location.file("data.jsonl")
    for number, row in read_json_lines(path, texts=("IIW",)):
        key = "image" if "image" in row else "image/key"
        check_keys(row, f"{path} line {number}", texts=(key,))
        has_suffix = row[key].lower().endswith(IMAGE_SUFFIXES)
        yield _captioned(root, row[key] if has_suffix else f"{row[key]}.jpg", [row["IIW"]])


@of_split
def read_dci(location: Location) -> Iterator[tuple[str, Captioned]]:
    """Densely Captioned Images: the short caption and its extension. Papers use all 7,805 images: ``split: all``."""
    root, splits = location.image_root("photos"), read_json(location.path / "splits.json")
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
            yield split, _captioned(root, row["image"], [f"{row['short_caption']}\n{row['extra_caption']}"])


@whole
def read_xm3600(location: Location) -> Iterator[Captioned]:
    """Crossmodal-3600: 36 languages, about two captions per image in each (CLIP_benchmark uses the first)."""
    root, path = location.image_root("images"), location.file("captions.jsonl")
    for number, row in read_json_lines(path, texts=("image/key",)):
        language = location.language(name for name, value in row.items() if isinstance(value, dict))
        check_keys(row[language], f"{path} line {number}: {language}", texts=(), others=("caption",))
        yield _captioned(root, f"{row['image/key']}.jpg", row[language]["caption"])


@whole
def read_parallel(location: Location) -> Iterator[Captioned]:
    """Flickr30k-200, XTD200, XTD10 (multilingual COCO): a file of captions per language, line i for image i."""
    root = location.image_root("images")
    index = next((name for name in _PARALLEL if name in location.names), _PARALLEL[0])
    files = {
        name.removeprefix(_XTD10).removesuffix(".txt"): location.path / name
        for name in location.names - set(_PARALLEL)
        if name.endswith(".txt")
    }
    captions = files[location.language(files)]
    images, texts = read_text_lines(location.path / index), read_text_lines(captions)
    for lines in (images, texts):
        while len(lines) > 1 and not lines[-1]:
            lines.pop()
    if len(images) != len(texts):
        expected = f"expected {len(images)} captions, one for each line of {index}"
        raise UserError(f"{captions}: {expected}, got {len(texts)}")
    yield from (_captioned(root, image, [text]) for image, text in zip(images, texts, strict=True))


@whole
def read_paired(location: Location) -> Iterator[Captioned]:
    """CLIP_benchmark's file for one language (``flickr30k_200-deu_Latn.json``).

    Its paths are absolute on the host that wrote it; only the file names are used, in the directory of the images.
    """
    root = location.image_root("images")
    paths, captions = location.json["image_paths"], location.json.get("annotations")
    if not isinstance(paths, list) or not isinstance(captions, list) or len(paths) != len(captions):
        raise UserError(f"{location.path}: expected as many annotations as image_paths")
    yield from (_captioned(root, Path(str(path)).name, [text]) for path, text in zip(paths, captions, strict=True))
