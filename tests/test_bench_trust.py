"""Differences of two results in words, and the comparison of two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_material import edit, items_table, put_failure, put_result, put_results
from report_study import make_study

from benchmarks.analysis.compare_command import (
    WRITERS,
    CompareConfig,
    Comparison,
    build_comparison,
    compare,
    comparison_lines,
)
from benchmarks.analysis.diff_command import DiffConfig, run_diff
from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.report.load_results import read_source
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.protocol import ranked_together
from benchmarks.results.results import read_result
from clips.errors import UserError


def diff_text(capsys: pytest.CaptureFixture[str], first: object, second: object, benchmark: str | None = None) -> str:
    run_diff(DiffConfig(first=str(first), second=str(second), benchmark=benchmark))
    return capsys.readouterr().out


def test_rows_of_one_protocol_differ_in_the_model_alone(tmp_path, capsys):
    put_results(tmp_path)
    said = diff_text(capsys, tmp_path / "clip/gqa.json", tmp_path / "clips/gqa.json")
    assert "A: clip on gqa, exact match " in said
    assert "The model is the same (0123456789ab, once as encoders/clip, once as encoders/clips)." in said
    assert said.endswith("The evaluation settings are equal: they are ranked together.\n")


def test_other_evaluation_settings_prevent_a_comparison(tmp_path, capsys):
    put_results(tmp_path)
    other = {"prompt": "Say it.", "input_size": 224}
    put_result(tmp_path, "large", "gqa", items_table(0.6, benchmark="gqa"), protocol=other)
    edit(tmp_path / "large/gqa.json", model={"path": "x", "hash": "feed"})
    said = diff_text(capsys, tmp_path / "clip", tmp_path / "large", "gqa")
    assert "encoders/clip (0123456789ab) against x (feed)" in said
    assert "part of the model (A against B):\n  size: 64 against 224\n" in said
    assert '(A against B):\n  prompt: not stated against "Say it."\n' in said
    assert said.endswith("not ranked together: numbers of different protocols are shown, never compared.\n")
    put_result(tmp_path, "large", "gqa", items_table(0.6, benchmark="gqa"), protocol={"input_size": 224})
    assert "they are ranked together" in diff_text(capsys, tmp_path / "clip", tmp_path / "large", "gqa")
    put_failure(tmp_path, "large", "gqa", "no picture")
    said = diff_text(capsys, tmp_path / "clip", tmp_path / "large", "gqa")
    assert "B: large on gqa, failed: no picture" in said
    assert "They cannot be ranked" in said
    assert "ranked together" not in said


def test_the_name_of_a_split_does_not_matter_for_equal_data(tmp_path, capsys):
    put_results(tmp_path)
    for row, changes in (("old", {"split": "test"}), ("new", {"split": "taken whole"}), ("other", {"data_hash": "x"})):
        changes = {"split": "taken whole"} | changes
        put_result(tmp_path, row, "gqa", items_table(0.6, benchmark="gqa"), protocol=changes)
    said = diff_text(capsys, tmp_path / "old", tmp_path / "new", "gqa")
    assert 'split: "test" against "taken whole"\n' in said
    assert said.endswith("They are ranked together: the data are the same under different names of the split.\n")
    assert "not ranked together" in diff_text(capsys, tmp_path / "old", tmp_path / "other", "gqa")
    (line,) = lines_of(tmp_path, "old", "new").values()
    assert line.protocol_differences == ()
    source = read_source(tmp_path)
    groups = source.protocol_groups(source.results("gqa"))
    assert groups["old"] == groups["new"] != groups["other"]
    nameless = [{"split": name, "scorer": "x"} for name in ("test", "taken whole")]
    assert not ranked_together(*nameless)  # nothing else says what the data are


def test_a_path_without_a_result_is_rejected(tmp_path):
    put_results(tmp_path)
    for first, benchmark, message in (
        (tmp_path / "clip", None, "expected --benchmark with one of gqa, pope, retrieval"),
        (tmp_path / "clip", "gqu", "unknown benchmark of .* 'gqu'; did you mean 'gqa'"),
        (tmp_path, "gqa", "first: .* has several models; expected the directory of one of clip, clips, untrained"),
    ):
        with pytest.raises(UserError, match=message):
            run_diff(DiffConfig(first=str(first), second=str(tmp_path / "clip"), benchmark=benchmark))


def lines_of(results, first: str, second: str, **more):  # type: ignore[no-untyped-def]
    rows = [find_results_by_row(str(results / name), "first")[name] for name in (first, second)]
    _, lines = comparison_lines([tuple(rows)], **more)
    return {(line.benchmark, line.first.column.metric): line for line in lines}


def test_verdicts_better_worse_and_not_significant(tmp_path):
    put_results(tmp_path)
    lines = lines_of(tmp_path, "untrained", "clips")
    assert {line.verdict for line in lines.values()} == {"B is better"}
    line = lines["gqa", "exact_match"]
    mine, other = (read_result(tmp_path / name / "gqa.json").metrics["exact_match"] for name in ("untrained", "clips"))
    delta = line.first.delta
    assert delta.value == pytest.approx(100 * (mine.value - other.value))
    assert delta.ci_low < delta.value < delta.ci_high < 0
    assert 0 < delta.min_detectable < -delta.value
    assert {line.verdict for line in lines_of(tmp_path, "clips", "clips").values()} == {"unchanged: the same model"}
    shutil.copytree(tmp_path / "clips", tmp_path / "twin")
    for path in (tmp_path / "twin").glob("*.json"):
        text = path.read_text(encoding="utf-8").replace("0123456789abcdef", "f" * 16)
        path.write_text(text.replace('"model_name": "clips"', '"model_name": "twin"'), encoding="utf-8")
    assert {line.verdict for line in lines_of(tmp_path, "clips", "twin").values()} == {"not significant"}


def test_lower_is_better_is_respected(tmp_path):
    put_results(tmp_path)
    for path in tmp_path.glob("*/gqa.json"):
        path.write_text(path.read_text().replace('"higher_is_better": true', '"higher_is_better": false'))
    assert lines_of(tmp_path, "untrained", "clips")["gqa", "exact_match"].verdict == "A is better"


def test_all_lines_are_corrected_together(tmp_path):
    put_results(tmp_path)
    few, many = lines_of(tmp_path, "clip", "clips"), lines_of(tmp_path, "clip", "clips", all_metrics=True)
    assert set(few) < set(many)
    assert many["pope", "yes"].verdict in {"significantly different", "not significant"}
    paths = {"first": str(tmp_path / "clip"), "second": str(tmp_path / "clips")}
    (single,) = build_comparison(CompareConfig(**paths, benchmarks=("gqa",))).lines
    assert single.first.delta.p_adjusted == single.first.delta.p_value
    deltas = [line.first.delta for line in many.values()]
    assert all(delta.p_adjusted >= delta.p_value for delta in deltas)
    assert max(delta.p_adjusted / delta.p_value for delta in deltas) == pytest.approx(len(many))


def test_different_protocols_and_items_are_not_tested(tmp_path, capsys):
    put_results(tmp_path)
    put_result(tmp_path, "other", "gqa", items_table(0.6, benchmark="gqa"), protocol={"prompt": "Say it."})
    put_result(tmp_path, "other", "pope", items_table(0.6, benchmark="pope", count=60), protocol={"items": 120})
    lines = lines_of(tmp_path, "clip", "other")
    assert lines["gqa", "exact_match"].verdict == "not comparable"
    assert lines["gqa", "exact_match"].first.delta is None
    compare(
        CompareConfig(first=str(tmp_path / "clip"), second=str(tmp_path / "other"), output=str(tmp_path / "x.json"))
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "gqa was measured under different settings: stated of one alone: prompt." in said
    written = {line["benchmark"]: line for line in json.loads((tmp_path / "x.json").read_text()) if line["verdict"]}
    assert (written["gqa"]["protocol_differences"], written["gqa"]["delta"]) == (
        'prompt: not stated against "Say it."',
        None,
    )
    assert lines["pope", "accuracy"].verdict.startswith("no test: the models do not have scores for the same items")
    moved = items_table(0.6, benchmark="pope")  # of the same names, about other images
    put_result(tmp_path, "moved", "pope", moved.assign(image=[f"other {name}" for name in moved["image"]]))
    assert lines_of(tmp_path, "clip", "moved")["pope", "accuracy"].verdict.startswith("no test: the models do not have")


@pytest.mark.parametrize("change", ["names", "images", "missing"])
def test_seeds_with_different_items_have_no_mean(tmp_path, change):
    items = items_table(0.5, benchmark="gqa")
    put_result(tmp_path, "one", "gqa", items, digest="1" * 64)
    other = items_table(0.5, benchmark="gqa", seed=1)
    if change == "names":
        other["item"] = [f"other {name}" for name in other["item"]]
    elif change == "images":
        other["image"] = [f"other {name}" for name in other["image"]]
    put_result(tmp_path, "same", "gqa", items_table(0.5, benchmark="gqa", seed=1), digest="2" * 64)
    if change == "missing":
        other.loc[0, "hit"] = None
    put_result(tmp_path, "other", "gqa", other, digest="3" * 64)
    one, same, other = (read_result(tmp_path / name / "gqa.json") for name in ("one", "same", "other"))
    scores = ItemScores()
    assert scores.of_model([one, same], "exact_match").num_seeds == 2
    assert scores.of_model([one, other], "exact_match") is None
    assert scores.why_not([one, other], "exact_match") == "the seeds have scores for different items"


def test_directories_of_rows_are_compared_row_by_row(tmp_path, capsys):
    for folder, skill in (("before", 0.3), ("after", 0.6)):
        put_results(tmp_path / folder, {"one": skill, "two": 0.45})
    put_results(tmp_path / "after", {"three": 0.5})
    target = tmp_path / "found.csv"
    first, second = str(tmp_path / "before"), str(tmp_path / "after")
    compare(CompareConfig(first=first, second=second, benchmarks=("gqa",), output=str(target)))
    shown = capsys.readouterr().out
    assert "A: one, B: one" in shown
    assert "A: three" not in shown
    assert "only B has the model three" in shown
    (tmp_path / "before/two/pope.json").unlink()
    said = build_comparison(CompareConfig(first=first, second=second)).left_out
    assert said[0] == "two: only B has pope"  # A has it of another model
    table = pd.read_csv(target).set_index("model")
    assert list(table.index) == ["A one", "B one", "A two", "B two"]
    assert table.loc["A one", "baseline"] == "B one"
    assert table.loc["A one", "delta"] == table.loc["A one", "value"] - table.loc["B one", "value"] < -20
    assert table.loc["A one", "p_adjusted"] < 0.01
    assert table["verdict"].fillna("").tolist() == ["B is better", "", "unchanged: the same model", ""]
    compare(CompareConfig(first=first, second=second, benchmarks=("gqa",), output=str(tmp_path / "found.json")))
    assert [line["delta"] is None for line in json.loads((tmp_path / "found.json").read_text())] == [0, 1, 1, 1]


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A study and its copy."""
    first = make_study(tmp_path, monkeypatch)
    second = tmp_path / "later"
    shutil.copytree(first, second)
    return first, second


