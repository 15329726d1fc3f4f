"""Images named on the command line: files, directories, shards, globs."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from clips.data import open_image
from clips.data.images import is_image_name
from clips.data.tar_index import index_tar
from clips.errors import UserError


def open_image_or_member(name: str) -> Image.Image:
    """The image in a file, or in a shard (``shard.tar/000000003.png``), as RGB.

    Raises:
        UserError: it is missing, or cannot be decoded.
    """
    tar, mark, member = name.partition(".tar/")
    file = Path(f"{tar}.tar" if mark else name)
    return open_image(file.parent, f"{file.name}/{member}" if mark else file.name)


def find_images(patterns: Iterable[str]) -> list[str]:
    """Names of images for :func:`open_image_or_member`, without duplicates.

    Args:
        patterns: files, images in shards, shards, directories (searched recursively) and globs. Files may have any
            name; directories and shards contribute the files with an image's suffix, sorted by name.

    Raises:
        UserError: one of them contains no image.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  Path.glob takes no absolute patterns
        names = [name for path in paths for name in _images_at(path)]
        if not names:
            reason = "no images in it" if Path(pattern).exists() else "no such file"
            raise UserError(f"images: {pattern}: {reason}; expected images, directories, shards (.tar) or globs")
        found |= dict.fromkeys(names)
    return list(found)


def _images_at(name: str) -> Iterator[str]:
    path = Path(name)
    if path.is_dir():
        yield from (str(path / file) for file in sorted(_images_below(path)))
    elif path.suffix == ".tar" and path.is_file():
        yield from (f"{name}/{member}" for member in sorted(index_tar(path).members) if is_image_name(member))
    elif path.is_file() or ".tar/" in name:
        yield name


def _images_below(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        inner = file.relative_to(folder)
        if is_image_name(file.name) and file.is_file() and not any(part.startswith(".") for part in inner.parts):
            yield inner
