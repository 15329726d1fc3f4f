"""Images with one class each, in the formats of classification benchmarks."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clips.data.formats import DatasetSpec, read_dataset
from clips.data.formats.classes import CLASS_NAMES, are_ids, format_counts, have_two_orders
from clips.data.formats.dataset_format import Classified
from clips.data.lazy_images import LazyImage
from clips.errors import UserError
from clips.safe_text import log_info
from clips.text_files import read_text_lines

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True, kw_only=True)
class ClassificationSet:
    """Images and their classes."""

    source: str  # the directory that was read
    files: Sequence[LazyImage]  # (N,) the images
    images: Sequence[str]  # (N,) their unique names
    targets: np.ndarray  # (N,) index of each image's class
    classes: Sequence[str]  # (C,) names of the classes
    own_classes: Sequence[str]  # (C,) their names in the data itself, of directories or a column; empty if it has none
    named_by: str  # the source of those names, as text
    # texts with ``{}`` or ``{c}`` for the class, from the file next to the data; empty if there is none
    templates: Sequence[str]
    split: str  # the split; ``dataset_format.WHOLE`` without splits
    available: int  # number of images without ``limit``
    # file type → number of skipped files: other types, or outside the class directories
    skipped: Mapping[str, int] = field(default_factory=dict)

    def open(self, index: int) -> Image:
        """Image ``index`` as RGB."""
        return self.files[index].open()

    @functools.cached_property
    def image_hashes(self) -> list[str]:
        """(N,) SHA-256 of each image's content."""
        return [hashlib.sha256(image.read()).hexdigest() for image in self.files]

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over class names, classes and image contents, independent of the format."""
        digest = hashlib.sha256(json.dumps(list(self.classes), ensure_ascii=False).encode())
        for content, target in zip(self.image_hashes, self.targets, strict=True):
            digest.update(f"{content} {target}\n".encode())
        return digest.hexdigest()


def load_classification_set(
    data: str, *, split: str = "test", limit: int | None = None, prompted: bool = False
) -> ClassificationSet:
    """Read a classification dataset.

    Args:
        data: a directory with one directory per split (optional for ``test``), each with WebDataset shards with
            ``.cls`` (CLIP_benchmark's format) or a directory of images per class; or a Hugging Face dataset on disk.
            ``classnames.txt`` next to it, one line per class, overrides other class names.
        split: the directory, or the split of the dataset.
        limit: number of images, evenly spaced.
        prompted: reject class names that no text tower knows: numbers and WordNet ids that no list names.

    Raises:
        UserError: missing or malformed, a class without a name, or without ``limit`` a class without images.
    """
    root = Path(data)
    if not root.is_dir():
        raise UserError(f"{data}: expected a directory (WebDataset shards, class directories or parquet files)")
    folder = root / split if (root / split).is_dir() else root
    dataset = read_dataset(DatasetSpec(path=data, split=split), "classes")
    records = list(dataset.records)
    lines = _in_order_of(dataset.classes, _lines(root, folder, CLASS_NAMES))
    classes = lines or dataset.classes
    _check(records, dataset.classes, classes, folder, complete=limit is None)
    if prompted and not lines and are_ids(classes):
        kind = "numbers" if classes[0].isdecimal() else "WordNet ids"
        raise UserError(
            f"{folder}: its classes are called by {kind}, such as {classes[0]}; expected their names in {CLASS_NAMES} "
            f"next to it, one line per class, in the order of the {kind}"
        )
    count = len(records)
    indices = np.unique(np.linspace(0, count - 1, min(limit or count, count)).round().astype(int))
    selected = [records[index] for index in indices]
    return ClassificationSet(
        source=str(folder),
        files=[record.image for record in selected],
        images=[record.name for record in selected],
        targets=np.array([record.target for record in selected]),
        classes=classes,
        own_classes=dataset.classes,
        named_by=CLASS_NAMES if lines else dataset.named_by,
        templates=_lines(root, folder, TEMPLATES_FILE),
        split=dataset.split,
        available=count,
        skipped=dataset.skipped,
    )


def _lines(root: Path, folder: Path, name: str) -> list[str]:
    """The lines of a text file next to the data, in order; empty if there is no such file.

    A class may have an empty name, as one of CLEVR's distances in CLIP_benchmark has.
    """
    path = next((parent / name for parent in (root, folder, folder.parent) if (parent / name).is_file()), None)
    if path is None:
        return []
    lines = [line.strip() for line in read_text_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path} line 1: expected a string, got an empty line")
    return lines


def _in_order_of(names: Sequence[str], lines: list[str]) -> list[str]:
    """Lines that are the data's own names in another order, in the order of these; any others unchanged."""
    by_name = {line.replace("_", " ").casefold(): line for line in lines}
    own = [name.replace("_", " ").casefold() for name in names]
    if len(own) == len(lines) and set(own) == by_name.keys():
        return [by_name[name] for name in own]
    if lines and have_two_orders(names):
        raise UserError(
            f"{CLASS_NAMES}: its lines may be in the order of the numbers or of the alphabet; expected classes called "
            f"by numbers alone (10) or with leading zeros, got '{names[-1]}'"
        )
    return lines


def _check(
    records: Sequence[Classified], names: Sequence[str], classes: Sequence[str], folder: Path, *, complete: bool
) -> None:
    if not records:
        raise UserError(f"{folder}: contains no image with a class")
    if not classes:
        raise UserError(f"{folder}: expected {CLASS_NAMES} next to it, one line per class")
    for record in records:
        if not 0 <= record.target < len(classes):
            raise UserError(
                f"{folder}/{record.name}: has class {record.target}, but there are {len(classes)} class names"
            )
    if names and len(names) != len(classes):
        raise UserError(f"{folder}: has {len(names)} classes, but {CLASS_NAMES} has {len(classes)} lines")
    missing = sorted(set(range(len(classes))) - {record.target for record in records})
    if missing and complete:
        more = f" (and of {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{folder}: contains no image of class {missing[0]}, '{classes[missing[0]]}'{more}")


def log_skipped(data: ClassificationSet) -> None:
    """Log the skipped files, if any."""
    if data.skipped:
        log_info(f"{data.source}: skipped {format_counts(data.skipped)}: of an unsupported type, or without a class")
