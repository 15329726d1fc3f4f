"""Two studies of different days beside each other: what is comparable, new, gone, moved, and what they ran with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_material import items_table, put_result, put_results
from report_study import make_study

from benchmarks.analysis.compare_command import WRITERS, CompareConfig, Comparison, build_comparison, compare
from clips.errors import UserError


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A study and its copy."""
    first = make_study(tmp_path, monkeypatch)
    second = tmp_path / "later"
    shutil.copytree(first, second)
    return first, second


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def both(first: Path, second: Path, **changes: Any) -> Comparison:
    return build_comparison(CompareConfig(first=str(first), second=str(second), **changes))


def test_a_copy_is_unchanged(studies: tuple[Path, Path]) -> None:
    found = both(*studies)
    assert {line.verdict for line in found.lines} == {"unchanged: the same model"}
    assert found.answer == "8 of 8 numbers are comparable; none moved beyond noise."
    assert {line.rows for line in found.lines} == {("clip", "clip"), ("clips", "clips")}
    assert any(gap.startswith("A: net on pope: failed: step llava-net-tiny-s0 failed") for gap in found.left_out)
    assert found.context == ()


def test_what_moved_and_what_is_not_comparable_is_told(studies: tuple[Path, Path]) -> None:
    results = studies[1] / "results"
    put_result(results, "clips-tiny-s0", "pope", items_table(0.1, benchmark="pope"))
    edit(results / "clips-tiny-s0/pope.json", model={"path": "x", "hash": "f" * 64})
    put_result(results, "clips-tiny-s0", "gqa", items_table(0.7, benchmark="gqa"), protocol={"data_hash": "other data"})
    found = both(*studies)
    lines = {(line.rows[0], line.benchmark, line.first.column.metric): line for line in found.lines}
    assert lines["clips", "pope", "accuracy"].verdict == "A is better"
    assert lines["clips", "gqa", "exact_match"].verdict == "not comparable"
    assert lines["clip", "pope", "accuracy"].verdict == "unchanged: the same model"
    assert found.answer == "7 of 8 numbers are comparable; beyond noise moved clips on pope accuracy."
    assert (
        found.said()[0] == 'clips on gqa was measured under different settings: data hash: "abc" against "other data".'
    )


def test_what_the_two_ran_with_is_told(studies: tuple[Path, Path]) -> None:
    for path in (studies[1] / "results").glob("*/*.json"):
        versions = json.loads(path.read_text(encoding="utf-8"))["versions"] | {"torch": "9.9"}
        edit(path, created="2031-01-02T03:04:05+00:00", git={"commit": "e" * 40, "dirty": True}, versions=versions)
    text = json.loads((studies[1] / "study.json").read_text(encoding="utf-8"))["text"]
    edit(studies[1] / "study.json", text=text.replace("name: small", "name: smaller"))
    said = "\n".join(both(*studies).context)
    assert "Commit: A not known, B eeeeeeeeeeee (changed)." in said
    assert "B 2031-01-02." in said
    assert ", B 9.9." in said
    assert "The study files differ: A `name: small`, B `name: smaller`." in said


def test_rows_that_are_new_or_gone_are_named(tmp_path: Path) -> None:
    put_results(tmp_path / "a", {"one": 0.3, "two": 0.5})
    put_results(tmp_path / "b", {"two": 0.5, "three": 0.7, "four": 0.7})
    found = both(tmp_path / "a", tmp_path / "b")
    assert "only A has the row one" in found.left_out
    assert "only B has the rows four and three" in found.left_out


def test_a_result_that_is_not_of_the_study_any_more_is_not_compared(studies: tuple[Path, Path]) -> None:
    edit(studies[1] / "steps/evaluate-llava-clips-tiny-s0/step.json", key="of an older study")
    found = both(*studies)
    assert ("clips", "pope") not in {(line.rows[0], line.benchmark) for line in found.lines}
    assert "B: clips on pope: missing: not run since the study or its code changed" in found.left_out


def test_it_is_written_as_what_its_name_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    put_results(tmp_path / "a", {"one": 0.3, "two": 0.5})
    put_results(tmp_path / "b<i>", {"one": 0.7, "two": 0.5})
    for path in (tmp_path / "b<i>").glob("one/*.json"):
        label = {"label": "x <script>|\x1b[31m"}
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {name: metric | label for name, metric in content["metrics"].items()}
        edit(path, metrics=metrics, model={"path": "", "hash": "f" * 64})
    config = CompareConfig(first=str(tmp_path / "a"), second=str(tmp_path / "b<i>"), output=str(tmp_path / "x.html"))
    compare(config)
    said, page = capsys.readouterr().out, (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "beyond noise moved one on" in said
    found = build_comparison(config)
    texts = {suffix: write(found) for suffix, write in WRITERS.items()}
    assert texts[".html"] == page
    for text in (said, *texts.values()):
        assert "B is better" in text
        assert "unchanged: the same model" in text
        assert "\x1b" not in text
    for text in (texts[".md"], page):
        assert "x <script>" not in text
        assert "b<i>" not in text
        assert "of 8 numbers are comparable" in text


def test_a_study_without_results_is_refused(studies: tuple[Path, Path]) -> None:
    shutil.rmtree(studies[1] / "results")
    with pytest.raises(
        UserError, match=r"^second: .+later: no result belongs to this study as it stands \(clip on gqa: missing"
    ):
        both(*studies)


def test_another_ending_is_refused() -> None:
    with pytest.raises(UserError, match=r"output: expected a name that ends in \.json, \.csv, \.md, \.html, got 'x\.t"):
        CompareConfig(first="a", second="b", output="x.txt")
