"""Chance beside the scores: in the table, below it, in the answer and in every format."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_material import items_table, put_result

from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.report import Report, build_report

COUNT = 120


def report(folder: Path, skills: dict[str, float], chance: float = 0.02, yes: float | None = None) -> Report:
    """Rows of some skill on pope, and on gqa of which chance is not known."""
    ways = {"chance": chance} | ({} if yes is None else {"always yes": yes})
    blind = {way: {"hit": np.full(COUNT, value)} for way, value in ways.items()}
    for row, skill in skills.items():
        put_result(folder, row, "pope", items_table(skill, benchmark="pope", count=COUNT), blind=blind)
        put_result(folder, row, "gqa", items_table(skill, benchmark="gqa", count=COUNT))
    return build_report(folder)


def rendered(built: Report, name: str) -> str:
    (text,) = REPORT_FORMATS[name].files(built).values()
    return re.sub(" +", " ", str(text)) if name == "markdown" else str(text)


def lines_of(built: Report) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(rendered(built, "csv"))).set_index(["model", "benchmark"])


def test_every_format_has_chance_beside_the_scores(tmp_path):
    built = report(tmp_path, {"clip": 0.4, "clips": 0.7}, chance=0.5, yes=0.61)
    page = rendered(built, "html")
    assert (
        len(re.findall(r'<th scope="row"><a [^>]*>chance</a></th>', page)) == 2
    )  # wide, and narrow for the one column
    assert "always yes 61.0" in page
    assert "| chance | — | 50.0 (always yes 61.0) |" in rendered(built, "markdown")
    assert r"chance & {\textemdash} & \shortstack[r]{50.0\\{\scriptsize always yes 61.0}}" in rendered(built, "latex")
    lines = lines_of(built)[["chance", "always_yes"]]
    assert lines.loc["clip", "pope"].to_dict() == {"chance": 50, "always_yes": pytest.approx(61)}
    assert lines.loc["clip", "gqa"].isna().all()


def test_chance_of_many_answers_is_not_rounded_to_nothing(tmp_path):
    assert "| chance | — | 0.02 |" in rendered(report(tmp_path, {"clip": 0.4}, chance=0.0002), "markdown")


def test_a_way_that_gives_less_than_guessing_is_not_shown(tmp_path):
    assert "always yes" not in rendered(report(tmp_path, {"clip": 0.4}, chance=0.5, yes=0.4), "html")


def test_a_way_that_gives_more_by_rounding_alone_is_not_shown(tmp_path):
    said = rendered(report(tmp_path, {"clip": 0.4}, chance=0.1 * 3, yes=0.1 * 3 + 1e-16), "markdown")
    assert "| chance | — | 30.0 |" in said


def test_chance_is_that_of_the_rows_that_know_it_and_of_no_other_protocol(tmp_path):
    for row, protocol, blind in (
        ("aged", {}, None),
        ("clip", {}, {"chance": {"hit": np.full(COUNT, 0.4)}}),
        ("crop", {}, {"chance": {"hit": np.full(COUNT, 0.5)}}),
        ("other", {"shots": 5}, {"chance": {"hit": np.full(COUNT, 0.3)}}),
    ):
        items = items_table(0.6, benchmark="pope", count=COUNT)
        put_result(tmp_path, row, "pope", items, protocol=protocol, blind=blind)
    built = build_report(tmp_path)
    assert lines_of(built)["chance"].fillna(-1).tolist() == [50, 50, 50, -1]


def test_no_row_at_all_is_not_said_where_one_was_measured_otherwise(tmp_path):
    assert "No model is significantly above chance" in report(tmp_path, {"a": 0.4, "b": 0.5}, chance=0.9).answer
    items = items_table(0.99, benchmark="pope", count=COUNT)
    put_result(tmp_path, "other", "pope", items, protocol={"shots": 5})
    assert "No model is significantly above chance" not in build_report(tmp_path).answer


@pytest.mark.parametrize(
    ("chance", "yes", "answer", "below"),
    [
        (0.05, None, "", None),
        (0.45, None, "", "not entirely better): clip on pope accuracy."),
        (0.05, 0.45, "", "not entirely better): clip on pope accuracy (always yes)."),
        (
            0.9,
            None,
            "No model is significantly above chance on pope accuracy.",
            "entirely better): clip and clips on pope accuracy.",
        ),
    ],
)
def test_what_is_not_told_from_chance_is_said(tmp_path, chance, yes, answer, below):
    built = report(tmp_path, {"clip": 0.45, "clips": 0.7}, chance=chance, yes=yes)
    assert built.answer.endswith(answer or built.answer)
    assert ("chance" in built.answer) == bool(answer)
    said = [line for line in built.remarks if line.startswith("Not significantly above chance")]
    assert bool(said) == (below is not None)
    assert not below or said[0].endswith(below)


def test_where_chance_is_not_known_nothing_is_said_of_it(tmp_path):
    put_result(tmp_path / "study", "clip", "gqa", items_table(0.4, benchmark="gqa"))
    built = build_report(tmp_path / "study")
    assert not any("chance" in rendered(built, name) for name in ("html", "markdown", "latex"))
    assert lines_of(built)["chance"].isna().all()
