"""The demo study in miniature, as it is shipped: every program real, the LLaVA trained under the deepspeed launcher."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_kills import small

from benchmarks.study.schema import resolve_study_file
from clips.errors import UserError

ROOT = Path(__file__).parents[1]
ROWS = ("untrained", "clips")


def run(output: Path, study: str = "mini") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "benchmarks.cli", "study", "run", study, "--output", str(output)]
    return subprocess.run(words, capture_output=True, text=True, timeout=900, cwd=ROOT, check=False)


def without_sizes(study: dict[str, Any]) -> dict[str, Any]:
    """A study without all in which the miniature may differ from the demo."""
    shared, rows, sizes = study["defaults"], study["encoders"], {"max_steps", "global_batch_size", "logging_steps"}
    trainings = [
        shared["encoder"],
        shared["llm"]["llm_pretrain"],
        shared["llava"]["align"],
        shared["llava"]["instruct"],
    ]
    for settings, names in [
        (study, {"name", "title", "question", "baseline"}),
        *((training, sizes) for training in trainings),
        *((data, {"num_scenes", "num_object_classes"}) for data in study["data"].values()),
    ]:
        for name in names:
            settings.pop(name, None)
    study["data"]["test"]["benchmarks"] = sorted(study["data"]["test"]["benchmarks"])
    return {**study, "encoders": {name: rows[name] for name in ROWS}}


def test_the_shipped_miniature_is_the_demo_but_for_its_sizes():
    demo, mini = (
        without_sizes(yaml.safe_load(file.read_text(encoding="utf-8")))
        for file in (ROOT / "scripts" / "studies" / "demo.yaml", Path(resolve_study_file("mini")))
    )
    assert mini == demo


def test_an_unknown_study_is_rejected_and_a_file_precedes_a_shipped_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_study_file("mini") == str(ROOT / "benchmarks" / "studies" / "mini.yaml")
    with pytest.raises(UserError, match="'mni'; did you mean 'mini'"):
        resolve_study_file("mni")
    assert resolve_study_file("no/such/mini") == "no/such/mini"  # whose reader says that it is missing
    Path("mini").write_text("", encoding="utf-8")
    assert resolve_study_file("mini") == "mini"


def test_a_study_of_one_untrained_encoder_is_run_by_the_programs_themselves(tmp_path):
    """Scenes, a training of two steps and its evaluation; the whole miniature is in the long set."""
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(small(tmp_path / "out")), encoding="utf-8")
    ended = run(tmp_path / "out", str(file))
    assert ended.returncode == 0, ended.stderr[-3000:]
    (found,) = (tmp_path / "out/results").rglob("*.json")
    assert json.loads(found.read_text(encoding="utf-8"))["status"] == "ok"
    page = (tmp_path / "out/report/index.html").read_text(encoding="utf-8")
    assert "T→I R@1" in page


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    ended = run(folder / "out")
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, ended


@pytest.mark.slow
def test_every_cell_of_the_table_is_a_number(finished):
    folder, ended = finished
    results = {path.relative_to(folder / "out" / "results"): json.loads(path.read_text(encoding="utf-8"))
               for path in (folder / "out" / "results").rglob("*.json")}  # fmt: skip
    names = ["retrieval", "pope", "mme", "gqa", "textvqa_val", "nocaps_val", "pointing"]
    written = sorted(result["benchmark"] for result in results.values())
    assert written == sorted([*names * len(ROWS), "recaption"])  # of the row that has a captioner
    assert {result["status"] for result in results.values()} == {"ok"}
    assert all(result["fingerprint"] and result["items"] for result in results.values())
    with (folder / "out" / "report" / "table.csv").open(encoding="utf-8", newline="") as file:
        assert {line["model"] for line in csv.DictReader(file)} == set(ROWS)
    assert "table.tex" in {path.name for path in (folder / "out" / "report").iterdir()}
    assert str(folder / "out" / "report" / "index.html") in ended.stdout + ended.stderr


@pytest.mark.slow
def test_every_artifact_says_where_it_comes_from(finished):
    folder, _ = finished
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "out").rglob("manifest.json")]
    assert sorted(manifest["kind"] for manifest in manifests) == sorted(
        ["scenes", "scenes", "encoder", "encoder", "llm", "llava", "llava"]
    )
    hashes = {manifest["hash"] for manifest in manifests}
    for manifest in manifests:
        assert manifest["config"]
        assert manifest["versions"]
        assert manifest["kind"] == "scenes" or {parent["hash"] for parent in manifest["parents"].values()} <= hashes
    llavas = [manifest for manifest in manifests if manifest["kind"] == "llava"]
    assert all(manifest["stages"]["instruct"]["steps"] == 20 for manifest in llavas)
    assert all(manifest["config"]["distributed"]["deepspeed"] == "zero2" for manifest in llavas)


@pytest.mark.slow
def test_a_second_run_does_nothing(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "steps").rglob("*")}
    ended = run(folder / "out")
    assert ended.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "steps").rglob("*")} == before
