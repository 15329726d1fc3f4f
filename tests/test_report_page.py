"""The page: complete in itself, readable, and right in a browser; and the report of a whole study."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_material import edit, items_table, put_failure, put_result, put_results
from report_study import Page, make_study

from benchmarks.report.load_results import NO_STEP_RECORDS_NOTE, MissingValue, _acceptances, read_source
from benchmarks.report.page import SECTIONS, render_page
from benchmarks.report.report import Report, build_report
from benchmarks.report.report_command import ReportConfig, run_report
from clips.errors import UserError


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    return make_study(tmp_path, monkeypatch)


def test_a_studys_page_has_every_section(study):
    page = render_page(build_report(study))
    others = {
        "gain-over-blind",
        "sweeps",
        "per-seed-results",
        "recall-vs-caption-length",
        "published-numbers",
        "by-category",
        "averages-and-ranks",
    }
    assert {each.id for each in SECTIONS if f'id="{each.id}"' not in page} == others
    said = ("Which is better?", "A note for the reader.", "no text tower", "weights are not of this architecture")
    assert [text for text in said if text not in page] == []


def test_a_failed_step_explains_the_cells_behind_it(study):
    outcomes = read_source(study).outcomes
    gap = outcomes["net", "pope"]
    assert isinstance(gap, MissingValue)
    assert gap.kind == "failed"
    assert gap.reason == "step llava-net-tiny-s0 failed: these weights are not of this architecture"
    assert outcomes["net", "retrieval"] == MissingValue(kind="not applicable", reason="no text tower")


def test_results_of_another_key_are_not_shown(study):
    edit(study / "steps" / "evaluate-llava-clips-tiny-s0" / "step.json", key="of an older study")
    gap = read_source(study).outcomes["clips", "pope"]
    assert isinstance(gap, MissingValue)
    assert gap.reason == "not run since the study or the version of its command changed"


def test_results_without_records_of_their_steps_are_shown_as_they_lie(study):
    before = {(cell.row, cell.column.metric) for cell in build_report(study).table.scores if cell.value is not None}
    shutil.rmtree(study / "steps")
    report = build_report(study)
    assert {(cell.row, cell.column.metric) for cell in report.table.scores if cell.value is not None} == before
    assert NO_STEP_RECORDS_NOTE in report.notes
    for file in (study / "results").rglob("*.json"):
        file.unlink()
    bare = build_report(study)
    assert {cell.missing.reason for cell in bare.table.scores if cell.missing.kind == "missing"} == {"not run yet"}
    assert NO_STEP_RECORDS_NOTE not in bare.notes


def test_a_broken_result_of_a_study_fails_its_cell_only(study):
    (study / "results" / "clips-tiny-s0" / "pope.json").write_text("{", encoding="utf-8")
    outcomes = read_source(study).outcomes
    gap = outcomes["clips", "pope"]
    assert isinstance(gap, MissingValue)
    assert "pope.json: not a result file" in gap.reason
    assert not isinstance(outcomes["clip", "pope"], MissingValue)


def test_the_baseline_of_the_study_is_used_and_can_be_overridden(study):
    assert build_report(study).answer.startswith("clips beats clip")
    assert build_report(study, baseline="clips").answer.startswith("clip loses to clips")


def test_the_command_writes_every_format_and_says_where(study, capsys):
    run_report(ReportConfig(directory=str(study)))
    written = {path.name for path in (study / "report").iterdir()}
    assert written == {"index.html", "table.csv", "table_wide.csv", "table.md", "table.tex", "figures"}
    assert (study / "report" / "index.html").stat().st_size < 15e6
    captured = capsys.readouterr()
    assert "clips beats clip" in " ".join(captured.out.split())
    assert "report/index.html" in captured.err
    assert "▲" not in captured.out  # the terminal's table has no such marks, the page's has
    assert "bold" not in captured.out
    assert "▲" in (study / "report" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="unknown format 'htm'; did you mean 'html'"):
        run_report(ReportConfig(directory=str(study), formats=("htm",)))


def test_a_report_with_another_baseline_does_not_replace_that_of_the_study(study, capsys):
    run_report(ReportConfig(directory=str(study), formats=("markdown",)))
    before = (study / "report" / "table.md").read_text(encoding="utf-8")
    run_report(ReportConfig(directory=str(study), formats=("markdown",), baseline="clips"))
    assert (study / "report" / "table.md").read_text(encoding="utf-8") == before
    beside = (study / "report-vs-clips" / "table.md").read_text(encoding="utf-8")
    assert "clip loses to clips" in beside
    said = capsys.readouterr()
    assert "clip loses to clips" in " ".join(said.out.split())
    assert "report-vs-clips/table.md" in said.err
    run_report(ReportConfig(directory=str(study), formats="markdown, csv", benchmarks="pope"))
    assert {path.name for path in (study / "report-subset").iterdir()} == {"table.md", "table.csv"}
    assert "gqa" not in (study / "report-subset/table.md").read_text(encoding="utf-8")


def test_the_page_loads_nothing(study):
    page = render_page(build_report(study))
    assert Page(page).fetched == []
    assert not re.search(r"<img(?![^>]*alt=.)", page)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", page)
    assert "default-src 'none'" in page


def read(report: Report) -> str:
    """The page's text, after a look at its build."""
    text = Page(render_page(report)).text
    assert not re.search(r"\b(nan|None|inf|Undefined)\b", text), re.findall(r".{40}\b(?:nan|None|inf)\b.{20}", text)
    return text


