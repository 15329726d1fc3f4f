"""The dataset formats: one entry each, with a reader for each record type that it yields.

Plain text without images is read by `llava_bridge.data.sources` alone.

To add one: a function from `Location` to `Dataset` in a module of this package, and an entry in ``FORMATS``. Training
of encoders (`clips.data.sources`), training of LLaVAs and the benchmarks take their data from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

from clips.data.formats.dataset_format import (
    Captioned,
    Classified,
    Conversation,
    Dataset,
    DatasetSpec,
    Location,
    Pair,
)
from clips.data.remote_files import is_remote
from clips.errors import UserError, unknown_name_error
from clips.lazy_import import import_from_string

__all__ = ["FORMATS", "Dataset", "DatasetSpec", "Format", "Kind", "formats_of", "read_dataset"]

Kind = Literal["captions", "conversations", "classes", "pairs"]


@dataclasses.dataclass(frozen=True)
class Format:
    """One format. Readers are named as ``module.function`` of this package, and imported when they are called.

    Args:
        takes: the fields of `DatasetSpec` that it reads, besides path and format.
        fits: detects the format of a path, given as a function or its name; empty if it cannot be detected.
        captions: reads images with captions.
        conversations: reads conversations about images.
        classes: reads images with one class each.
        pairs: reads images with matching and near-miss captions.
        source: the class for training, with random access; empty: all captions are listed in memory, and each image
            is a file.
        web_caption: the default location of its short web caption in training.
        synthetic_caption: the default location of its long synthetic caption, or of several.
    """

    takes: tuple[str, ...] = ("image_root",)
    _: dataclasses.KW_ONLY
    fits: str | Callable[[Location], bool] = ""
    captions: str = ""
    conversations: str = ""
    classes: str = ""
    pairs: str = ""
    source: str = ""
    web_caption: str = "random_sentence"
    synthetic_caption: str | tuple[str, ...] = "other_sentences"

    @property
    def trains_encoders(self) -> bool:
        """Whether ``clips train`` reads it."""
        return bool(self.source or self.captions)


_SPLIT, _LANGUAGE, _COLUMNS = ("split", "image_root"), ("image_root", "language"), ("image_column", "caption_columns")
_WEB, _SYNTHETIC = "web_caption", "synthetic_caption"  # as this suite's own data have them
# fmt: off
FORMATS: dict[str, Format] = {
    # WebDataset tar shards, also CLIP_benchmark's: in one directory, or in one per split
    "webdataset": Format(
        ("split",),
        fits="webdataset.is_webdataset", captions="webdataset.read_captions", classes="webdataset.read_classes",
        conversations="webdataset.read_conversations",
        source="webdataset.WebDatasetSource", web_caption=_WEB, synthetic_caption=_SYNTHETIC),
    # DOCCI: docci_descriptions.jsonlines and its images
    "docci": Format(_SPLIT,
        fits=lambda at: at.has_file("docci_descriptions.jsonlines"), captions="caption_files.read_docci"),
    # Densely Captioned Images: splits.json, annotations, photos
    "dci": Format(_SPLIT,
        fits=lambda at: {"splits.json", "annotations", "photos"} <= at.names, captions="caption_files.read_dci"),
    # ImageInWords: data.jsonl and the images of DOCCI or DCI
    "iiw": Format(
        fits=lambda at: "IIW" in at.first_row("data.jsonl"), captions="caption_files.read_iiw"),
    # Urban-1k: directories caption and image
    "urban1k": Format(
        fits=lambda at: "caption" in at.names and bool({"image", "images"} & at.names),
        captions="caption_files.read_urban1k"),
    # Crossmodal-3600: captions.jsonl with every language, and images
    "xm3600": Format(_LANGUAGE,
        fits=lambda at: "image/key" in (row := at.first_row("captions.jsonl")) and "IIW" not in row,
        captions="caption_files.read_xm3600"),
    # Flickr30k-200, XTD200, XTD10: names of images and a file of captions per language
    "parallel": Format(_LANGUAGE,
        fits=lambda at: bool({"filenames.txt", "test_image_names.txt"} & at.names),
        captions="caption_files.read_parallel"),
    # Hugging Face datasets: parquet files, save_to_disk, or ORG/NAME on the Hub
    "datasets": Format(
        ("split", "subset", "image_root", *_COLUMNS),
        fits="rows.is_datasets", captions="tables.read_datasets", classes="classes.read_datasets",
        source="tables.DatasetsSource", web_caption=_WEB, synthetic_caption=_SYNTHETIC),
    # ShareGPT4V: share-captioner_coco_lcs_sam_1246k_1107.json and its images
    "sharegpt4v": Format(_SPLIT,
        fits="conversations.is_llava", captions="caption_files.read_sharegpt4v"),
    # LLaVA's JSON list, also ShareGPT4V's
    "llava": Format(
        fits="conversations.is_llava", conversations="conversations.read_llava"),
    # rows with messages, conversations or texts, and images: a directory of datasets, parquet, JSON lines
    "conversations": Format(_SPLIT, conversations="conversation_rows.read_rows"),
    # rows with a question, an answer and an image: a directory of datasets, parquet, JSON lines
    "vqa": Format(_SPLIT,
        conversations="conversation_rows.read_questions"),
    # COCO-QA: JSON lines of image, question, answer
    "cocoqa": Format(_SPLIT,
        conversations="conversations.read_cocoqa"),
    # CLIP_benchmark's JSON of one language: image_paths and annotations
    "paired": Format(
        fits=lambda at: "image_paths" in at.json_object, captions="caption_files.read_paired"),
    # COCO's captions_*.json: images and annotations
    "coco": Format(
        fits=lambda at: "annotations" in at.json_object, captions="caption_files.read_coco"),
    # Karpathy's JSON: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json
    "karpathy": Format(_SPLIT,
        fits=lambda at: isinstance(at.json, dict), captions="caption_files.read_karpathy"),
    # a JSON list of {image, caption}, as ALBEF and BLIP use it
    "list": Format(
        fits=lambda at: isinstance(at.json, list), captions="caption_files.read_list"),
    # JSON lines of {image, captions}, {image, caption}, {caption, images}, {image, caption, negative}
    "jsonl": Format(
        ("split", *_LANGUAGE),
        fits=lambda at: at.suffix == ".jsonl", captions="caption_files.read_jsonl", pairs="pairs.read_jsonl"),
    # CSV, TSV, JSON lines or parquet, with columns for the image or its file name and for its captions
    "table": Format(
        ("split", "image_root", *_COLUMNS),
        fits=lambda at: at.suffix in {".csv", ".tsv", ".parquet"} and at.path.is_file(), captions="tables.read_table",
        source="tables.TableSource", web_caption=_WEB, synthetic_caption=_SYNTHETIC),
    # a table with the columns of CapsFusion-120M
    "capsfusion": Format((),
        source="tables.TableSource", web_caption="laion_2b", synthetic_caption=("laion_coco", "capsfusion")),
    # lines of image,caption or image#0<tab>caption, as in Flickr30k's and Flickr8k's text files
    "flickr": Format(
        fits=lambda at: at.suffix in {".txt", ".token"} and at.path.is_file(), captions="caption_files.read_flickr"),
    # a directory of images for each class
    "folders": Format(("split",),
        fits=lambda at: at.path.is_dir() and any(path.is_dir() for path in at.path.iterdir()),
        classes="classes.read_folders"),
    # SugarCrepe's JSON files
    "sugarcrepe": Format(pairs="pairs.read_sugarcrepe"),
    # ARO's VG-Relation
    "aro_relation": Format(pairs="pairs.read_aro"),
    # ARO's VG-Attribution
    "aro_attribution": Format(pairs="pairs.read_aro"),
    # VALSE's JSON files
    "valse": Format(pairs="pairs.read_valse"),
    # Winoground: parquet, or examples.jsonl and its images
    "winoground": Format(pairs="pairs.read_winoground"),
}
# fmt: on
"""In the order of detection: formats that would also match another's data come later."""


