"""The page: complete in itself, readable, and right in a browser; and the report of a whole study."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_material import put_results
from report_study import make_study

from benchmarks.report.html_page import render_page
from benchmarks.report.load_results import NO_STEP_RECORDS_NOTE, MissingValue, read_source
from benchmarks.report.report import build_report
from benchmarks.report.report_command import ReportConfig, run_report
from benchmarks.report.reproduce import reproduction_info
from benchmarks.report.sections import SECTIONS
from benchmarks.report.step_timing import build_timeline, compress_idle_time
from benchmarks.study.step_state import StepRecord
from clips.errors import UserError


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    return make_study(tmp_path, monkeypatch)


def test_a_studys_page_has_every_section(study):
    page = render_page(build_report(study))
    for section in SECTIONS:
        of_others = section.id in {
            "settings", "seeds", "lengths", "published", "kinds", "cost", "found", "captioned", "maps"
        }  # fmt: skip
        assert (f'id="{section.id}"' in page) is not of_others
    for text in (
        "Which is better?",
        "A note for the reader.",
        "no text tower",
        "these weights are not of this architecture",
    ):
        assert text in page
    assert "never a claim" in page  # the data are scenes
    curves = page[page.index('<details class="section" id="curves"') :]
    assert (
        curves[: curves.index('<details class="section"', 1)].count("<svg") == 2
    )  # contrastive loss and projector alone


def test_a_failed_step_explains_the_cells_behind_it(study):
    outcomes = read_source(study).outcomes
    gap = outcomes["net", "pope"]
    assert isinstance(gap, MissingValue)
    assert gap.kind == "failed"
    assert gap.reason == "step llava-net-tiny-s0 failed: these weights are not of this architecture"
    assert outcomes["net", "retrieval"] == MissingValue(kind="not applicable", reason="no text tower")


def test_results_of_another_key_are_not_shown(study):
    path = study / "steps" / "evaluate-llava-clips-tiny-s0" / "step.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"key": "of an older study"}
    path.write_text(json.dumps(content), encoding="utf-8")
    gap = read_source(study).outcomes["clips", "pope"]
    assert isinstance(gap, MissingValue)
    assert gap.reason == "not run since the study or its code changed"


def test_results_without_records_of_their_steps_are_shown_as_they_lie(study):
    before = {place for place, cell in build_report(study).table.cells.items() if cell.value is not None}
    shutil.rmtree(study / "steps")
    report = build_report(study)
    assert {place for place, cell in report.table.cells.items() if cell.value is not None} == before
    assert NO_STEP_RECORDS_NOTE in report.remarks
    for file in (study / "results").rglob("*.json"):
        file.unlink()
    bare = build_report(study)
    assert {cell.missing.reason for cell in bare.table.cells.values() if cell.missing.kind == "missing"} == {
        "not run yet"
    }
    assert NO_STEP_RECORDS_NOTE not in bare.remarks


def test_a_result_without_the_record_of_its_step_is_not_said_never_to_have_run(study):
    (record,) = study.glob("steps/evaluate-encoder-clip-*/step.json")
    record.unlink()
    gaps = {cell.missing.reason for cell in build_report(study).table.cells.values() if cell.missing}
    assert "there is a result, but no record of the step that made it" in gaps


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


def test_a_report_against_another_baseline_stands_beside_the_studys(study, capsys):
    run_report(ReportConfig(directory=str(study), formats=("markdown",)))
    before = (study / "report" / "table.md").read_text(encoding="utf-8")
    run_report(ReportConfig(directory=str(study), formats=("markdown",), baseline="clips"))
    assert (study / "report" / "table.md").read_text(encoding="utf-8") == before
    beside = (study / "report-vs-clips" / "table.md").read_text(encoding="utf-8")
    assert "clip loses to clips" in beside
    said = capsys.readouterr()
    assert "clip loses to clips" in " ".join(said.out.split())
    assert "report-vs-clips/table.md" in said.err
    run_report(ReportConfig(directory=str(study), formats="markdown, csv", columns="pope"))
    assert {path.name for path in (study / "report-subset").iterdir()} == {"table.md", "table.csv"}
    assert "gqa" not in (study / "report-subset/table.md").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_one_line(study, tmp_path):
    (tmp_path / "a-file").write_text("mine", encoding="utf-8")
    for place in (tmp_path / "a-file", Path("/proc/nowhere")):
        with pytest.raises(UserError, match=f"^{place}: cannot write here"):
            run_report(ReportConfig(directory=str(study), output=str(place)))


class Loads(HTMLParser):
    """Everything in a page that a browser would fetch, and ids that stand twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.without_alt = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "img" and not given.get("alt"):
            self.without_alt += 1
        for name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            target = given.get(name) or ""
            if target and not target.startswith(("#", "data:")):
                self.fetched.append(f"{tag} {name}={target}")


def test_the_page_loads_nothing(study):
    page = render_page(build_report(study))
    found = Loads()
    found.feed(page)
    assert found.fetched == []
    assert found.without_alt == 0
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", page)
    assert "default-src 'none'" in page


def test_pauses_between_runs_are_cut():
    starts, end = compress_idle_time([(100.0, 110.0), (105.0, 120.0), (5000.0, 5010.0), (9000.0, 9001.0)])
    assert starts == [0.0, 5.0, 20.0, 30.0]
    assert end == 31.0


def test_a_step_that_went_on_is_drawn_before_what_waited_for_it():
    parent = StepRecord(name="data", kind="data", command="", key="", status="done", started=0.0, seconds=100.0)
    went_on = dataclasses.replace(parent, name="encoder", started=90_000.0, seconds=300.0, previous_seconds=200.0)
    child = dataclasses.replace(parent, name="llava", started=90_100.0, seconds=100.0)
    timing = build_timeline([parent, went_on, child])
    assert timing is not None
    assert [(bar.left, bar.width) for bar in timing.bars] == [(0, 20), (20, 60), (80, 20)]
    assert timing.wall == timing.work == "8 min 20 s"


def test_commits_that_made_the_results_are_counted(tmp_path):
    results = put_results(tmp_path / "results")
    files = sorted(results.glob("*/*.json"))
    for number, file in enumerate(files):
        git = {"commit": "a" * 40, "dirty": True} if number == 0 else {"commit": "b" * 40, "dirty": False}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"git": git}))
    facts = reproduction_info(build_report(results).source).facts
    rest, whole = len(files) - 1, len(files)
    assert facts["evaluated by commit"] == (
        f"{'b' * 12} ({rest} of {whole} results), {'a' * 12} (changed) (1 of {whole} results)"
    )
