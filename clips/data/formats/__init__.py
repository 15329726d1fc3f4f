"""The dataset formats: one entry each, with a reader for each record type that it yields.

Plain text without images is read by `llava_bridge.data.sources` alone.

To add one: a function from `Location` to `Dataset` in a module of this package, and an entry in ``FORMATS``. Training
of encoders, training of LLaVAs and the benchmarks take their data from here.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One format. Functions are given as ``module:function`` of this package, and imported when they are called.

    Args:
        about: a short description.
        fits: detects the format of a path; empty if it cannot be detected.
        captions: reads images with captions.
        conversations: reads conversations about images.
        classes: reads images with one class each.
        pairs: reads images with matching and near-miss captions.
        takes: the fields of `DatasetSpec` that it reads, besides path and format.
        source: the class for training, with random access; empty: all captions are listed in memory.
        web_caption: the default location of its short web caption in training.
        synthetic_caption: the default location of its long synthetic caption, or of several.
    """

    about: str
    fits: str = ""
    captions: str = ""
    conversations: str = ""
    classes: str = ""
    pairs: str = ""
    takes: tuple[str, ...] = ()
    source: str = ""
    web_caption: str = "random_sentence"
    synthetic_caption: str | tuple[str, ...] = "other_sentences"

    @property
    def trains_encoders(self) -> bool:
        """Whether ``clips train`` reads it."""
        return bool(self.source or self.captions)

    def reader(self, kind: Kind) -> Callable[[Location], Dataset[Any]]:
        """The reader of a record type."""
        return _function(getattr(self, kind))