def both(first: Path, second: Path, **changes: Any) -> Comparison:
    return build_comparison(CompareConfig(first=str(first), second=str(second), **changes))


def test_a_copy_is_unchanged(studies: tuple[Path, Path]) -> None:
    found = both(*studies)
    assert {line.verdict for line in found.lines} == {"unchanged: the same model"}
    assert found.answer == "8 numbers: 8 unchanged."
    assert {line.rows for line in found.lines} == {("clip", "clip"), ("clips", "clips")}
    assert any(gap.startswith("A: net on pope: failed: step llava-net-tiny-s0 failed") for gap in found.left_out)
    assert not [*found.context()]


def test_moved_and_incomparable_results_are_reported(studies: tuple[Path, Path]) -> None:
    results = studies[1] / "results"
    put_result(results, "clips-tiny-s0", "pope", items_table(0.1, benchmark="pope"))
    edit(results / "clips-tiny-s0/pope.json", model={"path": "x", "hash": "f" * 64})
    put_result(results, "clips-tiny-s0", "gqa", items_table(0.7, benchmark="gqa"), protocol={"data_hash": "other data"})
    found = both(*studies)
    lines = {(line.rows[0], line.benchmark, line.first.column.metric): line for line in found.lines}
    assert lines["clips", "pope", "accuracy"].verdict == "A is better"
    assert lines["clips", "gqa", "exact_match"].verdict == "not comparable"
    assert lines["clip", "pope", "accuracy"].verdict == "unchanged: the same model"
    assert (
        found.answer
        == "8 numbers: 1 tested, 6 unchanged, 1 not comparable; significantly different: clips on pope accuracy."
    )
    assert (
        found.notes()[0] == 'clips on gqa was measured under different settings: data hash: "abc" against "other data".'
    )


