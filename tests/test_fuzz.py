"""A little of what ``scripts/fuzz.py`` does much of, the same each time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import fuzzing
import pytest
from fuzz_world import World, check_end, parsing, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_any_input_is_handled(name: str, world: World) -> None:
    target = fuzzing.TARGETS[name]
    own = settings(max_examples=target.quick, deadline=None, derandomize=True, database=None)

    @settings(own, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.check(world, data)

    check()


@pytest.mark.parametrize(
    ("program", "text", "told"),
    [
        ("clips", "model: [1]", "model: expected a mapping of architecture"),
        ("clips", "model: 5", "model: expected a mapping of architecture"),
        ("clips", "'': 1", "expected a name as a key"),
        ("clips", "'a b': {c: 1}", "unknown key 'a b'"),
        ("clips", '"\\e[31m": 1', "unknown key '"),
        ("clips", '"run_name": "\\uD800"', "run_name: expected text that is valid Unicode"),
        ("clips", 'model: {architecture: "a\\uD800"}', "model.architecture: expected text that is valid Unicode"),
        ("llava-bridge", "align: {global_batch_size: null, data: [{path: a}]}", "align.global_batch_size: expected an"),
    ],
)
def test_configs_that_broke_a_command_once(program: str, text: str, told: str, tmp_path: Path) -> None:
    whole = {
        "clips": "output: a\nmax_steps: 1\ndata: {sources: [{path: a}]}\n",
        "llava-bridge": "output: a\nencoder: a\nllm: b\nstages: [align]\n",
    }
    path = tmp_path / "config.yaml"
    path.write_text(whole[program] + text + "\n")
    ended = run(program, ["train", "--config", str(path)], parsing(program))
    assert ended.status == 2
    check_end(ended, program, told, alone=True)


def test_a_task_of_a_study_that_is_no_name(tmp_path: Path) -> None:
    study = {"name": "s", "encoders": {"a": "open_clip:ViT-B-32"}, "benchmarks": {"b": {"task": ["c"], "data": "d"}}}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(study))
    ended = run("clips-bench", ["study", "plan", str(path), "--check", "false"])
    assert ended.status == 2
    check_end(ended, "clips-bench", "task", alone=True)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_a_config_that_no_file_could_be(name: str) -> None:
    ended = run("clips", ["train", "--config", name])
    assert ended.status == 2
    check_end(ended, "clips", "--config", alone=True)


def test_a_result_whose_model_has_no_path_is_explained(world: World) -> None:
    place = world.fresh() / "results"
    shutil.copytree(world.results, place)
    paths = [place / row / "pope.json" for row in ("clip", "clips")]
    for path, model in zip(paths, ({"hash": "a"}, {"hash": "a", "path": "b"}), strict=True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": model}))
    ended = run("clips-bench", ["compare", *map(str, paths)])
    assert ended.status == 0
    assert "the model is the same (a, once as None, once as b)" in " ".join(ended.out.split())


@pytest.mark.slow
def test_the_long_run_counts_failures_and_continues(tmp_path: Path) -> None:
    script = fuzzing.ROOT / "scripts" / "fuzz.py"
    report = tmp_path / "report.json"
    words = [sys.executable, str(script), "--inputs", "40", "--only", "pictures,captions", "--report", str(report)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["inputs"] >= 40
    assert set(found["by_target"]) == {"pictures", "captions"}
    assert done.stderr.startswith("40 inputs, made from small files")  # within seconds, before the first input
