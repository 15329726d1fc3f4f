"""What the report's figures work out: differences, kinds of items."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from report_material import SKILLS, items_table, put_result, put_results

from benchmarks.report.categories import category_figures, category_tables
from benchmarks.report.figures import FigureSet
from benchmarks.report.forest_plots import forest_plots
from benchmarks.report.load_results import read_source
from benchmarks.report.report import Report, build_report
from benchmarks.results.item_scores import ItemScores
from benchmarks.study.rows import RowRecord
from benchmarks.tasks.mllm.items import items_table as answered

FOUR = SKILLS | {"best": 0.9}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return build_report(put_results(tmp_path / "results", FOUR), baseline="clip")


def only(found: FigureSet | None, name: str):
    assert found is not None
    (figure,) = [figure for figure in found.figures if figure.name == name]
    return figure


def test_a_forest_plot_says_what_the_table_says(report):
    figure = only(forest_plots(report.table), "forest-pope-accuracy")
    column = next(column for column in report.table.columns if column.metric == "accuracy")
    deltas = {cell.row: cell.delta for cell in column.cells if cell.delta}
    assert [row[0] for row in figure.rows] == sorted(deltas, key=lambda row: -deltas[row].value)
    told = {row[0]: (row[1], row[4]) for row in figure.rows}
    assert told["best"] == (f"+{deltas['best'].value:.1f}", "better")
    assert told["untrained"][1] == "worse"
    assert "best" in figure.alt
    assert "untrained" in figure.alt
    assert forest_plots(build_report(report.source.directory).table) is None  # no baseline


def test_a_difference_that_is_not_significant_is_not_stated(tmp_path):
    for row in ("one", "other"):
        put_result(tmp_path, row, "pope", items_table(0.5 if row == "one" else 0.51, benchmark="pope"))
    figure = only(forest_plots(build_report(tmp_path, baseline="one").table), "forest-pope-accuracy")
    assert figure.rows[0][4] == "not significant"
    assert figure.alt.endswith("none of 1 is significant.")


def with_kinds(skills: dict[str, float], count: int = 240):
    """Items of which the better row is better on one kind alone."""
    parts = [items_table(skill, benchmark="pope", count=count) for skill in skills.values()]
    items = parts[0].copy()
    kinds = np.array([*skills])[np.arange(count) // 2 % len(skills)]
    for kind, part in zip(skills, parts, strict=True):
        chosen = kinds == kind
        for name in ("score", "hit", "hit5"):
            items.loc[chosen, name] = part.loc[chosen, name]
    return items.assign(category=kinds)


def test_a_benchmark_is_split_by_category_with_tested_differences(tmp_path):
    put_result(tmp_path, "clip", "pope", with_kinds({"random": 0.5, "popular": 0.5}))
    put_result(tmp_path, "clips", "pope", with_kinds({"random": 0.9, "popular": 0.5}))
    report = build_report(tmp_path, baseline="clip")
    (table,) = category_tables(report.source, ItemScores())
    cells = {(cell.row, cell.column.metric): cell for cell in table.scores}
    items = with_kinds({"random": 0.9, "popular": 0.5})
    assert cells["clips", "random"].value == pytest.approx(100 * items[items["category"] == "random"]["hit"].mean())
    assert cells["clips", "random"].ci_low < cells["clips", "random"].value < cells["clips", "random"].ci_high
    assert cells["clips", "random"].delta.significant
    assert not cells["clips", "popular"].delta.significant
    figure = only(category_figures(report.source, report.table, report.items), "kinds-pope")
    assert figure.headers == ("category", "items", "clip", "clips")
    assert [row[:2] for row in figure.rows] == [("popular", "120"), ("random", "120")]
    assert "(▲ +" in figure.rows[1][3]
    assert "≈" in figure.rows[0][3]
    assert figure.alt.endswith("significantly different from the baseline: clips better on random.")


def test_p_values_of_all_kinds_are_corrected_together(tmp_path):
    for benchmark in ("pope", "gqa"):
        put_result(tmp_path, "clip", benchmark, with_kinds({"a": 0.5, "b": 0.5}))
        put_result(tmp_path, "clips", benchmark, with_kinds({"a": 0.9, "b": 0.5}))
    tables = category_tables(build_report(tmp_path, baseline="clip").source, ItemScores())
    assert [table.comparisons for table in tables] == [4, 4]
    smallest = min(cell.delta.p_adjusted for table in tables for cell in table.scores if cell.delta)
    put_result(tmp_path / "one", "clip", "pope", with_kinds({"a": 0.5, "b": 0.5}))
    put_result(tmp_path / "one", "clips", "pope", with_kinds({"a": 0.9, "b": 0.5}))
    (table,) = category_tables(build_report(tmp_path / "one", baseline="clip").source, ItemScores())
    half = min(cell.delta.p_adjusted for cell in table.scores if cell.delta)
    assert 0 < smallest == pytest.approx(2 * half)


def test_kinds_of_several_seeds_are_means_with_tests_over_seeds(tmp_path):
    rows = []
    for seed in range(3):
        for encoder, skill in (("clip", 0.3), ("clips", 0.6 + 0.1 * seed)):
            items = items_table(skill, benchmark="pope", seed=seed)
            put_result(tmp_path, f"{encoder}-{seed}", "pope", items.assign(category=["a", "a", "b", "b"] * 30))
            baseline = None if encoder == "clip" else f"clip-{seed}"
            rows.append(RowRecord(name=f"{encoder}-{seed}", encoder=encoder, seed=seed, baseline=baseline))
    source = dataclasses.replace(read_source(tmp_path), rows=tuple(rows))
    (table,) = category_tables(source, ItemScores())
    assert [row.name for row in table.rows] == ["clip-0", "clips-0"]
    cell = table.cell("clips-0", "pope", "a")
    assert len(cell.by_seed) == 3
    assert cell.value == pytest.approx(np.mean([*cell.by_seed.values()]))
    assert (cell.delta.baseline, table.comparisons) == ("clip-0", 2)


def test_gqas_kind_is_the_structure_of_the_question_and_others_their_own():
    def kind(**doc):
        sample = {"doc_id": 0, "doc": {"question": "q", **doc}, "filtered_resps": ["a"], "target": "a"}
        return answered([sample], {}, {}, "")["category"].tolist()

    types = {"structural": "verify", "semantic": "attr", "detailed": "verifyColor"}
    assert kind(types=types) == ["verify"]
    assert kind(category="random") == ["random"]
    assert kind(types=None, type="color") == ["color"]
    assert kind() == [""]