def test_differences_of_the_two_runs_are_reported(studies: tuple[Path, Path]) -> None:
    for path in (studies[1] / "results").glob("*/*.json"):
        versions = json.loads(path.read_text(encoding="utf-8"))["versions"] | {"torch": "9.9", "one": "1", "two": "1"}
        edit(path, created="2031-01-02T03:04:05+00:00", git={"commit": "e" * 40, "dirty": True}, versions=versions)
    text = json.loads((studies[1] / "study.json").read_text(encoding="utf-8"))["text"]
    edit(studies[1] / "study.json", text=text.replace("name: small", "name: smaller"))
    said = "\n".join(both(*studies).context())
    assert 'commit: "not known" against "eeeeeeeeeeee (changed)"; ' in said
    assert ' against "2031-01-02"; ' in said
    assert ' against "9.9"; stated of one alone: one, two.' in said
    assert "The study files differ: A `name: small`, B `name: smaller`." in said


def test_a_result_that_is_not_of_the_study_any_more_is_not_compared(studies: tuple[Path, Path]) -> None:
    edit(studies[1] / "steps/evaluate-llava-clips-tiny-s0/step.json", key="of an older study")
    found = both(*studies)
    assert ("clips", "pope") not in {(line.rows[0], line.benchmark) for line in found.lines}
    assert "B: clips on pope: missing: not run since the study or the version of its command changed" in found.left_out


