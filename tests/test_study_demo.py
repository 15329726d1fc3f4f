"""The demo study in miniature: every program real, the LLaVA and its LLM trained under the deepspeed launcher."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ROWS = ("untrained", "clips")


def miniature(output: Path) -> dict[str, Any]:
    """The demo with all its parts and columns, two of its rows, and next to no data and steps."""
    study = yaml.safe_load((ROOT / "scripts" / "studies" / "demo.yaml").read_text(encoding="utf-8"))
    study["output"] = str(output)
    study["encoders"] = {name: study["encoders"][name] for name in ROWS}
    study["baseline"] = "untrained"
    study["data"]["train"] |= {"size": 96, "kinds": 8}
    study["data"]["test"] |= {
        "size": 24,
        "kinds": 8,
        "benchmarks": dict.fromkeys(study["data"]["test"]["benchmarks"], 6),
    }
    shared = study["defaults"]
    shared["encoder"] |= {"steps": 2, "batch_size": 32, "log_every": 1}
    shared["llm"]["pretrain"] |= {"steps": 20, "batch_size": 8}
    for stage, steps in (("align", 2), ("instruct", 20)):  # enough to answer something
        shared["llava"][stage] |= {"steps": steps, "batch_size": 8}
    return study


def run(study: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "benchmarks.cli", "study", "run", str(study)]
    return subprocess.run(words, capture_output=True, text=True, timeout=900, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "study.yaml").write_text(yaml.safe_dump(miniature(folder / "out"), sort_keys=False), encoding="utf-8")
    ended = run(folder / "study.yaml")
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, ended


def test_every_cell_of_the_table_is_a_number(finished):
    folder, ended = finished
    results = {path.relative_to(folder / "out" / "results"): json.loads(path.read_text(encoding="utf-8"))
               for path in (folder / "out" / "results").rglob("*.json")}  # fmt: skip
    names = {"retrieval", "pope", "mme", "gqa", "textvqa_val", "nocaps_val"}
    assert {result["benchmark"] for result in results.values()} == names
    assert len(results) == len(names) * len(ROWS)
    assert {result["status"] for result in results.values()} == {"ok"}
    assert all(result["fingerprint"] and result["items"] for result in results.values())
    with (folder / "out" / "report" / "table.csv").open(encoding="utf-8", newline="") as file:
        assert {line["row"] for line in csv.DictReader(file)} == set(ROWS)
    assert "table.tex" in {path.name for path in (folder / "out" / "report").iterdir()}
    assert str(folder / "out" / "report" / "index.html") in ended.stdout + ended.stderr


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
    assert all(manifest["config"]["launch"]["deepspeed"] == "zero2" for manifest in llavas)


def test_a_second_run_does_nothing(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "steps").rglob("*")}
    ended = run(folder / "study.yaml")
    assert ended.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "steps").rglob("*")} == before
