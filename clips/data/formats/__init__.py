"""The dataset formats: one entry of ``FORMATS`` each, with a reader for each record type that it yields.

Training of encoders (`clips.data.sources`), training of LLaVAs and the benchmarks take their data from here; text
without images is read by `llava_bridge.data.sources`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

from clips.data.formats.captions import CAPTION_FORMATS, SPLIT
from clips.data.formats.dataset_format import (
    Captioned,
    Classified,
    Conversation,
    Dataset,
    DatasetSpec,
    Format,
    Location,
    Pair,
)
from clips.data.remote_files import is_remote
from clips.errors import UserError, unknown_name_error
from clips.lazy_import import import_from_string

__all__ = ["FORMATS", "Dataset", "DatasetSpec", "Format", "Kind", "detect", "read_dataset"]

Kind = Literal["captions", "conversations", "classes", "pairs"]
_COLUMNS = ("image_column", "caption_columns")
_WEB, _SYNTHETIC = "web_caption", "synthetic_caption"  # as this suite's own data have them
# Their modules are imported when they are needed: those of training read their configs from here.
# fmt: off
FORMATS: dict[str, Format] = CAPTION_FORMATS | {
    # WebDataset tar shards, also CLIP_benchmark's: in one directory, or in one per split
    "webdataset": Format(
        ("split",),
        fits="webdataset.is_webdataset", captions="webdataset.read_captions", classes="webdataset.read_classes",
        conversations="webdataset.read_conversations",
        source="webdataset.WebDatasetSource", web_caption=_WEB, synthetic_caption=_SYNTHETIC, is_general=True),
    # Hugging Face datasets: parquet files, save_to_disk, or ORG/NAME on the Hub
    "datasets": Format(
        ("split", "subset", "image_root", *_COLUMNS),
        fits="rows.is_datasets", captions="tables.read_datasets", classes="classes.read_datasets",
        source="tables.TableSource", web_caption=_WEB, synthetic_caption=_SYNTHETIC, is_general=True),
    # LLaVA's JSON list, also ShareGPT4V's
    "llava": Format(
        fits="conversations.is_llava", conversations="conversations.read_llava"),
    # rows with messages, conversations or texts, and images: a directory of datasets, parquet, JSON lines
    "conversations": Format(SPLIT, conversations="conversations.read_rows"),
    # rows with a question, an answer and an image: a directory of datasets, parquet, JSON lines
    "vqa": Format(SPLIT,
        conversations="conversations.read_questions"),
    # COCO-QA: JSON lines of image, question, answer
    "cocoqa": Format(SPLIT,
        conversations="conversations.read_cocoqa"),
    # CSV, TSV, JSON lines or parquet, with columns for the image or its file name and for its captions
    "table": Format(
        ("split", "image_root", *_COLUMNS),
        fits=lambda at: at.suffix in {".csv", ".tsv", ".parquet"} and at.path.is_file(), captions="tables.read_table",
        source="tables.TableSource", web_caption=_WEB, synthetic_caption=_SYNTHETIC),
    # a table with the columns of CapsFusion-120M
    "capsfusion": Format((),
        source="tables.TableSource", web_caption="laion_2b", synthetic_caption=("laion_coco", "capsfusion")),
    # a directory of images for each class
    "folders": Format(("split",),
        fits=lambda at: at.path.is_dir() and any(path.is_dir() for path in at.path.iterdir()),
        classes="classes.read_folders", is_general=True),
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


def _formats_of(kind: Kind) -> dict[str, Format]:
    return {name: entry for name, entry in FORMATS.items() if getattr(entry, kind)}


def _function(reference: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(".")
    return import_from_string(f"clips.data.formats.{module}:{name}")


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
    if name not in _formats_of(kind):
        raise unknown_name_error(name, _formats_of(kind), f"format of {kind}")
    takes = FORMATS[name].takes
    for field in dataclasses.fields(spec):
        if field.name not in ("path", "format", *takes) and getattr(spec, field.name) != field.default:
            known = ", ".join(takes)
            raise UserError(f"{field.name}: {spec.path}: the format '{name}' has no such setting (it has {known})")
    is_path = name != "datasets" and not is_remote(spec.path) and "{" not in spec.path
    if is_path and not Path(spec.path).exists():
        raise UserError(f"{spec.path}: no such file or directory")
    found: Dataset[Any] = _function(getattr(FORMATS[name], kind))(Location(spec))
    return found


def detect(spec: DatasetSpec, kind: Kind) -> str:
    """The format of a record type that matches the path; a general one only if no other does.

    Raises:
        UserError: the path does not exist, or no format matches.
    """
    if not Path(spec.path).exists():
        raise UserError(f"{spec.path}: no such file or directory (a dataset of the Hub needs 'format: datasets')")
    location = Location(spec)
    for name, entry in sorted(_formats_of(kind).items(), key=lambda item: item[1].is_general):
        if entry.fits and _function(entry.fits)(location):
            return name
    is_empty = location.path.is_dir() and not location.names
    raise UserError(
        f"{spec.path}: expected {kind} in tar shards, parquet, JSON, CSV or directories of images, found "
        f"{'an empty directory' if is_empty else 'none'}; docs/data-formats.md lists the formats"
    )
