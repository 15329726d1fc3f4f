"""Images that are named on the command line: files, directories, shards, globs."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from clips.data import open_image
from clips.data.images import IMAGE_SUFFIXES
from clips.data.tar_index import index_tar
from clips.errors import UserError

SUFFIXES = frozenset(IMAGE_SUFFIXES)
"""Suffixes that identify images in a directory or shard with other files."""


def open_picture(name: str) -> Image.Image:
    """The image in a file, or in a shard (``shard.tar/000000003.png``), as RGB.

    Raises:
        UserError: there is none, or it cannot be decoded.
    """
    tar, mark, member = name.partition(".tar/")
    file = Path(f"{tar}.tar" if mark else name)
    return open_image(file.parent, f"{file.name}/{member}" if mark else file.name)


def find_images(given: Iterable[str]) -> list[str]:
    """Names of images for :func:`open_picture`, without duplicates.

    Args:
        given: files, images in shards, shards, directories (with what is below them) and globs, in any mixture. Files
            may have any name; directories and shards contribute the files with a suffix in ``SUFFIXES``, sorted by
            name.

    Raises:
        UserError: one of them contains no image.
    """
    found: dict[str, None] = {}
    for word in given:
        names = list(_behind(word))
        if not names:
            what = "no images in it" if Path(word).exists() else "no such file"
            raise UserError(f"images: {word}: {what}; expected images, directories, shards (.tar) or globs")
        found |= dict.fromkeys(names)
    return list(found)


def _behind(word: str) -> Iterator[str]:
    """The images that one word names."""
    if glob.has_magic(word) and not Path(word).exists():
        for match in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207  Path.glob takes no absolute patterns
            yield from _at(match)
    else:
        yield from _at(word)


def _at(name: str) -> Iterator[str]:
    """The images of one path."""
    path = Path(name)
    if path.is_dir():
        yield from (str(path / file) for file in sorted(_below(path)))
    elif path.suffix == ".tar" and path.is_file():
        yield from (f"{name}/{member}" for member in sorted(index_tar(path).members) if _is_image_name(Path(member)))
    elif path.is_file() or ".tar/" in name:
        yield name


def _below(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        inner = file.relative_to(folder)
        if _is_image_name(inner) and file.is_file() and not any(part.startswith(".") for part in inner.parts):
            yield inner


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
