"""Images with one class each: a directory a class, or a dataset of Hugging Face's with a column of classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clips.data.formats.dataset_format import WHOLE, Classified, Dataset, Location
from clips.data.formats.rows import has_splits, open_rows
from clips.data.images import IMAGE_SUFFIXES
from clips.data.lazy_images import FileImage, ImageColumn, TableImage
from clips.errors import UserError

CLASS_NAMES = "classnames.txt"
"""Next to the data: the name of each class, a line each; goes before any other names."""
_NOTES = {"", ".txt", ".md", ".json", ".csv"}  # metadata files that datasets place next to their class directories
_WORDNET = re.compile(r"n\d{8}")
_LABELS = ("label", "labels", "cls")


def is_folders(found: Location) -> bool:
    """A directory with directories in it."""
    return found.path.is_dir() and any(path.is_dir() for path in found.path.iterdir())


def read_folders(found: Location) -> Dataset[Classified]:
    """A directory of images for each class, in a directory for each split or, for ``test``, in the directory itself."""
    folder = found.path / found.asked.split
    if not folder.is_dir():
        if found.asked.split != "test":
            raise UserError(f"{found.path}: has no split '{found.asked.split}' (expected a directory of that name)")
        folder = found.path
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder}: expected .tar shards, parquet files or a directory of images for each class")
    beside = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    skipped = Counter(f"{_kind(path)} next to the class directories" for path in beside if path.suffix not in _NOTES)
    records = []
    for number, name in enumerate(names):
        there = [path for path in (folder / name).iterdir() if not path.name.startswith(".")]
        files = sorted(path for path in there if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        others = Counter(map(_kind, {*there} - {*files}))
        if not files:
            held = f" ({listed(others)})" if others else ""
            raise UserError(f"{folder / name}: expected the images of a class, found none{held}")
        skipped += others
        images = [FileImage(folder, f"{name}/{path.name}") for path in files]
        records += [Classified(image.name, image, number) for image in images]
    return Dataset(
        records=records,
        split=WHOLE if folder == found.path else found.asked.split,
        classes=_names_of_folders(folder, names),
        named_by="the folders' names, _ as a blank",
        skipped=skipped,
    )


def _kind(path: Path) -> str:
    return "directories" if path.is_dir() else path.suffix.lower() or "files without a suffix"


def listed(skipped: Mapping[str, int]) -> str:
    """``4 .heic, 2 directories``, the most first."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items(), key=lambda each: -each[1]))


def _names_of_folders(folder: Path, names: list[str]) -> list[str]:
    """Class names from directory names; ImageNet's are WordNet ids, in the order of its classes."""
    if not all(map(_WORDNET.fullmatch, names)):
        return [name.replace("_", " ") for name in names]
    if len(names) == 1000:
        from clips.commandline.import_guards import without_wandb

        with without_wandb():
            from open_clip import IMAGENET_CLASSNAMES
        return list(IMAGENET_CLASSNAMES)
    named = any((place / CLASS_NAMES).is_file() for place in (folder, folder.parent))
    if not named:
        raise UserError(
            f"{folder}: its directories are WordNet numbers; expected {CLASS_NAMES} next to it, one line a directory"
        )
    return names


def read_datasets(found: Location) -> Dataset[Classified]:
    """One column of images and one of classes; a dataset saved without splits is its ``test``."""
    import datasets

    path, split = found.asked.path, found.asked.split
    if not has_splits(found.path) and split != "test":
        raise UserError(f"{path}: has no split '{split}' (it has: test)")
    rows = open_rows(path, found.asked.subset, split)
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [name for name in _LABELS if name in rows.features]
    for columns, what in ((images, "images"), (labels, "classes (ClassLabel, or named label)")):
        if len(columns) != 1:
            known = ", ".join(columns or rows.features)
            raise UserError(f"{path}: expected one column of {what}, got {len(columns)} (columns: {known})")
    (image,), (label,) = images, labels
    targets = rows[label][:]
    strange = next((value for value in targets if not isinstance(value, int)), None)
    if strange is not None or None in targets:
        raise UserError(f"{path}: {label}: expected the number of one class, got {strange!r:.40}")
    column = ImageColumn(rows, image, path, found.path)
    named = [(f"{number:08d}", number, target) for number, target in enumerate(targets)]
    return Dataset(
        records=[Classified(name, TableImage(column, number, label=name), target) for name, number, target in named],
        split=split if has_splits(found.path) else WHOLE,
        classes=list(getattr(rows.features[label], "names", None) or []),
        named_by=f"the data set's column {label}",
    )
