"""JSON lists read value by value, and conversations converted once into a memory-mapped table."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from clips import text_files
from clips.core import durable
from clips.core.identity import cache_directory
from clips.data.formats import conversation_table
from clips.data.formats.conversation_table import ConversationTable, convert_or_read
from clips.data.formats.dataset_format import Conversation, Turn
from clips.data.lazy_images import FileImage
from clips.errors import UserError
from clips.text_files import read_json, read_json_list

HALF = r'[{"a\ud83d": "x\ud83d", "b": "\ud83d\ude00", "a\ude00": 1}, -0, 1e400, "\\ud83d", {"é": "😀"}]'
TEXTS = [
    '[{"id": 1, "id": 2, "a": [1, {"b": null}]}, "x,]", [], {}, true, 1.10, -0, 12, NaN, -Infinity, 1e400]',
    f"[{'9' * 4000}, 1]",
    *("[]", " [ \n ] \r\n", "[1]", "\ufeff[1, 2]", '[1,\r\n "é😀", 34 ]\t\n', HALF, "[[1], [[2]], 3]"),
    *(
        "",
        " ",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1,,2]",
        "[1 2]",
        "[1]]",
        "[1] x",
        "[1]\u00a0",
        "[1]\n[2]",
        "[1]\x00",
    ),
    *(
        "{}",
        '{"a": 1}',
        "null",
        '"[1]"',
        "12",
        "\ufeff\ufeff[1]",
        "['a']",
        '["a\nb"]',
        r'["\x"]',
        '[{"a": 1, }]',
        "[tru]",
    ),
    *(f"[{'9' * 5000}]", "[" * 100_000 + "]" * 100_000, "[1, " + "[" * 100_000 + "]" * 100_000 + "]"),
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 30, 1 << 24])
def test_a_streamed_list_is_what_the_parser_makes_of_the_whole_file(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    path = tmp_path / "a.json"

    def outcome(read: Any) -> str:
        try:
            found = read(path)
        except UserError as error:
            return f"error: {error}"
        return (
            repr(found)
            if isinstance(found, list)
            else f"error: {path}: expected a JSON list of samples, got " + (type(found).__name__)
        )

    contents = [text.encode() for text in TEXTS]
    contents += [b'["caf\xe9"]', b'["a"] \xf0\x9f', '["a"]'.encode("utf-16"), b'["\xed\xa0\xbd"]']
    for content in contents:
        path.write_bytes(content)
        assert outcome(lambda path: list(read_json_list(path))) == outcome(read_json), content[:80]


ROLES: tuple[Literal["system", "user", "assistant"], ...] = ("system", "user", "assistant")


def talk(count: int = 11) -> list[Conversation]:
    return [
        Conversation(
            f"row {number}",
            [FileImage(Path(), f"é{image}.png") for image in range(number % 3)],
            [Turn(role, f"{role} 😀" * number) for role in ROLES[: number % 4]],
            "a fault" if number % 5 == 4 else "",
        )
        for number in range(count)
    ]


def placed(conversations: Any, root: Path = Path(), source: str = "a.json") -> list[Conversation]:
    return [
        Conversation(
            f"{source} {one.name}", [FileImage(root, image.name) for image in one.images], one.turns, one.fault
        )
        for one in conversations
    ]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(conversation_table, "_ROWS", 4)
    path = tmp_path / "a.json"
    path.write_text("[]")
    return path


def entries() -> list[Path]:
    return sorted(cache_directory("conversations").glob("*.arrow"))


def converted(file: Path, read: Any, root: Path = Path()) -> ConversationTable:
    found = convert_or_read(file, "x", root, read)
    assert isinstance(found, ConversationTable)
    return found


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_a_table_holds_the_conversations(count: int, file: Path) -> None:
    table = converted(file, lambda *_: iter(talk(count)), Path("/photos"))
    expected = placed(talk(count), Path("/photos"))
    again: ConversationTable = pickle.loads(pickle.dumps(table))
    assert len(pickle.dumps(table)) < 1000  # its path
    for each in (table, again):
        assert (len(each), list(each), [each[index] for index in range(count)]) == (count, expected, expected)
    assert [tuple(row) for row in table.sizes()] == [
        (len(one.images), sum(len(turn.content) for turn in one.turns)) for one in expected
    ]


def test_a_content_is_converted_once(file: Path) -> None:
    made: list[str] = []

    def read(prefix: str, root: Path) -> Iterator[Conversation]:
        assert (prefix, root) == ("", Path())  # the entry serves every place
        made.append(prefix)
        yield from talk()

    convert_or_read(file, "x", Path(), read)
    other = file.with_name("b.json")
    other.write_bytes(file.read_bytes())
    assert list(convert_or_read(other, "x", Path("/r"), read)) == placed(talk(), Path("/r"), "b.json")
    assert (len(made), len(entries())) == (1, 1)
    convert_or_read(file, "y", Path(), read)
    other.write_text("[ ]")
    convert_or_read(other, "x", Path(), read)
    assert (len(made), len(entries())) == (3, 3)


def test_one_converts_and_the_others_wait(file: Path) -> None:
    made, together = [], threading.Barrier(4)

    def read(*_: Any) -> Iterator[Conversation]:
        made.append(1)
        for one in talk():
            time.sleep(0.02)
            yield one

    def opened(_: int) -> list[Conversation]:
        together.wait()
        return list(convert_or_read(file, "x", Path(), read))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(opened, range(4))) == [placed(talk())] * 4
    assert len(made) == 1


def test_a_failed_conversion_leaves_no_entry(file: Path) -> None:
    def fails(*_: Any) -> Iterator[Conversation]:
        yield from talk()
        raise UserError("line 5")

    def changes(*_: Any) -> Iterator[Conversation]:
        yield from talk()
        file.write_text(json.dumps("other"))

    with pytest.raises(UserError, match="line 5"):
        convert_or_read(file, "x", Path(), fails)
    with pytest.raises(UserError, match="another program has written it while it was read"):
        convert_or_read(file, "x", Path(), changes)
    assert not entries()


def in_memory(file: Path, conversations: list[Conversation], capsys: pytest.CaptureFixture[str], reason: str) -> None:
    table = converted(file, lambda *_: iter(conversations))
    assert list(pickle.loads(pickle.dumps(table))) == placed(conversations)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{cache_directory('conversations')}: cannot write here (")
    assert reason in line
    assert "XDG_CACHE_HOME" in line
    left = cache_directory("conversations")
    assert not left.is_dir() or {path.suffix for path in left.iterdir()} <= {".lock"}


def test_without_a_writable_cache_the_text_is_in_memory(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    in_memory(file, talk(), capsys, os.strerror(errno.ENOTDIR))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_after_a_failed_write_the_text_is_in_memory(
    number: int, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "sync_tree", fail)
    in_memory(file, talk(), capsys, os.strerror(number))


def test_beyond_the_limit_of_file_sizes_the_text_is_in_memory(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        in_memory(file, talk(200), capsys, os.strerror(errno.EFBIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_table_whose_entry_was_deleted_is_a_user_error(file: Path) -> None:
    table = pickle.loads(pickle.dumps(converted(file, lambda *_: iter(talk()))))
    (entry,) = entries()
    entry.unlink()
    with pytest.raises(UserError, match=rf"^{entry}: was deleted during the run; the same command makes it again$"):
        table[0]
