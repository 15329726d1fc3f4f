"""Pictures with one class each, from the layouts in which classification benchmarks come."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.data.hub_tables import has_splits, holds_table, open_table, picture_bytes, picture_columns
from benchmarks.data.source import WHOLE
from benchmarks.data.text_files import read_text_lines
from clips.core.artifact import say
from clips.data.images import IMAGE_SUFFIXES
from clips.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
_BESIDE = {"cls", "json", "txt", "key"}  # what WebDataset's writers put beside a picture
_NOTES = {"", ".txt", ".md", ".json", ".csv"}  # what data sets say of themselves beside their class folders
_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """Pictures and their classes.

    Args:
        source: the directory that was read.
        pictures: (N,) names, all different.
        targets: (N,) index of each picture's class.
        classes: (C,) names of the classes.
        named_by: where those names are from, in words.
        templates: texts with ``{}`` or ``{c}`` for the class, from the file beside the data; empty where there is none.
        read: number of a picture → its file's bytes.
        split: which split that is; ``source.WHOLE`` where there are none.
        available: pictures that there are without ``limit``.
        skipped: kind of file → how many are left out: no pictures, or in no class's folder.
    """

    source: str
    pictures: Sequence[str]
    targets: np.ndarray
    classes: Sequence[str]
    named_by: str
    templates: Sequence[str]
    read: Callable[[int], bytes]
    split: str
    available: int
    skipped: Mapping[str, int] = field(default_factory=dict)

    def open(self, index: int) -> Image:
        """Picture ``index`` as RGB."""
        from clips.data.images import BadImageError, decode_image

        try:
            return decode_image(self.read(index))
        except BadImageError as error:
            raise UserError(f"{self.source}/{self.pictures[index]}: {error}") from None

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over class names, classes and picture contents, the same whatever layout they came in."""
        digest = hashlib.sha256(json.dumps(list(self.classes), ensure_ascii=False).encode())
        for index, target in enumerate(self.targets):
            digest.update(f"{hashlib.sha256(self.read(index)).hexdigest()} {target}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a layout gives; ``names`` are its own names of the classes, which ``classnames.txt`` replaces."""

    pictures: list[str]
    targets: list[int]
    names: list[str]
    named_by: str
    read: Callable[[int], bytes]
    skipped: Mapping[str, int] = field(default_factory=dict)


def load_class_set(data: str, *, split: str = "test", limit: int | None = None) -> ClassSet:
    """Read a classification data set.

    Args:
        data: a directory that holds, in a folder for each split or, for ``test``, itself: WebDataset shards with
            ``.cls`` (CLIP_benchmark's layout), or a folder of pictures for each class; or a data set of Hugging Face's
            on disk. ``classnames.txt`` beside it, one line a class, goes before any other names.
        split: the folder, or the split of the data set.
        limit: so many pictures, evenly spread over all.

    Raises:
        UserError: missing or malformed, a class beyond the names, without ``limit`` a class that has no picture.
    """
    root = Path(data)
    if not root.is_dir():
        raise UserError(f"{data}: expected a directory (WebDataset shards, class folders or parquet files)")
    folder = root / split if (root / split).is_dir() else root
    if holds_table(root):
        found = _from_table(open_table(root, split), data)
    elif folder == root and split != "test":
        raise UserError(f"{data}: has no split '{split}' (expected a folder of that name)")
    elif any(folder.glob("*.tar")):
        found = _from_shards(folder)
    else:
        found = _from_folders(folder)
    lines = _lines(root, folder, CLASS_NAMES)
    classes = lines or found.names
    _check(found, classes, folder, complete=limit is None)
    count = len(found.pictures)
    kept = np.unique(np.linspace(0, count - 1, min(limit or count, count)).round().astype(int))
    return ClassSet(
        source=str(folder),
        pictures=[found.pictures[index] for index in kept],
        targets=np.array([found.targets[index] for index in kept]),
        classes=classes,
        named_by=CLASS_NAMES if lines else found.named_by,
        templates=_lines(root, folder, TEMPLATES),
        read=lambda index: found.read(int(kept[index])),
        split=split if folder != root or (holds_table(root) and has_splits(root)) else WHOLE,
        available=count,
        skipped=found.skipped,
    )


def _lines(root: Path, folder: Path, name: str) -> list[str]:
    """The lines of a text file beside the data, in their order; none where there is no such file."""
    path = next((place / name for place in (root, folder, folder.parent) if (place / name).is_file()), None)
    if path is None:
        return []
    lines = read_text_lines(path)
    lines = lines if lines[-1] else lines[:-1]
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if empty is not None or not lines:
        raise UserError(f"{path} line {empty or 1}: expected a text, got an empty line")
    return [line.strip() for line in lines]


def _check(found: _Found, classes: Sequence[str], folder: Path, *, complete: bool) -> None:
    if not found.pictures:
        raise UserError(f"{folder}: holds no picture with a class")
    if not classes:
        raise UserError(f"{folder}: expected {CLASS_NAMES} beside it, one line a class")
    for picture, target in zip(found.pictures, found.targets, strict=True):
        if not 0 <= target < len(classes):
            raise UserError(f"{folder}/{picture}: is of class {target}, but there are {len(classes)} class names")
    if found.names and len(found.names) != len(classes):
        raise UserError(f"{folder}: has {len(found.names)} classes, but {CLASS_NAMES} has {len(classes)} lines")
    missing = sorted(set(range(len(classes))) - set(found.targets))
    if missing and complete:
        more = f" (nor of {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{folder}: holds no picture of class {missing[0]}, '{classes[missing[0]]}'{more}")


