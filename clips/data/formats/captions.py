"""Formats of captions next to a directory of images, each registered at its reader."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clips.data.formats.conversations import is_llava
from clips.data.formats.dataset_format import (
    ALL,
    LANGUAGE,
    SPLIT,
    WHOLE,
    Captioned,
    Dataset,
    Location,
    of_split,
    register,
    whole,
)
from clips.data.images import IMAGE_SUFFIXES
from clips.data.lazy_images import FileImage, image_exists
from clips.data.tar_index import is_clutter
from clips.errors import UserError
from clips.safe_text import log_info
from clips.text_files import check_keys, read_json, read_json_lines, read_text_lines, unquote

_PARALLEL_IMAGES = ("filenames.txt", "test_image_names.txt")  # of Flickr30k-200 and XTD200, of XTD10
_SUFFIX = "|".join(map(re.escape, IMAGE_SUFFIXES))
_FLICKR_LINES = [  # image| number| caption; image| caption; image#number<tab>caption or image,caption
    re.compile(rf"(?P<image>[^\t,|]+?(?:{_SUFFIX}))\s*\|\s*\d+\s*\|\s*(?P<caption>.*)", re.IGNORECASE),
    re.compile(rf"(?P<image>[^\t,|]+?(?:{_SUFFIX}))\s*\|\s*(?P<caption>.*)", re.IGNORECASE),
    re.compile(rf"(?P<image>.+?(?:{_SUFFIX}))(?:#\d+)?[\t,](?P<caption>.*)", re.IGNORECASE),
]
_NUMBERED_LINE = re.compile(  # image,number,caption
    rf"(?P<image>[^\t,|]+?(?:{_SUFFIX}))\s*[\t,]\s*\d+\s*[\t,](?P<caption>.*)", re.IGNORECASE
)
_HEAD = 50  # lines by which it is chosen
_ODD_LINES = 5  # that may be left out, or 1 % of the lines; Flickr8k has a name of five captions that no image has


def _captioned(root: Path, name: str, captions: Any) -> Captioned:
    return Captioned([FileImage(root, name)], captions)


# Karpathy's JSON: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json
@register("karpathy", "captions", takes=SPLIT, fits=lambda at: isinstance(at.json, dict), is_general=True)
@of_split
def _read_karpathy(location: Location) -> Iterator[tuple[str, Captioned]]:
    # a file, or a directory with only one; the captions are unprocessed (``raw``)
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


# COCO's captions_*.json, and CLIP_benchmark's coco_test_karpathy.json: images and annotations
@register("coco", "captions", fits=lambda at: "annotations" in at.json_object and "image_paths" not in at.json_object)
@whole
def _read_coco(location: Location) -> Iterator[Captioned]:
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


# ALBEF's and BLIP's JSON list of {image, caption}: coco_karpathy_test.json
@register("list", "captions", fits=lambda at: isinstance(at.json, list), is_general=True)
@whole
def _read_list(location: Location) -> Iterator[Captioned]:
    root = location.image_root("images")
    for number, row in enumerate(location.json if isinstance(location.json, list) else [], 1):
        yield _read_row(root, row, f"{location.path} row {number}")


# JSON lines of {image, captions}, {image, caption}, {caption, images}, {image, caption, negative}
@register(
    "jsonl",
    "captions",
    takes=(*SPLIT, "language"),
    fits=lambda at: at.suffix == ".jsonl",
    is_general=True,
)
def _read_jsonl(location: Location) -> Dataset[Captioned]:
    has_splits, root = location.rows_state_split(), location.image_root()

    def rows() -> Iterator[tuple[str, Captioned]]:
        for number, row in read_json_lines(location.path, texts=("split",) if has_splits else ()):
            read = _read_row(root, row, f"{location.path} line {number}")
            if isinstance(read.captions, dict) and "raw" not in read.captions:  # language → captions
                read = Captioned(read.images, read.captions[location.language(read.captions)])
            yield row["split"] if has_splits else location.spec.split, read

    return Dataset(records=location.rows_of_split(rows()), split=location.spec.split if has_splits else WHOLE)


def _read_row(root: Path, row: Any, where: str) -> Captioned:
    # one image and its captions, or one caption and all images that it describes
    several = isinstance(row, dict) and "images" in row
    named = "caption" if isinstance(row, dict) and "captions" not in row and "caption" in row else "captions"
    check_keys(row, where, texts=() if several else ("image",), others=(named, *(("images",) if several else ())))
    images = row["images"] if several else [row["image"]]
    if not (isinstance(images, list) and images and all(isinstance(name, str) and name for name in images)):
        raise UserError(f"{where}: images: expected a list of images, got {images!r:.80}")
    return Captioned([FileImage(root, name) for name in images], row[named])


# lines of image,caption or image#0<tab>caption, as in Flickr30k's and Flickr8k's text files
@register("flickr", "captions", fits=lambda at: at.suffix in {".txt", ".token"} and at.path.is_file())
@whole
def _read_flickr(location: Location) -> Iterator[Captioned]:
    root, lines = location.image_root("images", "Images", "flickr30k-images"), read_text_lines(location.path)
    if rows := _rows_below_header(lines, location.path):
        yield from (_captioned(root, image, [caption]) for image, caption in rows)
        return
    known = (each for each in _FLICKR_LINES if any(map(each.fullmatch, lines[: _ODD_LINES + 2])))
    pattern, pairs, odd = next(known, _FLICKR_LINES[-1]), list[tuple[str, str]](), list[int]()
    first_images = [line for line in lines[:_HEAD] if re.search(_SUFFIX, line, re.IGNORECASE)]
    has_numbers = bool(first_images) and all(map(_NUMBERED_LINE.fullmatch, first_images))
    if has_numbers and (len(re.split(r"[,\t]", lines[0])) == 3 or len(first_images) >= _ODD_LINES):
        pattern = _NUMBERED_LINE
    for number, line in enumerate(lines, 1):
        if match := pattern.fullmatch(line):
            pairs.append((match["image"], match["caption"].strip()))
        elif line.strip() and (number > 1 or re.search(_SUFFIX, line, re.IGNORECASE)):  # the first may be a header
            odd.append(number)
    if odd:
        first, expected = f"line {odd[0]}", f"expected an image and a caption, got {lines[odd[0] - 1].strip()!r:.80}"
        if len(odd) > max(_ODD_LINES, len(lines) // 100) or not pairs:
            raise UserError(f"{location.path} {first}: {expected}")
        count = len(odd) + len(pairs)
        log_info(f"{location.path}: {len(odd)} of {count:,} lines left out; the first is {first}: {expected}")
    delimiter = "\t" if all("\t" in line for line in first_images) else ","
    is_quoted = _has_quoted_cells([caption for _, caption in pairs], delimiter)
    for image, caption in pairs:
        yield _captioned(root, image, [unquote(caption) if is_quoted else caption])


def _has_quoted_cells(captions: Sequence[str], delimiter: str) -> bool:
    """Whether quotation marks are CSV's: around all captions, or most of those that CSV has to quote."""
    needing = [caption for caption in captions if {delimiter, '"'} & {*caption}]
    quoted = [caption for caption in needing if unquote(caption) != caption]
    is_needed = any({delimiter, '"'} & {*unquote(caption)} for caption in quoted)
    return len(quoted) > len(needing) / 2 and (is_needed or len(quoted) == len(captions))


