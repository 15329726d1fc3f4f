"""JSON, JSON lines and plain text, read strictly: an error names the file and the line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clips.errors import UserError
from clips.jsontext import safe_json_loads


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, or not JSON.
    """
    try:
        return safe_json_loads(_content(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_json_lines(
    path: Path, *, texts: Sequence[str] = (), others: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON lines file; empty lines are skipped.

    Args:
        path: the file.
        texts: keys that every object must have, with a nonempty string.
        others: keys that every object must have.

    Raises:
        UserError: the file is missing, or a line is not an object with these keys.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file, got a directory" if path.is_dir() else f"{path}: no such file")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                row = parse_object(line, f"{path} line {number}")
                check_keys(row, f"{path} line {number}", texts=texts, others=others)
                yield number, row


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``content``; UserError with ``where`` for anything else."""
    try:
        value = safe_json_loads(content)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object")
    return value


def check_keys(row: Any, where: str, *, texts: Sequence[str], others: Sequence[str] = ()) -> None:
    """Reject values that are not objects with these keys; the values of ``texts`` must be nonempty strings."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {row!r:.80}")
    for key in (*texts, *others):
        if key not in row:
            raise UserError(f"{where}: expected the key '{key}'")
        if key in texts and not (isinstance(row[key], str) and row[key]):
            raise UserError(f"{where}: {key}: expected a string, got {row[key]!r:.80}")


def read_text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Raises UserError if it is missing or not UTF-8."""
    return text_lines(_content(path), str(path))


def text_lines(content: bytes, where: str) -> list[str]:
    """The lines of UTF-8 text with any line endings, without a byte order mark; ``where`` names it in errors."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where} line {line}: not UTF-8 text ({error.reason} at byte {error.start}); if it is Latin-1, "
            "`iconv -f LATIN1 -t UTF-8` converts it"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
