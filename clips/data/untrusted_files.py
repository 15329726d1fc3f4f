"""Files named by untrusted data: below an allowed directory, or at an allowed URL.

A user's config may name any fsspec URL or a command; a table from the web may not.
"""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

MAX_BYTES = 64 * 2**20
"""Maximum size of a downloaded file; photos of 100 megapixels have about 40 MB."""
TIMEOUT_SECONDS = 60
"""Maximum duration of a download."""
_STORES = ("s3", "gs", "gcs", "hf")  # object stores: the user's own credentials decide about access


class ForbiddenReferenceError(Exception):
    """Data name a file that is not allowed; the message is one of a few short reasons.

    Args:
        reason: the message.
        setting: the setting of a training data source that would allow it; None if there is none.
    """

    def __init__(self, reason: str, setting: str | None = None) -> None:
        super().__init__(reason)
        self.setting = setting


def read_untrusted(name: str, directories: list[Path]) -> bytes:
    """The content of a file named by data.

    Args:
        name: a path (relative to the first directory), a ``file://`` URL, or one of http, https, s3, gs, hf.
        directories: allowed directories of paths; symlinks in them are followed.

    Raises:
        ForbiddenReferenceError: a path outside, a command, another URL scheme, or too large a file.
        OSError: the file does not exist, or cannot be reached.
        ValueError: not a path.
    """
    scheme, mark, rest = name.partition("://")
    if name.startswith("pipe:"):
        raise ForbiddenReferenceError("a command where an image is expected")
    if not mark:
        return _resolve_path(name, directories).read_bytes()
    if scheme == "file":
        return _resolve_path(urllib.request.url2pathname(urllib.parse.urlsplit(name).path), directories).read_bytes()
    if scheme in {"http", "https"}:
        return _download(name)
    if scheme in _STORES and "::" not in rest:  # which would be a chain of file systems
        import fsspec

        with fsspec.open(name) as file:
            return _read_limited(file.read)
    raise ForbiddenReferenceError("a URL with a scheme other than http, https, s3, gs, hf or file")


def _resolve_path(name: str, directories: list[Path]) -> Path:
    """The path of ``name``, resolved lexically, so that symlinks inside a directory stay usable."""
    path = Path(os.path.normpath(name))  # pathlib does not remove ".."
    if not path.is_absolute():
        if path.parts[:1] != (os.pardir,):
            return directories[0] / path
    elif any(path.is_relative_to(root) for directory in directories for root in _absolute_names(directory)):
        return path
    raise ForbiddenReferenceError("a path outside the directory of images", "image_root")


def _absolute_names(directory: Path) -> tuple[str, str]:
    """Both names of a directory that may be behind a symlink."""
    return os.path.abspath(directory), os.path.realpath(directory)  # noqa: PTH100  which removes ".."


def _download(url: str) -> bytes:
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    system = HTTPFileSystem(client_kwargs={"timeout": aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)})
    try:
        with system.open(url, "rb", block_size=0) as file:
            return _read_limited(file.read)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(str(error)) from None


def _read_limited(read: Callable[[int], bytes]) -> bytes:
    content = bytearray()
    while len(content) <= MAX_BYTES and (piece := read(2**20)):
        content += piece
    if len(content) > MAX_BYTES:
        raise ForbiddenReferenceError(f"a file of more than {MAX_BYTES // 2**20} MB")
    return bytes(content)
