"""JSON, JSON lines, YAML and plain text, read strictly: an error names the file, the line and what was expected."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from clips.errors import UserError

_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # the first two bytes of what Windows calls Unicode
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped part of a surrogate pair
_CHUNK = 1 << 24  # characters
_QUOTED_CELL = re.compile(r'"((?:[^"]|"")*)"')


def encoding_of(start: bytes) -> str:
    """The encoding of a text by its first bytes: UTF-16 if its mark says so, else UTF-8 with or without a mark."""
    return _MARKS.get(start[:2], "utf-8-sig")


def encoding_of_file(path: Path) -> str:
    """`encoding_of` a file. Raises OSError."""
    with path.open("rb") as stream:
        return encoding_of(stream.read(2))


def unquote(cell: str) -> str:
    """A cell of CSV without its quotation marks, those within it once; any other cell unchanged."""
    match = _QUOTED_CELL.fullmatch(cell)
    return match[1].replace('""', '"') if match else cell


def safe_json_loads(content: str | bytes, *, unique: bool = False) -> Any:
    """The parsed value of ``content``; with ``unique`` a key that is given twice with different values is an error.

    A lone surrogate, left by programs that truncate strings within an emoji, becomes a question mark: it cannot be
    encoded, and tokenizers reject it.

    Raises:
        ValueError: invalid JSON, not text by `encoding_of`, nested too deeply, or two values of one key.
    """
    try:
        text = content.decode(encoding_of(content)) if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_unique_keys if unique else None)
        if _SURROGATE.search(text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    for key, value in pairs if len(values) < len(pairs) else ():
        if values[key] != value:
            raise ValueError(f"the key '{key:.80}' has two values")
    return values


MAX_VALUES = 100_000
"""Maximum number of values in a YAML file, with its aliases expanded."""
_MERGE = "tag:yaml.org,2002:merge"


def check_expanded_size(node: yaml.Node, known: dict[int, int] | None = None) -> int:
    """The number of values of a node with its aliases expanded.

    Raises:
        UserError: more than ``MAX_VALUES``, which a few lines of nested aliases can produce.
    """
    known = {} if known is None else known
    if id(node) not in known:
        known[id(node)] = 1  # ends the recursion for a node that contains itself, which is rejected later
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(check_expanded_size(part, known) for part in parts)
        if known[id(node)] > MAX_VALUES:
            raise UserError(f"line {node.start_mark.line + 1}: aliases expand to more than {MAX_VALUES:,} values")
    return known[id(node)]


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader with the plain values of YAML 1.2: PyYAML has those of 1.1.

    ``1e-3`` is a number; ``no``, ``on``, ``1:30``, ``010`` and dates are strings. It rejects duplicate keys, anchors
    that contain themselves, and alias bombs (`check_expanded_size`).
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # yaml's own attribute

    def construct_document(self, node: yaml.Node) -> Any:
        """Construct nested values immediately, so that cycles are detected."""
        check_expanded_size(node)
        self.deep_construct = True
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with unique keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != _MERGE:
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if isinstance(key, list | dict) or key == "":
                    raise UserError(f"line {line}: expected a name as a key, got {key!r:.80}")
                if key in seen:
                    raise UserError(f"line {line}: the key '{key}' is given twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that a reader of YAML 1.1 or `StrictLoader` would take for another value."""


_digits = "0123456789"
for _kind, _pattern, _first in (
    ("null", "~|null|Null|NULL|", "~nN"),
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9]\d*|[1-9]\d{0,2}(_\d{3})+)|0x[0-9a-fA-F]+", f"-+{_digits}"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?", f"-+.{_digits}"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", "<<", "<"),
):
    for _resolver in (StrictLoader, _Dumper):
        _letters = [*_first, *([""] if _kind == "null" else [])]
        _resolver.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _letters)


