"""The one cache: entries are whole or missing, also with several writers and after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clips.core import identity
from clips.core.artifact import directory_hash, write_manifest
from clips.core.cache import TensorShards, json_cache, tensor_cache
from clips.core.identity import cache_directory, content_hashes, file_hash, file_stamp
from clips.errors import UserError

KEY = "0123456789abcdef"


def test_an_entry_is_read_as_it_was_written(tmp_path: Path):
    cache = json_cache(tmp_path)
    cache.put(KEY, {"a": ["ä", 1]})
    assert cache.get(KEY) == {"a": ["ä", 1]}
    assert cache.get("fedcba") is None
    tensors = tensor_cache(tmp_path)
    tensors.put(KEY, torch.arange(12.0).view(1, 3, 2, 2).to(memory_format=torch.channels_last).bfloat16())
    torch.testing.assert_close(tensors.get(KEY), torch.arange(12.0).view(1, 3, 2, 2).bfloat16())


@pytest.mark.parametrize("broken", [b"", b'{"a', b"\xff", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_broken_entry_is_missing_and_replaced(tmp_path: Path, broken: bytes):
    for cache, value in ((json_cache(tmp_path), {"a": 1}), (tensor_cache(tmp_path), torch.ones(2))):
        cache.put(KEY, value)
        cache.path(KEY).write_bytes(broken)
        assert cache.get(KEY) is None
        cache.put(KEY, value)
        assert cache.get(KEY) is not None


def test_an_entry_with_a_flipped_bit_is_missing_wherever_it_is(tmp_path: Path):
    """A disk's error in a number would otherwise be read as another number."""
    tensors, shards = tensor_cache(tmp_path / "tensors"), tmp_path / "shards"
    caches = ((json_cache(tmp_path / "json"), {"score": 7, "text": "ja"}), (tensors, torch.arange(4.0)))
    for cache, value in caches:
        cache.put(KEY, value)
        intact = cache.path(KEY).read_bytes()
        for place in range(len(intact)):
            cache.path(KEY).write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
            found = cache.get(KEY)
            assert found is None or str(found) == str(value), place  # spaces between tokens may differ
    writer = TensorShards(shards)
    writer.add("a", torch.arange(4.0))
    writer.flush()
    (path,) = shards.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    reader = TensorShards(shards)
    assert reader.get("a") is None
    reader.add("a", torch.arange(4.0))
    reader.flush()
    found = reader.get("a")
    assert found is not None
    assert torch.equal(found, torch.arange(4.0))


def test_an_entry_that_fails_to_be_written_leaves_nothing(tmp_path: Path):
    cache = json_cache(tmp_path / "cache")
    cache.put(KEY, "before")
    with pytest.raises(TypeError):
        cache.put(KEY, {"a": object()})
    assert cache.get(KEY) == "before"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cache.path(KEY)]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="/file: is a file; expected a directory"):
        json_cache(tmp_path / "file" / "cache").put(KEY, 1)


WRITER = """
import sys
from pathlib import Path
from clips.core.cache import json_cache
cache, number = json_cache(Path(sys.argv[1])), sys.argv[2]
for turn in range(300):
    cache.put("entry", [number] * 2000)
    found = cache.get("entry")
    assert found is not None and len(found) == 2000 and len(set(found)) == 1, found
"""


def test_two_processes_write_one_entry_at_once_and_read_it_whole(tmp_path: Path):
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), number]) for number in "12"]
    assert [process.wait() for process in running] == [0, 0]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


FIRST = """
import sys
from pathlib import Path
from clips.core.cache import json_cache
cache, number = json_cache(Path(sys.argv[1])), int(sys.argv[2])
print([cache.put_first(f"{turn:04}", number) for turn in range(300)])
"""


def test_processes_that_compute_an_entry_at_once_get_the_same_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As two differ by rounding; they start together, so that either may be the first."""

    def no_links(*_: object) -> None:
        raise OSError

    command = [sys.executable, "-c", FIRST, str(tmp_path)]
    running = [subprocess.Popen([*command, number], stdout=subprocess.PIPE, text=True) for number in "12"]
    one, other = (json.loads(process.communicate()[0]) for process in running)
    assert one == other == [json_cache(tmp_path).get(f"{turn:04}") for turn in range(300)]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 300
    monkeypatch.setattr(os, "link", no_links)
    cache = json_cache(tmp_path)
    cache.path("0000").write_text("{")
    assert cache.put_first("0000", 3) == cache.get("0000") == 3


def test_the_users_cache_is_where_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory("trunks") == tmp_path / "clips" / "trunks"


def replaced(path: Path, text: str) -> None:
    """As `rsync --times` does it: another file with the name, the size and the time of the former one."""
    time = path.stat().st_mtime_ns
    path.with_name("new").write_text(text)
    os.utime(path.with_name("new"), ns=(time, time))
    path.with_name("new").replace(path)


def in_place(path: Path, text: str) -> None:
    """As `cp -p` does it."""
    time = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(time, time))


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read to be hashed, in a cache of their own."""
    names: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED_NS", 20_000_000)
    monkeypatch.setattr(identity, "file_hash", lambda path: (names.append(Path(path).name), file_hash(path))[1])
    return names


