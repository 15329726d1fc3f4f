"""Every sentence, legend and mark follows from the tests that were made, and says what was not tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_material import items_table, put_result
from test_report_seeds import write_study

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.report.latex import render_latex
from benchmarks.report.latex_style import LatexStyle
from benchmarks.report.notes import MARKDOWN
from benchmarks.report.report import Report, build_report


def put(
    results: Path,
    row: str,
    benchmark: str,
    right: int,
    *,
    start: int = 0,
    items: str = "",
    unread: int | None = None,
    **more: object,
) -> None:
    """A result on 120 images, of which ``right`` from ``start`` on are right, and the first ``unread`` not read."""
    table = items_table(0.5, benchmark="gqa").assign(image=[f"image {number}" for number in range(120)])
    table["item"] = items + table["item"]
    table["hit"] = table["score"] = [float((number - start) % 120 < right) for number in range(120)]
    if unread is not None:
        table["unread"] = [float(number < unread) for number in range(120)]
        table["hit_unread_wrong"] = table["hit"] * (1 - table["unread"])
    put_result(results, row, benchmark, table, **more)  # type: ignore[arg-type]


def marks(report: Report, benchmark: str = "gqa") -> dict[str, str]:
    return {cell.row: cell.mark for cell in report.table.scores if cell.column.benchmark == benchmark}


def text_of(report: Report) -> str:
    return "\n".join([report.answer, *report.other_sentences, *report.all_notes(MARKDOWN)])


def test_a_model_that_also_loses_still_beats_its_baseline(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path, "base", f"b{number}", 60)
        put(tmp_path, "mixed", f"b{number}", 90 if number < 2 else 30)
        put(tmp_path, "same", f"b{number}", 60)
    report = build_report(tmp_path, baseline="base")
    assert "No model beats" not in report.answer
    assert report.answer.startswith("mixed beats base by 25.0 points")
    for number in range(2):
        put(tmp_path, "mixed", f"b{number}", 60)
    assert build_report(tmp_path, baseline="base").answer.startswith(
        "No model beats base in any of 10 tests; mixed loses to it in some."
    )


@pytest.mark.parametrize("more", [{"items": "other "}, {"protocol": {"prompt": "other"}}])
def test_a_model_that_was_not_tested_with_the_top_one_is_not_tied(tmp_path: Path, more: dict[str, object]) -> None:
    for row, right in (("one", 90), ("two", 88), ("far", 20)):
        put(tmp_path, row, "gqa", right)
    put(tmp_path, "other", "gqa", 85, **more)
    put(tmp_path, "other too", "gqa", 20, **more)
    report = build_report(tmp_path, baseline="two")
    assert marks(report) == {"one": "tied", "two": "tied", "far": "", "other": "best", "other too": ""}
    same = "items" if "items" in more else "settings"
    legend = report.all_notes(MARKDOWN)
    assert f"Best (bold): significantly better than every other model of its column with the same {same}." in legend
    assert any(line.startswith(f"Tied (italics): the top model of its column with the same {same}") for line in legend)
    assert "other was not tested against two on gqa exact match." in report.sentences
    assert ("gqa exact match: the models have scores for different items" in text_of(report)) == (same == "items")
    ranks = build_report(tmp_path, latex=LatexStyle(marks="ranks"))
    assert render_latex(ranks).count(r"^{\circ}") == 1  # of the three others, one is close to the top and tested


def test_scores_for_other_items_are_no_pairs(tmp_path: Path) -> None:
    for row, right in (("one", 60), ("two", 20)):
        put(tmp_path, row, "gqa", right)
    table = items_table(0.5, benchmark="gqa").assign(image=[f"image {number}" for number in range(120)])
    table["hit"] = table["score"] = [1.0] + 119 * [np.nan]
    put_result(tmp_path, "single", "gqa", table)
    report = build_report(tmp_path)
    assert marks(report) == {"one": "best", "two": "", "single": ""}
    assert report.table.comparisons == 1
    assert "different items, and only those with the same ones are tested against each other: single; one and two" in (
        text_of(report)
    )


def test_the_worst_model_differs_from_all_others(tmp_path: Path) -> None:
    for row, right in (("one", 90), ("two", 88), ("far", 20)):
        put(tmp_path, row, "gqa", right)
    answer = build_report(tmp_path).answer
    assert answer == "No model is significantly better than all others on any metric."


def test_equal_averages_have_no_best_model(tmp_path: Path) -> None:
    for benchmark in ("gqa", "pope"):
        for row, right in (("one", 60), ("two", 60), ("far", 20)):
            put(tmp_path, row, benchmark, right)
    report = build_report(tmp_path)
    assert report.answer.startswith(
        "one and two have the same average over 2 benchmarks, 50.0 and no model a higher one."
    )
    put(tmp_path, "far", "pope", 90, items="other ")
    put(tmp_path, "one", "pope", 66)
    answer = build_report(tmp_path).answer
    assert "far has" not in answer
    assert "not tested against far" in answer


def test_equal_seeds_are_no_single_evaluation(tmp_path: Path) -> None:
    shares = {"pretrained": (0.1,) * 3, "whole": (0.2,) * 3, "part.block.8": (0.5,) * 3, "part.block.16": (0.3,) * 3}
    report = build_report(write_study(tmp_path / "out", shares))
    text = text_of(report)
    assert "was evaluated once" not in text
    assert "items have the same score" not in text
    assert "and the seed variance" not in text
    reason = "the seeds of every model with several seeds have equal scores"
    assert f"Reason: {reason}: their variance is unknown." in text
    assert f"No test on retrieval T→I R@1: {reason}" in text
    assert report.table.comparisons == 0


def test_one_seed_each_is_named_so(tmp_path: Path) -> None:
    output = write_study(tmp_path / "out", {"whole": (0.2, 0.3, 0.25), "part.block.8": (0.5, 0.6, 0.55)})
    for file in output.glob("results/*-s[12]/*.json"):
        file.unlink()
    text = text_of(build_report(output))
    assert "means over" not in text
    assert "do not include seed variance" in text


def test_a_comparison_counts_what_was_tested(tmp_path: Path) -> None:
    for row in ("one", "two"):
        put(tmp_path, row, "gqa", 60, digest=row)
        put(tmp_path, row, "pope", 60, digest=row, items="other " * (row == "two"))
    found = build_comparison(CompareConfig(first=str(tmp_path / "one"), second=str(tmp_path / "two")))
    assert found.answer == "2 numbers: 1 tested, 1 without a test; significantly different: none."


def test_models_with_other_shares_of_unread_answers_are_not_better_without_that_word(tmp_path: Path) -> None:
    put(tmp_path, "base", "gqa", 60, unread=1)
    put(tmp_path, "plain", "gqa", 100, unread=2)
    put(tmp_path, "guessed", "gqa", 110, unread=30)
    swapped = "0.8 % of base and 25.0 % of guessed on gqa"
    report = build_report(tmp_path, baseline="base")
    texts = [report.answer, *report.other_sentences]
    plain, guessed = (next(text for text in texts if text.startswith(f"{name} beats")) for name in ("plain", "guessed"))
    assert "read" not in plain
    assert f"; different shares of answers were not read: {swapped}." in guessed
    notes = report.all_notes(MARKDOWN)
    (line,) = [note for note in notes if note.startswith("Answers not read (")]
    assert line.endswith(": 25.0 % of guessed on gqa exact match (66.7 instead of 91.7 as wrong ones).")
    assert any(note.startswith("Models with different scores") and swapped in note for note in notes)
    best = build_report(tmp_path)
    assert "Significantly better than all others" in best.answer
    ending = f"different shares of answers were not read: 25.0 % of guessed and 1.7 % of plain on gqa; {swapped}."
    assert best.answer.endswith(ending)
    found = build_comparison(CompareConfig(first=str(tmp_path / "guessed"), second=str(tmp_path / "base")))
    (verdict,) = [line.verdict for line in found.lines]
    assert verdict.startswith("A is better; answers not read: 25.0 % of A guessed and 0.8 % of B base")
    found = build_comparison(CompareConfig(first=str(tmp_path / "plain"), second=str(tmp_path / "base")))
    assert found.lines[0].verdict == "A is better"


def test_a_few_unread_answers_are_no_note(tmp_path: Path) -> None:
    put(tmp_path, "base", "gqa", 60, unread=2)
    put(tmp_path, "other", "gqa", 100)  # of an earlier version
    assert "not read" not in text_of(build_report(tmp_path, baseline="base"))