def _from_shards(folder: Path) -> _Found:
    from clips.data.images import read_reference
    from clips.data.tars import index_tar

    shards = sorted(folder.glob("*.tar"), key=lambda path: (len(path.name), path.name))
    _count_shards(folder, len(shards))
    pictures, targets, skipped = [], [], Counter[str]()
    for shard in shards:
        index = index_tar(shard)
        for member in index.members:
            stem, dot, suffix = member.rpartition(".")
            if f"{dot}{suffix}".lower() not in IMAGE_SUFFIXES:
                skipped.update([] if suffix in _BESIDE else [f"{dot}{suffix}".lower()])
                continue
            if f"{stem}.cls" not in index.members:
                raise UserError(f"{shard}/{member}: expected {stem}.cls beside it, the number of its class")
            content = index.read(f"{stem}.cls").decode("utf-8", "replace").strip()
            if not content.isdecimal():
                raise UserError(f"{shard}/{stem}.cls: expected the number of one class, got {content!r:.40}")
            pictures.append(f"{shard.name}/{member}")
            targets.append(int(content))
    return _Found(
        pictures=pictures,
        targets=targets,
        names=[],
        named_by="",
        read=lambda index: read_reference(folder, pictures[index]),
        skipped=skipped,
    )


def _count_shards(folder: Path, found: int) -> None:
    """CLIP_benchmark states the number of shards, so that one that was not copied is missed."""
    stated = folder / "nshards.txt"
    if stated.is_file() and (text := stated.read_text(encoding="utf-8").strip()) != str(found):
        raise UserError(f"{stated}: says {text:.20} shards, found {found}")


def _from_folders(folder: Path) -> _Found:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder}: expected .tar shards, parquet files or a folder of pictures for each class")
    pictures, targets = [], []
    beside = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    skipped = Counter(f"{_kind(path)} beside the class folders" for path in beside if path.suffix not in _NOTES)
    for number, name in enumerate(names):
        there = [path for path in (folder / name).iterdir() if not path.name.startswith(".")]
        files = sorted(path for path in there if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        others = Counter(map(_kind, {*there} - {*files}))
        if not files:
            held = f" ({_listed(others)})" if others else ""
            raise UserError(f"{folder / name}: expected the pictures of a class, found none{held}")
        skipped += others
        pictures += [f"{name}/{path.name}" for path in files]
        targets += [number] * len(files)
    return _Found(
        pictures=pictures,
        targets=targets,
        names=_names_of_folders(folder, names),
        named_by="the folders' names, _ as a blank",
        read=lambda index: (folder / pictures[index]).read_bytes(),
        skipped=skipped,
    )


def _kind(path: Path) -> str:
    return "directories" if path.is_dir() else path.suffix.lower() or "files without a suffix"


def say_skipped(found: ClassSet) -> None:
    """Say what lies among the pictures and is not used; nothing where everything is."""
    if found.skipped:
        say(f"{found.source}: skipped {_listed(found.skipped)}: neither of a class nor of a kind that is read")


def _listed(skipped: Mapping[str, int]) -> str:
    """``4 .heic, 2 directories``, the most first."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items(), key=lambda each: -each[1]))


def _names_of_folders(folder: Path, names: list[str]) -> list[str]:
    """What class folders are called in prompts; ImageNet's are WordNet numbers, whose order is that of its classes."""
    if not all(map(_WORDNET.fullmatch, names)):
        return [name.replace("_", " ") for name in names]
    if len(names) == 1000:
        from clips.commandline.lean_imports import without_wandb

        with without_wandb():
            from open_clip import IMAGENET_CLASSNAMES
        return list(IMAGENET_CLASSNAMES)
    named = any((place / CLASS_NAMES).is_file() for place in (folder, folder.parent))
    if not named:
        raise UserError(
            f"{folder}: its folders are WordNet numbers; expected {CLASS_NAMES} beside it, one line a folder"
        )
    return names


def _from_table(table: Any, data: str) -> _Found:
    import datasets

    images = picture_columns(table)
    labels = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [name for name in ("label", "labels", "cls") if name in table.features]
    for found, what in ((images, "pictures"), (labels, "classes (ClassLabel, or named label)")):
        if len(found) != 1:
            columns = ", ".join(found or table.features)
            raise UserError(f"{data}: expected one column of {what}, got {len(found)} (columns: {columns})")
    image, label = images[0], labels[0]
    targets = table[label][:]
    strange = next((value for value in targets if not isinstance(value, int)), None)
    if strange is not None or None in targets:
        raise UserError(f"{data}: {label}: expected the number of one class, got {strange!r:.40}")
    return _Found(
        pictures=[f"{number:08d}" for number in range(len(table))],
        targets=targets,
        names=list(getattr(table.features[label], "names", None) or []),
        named_by=f"the data set's column {label}",
        read=lambda index: picture_bytes(table[index][image], Path(data)),
    )