def test_a_result_of_an_older_study_is_out_of_date(studies: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    edit(studies[1] / "steps/evaluate-llava-clips-tiny-s0/step.json", key="of an older study")
    first, second = (next((study / "results").glob("*clips*/pope.json")) for study in studies)
    run_diff(DiffConfig(first=str(first), second=str(second)))
    said = capsys.readouterr().out
    assert "B is out of date: not run since the study or the version of its command changed." in said
    assert "A is out of date" not in said
    left_out = both(*(study / "results" for study in studies)).left_out
    assert f"B: {second.parent.name} on pope: not run since the study or the version of its command changed" in left_out


def test_a_study_without_results_is_rejected(studies: tuple[Path, Path]) -> None:
    shutil.rmtree(studies[1] / "results")
    with pytest.raises(
        UserError, match=r"^second: .+later: no result belongs to the current study \(clip on gqa: missing"
    ):
        both(*studies)


def test_each_format_of_a_comparison_escapes_names_and_a_narrow_terminal_shows_them_whole(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    put_results(tmp_path / "a", {"one": 0.3, "two": 0.5})
    put_results(tmp_path / "b<i>", {"one": 0.7, "two": 0.5, "four": 0.7})
    put_result(tmp_path / "b<i>", "one", "a_benchmark_of_a_long_name", items_table(0.3, benchmark="gqa"))
    put_result(tmp_path / "a", "one", "a_benchmark_of_a_long_name", items_table(0.7, benchmark="gqa"))
    for path in (tmp_path / "b<i>").glob("one/*.json"):
        edit(path, model={"path": "", "hash": "f" * 64})
        edit(path, next(iter(json.loads(path.read_text())["metrics"])), label="x <script>|\x1b[31m")
    config = CompareConfig(first=str(tmp_path / "b<i>"), second=str(tmp_path / "a"), output=str(tmp_path / "x.html"))
    compare(config)
    printed, found = capsys.readouterr().out, build_comparison(config)
    texts = {suffix: write(found) for suffix, write in WRITERS.items()}
    assert texts[".html"] == (tmp_path / "x.html").read_text(encoding="utf-8")
    assert all("A is better" in text for text in texts.values())
    assert "A is better│" in printed
    assert not [text for text in (printed, *texts.values()) if "\x1b" in text]
    assert all("unchanged: the same model" in text for text in texts.values())
    for text in (texts[".md"], texts[".html"]):
        assert not [raw for raw in ("x <script>", "b<i>") if raw in text]
    assert "only A has the model four" in found.left_out
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    with pytest.raises(UserError, match=r"output: .* \.json, \.csv, \.md, \.html, got 'x\.t"):
        CompareConfig(first="a", second="b", output="x.txt")
