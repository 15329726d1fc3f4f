"""The checks of ``clips-bench verify`` pass, and each of them fails where what it checks is broken."""

from __future__ import annotations

import bench_world as world
import numpy as np
import pytest
from report_material import items_table

from benchmarks.analysis.verify import VerifyConfig, run_check, run_verify
from benchmarks.results.reference_results import select_reference_results
from benchmarks.results.results import Result, write_result
from benchmarks.tasks.encoders.recall import RetrievalRanks
from benchmarks.tasks.evaluation import MetricSpec, compute_metric

pytestmark = world.LMMS_EVAL_WARNS


def test_checks_without_their_data_are_skipped(capsys):
    run_verify(VerifyConfig(include=("lmms_eval", "rerun")))
    printed = " ".join(capsys.readouterr().out.split())
    assert "needs --llava DIR and --data DIR" in printed
    assert printed.endswith("2 skipped")


def test_recalls_other_than_clip_benchmarks_are_found(monkeypatch, capsys):
    pytest.importorskip("clip_benchmark", reason="needs clip_benchmark")
    assert run_check("clip_benchmark", VerifyConfig()).status == "ok"
    one_place_too_generous = lambda self, k: (self.above < k + 1).astype(float)  # noqa: E731
    monkeypatch.setattr(RetrievalRanks, "hit", one_place_too_generous)
    with pytest.raises(SystemExit) as stop:
        run_verify(VerifyConfig(include=("clip_benchmark",)))
    assert stop.value.code == 1
    assert "1 failed" in capsys.readouterr().out


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