_COLUMNS: dict[str, Any] = {"web_caption": "web_caption", "synthetic_caption": "synthetic_caption"}
FORMATS: dict[str, Format] = {
    "webdataset": Format(
        about="WebDataset tar shards, also CLIP_benchmark's: in one directory, or in one per split",
        fits="tar_shards:is_webdataset",
        captions="tar_shards:read_captions",
        conversations="tar_shards:read_conversations",
        classes="tar_shards:read_classes",
        takes=("split",),
        source="clips.data.sources.webdataset:WebDatasetSource",
        **_COLUMNS,
    ),
    "docci": Format(
        about="DOCCI: docci_descriptions.jsonlines and its images",
        fits="caption_files:is_docci",
        captions="caption_files:read_docci",
        takes=("split", "image_root"),
    ),
    "dci": Format(
        about="Densely Captioned Images: splits.json, annotations, photos",
        fits="caption_files:is_dci",
        captions="caption_files:read_dci",
        takes=("split", "image_root"),
    ),
    "iiw": Format(
        about="ImageInWords: data.jsonl and the images of DOCCI or DCI",
        fits="caption_files:is_iiw",
        captions="caption_files:read_iiw",
        takes=("image_root",),
    ),
    "urban1k": Format(
        about="Urban-1k: directories caption and image",
        fits="caption_files:is_urban1k",
        captions="caption_files:read_urban1k",
        takes=("image_root",),
    ),
    "xm3600": Format(
        about="Crossmodal-3600: captions.jsonl with every language, and images",
        fits="caption_files:is_xm3600",
        captions="caption_files:read_xm3600",
        takes=("image_root", "language"),
    ),
    "parallel": Format(
        about="Flickr30k-200, XTD200, XTD10: names of images and a file of captions per language",
        fits="caption_files:is_parallel",
        captions="caption_files:read_parallel",
        takes=("image_root", "language"),
    ),
    "datasets": Format(
        about="Hugging Face datasets: parquet files, save_to_disk, or ORG/NAME on the Hub",
        fits="rows:is_datasets",
        captions="rows:read_datasets",
        classes="classes:read_datasets",
        takes=("split", "subset", "image_root", "image_column", "caption_columns"),
        source="clips.data.sources.tables:DatasetsSource",
        **_COLUMNS,
    ),
    "sharegpt4v": Format(
        about="ShareGPT4V: share-captioner_coco_lcs_sam_1246k_1107.json and its images",
        fits="conversations:is_llava",
        captions="caption_files:read_sharegpt4v",
        takes=("split", "image_root"),
    ),
    "llava": Format(
        about="LLaVA's JSON list, also ShareGPT4V's",
        fits="conversations:is_llava",
        conversations="conversations:read_llava",
        takes=("image_root",),
    ),
    "conversations": Format(
        about="rows with messages, conversations or texts, and images: a directory of datasets, parquet, JSON lines",
        conversations="conversation_rows:read_rows",
        takes=("split", "image_root"),
    ),
    "vqa": Format(
        about="rows with a question, an answer and an image: a directory of datasets, parquet, JSON lines",
        conversations="conversation_rows:read_questions",
        takes=("split", "image_root"),
    ),
    "cocoqa": Format(
        about="COCO-QA: JSON lines of image, question, answer",
        conversations="conversations:read_cocoqa",
        takes=("split", "image_root"),
    ),
    "paired": Format(
        about="CLIP_benchmark's JSON of one language: image_paths and annotations",
        fits="caption_files:is_paired",
        captions="caption_files:read_paired",
        takes=("image_root",),
    ),
    "coco": Format(
        about="COCO's captions_*.json: images and annotations",
        fits="caption_files:is_coco",
        captions="caption_files:read_coco",
        takes=("image_root",),
    ),
    "karpathy": Format(
        about="Karpathy's JSON: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json",
        fits="caption_files:is_karpathy",
        captions="caption_files:read_karpathy",
        takes=("split", "image_root"),
    ),
    "list": Format(
        about="a JSON list of {image, caption}, as ALBEF and BLIP use it",
        fits="caption_files:is_list",
        captions="caption_files:read_list",
        takes=("image_root",),
    ),
    "jsonl": Format(
        about="JSON lines of {image, captions}, {image, caption}, {caption, images} or {image, caption, negative}",
        fits="caption_files:is_jsonl",
        captions="caption_files:read_jsonl",
        pairs="pairs:read_jsonl",
        takes=("split", "image_root", "language"),
    ),
    "table": Format(
        about="CSV, TSV, JSON lines or parquet, with columns for the image or its file name and for its captions",
        fits="rows:is_table",
        captions="rows:read_table",
        takes=("split", "image_root", "image_column", "caption_columns"),
        source="clips.data.sources.tables:TableSource",
        **_COLUMNS,
    ),
    "capsfusion": Format(
        about="a table with the columns of CapsFusion-120M",
        source="clips.data.sources.tables:TableSource",
        web_caption="laion_2b",
        synthetic_caption=("laion_coco", "capsfusion"),
    ),
    "flickr": Format(
        about="lines of image,caption or image#0<tab>caption, as in Flickr30k's and Flickr8k's text files",
        fits="caption_files:is_flickr",
        captions="caption_files:read_flickr",
        takes=("image_root",),
    ),
    "folders": Format(
        about="a directory of images for each class",
        fits="classes:is_folders",
        classes="classes:read_folders",
        takes=("split",),
    ),
    "sugarcrepe": Format(about="SugarCrepe's JSON files", pairs="pairs:read_sugarcrepe", takes=("image_root",)),
    "aro_relation": Format(about="ARO's VG-Relation", pairs="pairs:read_aro", takes=("image_root",)),
    "aro_attribution": Format(about="ARO's VG-Attribution", pairs="pairs:read_aro", takes=("image_root",)),
    "valse": Format(about="VALSE's JSON files", pairs="pairs:read_valse", takes=("image_root",)),
    "winoground": Format(
        about="Winoground: parquet, or examples.jsonl and its images",
        pairs="pairs:read_winoground",
        takes=("image_root",),
    ),
}
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
    return FORMATS[name].reader(kind)(Location(spec))


def detect(spec: DatasetSpec, kind: Kind) -> str:
    """The first format of a record type that matches the path.

    Raises:
        UserError: the path does not exist, or no format matches.
    """
    if not Path(spec.path).exists():
        raise UserError(f"{spec.path}: no such file or directory (a dataset of the Hub needs 'format: datasets')")
    location, choices = Location(spec), formats_of(kind)
    for name, entry in choices.items():
        if entry.fits and _function(entry.fits)(location):
            return name
    raise UserError(f"{spec.path}: expected {kind} in one of the formats {', '.join(choices)}; none fits")


def _function(reference: str) -> Any:
    return import_from_string(f"clips.data.formats.{reference}")
