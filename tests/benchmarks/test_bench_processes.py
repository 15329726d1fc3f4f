"""``clips-bench run`` by several processes, killed and started again, and twice at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bench_world as world
import bridge_world
import pytest
import yaml

from benchmarks.results.results import read_items, read_result

PICTURES = 8
VIT = {**bridge_world.VIT, "text_cfg": {**bridge_world.VIT["text_cfg"], "context_length": 77, "vocab_size": 49408}}
BENCHMARKS = ("retrieval", "pope", "gqa")
SLOWLY = """
import sys, time
from benchmarks import cli
from benchmarks.tasks import output_cache
add = output_cache.AnswerCache.add
def slowly(self, answers):
    add(self, answers)
    time.sleep(1)
output_cache.AnswerCache.add = slowly
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    bridge_world.make_encoder(folder / "encoder", VIT)
    world.write_llava(folder / "llava")
    world.write_shards(folder / "shards", PICTURES)
    world.write_hub(folder / "hub", PICTURES)
    return folder


def command(places: Path, output: Path, *benchmarks: str, processes: int = 1) -> list[str]:
    config = {
        "model_name": "row",
        "output": str(output),
        "encoder": str(places / "encoder"),
        "llava": str(places / "llava"),
        "batch_size": 2,
        "benchmarks": [
            {"name": name, "data": str(places / ("shards" if name == "retrieval" else "hub"))}
            | ({} if name == "retrieval" else {"max_new_tokens": 5})
            | ({"blind": ["blank", "shuffled"], "blind_items": 0.5} if name == "pope" else {})
            for name in benchmarks
        ],
    }
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if processes > 1 else ["-m"]
    return [sys.executable, *launcher, "benchmarks", "run", "--config", str(file)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def finish(words: list[str]) -> str:
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def undisturbed(places, tmp_path_factory) -> Path:
    """The results of one process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "one"
    finish(command(places, folder, *BENCHMARKS))
    return folder / "row"


@pytest.mark.slow
def test_two_processes_give_what_one_gives(places, undisturbed, tmp_path):
    said = finish(command(places, tmp_path / "two", *BENCHMARKS, processes=2))
    assert said.count("row retrieval: T→I R@1") == 1  # one of them speaks
    for name in BENCHMARKS:
        one, two = (read_result(folder / f"{name}.json") for folder in (undisturbed, tmp_path / "two" / "row"))
        assert (one.metrics, one.protocol, one.fingerprint) == (two.metrics, two.protocol, two.fingerprint), name
        first, second = read_items(one), read_items(two)
        assert first.drop(columns="thumbnail").equals(second.drop(columns="thumbnail")), name
        assert first.groupby("image")["thumbnail"].first().equals(second.groupby("image")["thumbnail"].first()), name
    answers = {file.name: len(file.read_text().split()) for file in (tmp_path / "two/.cache/answers").rglob("*.jsonl")}
    assert set(answers) == {"0.jsonl", "1.jsonl"}  # both had a part


@pytest.mark.slow
def test_an_error_of_the_first_process_is_reported_once_and_the_next_benchmark_runs(places, tmp_path):
    words = command(places, tmp_path / "refused", "pope", "gqa", processes=2)
    file = tmp_path / "refused.yaml"
    config = yaml.safe_load(file.read_text())
    config["benchmarks"][0]["exclude_metrics"] = ["nonsense"]
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode != 0
    assert "TypeError" not in done.stderr, done.stderr[-3000:]
    pope, gqa = (read_result(tmp_path / "refused/row" / f"{name}.json") for name in ("pope", "gqa"))
    assert "nonsense" in pope.failure_reason
    assert gqa.status == "ok"


@pytest.mark.slow
def test_a_killed_evaluation_resumes_with_the_next_question(places, undisturbed, tmp_path):
    """Killed while the LLaVA answers; what was answered is not asked again."""
    words = command(places, tmp_path / "killed", "gqa")
    slowed = [words[0], "-c", SLOWLY, *words[words.index("run") :]]
    running = subprocess.Popen(slowed, env=environment())
    kept = tmp_path / "killed/.cache/answers"
    limit = time.monotonic() + 120
    while not list(kept.rglob("*.jsonl")) and time.monotonic() < limit:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    (file,) = kept.rglob("*.jsonl")
    before = _answers(file)
    assert 0 < len(before) < PICTURES
    finish(words)
    after = _answers(file)
    assert after[: len(before)] == before
    assert len({key for key, _ in after}) == len(after) == PICTURES  # none twice
    whole, mended = (read_result(folder / "gqa.json") for folder in (undisturbed, tmp_path / "killed" / "row"))
    assert whole.metrics == mended.metrics
    assert read_items(whole).equals(read_items(mended))


def _answers(file: Path) -> list[list[str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.slow
def test_two_runs_at_the_same_time_do_the_work_once(places, tmp_path):
    words = command(places, tmp_path / "results", "gqa")
    runs = [subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sorted("done already" in each for each in said) == [False, True], said
    (file,) = (tmp_path / "results/.cache/answers").rglob("*.jsonl")
    assert len(_answers(file)) == PICTURES
    assert read_result(tmp_path / "results/row/gqa.json").status == "ok"
