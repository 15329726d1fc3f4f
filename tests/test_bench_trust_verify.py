"""The checks of ``clips-bench verify`` pass, and each of them fails where what it checks is broken."""

from __future__ import annotations

import dataclasses

import bench_world as world
import numpy as np
import pytest
from report_material import items_table

from benchmarks.analysis import checks
from benchmarks.analysis.checks import VerifyConfig
from benchmarks.analysis.verify import run_check, run_verify
from benchmarks.results import statistics
from benchmarks.results.reference_results import select_reference_results
from benchmarks.results.results import Result, write_result
from benchmarks.tasks.encoders.recall import RetrievalRanks
from benchmarks.tasks.evaluation import MetricSpec, compute_metric
from benchmarks.tasks.mllm import task_metrics

pytestmark = world.LMMS_EVAL_WARNS

ALONE = ("recall", "ties", "pope", "mme", "vqa", "exact_match", "captions", "tests", "averages", "recalls")


@pytest.mark.parametrize("name", ALONE)
def test_checks_without_requirements_pass(name):
    finding = run_check(name, VerifyConfig())
    assert (finding.status, bool(finding.detail)) == ("ok", True), finding


def test_checks_without_their_data_are_skipped(capsys):
    run_verify(VerifyConfig(include=("lmms_eval", "rerun", "tests")))
    said = " ".join(capsys.readouterr().out.split())
    assert "needs --llava DIR and --data DIR" in said
    assert said.endswith("1 ok, 2 skipped")


def wrong(*_args, **_more):
    return np.array([0.123])


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "broken"),
    [
        ("recall", RetrievalRanks, "hit", lambda self, k: (self.above < k + 1).astype(float)),  # one place too generous
        ("ties", RetrievalRanks, "hit", lambda self, k: (self.above < k).astype(float)),  # ties count for the model
        ("mme", statistics, "AGGREGATIONS", dict.fromkeys(statistics.AGGREGATIONS, wrong)),
        ("captions", statistics, "AGGREGATIONS", dict.fromkeys(statistics.AGGREGATIONS, wrong)),
        ("tests", checks, "holm_correction", lambda values: values),
        ("tests", checks, "wilson_interval", lambda successes, n: (successes / n, successes / n)),
    ],
)
def test_a_broken_harness_is_found(name, owner, attribute, broken, monkeypatch, capsys):
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises(SystemExit) as stop:
        run_verify(VerifyConfig(include=(name,)))
    assert stop.value.code == 1
    assert "1 failed" in capsys.readouterr().out


def test_a_scorer_that_accepts_all_answers_is_found(monkeypatch):
    monkeypatch.setitem(
        task_metrics.TASK_METRICS, "pope", dataclasses.replace(task_metrics.TASK_METRICS["pope"], columns=_all_right)
    )
    finding = run_check("pope", VerifyConfig())
    assert (finding.status, finding.detail) == ("failed", "pope_accuracy from the items: expected 0.6, found 1")


@pytest.mark.parametrize("name", ["averages", "recalls"])
def test_a_mistake_in_a_published_table_is_found(name, monkeypatch):
    (row,) = select_reference_results(["openclip:ViT-B-32/openai"])
    slip = dataclasses.replace(row, values={**row.values, "coco/i2t_r1": 90.01})
    monkeypatch.setattr(checks, "load_reference_results", lambda: (slip,))
    assert run_check(name, VerifyConfig()).status == "failed"


def _all_right(samples, _scores):
    return {name: np.ones(len(samples)) for name in ("correct", "said_yes", "is_yes", "hit_yes")}


def write_rerun(folder, share: float, benchmark: str = "coco_karpathy"):
    items = items_table(0.5, benchmark="retrieval", count=400)
    items["hit"] = (np.arange(400) < round(share * 400)).astype(float)
    spec = MetricSpec(label="T→I R@1", columns=("hit",))
    found = {"t2i_r1": compute_metric(items, spec)}
    result = Result(
        model_name="vit", benchmark=benchmark, benchmark_type="retrieval", status="ok", model={}, metrics=found
    )
    write_result(folder, result, items)
    return str(folder / "vit")


def test_a_rerun_is_within_its_interval_or_fails(tmp_path):
    (row,) = select_reference_results(["openclip:ViT-B-32/openai"])
    printed = row.values["coco/t2i_r1"] / 100
    published = "ViT-B-32/openai"
    near = run_check(
        "rerun", VerifyConfig(results=write_rerun(tmp_path / "a", printed + 0.01), reference_model=published)
    )
    assert near.status == "ok"
    assert f"printed {100 * printed:.1f}" in near.detail
    far = run_check(
        "rerun", VerifyConfig(results=write_rerun(tmp_path / "b", printed + 0.3), reference_model=published)
    )
    assert (far.status, far.detail[:16]) == ("failed", "1 of 1 outside: ")
    other = run_check(
        "rerun", VerifyConfig(results=write_rerun(tmp_path / "c", printed, "dogs"), reference_model=published)
    )
    assert other.status == "skipped"


@pytest.mark.slow
def test_lmms_eval_compared_with_the_harness(tmp_path):
    world.write_hub(tmp_path / "hub", 3)
    world.write_llava(tmp_path / "llava")
    config = VerifyConfig(llava=str(tmp_path / "llava"), data=str(tmp_path / "hub"), tasks=("pope", "gqa"), limit=4)
    finding = run_check("lmms_eval", config)
    assert finding.status == "ok", finding
    pope, gqa = finding.detail.split("; ")
    assert pope.startswith("pope: 4 answers equal, and so pope_f1_score, pope_accuracy, ")
    assert gqa == "gqa: 3 answers equal, and so exact_match"
