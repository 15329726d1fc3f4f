"""The page holds whatever there is to report: several seeds, failures, nothing, one row, many rows of long names."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_material import items_table, put_failure, put_result, put_results

from benchmarks.report.html_page import note_for_cell, render_page
from benchmarks.report.notes import PAGE
from benchmarks.report.report import Report, build_report
from benchmarks.report.summary import headline, row_summary
from benchmarks.report.table import BaselineDifference

VOID = {"meta", "link", "br", "img", "input", "col", "path", "use", "rect", "circle", "line"}


class Words(HTMLParser):
    """The words of a page, its anchors and links; unclosed and unopened tags are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.inline = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids += [given["id"]] if given.get("id") else []
        self.links += [given["href"][1:]] if tag == "a" else []
        self.inline = given.get("class") == "word"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.words.append(data if self.inline else f" {data}")
            self.inline = self.inline and self.open[-1] == "a"  # what follows a link goes on where it ended


def read(report: Report) -> str:
    """The page's text, after a look at its build."""
    page = Words()
    page.feed(render_page(report))
    assert page.open == []
    assert len(page.ids) == len({*page.ids})
    assert {*page.links} <= {*page.ids}
    text = " ".join("".join(page.words).split())
    assert not re.search(r"\b(nan|None|inf|Undefined)\b", text), re.findall(r".{40}\b(?:nan|None|inf)\b.{20}", text)
    return text


def no_numbers(results: Path) -> None:
    for row in ("one", "two"):
        put_failure(results, row, "pope", "out of memory")


def one_row(results: Path) -> None:
    put_result(results, "one", "pope", items_table(0.5, benchmark="pope"))


def no_items(results: Path) -> None:
    for row, skill in (("one", 0.3), ("two", 0.8)):
        file = put_result(results, row, "pope", items_table(skill, benchmark="pope"))
        content = json.loads(file.read_text(encoding="utf-8")) | {"items": None}
        file.write_text(json.dumps(content), encoding="utf-8")


def holes(results: Path) -> None:
    put_results(results)
    put_result(results, "odd", "gqa", items_table(0.5, benchmark="gqa", seed=2), protocol={"prompt": "other"})
    put_failure(results, "odd", "pope", "reason with a <tag> & an end.")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (no_numbers, ["There is no number yet; the table says why.", "one and two on pope: failed: out of memory."]),
        (one_row, ["One row: there is nothing to compare it with."]),
        (no_items, ["No two rows could be tested against each other."]),
        (put_results, ["Told from all others by paired tests: clips on"]),
        (
            holes,
            [
                "odd on pope: failed: reason with a <tag> & an end.",
                "† odd on gqa exact match was measured otherwise",
                "odd on retrieval: missing: no result file.",
            ],
        ),
    ],
)
def test_the_page_holds_and_says_what_is_there(tmp_path: Path, make: Callable[[Path], object], expected: list[str]):
    make(tmp_path / "results")
    text = read(build_report(tmp_path / "results"))
    assert [each for each in expected if each not in text] == []


def test_a_cell_without_a_number_links_to_the_note_that_says_why(tmp_path):
    holes(tmp_path / "results")
    report = build_report(tmp_path / "results")
    notes = report.below(PAGE)
    for cell in report.table.cells.values():
        place = note_for_cell(cell, notes)
        if cell.missing or cell.group:
            assert cell.row in notes[place]
            assert cell.column.benchmark in notes[place]
        else:
            assert place is None


def test_many_rows_of_one_reason_make_one_note(tmp_path):
    one_row(tmp_path / "results")
    for number in range(12):
        put_failure(tmp_path / "results", f"row-{number:02d}", "pope", "out of memory")
    text = read(build_report(tmp_path / "results"))
    assert text.count("row-05 and 6 other rows on pope: failed: out of memory.") == 1
    assert "row-11 on pope" not in text


def test_the_answer_counts_measures_where_there_are_too_many_to_name(tmp_path):
    for number in range(9):
        for row, skill in (("clip", 0.2), ("clips", 0.9)):
            put_result(tmp_path, row, f"gqa{number}", items_table(skill, benchmark="gqa", seed=number))
    said = headline(build_report(tmp_path, baseline="clip").table)
    assert said.endswith("on gqa1 exact match, and also on 7 other measures.")


@pytest.mark.parametrize(
    ("ends", "said"), [((-0.3, 8.0), "beats clip by 4.0 points [−0.3, 8.0]"), ((-8.0, 0.3), "loses to clip by 4.0")]
)
def test_an_interval_that_reaches_over_zero_is_told_as_it_is(tmp_path, ends: tuple[float, float], said: str):
    """The test of a difference and its interval are two things: the one may be shown although the other holds 0."""
    put_results(tmp_path, {"clip": 0.4, "clips": 0.6})
    table = build_report(tmp_path, baseline="clip").table
    value = 4.0 if ends[1] > 1 else -4.0
    delta = BaselineDifference(
        baseline="clip",
        value=value,
        ci_low=ends[0],
        ci_high=ends[1],
        p_value=0.01,
        p_adjusted=0.01,
        min_detectable_difference=1.0,
    )
    cells = {
        place: dataclasses.replace(cell, delta=delta if place[0] == "clips" else None)
        for place, cell in table.cells.items()
    }
    told = row_summary(dataclasses.replace(table, cells=cells), "clips")
    assert said in told
    assert "[−0.3, 8.0]" in told


def test_the_answer_says_where_nothing_beats_the_baseline(tmp_path):
    put_results(tmp_path, {"ci_low": 0.1, "lower": 0.05, "same": 0.8, "top": 0.8})
    report = build_report(tmp_path, baseline="top")
    assert report.answer == "No row beats its baseline on any measure; low and lower lose to it on some."
    assert len(report.sentences) == 3
