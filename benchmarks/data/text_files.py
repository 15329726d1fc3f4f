"""Text that counts, read strictly: one character that is taken for another makes another number."""

from __future__ import annotations

from pathlib import Path

from clips.errors import UserError


def read_text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ended by any of the three kinds of line ends; a byte order mark is left out.

    Raises:
        UserError: it is missing, or not UTF-8; the latter with line and byte.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    return text_lines(content, str(path))


def text_lines(content: bytes, where: str) -> list[str]:
    """The same of a file's content; ``where`` names the file in messages."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where} line {line}: not UTF-8 text ({error.reason} at byte {error.start}); if it is Latin-1, "
            "`iconv -f LATIN1 -t UTF-8` converts it"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
