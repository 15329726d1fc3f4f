"""Files that data name, which is to say strangers: below a folder, or at an address that may be fetched.

What the user writes in a config may be any address that fsspec reads, or a command; a table from the web may not be.
"""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
"""Of a file that is fetched; photos of 100 megapixels have about 40 MB."""
TIMEOUT_SECONDS = 60
"""Seconds that fetching one may take."""
_STORES = ("s3", "gs", "gcs", "hf")  # object stores: whose objects is what the user's own credentials say


class ForbiddenReferenceError(Exception):
    """Data name something that is none of theirs; the message is a short reason, the same for all of a kind.

    Args:
        reason: why.
        setting: of a training data source, the one that would allow it; None where none does.
    """

    def __init__(self, reason: str, setting: str | None = None) -> None:
        super().__init__(reason)
        self.setting = setting


def read_untrusted(name: str, folders: list[Path], *, allow_private_network: bool = False) -> bytes:
    """The content of what data name.

    Args:
        name: a path (relative to the first folder), a ``file://`` address, or one of http, https, s3, gs, hf.
        folders: below one of them a path must lie; symbolic links that the user put there are followed.
        allow_private_network: whether an address may lead to this machine or a private network.

    Raises:
        NotAllowedError: a path outside, a command, an address of another kind or of the own network; too large.
        OSError: it is not there, or cannot be reached.
        ValueError: it is no path.
    """
    scheme, mark, rest = name.partition("://")
    if name.startswith("pipe:"):
        raise ForbiddenReferenceError("a command where a picture is expected")
    if not mark:
        return _inside(name, folders).read_bytes()
    if scheme == "file":
        return _inside(urllib.request.url2pathname(urllib.parse.urlsplit(name).path), folders).read_bytes()
    if scheme in {"http", "https"}:
        return _fetched(name, allow_private_network=allow_private_network)
    if scheme in _STORES and "::" not in rest:  # which would be a chain of file systems
        import fsspec

        with fsspec.open(name) as file:
            return _at_most(file.read)
    raise ForbiddenReferenceError("an address of another kind than http, https, s3, gs, hf or file")


def _inside(name: str, folders: list[Path]) -> Path:
    """The path ``name`` stands for; by its letters alone, so that links inside a folder stay usable.

    The folder itself may be behind a link; then it is known by both of its names.
    """
    wanted = os.path.normpath(name)  # pathlib does not take ".." away
    if not Path(wanted).is_absolute():
        if Path(wanted).parts[:1] != (os.pardir,):
            return folders[0] / wanted
    elif any(Path(wanted).is_relative_to(root) for folder in folders for root in _names_of(folder)):
        return Path(wanted)
    raise ForbiddenReferenceError("a path outside the folder of pictures", "image_root")


def _names_of(folder: Path) -> Iterator[str]:
    yield os.path.abspath(folder)  # noqa: PTH100  which takes ".." away
    yield os.path.realpath(folder)


def _fetched(address: str, *, allow_private_network: bool) -> bytes:
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    system = HTTPFileSystem(
        client_kwargs={"timeout": timeout}, get_client=_any_client if allow_private_network else _client
    )
    try:
        with system.open(address, "rb", block_size=0) as file:
            return _at_most(file.read)
    except (OSError, aiohttp.ClientError, TimeoutError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, _OwnNetworkError):
            cause = cause.__cause__ or cause.__context__
        raise (
            OSError(str(error)) if cause is None else ForbiddenReferenceError(str(cause), "allow_private_network")
        ) from None


def _at_most(read: Callable[[int], bytes]) -> bytes:
    content = bytearray()
    while len(content) <= MAX_BYTES and (piece := read(2**20)):
        content += piece
    if len(content) > MAX_BYTES:
        raise ForbiddenReferenceError(f"a file of more than {MAX_BYTES // 2**20} MB")
    return bytes(content)


class _OwnNetworkError(OSError):
    pass


def _outside_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for one address; whatever name or redirection led there, and whenever the name was resolved."""
    family, kind, protocol, _, where = info
    if not ip_address(where[0].partition("%")[0]).is_global:
        raise _OwnNetworkError("an address of this machine or a private network")
    return socket.socket(family, kind, protocol)


async def _client(**options: Any) -> Any:
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_outside_socket), **options)


async def _any_client(**options: Any) -> Any:
    import aiohttp

    return aiohttp.ClientSession(**options)
