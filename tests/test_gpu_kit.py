"""The GPU kit: its parts name scripts and arguments that exist, a cut loses no result, and packed rows are compared."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [str(ROOT / "scripts" / name) for name in ("gpu", "bench")]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts as modules, under the names by which they import each other."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if any(str(getattr(sys.modules[name], "__file__", "")).startswith(folder) for folder in FOLDERS):
            del sys.modules[name]


def test_the_small_form_has_the_same_parts():
    parts = importlib.import_module("parts")
    assert list(parts.SMALL) == list(parts.FULL)
    assert all(parts.FULL.values())


@pytest.mark.parametrize("form", ["FULL", "SMALL"])
def test_every_command_of_a_part_names_a_script_and_arguments_of_its_parser(form, monkeypatch, tmp_path):
    lines = [line for part in getattr(importlib.import_module("parts"), form).values() for line in part]
    for line in lines:
        words = shlex.split(line.format(data=tmp_path, work=tmp_path))
        if words[0] == "-m":
            tests = [word for word in words if word.startswith("tests/")]
            assert tests
            assert all((ROOT / name).exists() for name in tests)
            continue
        script = ROOT / words[0]
        assert script.is_file(), line
        monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu", "--json", str(tmp_path / "results.jsonl")])
        found = importlib.import_module(script.stem).arguments()  # ends with status 2 for an unknown argument
        assert found.json == tmp_path / "results.jsonl", line


# ---------------------------------------------------------------- the runner


def script(folder: Path, name: str, body: str) -> str:
    """A command that appends ``name`` to the results and then runs ``body``."""
    path = folder / f"{name}.py"
    write = "import json, sys, time\nfile = open(sys.argv[-1], 'a')\n"
    path.write_text(f"{write}print(json.dumps({{'script': '{name}'}}), file=file, flush=True)\n{body}\n")
    return str(path)


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs the runner with a table of commands; returns its exit status and the lines of the results."""
    runner = importlib.import_module("run")
    (kit := tmp_path / "kit").mkdir()
    (tmp_path / "content").write_text("of the kit")
    with tarfile.open(kit / "data.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "content", "content")

    def run(table: dict[str, list[str]], *more: str) -> tuple[int, list[dict[str, object]]]:
        monkeypatch.setattr(runner.parts, "FULL", table)
        folders = [f"--{name}={tmp_path / name}" for name in ("out", "kit", "work")]
        monkeypatch.setattr(sys, "argv", ["run.py", *folders, "--device", "cpu", *more])
        return runner.main(), runner.Results(tmp_path / "out" / "results.jsonl").read()

    return run


def test_a_cut_keeps_what_was_measured_and_the_next_run_continues(play, tmp_path, monkeypatch):
    first, slow = script(tmp_path, "first", ""), script(tmp_path, "slow", "time.sleep(600)")
    table = {"one": [first], "two": [slow]}
    monkeypatch.setattr(importlib.import_module("parts"), "SECONDS", 2)
    monkeypatch.setattr(importlib.import_module("run"), "LEAST_SECONDS", 0)
    status, lines = play(table)
    assert status == 1
    assert [line.get("script") or line["event"] for line in lines] == [
        "machine", "begin", "first", "end", "begin", "slow", "end",
    ]  # fmt: skip
    assert [line["status"] for line in lines if line.get("event") == "end"] == [0, "cut"]

    with (tmp_path / "out" / "results.jsonl").open("a") as file:
        file.write('{"script": "unfini')  # as a machine that is taken away leaves it
    script(tmp_path, "slow", "")
    status, lines = play(table)
    assert status == 0
    assert [line["script"] for line in lines if "script" in line] == ["first", "slow", "slow"]
    assert [line["status"] for line in lines if line.get("event") == "end"] == [0, "cut", 0]
    assert (tmp_path / "work" / "data" / "content").read_text() == "of the kit"


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_cut_ends_what_the_command_has_started_in_other_groups(play, tmp_path, monkeypatch):
    start = "child = subprocess.Popen(['sleep', '600'], start_new_session=True)"
    body = f"import subprocess\n{start}\nprint(json.dumps({{'child': child.pid}}), file=file, flush=True)\nchild.wait()"
    slow = script(tmp_path, "slow", body)
    monkeypatch.setattr(importlib.import_module("parts"), "SECONDS", 2)
    monkeypatch.setattr(importlib.import_module("run"), "LEAST_SECONDS", 0)
    _, lines = play({"one": [slow]})
    (child,) = (line["child"] for line in lines if "child" in line)
    deadline = time.monotonic() + 30  # a killed process ends when the kernel next schedules it
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def test_nothing_starts_shortly_before_the_end_and_leftovers_of_a_cut_are_removed(play, tmp_path):
    (leftover := tmp_path / "work" / "data.part").mkdir(parents=True)
    (leftover / "half").touch()
    status, lines = play({"one": [script(tmp_path, "one", "")]}, "--seconds", "20")
    assert status == 1
    assert [line["event"] for line in lines] == ["machine"]
    assert [path.name for path in (tmp_path / "work" / "data").iterdir()] == ["content"]


def test_a_failure_does_not_stop_the_other_parts_and_is_reported(play, tmp_path, capfd):
    bad, good = script(tmp_path, "bad", "sys.exit('no memory')"), script(tmp_path, "good", "")
    status, lines = play({"one": [bad], "two": [good]})
    assert status == 1
    assert [line["status"] for line in lines if line.get("event") == "end"] == [1, 0]
    assert f"1 commands did not end well\n  {bad}" in capfd.readouterr().out
    assert "no memory" in (tmp_path / "out" / "log.txt").read_text()
    assert play({"one": [bad], "two": [good]}, "--part", "two")[0] == 0


def test_packages_of_the_machine_stay_first(tmp_path):
    wheels = [tmp_path / f"{name}-0.1-py3-none-any.whl" for name in ("torch", "huggingface_hub", "not_there")]
    for wheel in wheels:
        wheel.touch()
    assert importlib.import_module("run").missing_wheels(tmp_path) == [str(wheels[-1])]


# ---------------------------------------------------------------- what is packed and measured


def test_the_data_of_the_kit_are_whole_photos_with_their_captions(shared, tmp_path, monkeypatch):
    out = tmp_path / "data.tar.gz"
    monkeypatch.setattr(sys, "argv", ["kit_data.py", "--shared", str(shared), "--photos", "12", "--out", str(out)])
    importlib.import_module("kit_data").main()
    with tarfile.open(out) as archive:
        archive.extractall(tmp_path, filter="data")
    rows = json.loads((tmp_path / "data/flickr8k/dataset_flickr8k.json").read_text())["images"]
    assert [row["split"] for row in rows] == ["train"] * 10 + ["val"] * 2
    for row in rows:
        name = f"data/flickr8k/images/{row['filename']}"
        assert (tmp_path / name).read_bytes() == (shared / name).read_bytes()
    for row in map(json.loads, (tmp_path / "data/cocoqa/questions.jsonl").read_text().splitlines()):
        assert (tmp_path / "data/cocoqa/images" / row["image"]).is_file()
    assert not list(tmp_path.glob("models/stories15M/*.safetensors"))


def test_a_measurement_is_a_line_with_its_arguments(tmp_path, monkeypatch):
    measure: ModuleType = importlib.import_module("measure")
    monkeypatch.setattr(sys, "argv", ["some/script.py", "--rounds", "3", "--json", str(tmp_path / "a.jsonl")])
    args = measure.common_parser("").parse_args()
    measure.record(args, seconds=measure.spread([1.0, 2.0, 4.0]))
    measure.record(args, recipe="clip")
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert first["script"] == "script.py"
    assert first["arguments"]["rounds"] == 3
    assert first["seconds"] == dataclasses.asdict(measure.Spread(1.5, 2.0, 3.0))
    assert second["recipe"] == "clip"


def test_products_with_another_dtype_are_counted_as_plain_ones():
    measure = importlib.import_module("measure")
    bias, one, other = torch.ones(7), torch.ones(5, 3), torch.ones(3, 7)
    assert measure.flops(lambda: torch.addmm(bias, one, other)) == 2 * 5 * 3 * 7
    assert measure.addmm_flops((7,), (5, 3), (3, 7), torch.float32, out_shape=(5, 7)) == 2 * 5 * 3 * 7


def test_losses_that_differ_are_reported():
    packed = importlib.import_module("packed_step")
    assert packed.disagreements({"sdpa": 1.0}) == packed.disagreements({"sdpa": 1.0, "varlen": 1.009}) == []
    assert len(packed.disagreements({"sdpa": 1.0, "varlen": 1.02})) == 1
    assert len(packed.disagreements({"sdpa": 1.0, "varlen": float("nan")})) == 1
    hidden, weight, labels = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 4])
    loss, *gradients = packed.loss_and_gradients(packed.linear_cross_entropy, hidden, weight, labels)
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.t(), labels, reduction="sum"))
    assert [each.shape for each in gradients] == [hidden.shape, weight.shape]


def test_idle_is_the_time_without_any_kernel():
    profiler = importlib.import_module("profile_step")
    spans = [(0, 10, "a"), (5, 20, "b"), (8, 12, "a"), (50, 60, "b"), (65, 100, "c")]  # the third lies in the second
    found = profiler.summary([profiler.Kernel(*span) for span in spans], steps=1, top=2)
    assert found["ms"] == pytest.approx(0.1)
    assert found["idle"] == pytest.approx(0.35)
    assert found["gaps"][0] == {"after": "b", "before": "b", "us": 30}
    assert found["long_gaps"] == 1
    assert [(each["name"], each["ms"], each["calls"]) for each in found["top"]] == [("c", 0.035, 1), ("b", 0.025, 2)]
