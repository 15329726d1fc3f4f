"""``clips-bench compare``: two sides as one report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from report_material import edit, items_table, put_result, put_results
from report_study import make_study

from benchmarks.analysis.compare_command import CompareConfig, build_comparison, compare
from benchmarks.report.report import build_report
from benchmarks.results.results import read_result
from clips.errors import UserError


def report_of(first: Path, second: Path, **more: object):  # type: ignore[no-untyped-def]
    return build_comparison(CompareConfig(first=str(first), second=str(second), **more))


def cells_of(report):  # type: ignore[no-untyped-def]
    return {
        (cell.row, column.benchmark, column.metric): cell
        for column in report.table.columns
        for cell in report.table.cells(column)
    }


def test_better_worse_and_the_same_model(tmp_path):
    put_results(tmp_path)
    cells = cells_of(report_of(tmp_path / "untrained", tmp_path / "clips"))
    assert {cell.delta.verdict for (row, *_), cell in cells.items() if row[0] == "A" and cell.column.ranked} == {
        "worse"
    }
    delta = cells["A untrained", "gqa", "exact_match"].delta
    mine, other = (read_result(tmp_path / name / "gqa.json").metrics["exact_match"] for name in ("untrained", "clips"))
    assert delta.value == pytest.approx(100 * (mine.value - other.value))
    assert delta.ci_low < delta.value < delta.ci_high < 0
    assert 0 < delta.min_detectable < -delta.value
    assert not any(cell.delta for cell in cells_of(report_of(tmp_path / "clips", tmp_path / "clips")).values())
    shutil.copytree(tmp_path / "clips", tmp_path / "twin")
    for path in (tmp_path / "twin").glob("*.json"):
        edit(path, model={"path": "", "hash": "f" * 64}, model_name="twin")
    twins = cells_of(report_of(tmp_path / "clips", tmp_path / "twin"))
    assert {cell.delta.verdict for cell in twins.values() if cell.delta} == {"not significant"}
    for path in tmp_path.glob("*/gqa.json"):
        path.write_text(path.read_text().replace('"higher_is_better": true', '"higher_is_better": false'))
    cells = cells_of(report_of(tmp_path / "untrained", tmp_path / "clips"))
    assert cells["A untrained", "gqa", "exact_match"].delta.verdict == "better"


def test_the_numbers_are_those_of_a_report_with_a_baseline(tmp_path):
    put_results(tmp_path, {"one": 0.3, "two": 0.6})
    ours = cells_of(report_of(tmp_path / "one", tmp_path / "two"))
    theirs = cells_of(build_report(tmp_path, baseline="two"))
    for (row, *column), cell in theirs.items():
        if cell.delta:
            found = ours[f"A {row}", *column].delta
            assert (found.value, found.ci_low, found.p_value) == (
                cell.delta.value,
                cell.delta.ci_low,
                cell.delta.p_value,
            )


def test_different_protocols_and_items_are_not_tested(tmp_path):
    put_results(tmp_path)
    put_result(tmp_path, "other", "gqa", items_table(0.6, benchmark="gqa"), protocol={"prompt": "Say it."})
    put_result(tmp_path, "other", "pope", items_table(0.6, benchmark="pope", count=60), protocol={"items": 120})
    report = report_of(tmp_path / "clip", tmp_path / "other")
    cells = cells_of(report)
    assert cells["A clip", "gqa", "exact_match"].delta is None
    assert cells["A clip", "pope", "accuracy"].delta is None
    assert any("was measured under different settings" in note and "prompt" in note for note in report.texts)
    moved = items_table(0.6, benchmark="pope")  # of the same names, about other images
    put_result(tmp_path, "moved", "pope", moved.assign(image=[f"other {name}" for name in moved["image"]]))
    assert not cells_of(report_of(tmp_path / "clip", tmp_path / "moved"))["A clip", "pope", "accuracy"].delta


def test_directories_of_rows_are_compared_row_by_row(tmp_path, capsys):
    for folder, skill in (("before", 0.3), ("after", 0.6)):
        put_results(tmp_path / folder, {"one": skill, "two": 0.45})
    put_results(tmp_path / "after", {"three": 0.5})
    config = {"first": str(tmp_path / "before"), "second": str(tmp_path / "after"), "benchmarks": ("gqa",)}
    compare(CompareConfig(**config, output=str(tmp_path / "found.csv")))
    assert "one gqa exact match" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "found.csv").set_index("model")
    assert list(table.index) == ["A one", "B one", "A two", "B two", "B three"]
    assert table.loc["A one", "baseline"] == "B one"
    assert table.loc["A one", "delta"] == table.loc["A one", "value"] - table.loc["B one", "value"] < -20
    assert table["delta"].notna().tolist() == [True, False, False, False, False]  # two is the same model
    with pytest.raises(UserError, match=r"output: .* \.html, \.md, \.csv, \.tex, got 'x\.t"):
        CompareConfig(first="a", second="b", output="x.txt")


def test_a_moved_result_and_one_of_other_data_in_two_runs_of_a_study(tmp_path, monkeypatch):
    first = make_study(tmp_path, monkeypatch)
    second = tmp_path / "later"
    shutil.copytree(first, second)
    results = second / "results"
    put_result(results, "clips-tiny-s0", "pope", items_table(0.1, benchmark="pope"))
    edit(results / "clips-tiny-s0/pope.json", model={"path": "x", "hash": "f" * 64})
    put_result(results, "clips-tiny-s0", "gqa", items_table(0.7, benchmark="gqa"), protocol={"data_hash": "other data"})
    report = report_of(first, second)
    verdicts = {key: cell.delta.verdict for key, cell in cells_of(report).items() if cell.delta}
    assert verdicts == {("A clips", "pope", "accuracy"): "better"}
    assert report.answer.startswith("A clips beats B clips by ")
    told = next(note for note in report.texts if "was measured under different settings" in note)
    assert told.startswith("† B clips on gqa exact match")
    assert told.endswith('(its settings against theirs: data hash: "other data" against "abc").')
    text = json.loads((second / "study.json").read_text(encoding="utf-8"))["text"]
    edit(second / "study.json", text=text.replace("name: small", "name: smaller"))
    assert "The study files differ: A `name: small`, B `name: smaller`." in report_of(first, second).texts
    shutil.rmtree(results)
    with pytest.raises(UserError, match=r"^second: .*later: no result there is valid and up to date"):
        report_of(first, second)


def test_a_models_directory_has_no_results(bridge_encoder, bridge_llava, tmp_path):
    for kind, model in (("encoder", bridge_encoder), ("llava", bridge_llava)):
        with pytest.raises(UserError, match=rf"^first: .* got a model; `clips-bench run {kind} {model}`"):
            report_of(model, tmp_path)


def test_two_runs_of_a_study_and_a_result_that_is_out_of_date(tmp_path, monkeypatch):
    first = make_study(tmp_path, monkeypatch)
    second = tmp_path / "later"
    shutil.copytree(first, second)
    assert not report_of(first, second).table.tested
    for path in (second / "results").glob("*/*.json"):
        edit(path, created="2031-01-02T03:04:05+00:00", git={"commit": "e" * 40, "dirty": True})
    edit(second / "steps/evaluate-llava-clips-tiny-s0/step.json", key="of an older study")
    report = report_of(first, second)
    assert any('commit: "not known" against "eeeeeeeeeeee (changed)"' in note for note in report.texts)
    assert any("B clips" in note and "pope" in note and "not run since the study" in note for note in report.texts)


def test_names_are_escaped(tmp_path):
    put_results(tmp_path / "a", {"one": 0.3})
    put_results(tmp_path / "b", {"one": 0.7})
    for path in (tmp_path / "b/one").glob("*.json"):
        edit(path, model={"path": "", "hash": "f" * 64}, model_name="one<script>")
    for suffix in (".html", ".md"):
        compare(
            CompareConfig(first=str(tmp_path / "b"), second=str(tmp_path / "a"), output=str(tmp_path / f"x{suffix}"))
        )
        assert "one<script>" not in (tmp_path / f"x{suffix}").read_text(encoding="utf-8")