def no_numbers(results: Path) -> None:
    for row in ("one", "two"):
        put_failure(results, row, "pope", "out of memory")


def one_row(results: Path) -> None:
    put_result(results, "one", "pope", items_table(0.5, benchmark="pope"))


def no_items(results: Path) -> None:
    for row, skill in (("one", 0.3), ("two", 0.8)):
        edit(put_result(results, row, "pope", items_table(skill, benchmark="pope")), items=None)


def holes(results: Path) -> None:
    put_results(results)
    put_result(results, "odd", "gqa", items_table(0.5, benchmark="gqa", seed=2), protocol={"prompt": "other"})
    put_failure(results, "odd", "pope", "reason with a <tag> & an end.")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            no_numbers,
            ["There is no number yet; the table states the reasons.", "one and two on pope: failed: out of memory."],
        ),
        (one_row, ["One model: there is no other to compare it with."]),
        (no_items, ["No two models could be tested against each other."]),
        (put_results, ["Significantly better than all others by paired tests: clips on"]),
        (
            holes,
            [
                "odd on pope: failed: reason with a <tag> & an end.",
                "† odd on gqa exact match was measured under different settings",
                "odd on retrieval: missing: no result file.",
            ],
        ),
    ],
)
def test_the_page_has_all_results(tmp_path: Path, make: Callable[[Path], object], expected: list[str]):
    make(tmp_path / "results")
    text = read(build_report(tmp_path / "results"))
    assert [each for each in expected if each not in text] == []


def test_the_answer_says_where_nothing_beats_the_baseline(tmp_path):
    put_results(tmp_path, {"low": 0.1, "lower": 0.05, "same": 0.8, "top": 0.8})
    report = build_report(tmp_path, baseline="top")
    assert report.answer.startswith("No model beats top in any of 12 tests; low and lower lose to it in some. ")
    assert len(report.sentences) == 3
    put_results(tmp_path / "equal", {"one": 0.8, "other": 0.8, "top": 0.8})
    equal = build_report(tmp_path / "equal", baseline="top")
    assert equal.answer.startswith("No model differs significantly from top in any of 8 tests. ")
    assert len(equal.other_sentences) == 2
    put_results(tmp_path / "two", {"other": 0.8, "top": 0.8})
    assert build_report(tmp_path / "two", baseline="top").answer.startswith("other ")


def test_the_answer_names_the_benchmarks_of_many_metrics_without_a_difference(tmp_path):
    equal = ["retrieval", "pope", "mme", "docvqa", "infovqa", "chartqa"]
    for row, skill in (("clip", 0.3), ("clips", 0.7)):
        put_result(tmp_path, row, "gqa", items_table(skill, benchmark="gqa"))
        for name in equal:
            put_result(tmp_path, row, name, items_table(0.5, benchmark=name))
    answer = build_report(tmp_path, baseline="clip").answer
    assert answer.startswith("clips beats clip by ")
    assert "on gqa exact match; no significant difference on 7 metrics of " in answer
    assert set(re.split(", | and ", answer.partition("7 metrics of ")[2].partition(".")[0])) == set(equal)
    put_result(tmp_path, "clip", "ocrbench", items_table(0.5, benchmark="ocrbench"))
    put_result(tmp_path, "clips", "ocrbench", items_table(0.5, benchmark="ocrbench"))
    assert "on 8 metrics of 7 benchmarks." in build_report(tmp_path, baseline="clip").answer


def test_accepted_steps_are_counted_if_they_are_many():
    entry = {"when": "2026-11-26", "settings": {}, "changed": ["files"]}
    ran: list[Any] = [SimpleNamespace(name=f"encoder-{number}", accepted=(entry,)) for number in range(4)]
    changed = "accepted 2026-11-26; changed since creation: files"
    assert [*_acceptances(ran)] == [f"4 steps (encoder-0 and others) were {changed}"]
    assert [*_acceptances(ran[:2])] == [f"encoder-0 and encoder-1 were {changed}"]
