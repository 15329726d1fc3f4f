"""Text files of data sources: JSON, JSON lines, and what else all sources check alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.data.files import expand, is_remote
from clips.errors import UserError
from clips.jsontext import parse_json
from llava_bridge.data.samples import DataConfig


def named_files(path: str) -> list[Path]:
    """The files or the directory that a ``path`` with or without ``{000..127}`` names.

    Raises:
        UserError: one of them is not there, or is not on this machine.
    """
    if is_remote(path):
        raise UserError(f"{path}: expected files of this machine; copy them here first")
    found = [Path(one) for one in expand(path)]
    for one in found:
        if not one.exists():
            raise UserError(f"{one}: no such file or directory")
    return found


def image_root(config: DataConfig, default: Path) -> Path:
    """The folder that image references start from.

    Raises:
        UserError: it is no directory.
    """
    root = default if config.images is None else Path(config.images)
    if not root.is_dir():
        raise UserError(f"data.images: {root} is not a directory")
    return root


def text(value: Any) -> str:
    """``value``, which is to be text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {json.dumps(value, default=repr)}")
    return value


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UserError."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_json_lines(path: Path) -> Iterator[Any]:
    """What each line of a file holds. Raises UserError."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield parse_json(line)
                except ValueError as error:
                    raise UserError(f"{path} line {number}: not valid JSON ({error})") from None
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None