def dump_yaml(value: Any) -> str:
    """Plain data as the YAML text that `parse_yaml` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises UserError, if possible with the line."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except RecursionError:
        raise UserError("nested too deeply") from None
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"line {line}: expected plain values ({error.problem})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"not valid YAML ({' '.join(str(error).split())[:200]})") from None


def reject_named_pipe(path: Path) -> None:
    """Raise UserError for a named pipe: opening it would wait for its other end. That of a shell's ``<(…)`` exists."""
    try:
        is_pipe = path.parent != Path("/dev/fd") and path.is_fifo()
    except OSError:  # opening it reports the reason
        return
    if is_pipe:
        raise UserError(f"{path}: expected a file, got a named pipe")


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file.

    Raises:
        UserError: it cannot be read or `parse_yaml` rejects it.
    """
    reject_named_pipe(Path(path))
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from None
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character in the name
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path!s:.250}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, or not JSON.
    """
    try:
        return safe_json_loads(_content(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_json_list(path: Path) -> Iterator[Any]:
    """The values of a JSON list, each parsed when it is reached: in constant memory.

    Raises:
        UserError: as `read_json`, after the values before the error; or the file has no list.
    """
    number = 0
    reject_named_pipe(path)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for value in _stream_list(path):
            number += 1
            yield value
        return
    values = read_json(path)  # which reports the error
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list of samples, got {type(values).__name__}")
    yield from values[number:]  # a value was larger than two chunks


def _stream_list(path: Path) -> Iterator[Any]:
    """See `read_json_list`; raises OSError, ValueError or RecursionError for what it cannot read."""
    decode = json.JSONDecoder().raw_decode
    blanks: Any = re.compile(r"[ \t\n\r]*").match
    with path.open(encoding=encoding_of_file(path), newline="") as stream:
        text = stream.read(_CHUNK)
        start = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*").match(text)
        if start is None:
            raise ValueError
        at, mark = start.end(), text[start.end() : start.end() + 1]
        has_surrogate = _SURROGATE.search(text) is not None
        if mark == "]":
            at += 1
        while mark != "]":
            value, end = None, len(text)
            with contextlib.suppress(json.JSONDecodeError):  # the value may be cut
                value, end = decode(text, blanks(text, at).end())
                end = blanks(text, end).end()
            if end == len(text):  # a number may be cut, too
                more = stream.read(_CHUNK)
                if not more or end - at > _CHUNK:
                    raise ValueError
                text, at = text[at:] + more, 0
                has_surrogate = _SURROGATE.search(text) is not None
                continue
            mark = text[end]
            if mark not in ",]":
                raise ValueError
            yield safe_json_loads(text[at:end]) if has_surrogate else value
            at = end + 1
        if (text[at:] + stream.read()).strip(" \t\n\r"):
            raise ValueError


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
    is_utf16 = encoding_of_file(path) == "utf-16"  # of which a line end is no single byte
    reader: Any = path.open(encoding="utf-16", errors="replace", newline="\n") if is_utf16 else path.open("rb")
    with reader as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                row = parse_object(line, f"{path} line {number}")
                check_keys(row, f"{path} line {number}", texts=texts, others=others)
                yield number, row


def parse_object(content: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``content``; UserError with ``where`` for anything else."""
    try:
        value = safe_json_loads(content, unique=True)
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
    """The lines of a file of UTF-8, or UTF-16 with its mark; the last one is empty if the file ends with a line break.

    Raises:
        UserError: it is missing or neither.
    """
    return text_lines(_content(path), str(path))


def text_lines(content: bytes, where: str) -> list[str]:
    """`decode_lines`; the UserError for text that is not UTF-8 begins with ``where``."""
    try:
        return decode_lines(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where} line {line}: not UTF-8 text ({error.reason} at byte {error.start}); if it is Latin-1, "
            "`iconv -f LATIN1 -t UTF-8` converts it"
        ) from None


def decode_lines(content: bytes) -> list[str]:
    """The lines of a text (`encoding_of`) with any line endings, without its mark. Raises UnicodeDecodeError."""
    return content.decode(encoding_of(content)).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _content(path: Path) -> bytes:
    reject_named_pipe(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; expected a file") from None
