"""The page: complete in itself, readable, and right in a browser; and the report of a whole study."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_material import edit, items_table, put_failure, put_result, put_results
from report_study import Page, make_study

from benchmarks.report.load_results import NO_STEP_RECORDS_NOTE, MissingValue, describe_acceptances, read_source
from benchmarks.report.notes import KINDS, MAX_WORDS, Note, brief_notes, grouped_notes
from benchmarks.report.page import SECTIONS, plan_columns, render_page
from benchmarks.report.report import build_report
from benchmarks.report.report_command import ReportConfig, run_report
from benchmarks.study.study_record import StepPlan
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
        "measured-and-published",
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
    assert gap.file == "steps/llava-net-tiny-s0/log.txt"
    assert (study / "steps/llava-net-tiny-s0").is_dir()
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
    assert NO_STEP_RECORDS_NOTE in report.texts
    for file in (study / "results").rglob("*.json"):
        file.unlink()
    bare = build_report(study)
    assert {cell.missing.reason for cell in bare.table.scores if cell.missing.kind == "missing"} == {"not run yet"}
    assert NO_STEP_RECORDS_NOTE not in bare.texts


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
    run_report(ReportConfig(inputs=(str(study),)))
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
        run_report(ReportConfig(inputs=(str(study),), formats=("htm",)))
    # another baseline, or a part, does not replace the study's own report
    before = (study / "report" / "table.md").read_text(encoding="utf-8")
    run_report(ReportConfig(inputs=(str(study),), formats=("markdown",), baseline="clips"))
    assert "clip loses to clips" in (study / "report-vs-clips" / "table.md").read_text(encoding="utf-8")
    run_report(ReportConfig(inputs=(str(study),), formats="markdown, csv", benchmarks="pope"))
    assert {path.name for path in (study / "report-subset").iterdir()} == {"table.md", "table.csv"}
    assert "gqa" not in (study / "report-subset/table.md").read_text(encoding="utf-8")
    assert (study / "report" / "table.md").read_text(encoding="utf-8") == before


def test_the_page_loads_nothing(study):
    page = render_page(build_report(study))
    assert Page(page).fetched == []
    assert not re.search(r"<img(?![^>]*alt=.)", page)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("kind", ["results", "failures", "holes"])
def test_a_page_has_no_number_that_is_none(tmp_path: Path, kind: str):
    if kind != "failures":
        put_results(tmp_path)
    for row in ("one", "two") if kind != "results" else ():
        put_failure(tmp_path, row, "pope", "out of memory <tag>")
    if kind == "holes":
        put_result(tmp_path, "one", "gqa", items_table(0.5, benchmark="gqa", seed=2), protocol={"prompt": "other"})
    text = Page(render_page(build_report(tmp_path))).text
    assert not re.search(r"\b(nan|None|inf|Undefined)\b", text), re.findall(r".{40}\b(?:nan|None|inf)\b.{20}", text)
    assert ("one and two on pope: failed for the same reason, see one/pope.json." in text) == (kind != "results")
    assert ("out of memory <tag>" in text) == (kind != "results")


def test_a_sign_links_to_its_note_which_may_be_folded(tmp_path):
    put_results(tmp_path)
    put_failure(tmp_path, "odd", "pope", "out of memory")
    put_result(tmp_path, "odd", "gqa", items_table(0.5, benchmark="gqa", seed=2), protocol={"prompt": "other"})
    page = render_page(build_report(tmp_path, baseline="clip"))
    notes = dict(re.findall(r'<li id="(note-\d+)">(.*?)</li>', page))
    (failed,) = {*re.findall(r'class="gap failed" href="#([\w-]+)"', page)}
    (dagger,) = {*re.findall(r'href="#([\w-]+)" title="not ranked', page)}
    assert notes[failed] == "odd on pope: failed, see odd/pope.json."
    assert notes[dagger].startswith("† odd on gqa exact match was measured under different settings")
    unfolded, _, folded = page[page.index('<div class="notes">') :].partition("<details>")
    said = re.findall(r"<li>(.*?)</li>", unfolded)
    assert said[-2] == "† 1 number was measured under other settings, and is not ranked with the rest."
    assert said[-1] == "3 numbers are missing, each seed&#39;s counted where a model has several."
    assert len(said) <= 3 + 3  # the legend, and three sentences
    assert folded.startswith("\n  <summary>All notes: other settings, missing numbers, intervals</summary>")
    assert "<h4>Missing numbers</h4>" in folded


@pytest.mark.parametrize("count", [1, 12_000])
def test_at_first_sight_stand_three_short_sentences_of_the_most_important_kinds(count):
    briefs = {name: brief_notes([Note(kind=name, text="word " * 30, count=count)]) for name in KINDS}
    said = {name: texts[0] for name, texts in briefs.items() if texts}
    assert {"training", "part", "uncredited", "missing"} <= said.keys()
    assert all(3 < len(text.split()) <= MAX_WORDS for text in said.values())
    notes = [Note(kind=name, text=f"Of {name}.", count=count) for name in reversed(KINDS)]
    assert brief_notes(notes) == ["Of study.", "Of omitted.", said["contradiction"]]
    assert [title for title, _ in grouped_notes(notes)] == [kind.title for kind in KINDS.values()]


def test_accepted_steps_are_counted_if_they_are_many():
    entry = {"when": "2026-11-26", "settings": {}, "changed": ["files"]}
    ran: list[Any] = [SimpleNamespace(name=f"encoder-{number}", accepted=(entry,)) for number in range(4)]
    changed = "accepted 2026-11-26; changed since creation: files"
    assert [*describe_acceptances(ran)] == [f"4 steps (encoder-0 and others) were {changed}"]
    assert [*describe_acceptances(ran[:2])] == [f"encoder-0 and encoder-1 were {changed}"]


def test_the_plan_is_counted_by_kind_and_by_the_longest_way_to_a_step():
    def step(kind: str, *parents: str) -> StepPlan:
        return StepPlan(kind=kind, command="", key="", parents=parents)

    steps = {
        "score-b": step("evaluation", "b", "test"), "b": step("encoder", "a"), "a": step("encoder", "train"),
        "train": step("data"), "test": step("data"), "score-a": step("evaluation", "test", "a"),
    }  # fmt: skip
    assert plan_columns(steps) == [
        ["data × 2"], ["encoder × 1"], ["encoder × 1", "evaluation × 1"], ["evaluation × 1"]
    ]  # fmt: skip
