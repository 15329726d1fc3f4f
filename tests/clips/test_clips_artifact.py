from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clips.core import durable
from clips.core.artifact import (
    atomic_artifact_dir,
    atomic_update_dir,
    check_finished,
    directory_hash,
    read_manifest,
    write_manifest,
)
from clips.core.durable import atomic_output_path, atomic_write
from clips.core.identity import Identity
from clips.core.locks import lock_output
from clips.errors import UserError


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "a" / "thing"
    with contextlib.suppress(RuntimeError), atomic_artifact_dir(target) as partial:
        (partial / "half").write_text("x")
        assert not target.exists()
        raise RuntimeError
    assert not target.exists()
    for content in ("first", "second"):
        with atomic_artifact_dir(target) as partial:
            (partial / content).write_text(content)
            write_manifest(partial, kind="scenes", config={})
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "second"]
    with pytest.raises(KeyboardInterrupt), atomic_artifact_dir(target):
        raise KeyboardInterrupt
    assert sorted(path.name for path in target.parent.rglob("*")) == ["manifest.json", "second", "thing"]


@pytest.mark.parametrize("manifest", [None, "{", '{"name": "a web app"}', '{"kind": "encoder", "hash": "x"}'])
def test_only_an_earlier_artifact_of_the_same_kind_is_replaced(tmp_path: Path, manifest: str | None):
    (tmp_path / "thesis.txt").write_text("precious")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    refused = pytest.raises(UserError, match="not empty, and not an artifact of kind 'scenes'")
    with refused, atomic_artifact_dir(tmp_path, kind="scenes"):
        pytest.fail("refused too late")
    with pytest.raises(UserError, match="not empty, and not an artifact"), atomic_artifact_dir(tmp_path) as partial:
        write_manifest(partial, kind="scenes", config={})
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.parent.glob(f".{tmp_path.name}*")] == []


@pytest.mark.parametrize("stages", [[{"steps": 9}], {"align": {"steps": 9}}])
def test_trained_weights_are_not_replaced_by_another_command(tmp_path: Path, stages: object):
    target = make(tmp_path / "encoder", weights="weeks")
    write_manifest(target, kind="encoder", config={}, stages=stages)
    refused = pytest.raises(UserError, match="encoder: holds trained weights; choose another directory or remove")
    with refused, atomic_artifact_dir(target, kind="encoder"):
        pytest.fail("refused too late")
    assert (target / "weights").read_text() == "weeks"


def test_files_have_the_permissions_of_the_umask(tmp_path: Path):
    def write(path: Path) -> None:
        save_file({"a": torch.zeros(2)}, path)

    durable.default_mode.cache_clear()  # pytest gives the directory of a test that passed to another one
    before = os.umask(mask := 0o027)
    try:
        with atomic_artifact_dir(tmp_path / "encoder") as partial:
            write(partial / "weights.safetensors")
            (partial / "below").mkdir()
            write(partial / "below/more.safetensors")
            (partial / "tool.sh").touch(mode=0o700)
            write_manifest(partial, kind="encoder", config={})
        with atomic_update_dir(tmp_path / "encoder") as partial:
            write(partial / "added.safetensors")
        with atomic_output_path(tmp_path / "features.safetensors") as file:
            write(file)
    finally:
        os.umask(before)
    found = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*") if path.is_file()}
    assert found.pop("tool.sh") == oct(0o700)
    assert len(found) == 5
    assert set(found.values()) == {oct(0o666 & ~mask)}