def _rows_below_header(lines: Sequence[str], path: Path) -> list[tuple[str, str]]:
    """Image and caption of the rows of CSV with a header that names both; empty if it is no CSV.

    A file of two columns is CSV if all of its rows have two cells, as Kaggle's ``captions.txt`` of Flickr8k, whose
    captions with commas are in quotes. CLIP_benchmark's are not.
    """
    for delimiter in ",\t|":
        names = [name.strip().lower() for name in lines[0].split(delimiter)]
        if not {"image", "caption"} <= {*names}:
            continue
        try:
            rows = list(filter(None, csv.reader((f"{line}\n" for line in lines[1:]), delimiter=delimiter, strict=True)))
        except csv.Error:  # a quotation mark of a caption
            rows = []
        if rows and all(len(row) == len(names) for row in rows):
            image, caption = names.index("image"), names.index("caption")
            return [(row[image].strip(), row[caption]) for row in rows]
        if len(names) > 2:
            raise UserError(
                f"{path}: expected {len(names)} cells in each line, as in the header {', '.join(names):.80}"
            )
    return []


# Urban-1k: directories caption and image, a text file for each image
@register("urban1k", "captions", fits=lambda at: "caption" in at.names and bool({"image", "images"} & at.names))
@whole
def _read_urban1k(location: Location) -> Iterator[Captioned]:
    # Long-CLIP uses the first line of each image's text file
    root = location.image_root("image", "images")
    files = (path for path in (location.path / "caption").iterdir() if not is_clutter(path.name))
    for file in sorted(path for path in files if path.suffix.lower() == ".txt"):
        yield _captioned(root, f"{file.stem}.jpg", read_text_lines(file)[:1])


# ShareGPT4V: share-captioner_coco_lcs_sam_1246k_1107.json and its images
@register("sharegpt4v", "captions", takes=SPLIT, fits=is_llava)
def _read_sharegpt4v(location: Location) -> Dataset[Captioned]:
    root, split, num_test = location.image_root("data", "images"), location.spec.split, 1000  # as in Long-CLIP

    def records() -> Iterator[Captioned]:
        if split not in {"test", ALL}:
            choices = f"test, the first {num_test}, or {ALL}"
            raise UserError(f"{location.path}: has no split '{split}' (expected {choices})")
        for number, row in enumerate(location.json if split == ALL else location.json[:num_test], 1):
            where = f"{location.path} row {number}"
            check_keys(row, where, texts=("image",), others=("conversations",))
            try:
                answer = row["conversations"][1]["value"].replace("\n", " ")
            except (IndexError, KeyError, TypeError, AttributeError):
                raise UserError(f"{where}: expected conversations of a question and an answer") from None
            yield _captioned(root, row["image"], [answer])

    return Dataset(records=records(), split=split)