def formats_of(kind: Kind) -> dict[str, Format]:
    """The formats that yield a record type, in the order of detection."""
    return {name: entry for name, entry in FORMATS.items() if getattr(entry, kind)}


@overload
def read_dataset(spec: DatasetSpec, kind: Literal["captions"]) -> Dataset[Captioned]: ...
@overload
def read_dataset(spec: DatasetSpec, kind: Literal["conversations"]) -> Dataset[Conversation]: ...
@overload
def read_dataset(spec: DatasetSpec, kind: Literal["classes"]) -> Dataset[Classified]: ...
@overload
def read_dataset(spec: DatasetSpec, kind: Literal["pairs"]) -> Dataset[Pair]: ...
def read_dataset(spec: DatasetSpec, kind: Kind) -> Dataset[Any]:
    """The records of a dataset in the format that the spec names or that is detected.

    Raises:
        UserError: the path does not exist, no format matches, or it does not support a setting. Malformed data raise
            while the records are read.
    """
    name = spec.format or detect(spec, kind)
    if name not in formats_of(kind):
        raise unknown_name_error(name, formats_of(kind), f"format of {kind}")
    takes = FORMATS[name].takes
    for field in dataclasses.fields(spec):
        if field.name not in ("path", "format", *takes) and getattr(spec, field.name) != field.default:
            known = ", ".join(takes)
            raise UserError(f"{field.name}: {spec.path}: the format '{name}' has no such setting (it has {known})")
    is_path = name != "datasets" and not is_remote(spec.path) and "{" not in spec.path
    if is_path and not Path(spec.path).exists():
        raise UserError(f"{spec.path}: no such file or directory")
    return _function(getattr(FORMATS[name], kind))(Location(spec))


def detect(spec: DatasetSpec, kind: Kind) -> str:
    """The first format of a record type that matches the path.

    Raises:
        UserError: the path does not exist, or no format matches.
    """
    if not Path(spec.path).exists():
        raise UserError(f"{spec.path}: no such file or directory (a dataset of the Hub needs 'format: datasets')")
    location, choices = Location(spec), formats_of(kind)
    for name, entry in choices.items():
        fits = _function(entry.fits) if isinstance(entry.fits, str) and entry.fits else entry.fits
        if fits and fits(location):
            return name
    raise UserError(f"{spec.path}: expected {kind} in one of the formats {', '.join(choices)}; none fits")


def _function(reference: str) -> Any:
    module, _, name = reference.partition(".")
    return import_from_string(f"clips.data.formats.{module}:{name}")