@pytest.mark.parametrize("path", ["", ".", "..", "/", "below/.."])
def test_the_current_directory_and_those_above_it_are_not_replaced(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected a directory to write"), atomic_artifact_dir(path):
        pass
    assert tmp_path.is_dir()


def test_an_earlier_artifact_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = make(tmp_path / "thing", old="1")
    write_manifest(target, kind="scenes", config={})
    replace = Path.replace

    def fail_in_between(path: Path, to: Path) -> Path:
        if path.name == ".thing.partial":
            raise PermissionError(13, "Permission denied")
        return replace(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail_in_between)
        with pytest.raises(UserError, match="thing: cannot write here"), atomic_artifact_dir(target):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["manifest.json", "old", "thing"]
    target.replace(tmp_path / ".thing.replaced")  # as after a kill -9 at that point
    with contextlib.suppress(RuntimeError), atomic_artifact_dir(target):
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["manifest.json", "old", "thing"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("n" * 300, r"n: cannot write here \(.+\)"),
        ("/proc/nothing", r"nothing: cannot write here \(.+\)"),
        ("file", "/file: is a file; expected a directory"),
        ("file/below/that", "/file: is a file; expected a directory"),
    ],
)
def test_an_unwritable_path_is_reported_with_the_reason(tmp_path: Path, name: str, told: str):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=told), atomic_artifact_dir(tmp_path / name):
        pass
    with pytest.raises(UserError, match=told.replace(": cannot", "/a.txt: cannot")):
        atomic_write(tmp_path / name / "a.txt", "x")
    with pytest.raises(UserError, match=told), lock_output(tmp_path / name / ".lock", tmp_path / name):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_added_files_join_what_is_there_manifest_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    atomic_write(tmp_path / "metrics.jsonl", "{}")
    with contextlib.suppress(RuntimeError), atomic_update_dir(tmp_path) as partial:
        atomic_write(partial / "weights", "w")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (moved.append(path.name), replace(path, to))[1])
    with atomic_update_dir(tmp_path) as partial:
        for name in ("manifest.json", "weights", "a"):
            atomic_write(partial / name, "w")
    assert moved[-1] == "manifest.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "manifest.json", "metrics.jsonl", "weights"]


def make(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        atomic_write(folder / name.replace("__", "/"), content)
    return folder


def test_the_hash_is_of_names_and_contents_not_of_records(tmp_path: Path):
    base = directory_hash(make(tmp_path / "a", weights="1", sub__b="2"))
    assert directory_hash(make(tmp_path / "b", weights="1", sub__b="2")) == base
    assert directory_hash(make(tmp_path / "c", weights="2", sub__b="2")) != base
    assert directory_hash(make(tmp_path / "d", weights="1", sub__c="2")) != base
    records = make(tmp_path / "a")
    for name in ("manifest.json", "README.md", "metrics.jsonl", "summary.json", "config.yaml", ".checkpoints/x"):
        atomic_write(records / name, "{}")
    assert directory_hash(records) == base
    status = (records / "weights").stat()
    atomic_write(records / "weights", "2")  # as many bytes as before, with their time, as `rsync --times` copies
    os.utime(records / "weights", ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert directory_hash(records) == directory_hash(tmp_path / "c")
    atomic_write(records / "weights", "1")
    assert directory_hash(records) == base  # contents count, not times
    atomic_write(records / "sub" / "README.md", "data, not a record")
    assert directory_hash(records) != base


def test_the_manifest_tells_what_it_is_and_where_it_comes_from(tmp_path: Path):
    parent = make(tmp_path / "parent", data="1")
    write_manifest(parent, kind="scenes", config={}, seed=1)
    child = make(tmp_path / "child", weights="1")
    written = write_manifest(child, kind="encoder", config={"a": (1, 2)}, parents={"scenes": parent}, steps=3)
    read = read_manifest(child)
    assert read == json.loads(json.dumps(written))
    assert (read["kind"], read["steps"], read["config"]) == ("encoder", 3, {"a": [1, 2]})
    assert read["parents"] == {"scenes": {"path": str(parent), "hash": directory_hash(parent)}}
    assert read["hash"] == directory_hash(child)
    assert read["versions"]["torch"][0].isdigit()


def test_a_run_is_finished_where_its_manifest_has_its_identity(tmp_path: Path):
    @dataclass(frozen=True, kw_only=True)
    class Settings:
        rate: float = 0.1

    def of(**values: object) -> Identity:
        return Identity(values={"rate": 0.1, "inputs.data": "a", "version": 1, **values}, config=Settings())

    run = of()
    output = tmp_path / "out"
    assert check_finished(output, "captions", run) is False
    work = make(output, work__run="{}") / "work"
    assert check_finished(output, "captions", run, work=work) is False
    with pytest.raises(UserError, match="out: not empty, and not an artifact of kind 'captions'"):
        check_finished(output, "captions", run)
    write_manifest(output, kind="captions", config={}, identity=run.values)
    assert check_finished(output, "captions", run) is True
    for other, named in ((of(rate=0.2), "rate is 0.1 there"), (of(version=2), "version is 1 there")):
        with pytest.raises(UserError, match=f"^output: .*out holds another run: {named}"):
            check_finished(output, "captions", other)
    with pytest.raises(UserError, match="not an artifact of kind 'llava'"):
        check_finished(output, "llava", run, work=work)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "manifest.json: missing"), ("{", "manifest.json: not valid JSON"), ("[]", "expected an object")],
)
def test_a_broken_manifest_is_named(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        atomic_write(tmp_path / "manifest.json", content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing: no such file or directory"):
        directory_hash(tmp_path / "nothing")
