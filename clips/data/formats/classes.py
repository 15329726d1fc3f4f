"""Images with one class each: a directory per class, or a Hugging Face dataset with a column of classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from clips.data.formats.dataset_format import WHOLE, Classified, Dataset, Location, register
from clips.data.formats.rows import is_datasets, read_column, rows_of_split
from clips.data.formats.webdataset import is_webdataset
from clips.data.images import is_image_name
from clips.data.lazy_images import FileImage, ImageColumn, TableImage
from clips.data.tar_index import is_clutter
from clips.errors import UserError

CLASS_NAMES = "classnames.txt"
"""A file next to the data with one class name per line; overrides all other names."""
_METADATA_SUFFIXES = {"", ".txt", ".md", ".json", ".csv"}  # of files next to the class directories
_WORDNET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"(\D*)([0-9]+)(\D*)")


def class_directories(location: Location) -> tuple[Path, list[str]]:
    """The split's directory, or for ``test`` the dataset's if it has no splits, and its classes' directories in order.

    Raises:
        UserError: there is no such split, or it has no directories.
    """
    directory = location.path / location.spec.split
    if not directory.is_dir():
        if location.spec.split != "test":
            raise UserError(
                f"{location.path}: has no split '{location.spec.split}' (expected a directory of that name)"
            )
        directory = location.path
    names = [path.name for path in directory.iterdir() if path.is_dir() and not is_clutter(path.name)]
    if not names:
        raise UserError(f"{directory}: expected .tar shards, parquet files or a directory of images for each class")
    return directory, _in_order(names)


@register(
    "folders",
    "classes",
    takes=("split",),
    fits=lambda at: (
        at.path.is_dir()
        and any(path.is_dir() for path in at.path.iterdir())
        and not is_webdataset(at)
        and not is_datasets(at)
    ),
)
def read_folders(location: Location) -> Dataset[Classified]:
    """A directory of images for each class, in a directory for each split or, for ``test``, in the directory itself."""
    directory, names = class_directories(location)
    files = [path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")]
    unexpected = [path for path in files if path.suffix not in _METADATA_SUFFIXES]
    skipped = Counter(f"{_file_type(path)} next to the class directories" for path in unexpected)
    records = []
    for target, name in enumerate(names):
        entries = [path for path in (directory / name).iterdir() if not path.name.startswith(".")]
        images = sorted(path for path in entries if is_image_name(path.name) and path.is_file())
        others = Counter(map(_file_type, {*entries} - {*images}))
        if not images:
            details = f" ({format_counts(others)})" if others else ""
            raise UserError(f"{directory / name}: expected the images of a class, found none{details}")
        skipped += others
        references = [f"{name}/{path.name}" for path in images]
        records += [Classified(reference, FileImage(directory, reference), target) for reference in references]
    return Dataset(
        records=records,
        split=WHOLE if directory == location.path else location.spec.split,
        classes=_imagenet_names(names) or [name.replace("_", " ") for name in names],
        named_by="the folders' names, _ as a blank",  # stored in results: part of their identity
        skipped=skipped,
    )


def _file_type(path: Path) -> str:
    return "directories" if path.is_dir() else path.suffix.lower() or "files without a suffix"


def format_counts(skipped: Mapping[str, int]) -> str:
    """``4 .heic, 2 directories``, the most frequent first."""
    return ", ".join(f"{count} {file_type}" for file_type, count in Counter(skipped).most_common())


def _in_order(names: list[str]) -> list[str]:
    """Names in alphabetical order; those that differ in a number only, in its order: 9 comes before 10."""
    parts = {name: match.groups() for name in names if (match := _NUMBERED.fullmatch(name))}
    if len(parts) == len(names) and len({(before, after) for before, _, after in parts.values()}) == 1:
        return sorted(names, key=lambda name: (int(parts[name][1]), name))
    return sorted(names)


def have_two_orders(names: Sequence[str]) -> bool:
    """Whether names such as ``class_10`` and ``class_9`` have another order by number than in the alphabet.

    A list of their names could be in either: people count, and torchvision's ``ImageFolder`` sorts by the alphabet.
    """
    return not are_ids(names) and _in_order([*names]) != sorted(names)


def are_ids(names: Sequence[str]) -> bool:
    """Whether names are numbers or WordNet ids, which a text tower does not know."""
    return bool(names) and (
        all(name.isascii() and name.isdecimal() for name in names) or all(map(_WORDNET.fullmatch, names))
    )


def _imagenet_names(ids: Sequence[str]) -> list[str]:
    """open_clip's names for ImageNet's 1,000 WordNet ids in alphabetical order; empty for any others."""
    if len(ids) != 1000 or not all(map(_WORDNET.fullmatch, ids)):
        return []
    from clips.lazy_import import without_wandb

    with without_wandb():
        from open_clip import IMAGENET_CLASSNAMES
    return list(IMAGENET_CLASSNAMES)


@register("datasets", "classes")
def read_datasets(location: Location) -> Dataset[Classified]:
    """One column of images and one of classes; a dataset saved without splits counts as ``test``."""
    import datasets

    path = location.spec.path
    rows, split = rows_of_split(location)
    if split == WHOLE and location.spec.split != "test":
        raise UserError(f"{path}: has no split '{location.spec.split}' (it has: test)")
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [name for name in ("label", "labels", "cls") if name in rows.features]
    for columns, what in ((images, "images"), (labels, "classes (ClassLabel, or named label)")):
        if len(columns) != 1:
            known = ", ".join(columns or rows.features)
            raise UserError(f"{path}: expected one column of {what}, got {len(columns)} (columns: {known})")
    (image,), (label,) = images, labels
    targets = read_column(path, rows, label)
    invalid = [value for value in targets if not isinstance(value, int)]
    if invalid:
        raise UserError(f"{path}: {label}: expected the index of one class, got {invalid[0]!r:.40}")
    column = ImageColumn(rows, image, path, location.path)
    classes = list(getattr(rows.features[label], "names", None) or [])
    if are_ids(classes):  # a list of names is in the order of the numbers, the classes may be in that of the alphabet
        ordered = _in_order(classes)
        place = {number: ordered.index(name) for number, name in enumerate(classes)}
        targets = [place.get(target, target) for target in targets]
        classes = _imagenet_names(ordered) or ordered
    names = [f"{row:08d}" for row in range(len(targets))]
    images = [TableImage(column, row, label=name) for row, name in enumerate(names)]
    return Dataset(
        records=list(map(Classified, names, images, targets)),
        split=split,
        classes=classes,
        named_by=f"the data set's column {label}",  # likewise
    )