# DOCCI: docci_descriptions.jsonlines and its images, each with one human description
@register("docci", "captions", takes=SPLIT, fits=lambda at: at.has_file("docci_descriptions.jsonlines"))
@of_split
def _read_docci(location: Location) -> Iterator[tuple[str, Captioned]]:
    root, file = location.image_root("images"), location.file("docci_descriptions.jsonlines")
    for _, row in read_json_lines(file, texts=("split", "image_file", "description")):
        yield row["split"], _captioned(root, row["image_file"], [row["description"]])


# ImageInWords: data.jsonl and the images of DOCCI or DCI; the human description
@register("iiw", "captions", fits=lambda at: "IIW" in at.first_row("data.jsonl"))
@whole
def _read_iiw(location: Location) -> Iterator[Captioned]:
    root, path = location.image_root("images_aar", "images"), location.file("data.jsonl")  # IIW-400's are DOCCI's
    for number, row in read_json_lines(path, texts=("IIW",)):
        key = "image" if "image" in row else "image/key"
        check_keys(row, f"{path} line {number}", texts=(key,))
        has_suffix = row[key].lower().endswith(IMAGE_SUFFIXES)
        yield _captioned(root, row[key] if has_suffix else f"{row[key]}.jpg", [row["IIW"]])


# Densely Captioned Images: splits.json, annotations, photos; the short caption and its extension
@register("dci", "captions", takes=SPLIT, fits=lambda at: {"splits.json", "annotations", "photos"} <= at.names)
@of_split
def _read_dci(location: Location) -> Iterator[tuple[str, Captioned]]:
    # papers use all 7,805 images: ``split: all``
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


# Crossmodal-3600: captions.jsonl with every language, and images
@register(
    "xm3600",
    "captions",
    takes=LANGUAGE,
    fits=lambda at: "image/key" in (row := at.first_row("captions.jsonl")) and "IIW" not in row,
)
@whole
def _read_xm3600(location: Location) -> Iterator[Captioned]:
    # about two captions per image in each of 36 languages, of which CLIP_benchmark uses the first
    root, path = location.image_root("images"), location.file("captions.jsonl")
    for number, row in read_json_lines(path, texts=("image/key",)):
        language = location.language(name for name, value in row.items() if isinstance(value, dict))
        check_keys(row[language], f"{path} line {number}: {language}", texts=(), others=("caption",))
        yield _captioned(root, f"{row['image/key']}.jpg", row[language]["caption"])


# Flickr30k-200, XTD200, XTD10 (multilingual COCO): names of images and a file of captions per language
@register("parallel", "captions", takes=LANGUAGE, fits=lambda at: bool({*_PARALLEL_IMAGES} & at.names))
@whole
def _read_parallel(location: Location) -> Iterator[Captioned]:
    root = location.image_root("images")
    index = next((name for name in _PARALLEL_IMAGES if name in location.names), _PARALLEL_IMAGES[0])
    files = {
        name.removeprefix("test_1kcaptions_").removesuffix(".txt"): location.path / name
        for name in location.names - set(_PARALLEL_IMAGES)
        if name.endswith(".txt")
    }
    captions = files[location.language(files)]  # line i is of image i
    images, texts = read_text_lines(location.path / index), read_text_lines(captions)
    for lines in (images, texts):
        while len(lines) > 1 and not lines[-1]:
            lines.pop()
    if len(images) != len(texts):
        expected = f"expected {len(images)} captions, one for each line of {index}"
        raise UserError(f"{captions}: {expected}, got {len(texts)}")
    yield from (_captioned(root, image, [text]) for image, text in zip(images, texts, strict=True))


# CLIP_benchmark's JSON of one language (flickr30k_200-deu_Latn.json): image_paths and annotations
@register("paired", "captions", fits=lambda at: "image_paths" in at.json_object)
@whole
def _read_paired(location: Location) -> Iterator[Captioned]:
    root = location.image_root("images")  # the paths are absolute on the host that wrote them
    paths, captions = location.json["image_paths"], location.json.get("annotations")
    if not isinstance(paths, list) or not isinstance(captions, list) or len(paths) != len(captions):
        raise UserError(f"{location.path}: expected as many annotations as image_paths")
    yield from (_captioned(root, Path(str(path)).name, [text]) for path, text in zip(paths, captions, strict=True))