@pytest.mark.parametrize("change", [replaced, in_place])
def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, read: list[str], change: Callable[[Path, str], None]):
    folder = tmp_path / "data"
    folder.mkdir()
    files = [folder / name for name in "ab"]
    for path in files:
        path.write_text(path.name)
    first = content_hashes(files)
    assert first == {path: hashlib.sha256(path.name.encode()).hexdigest() for path in files}
    assert list(content_hashes(reversed(files))) == files[::-1]
    assert read == ["a", "b", "b", "a"]  # too young to be remembered
    time.sleep(0.05)
    content_hashes(files)
    read.clear()
    folder = folder.rename(tmp_path / "renamed")  # as a finished artifact is
    files = [folder / name for name in "ab"]
    assert [*content_hashes(files).values()] == [*first.values()]
    assert read == []
    stamp = file_stamp(files[1])
    change(files[1], "c")
    assert file_stamp(files[1])[:2] == stamp[:2]  # its size and time
    assert content_hashes(files)[files[1]] == hashlib.sha256(b"c").hexdigest()
    assert read == ["b"]
    shutil.copytree(folder, tmp_path / "copy")
    assert content_hashes([tmp_path / "copy/b"]) == {tmp_path / "copy/b": hashlib.sha256(b"c").hexdigest()}
    with pytest.raises(UserError, match="missing: cannot be read"):
        content_hashes([folder / "missing"])


def test_an_artifact_hashed_while_it_was_written_is_not_read_again(tmp_path: Path, read: list[str]):
    folder = tmp_path / "shards"
    folder.mkdir()
    path = folder / "0.tar"
    path.write_text("a")
    status = path.stat()
    known = {"size": 1, "modified_ns": status.st_mtime_ns, "hash": hashlib.sha256(b"a").hexdigest()}
    time.sleep(0.05)
    manifest = write_manifest(folder, kind="captions", config={}, known={"0.tar": known})
    renamed = folder.rename(tmp_path / "renamed")
    assert directory_hash(renamed) == manifest["hash"]
    assert read == []
    in_place(renamed / "0.tar", "b")
    assert directory_hash(renamed) != manifest["hash"]
    assert read == ["0.tar"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', '{"a": []}', '{"a": [1, 2]}'])
def test_a_damaged_memory_of_hashes_is_no_memory(tmp_path: Path, read: list[str], damage: str):
    (tmp_path / "a").write_text("a")
    time.sleep(0.05)
    content_hashes([tmp_path / "a"])
    (memory,) = (tmp_path / "cache").rglob("*.json")
    memory.write_text(damage)
    assert content_hashes([tmp_path / "a"]) == {tmp_path / "a": file_hash(tmp_path / "a")}
    content_hashes([tmp_path / "a"])
    assert read == ["a", "a"]


def test_without_a_writable_cache_files_are_hashed_each_time(tmp_path: Path, read: list[str]):
    (tmp_path / "cache").write_text("a file")
    time.sleep(0.05)
    for _ in range(2):
        assert content_hashes([tmp_path / "cache"]) == {tmp_path / "cache": file_hash(tmp_path / "cache")}
    assert read == ["cache", "cache"]


def test_tensors_are_read_as_they_were_added_by_any_process(tmp_path: Path) -> None:
    writer = TensorShards(tmp_path / "cache", shard_bytes=40)
    reader, other = TensorShards(tmp_path / "cache"), TensorShards(tmp_path / "cache")
    values = {str(number): torch.full((2, 3), number).bfloat16() for number in range(10)}  # 12 bytes each
    batch = torch.stack(list(values.values())).transpose(1, 2).contiguous().transpose(1, 2)
    for key, value in zip(values, batch, strict=True):
        writer.add(key, value)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert reader.get("9") is None  # collected by the other process
    writer.flush()
    writer.flush()
    assert len(list((tmp_path / "cache").iterdir())) == 3
    for shards in (writer, reader, TensorShards(tmp_path / "cache")):
        for key, value in values.items():
            torch.testing.assert_close(shards.get(key), value, atol=0, rtol=0)
        assert shards.get("10") is None
    for shards in (reader, other):  # the first has read the tensor, the second has not looked for it
        shards.add("3", torch.zeros(1))
        assert not shards.collected
        shards.flush()
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("read", [True, False])
def test_a_lost_shard_is_written_again(read: bool, tmp_path: Path) -> None:
    shards = TensorShards(tmp_path)
    shards.add("a", torch.ones(2))
    shards.flush()
    (path,) = tmp_path.iterdir()
    path.unlink()
    if read:
        assert shards.get("a") is None
    shards.add("a", torch.ones(2))
    shards.flush()
    assert torch.equal(shards.get("a"), torch.ones(2))  # type: ignore[arg-type]


def test_broken_shards_are_missing_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / ".a.safetensors.1.partial").write_bytes(b"")  # of a killed process
    shards = TensorShards(tmp_path)
    assert shards.get("a") is None
    shards.add("a", torch.ones(2))
    shards.flush()
    assert torch.equal(TensorShards(tmp_path).get("a"), torch.ones(2))  # type: ignore[arg-type]
    (tmp_path / "file").write_text("x")
    shards = TensorShards(tmp_path / "file")
    shards.add("a", torch.ones(2))
    with pytest.raises(UserError, match="/file: is a file; expected a directory"):
        shards.flush()
