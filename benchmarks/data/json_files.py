"""JSON and JSON lines, read so that a fault is told by its file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clips.errors import UserError
from clips.jsontext import parse_json


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, or not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_lines(path: Path, *, texts: Sequence[str], others: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON lines file.

    Args:
        path: the file.
        texts: keys that every object must have, with a text that is not empty.
        others: keys that every object must have.

    Raises:
        UserError: naming the line.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file, got a directory" if path.is_dir() else f"{path}: no such file")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            row = parse_object(line, f"{path} line {number}")
            check_keys(row, f"{path} line {number}", texts=texts, others=others)
            yield number, row


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``content``; UserError with ``where`` if it is none."""
    try:
        value = parse_json(content)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object")
    return value


def check_keys(row: Any, where: str, *, texts: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuse what is no object with these keys; those in ``texts`` must be texts that are not empty."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {row!r:.80}")
    for key in (*texts, *others):
        if key not in row:
            raise UserError(f"{where}: expected the key '{key}'")
        if key in texts and not (isinstance(row[key], str) and row[key]):
            raise UserError(f"{where}: {key}: expected a text, got {row[key]!r:.80}")
