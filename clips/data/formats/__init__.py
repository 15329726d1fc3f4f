"""The dataset formats, each registered beside its readers (`register` of `clips.data.formats.dataset_format`).

Training of encoders (`clips.data.sources`), training of LLaVAs and the benchmarks take their data from here; text
without images is read by `llava_bridge.data.sources`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, overload

from clips.data.formats import captions, classes, conversations, pairs, tables, webdataset  # noqa: F401  # their readers
from clips.data.formats.dataset_format import (
    FORMATS,
    Captioned,
    Classified,
    Conversation,
    Dataset,
    DatasetSpec,
    Format,
    Kind,
    Location,
    Pair,
)
from clips.data.remote_files import is_remote
from clips.errors import UserError, unknown_name_error

__all__ = ["FORMATS", "Dataset", "DatasetSpec", "Format", "Kind", "detect", "read_dataset"]


def _formats_of(kind: Kind) -> dict[str, Format]:
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
    dataset: Dataset[Any] = getattr(FORMATS[name], kind)(Location(spec))
    return dataset


def detect(spec: DatasetSpec, kind: Kind) -> str:
    """The format of a record type that matches the path; a general one only if no other does.

    Raises:
        UserError: the path does not exist, or no format matches.
    """
    if not Path(spec.path).exists():
        raise UserError(f"{spec.path}: no such file or directory (a dataset of the Hub needs 'format: datasets')")
    location = Location(spec)
    for name, entry in sorted(_formats_of(kind).items(), key=lambda item: item[1].is_general):
        if entry.fits and entry.fits(location):
            return name
    is_empty = location.path.is_dir() and not location.names
    raise UserError(
        f"{spec.path}: expected {kind} in tar shards, parquet, JSON, CSV or directories of images, found "
        f"{'an empty directory' if is_empty else 'none'}; docs/data-formats.md lists the formats"
    )
