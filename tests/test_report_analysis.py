"""What the report's figures work out: differences, correlations, kinds of items."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_material import SKILLS, edit, items_table, put_result, put_results
from scipy import stats

from benchmarks.report.categories import category_figures, category_tables
from benchmarks.report.correlation import correlated_pairs, correlation, correlation_figures, leave_one_out
from benchmarks.report.figure import FigureSet
from benchmarks.report.forest_plots import forest_plots
from benchmarks.report.formats.markdown import render_markdown
from benchmarks.report.html_page import render_page
from benchmarks.report.load_results import read_source
from benchmarks.report.report import Report, build_report
from benchmarks.study.rows import RowRecord
from benchmarks.tasks.mllm.items import items_table as answered

FOUR = SKILLS | {"best": 0.9}
SIX = FOUR | {"good": 0.75, "fair": 0.25}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return build_report(put_results(tmp_path / "results", FOUR), baseline="clip")


@pytest.fixture
def six(tmp_path: Path) -> Report:
    return build_report(put_results(tmp_path / "results", SIX), baseline="clip")


def only(found: FigureSet | None, name: str):
    assert found is not None
    (figure,) = [figure for figure in found.figures if figure.name == name]
    return figure


def test_a_forest_plot_says_what_the_table_says(report):
    figure = only(forest_plots(report), "forest-pope-accuracy")
    column = next(column for column in report.table.columns if column.metric == "accuracy")
    deltas = {cell.row: cell.delta for cell in report.table.column_cells(column) if cell.delta}
    assert [row[0] for row in figure.rows] == sorted(deltas, key=lambda row: -deltas[row].value)
    told = {row[0]: (row[1], row[4]) for row in figure.rows}
    assert told["best"] == (f"+{deltas['best'].value:.1f}", "better")
    assert told["untrained"][1] == "worse"
    assert "best" in figure.alt
    assert "untrained" in figure.alt
    assert forest_plots(build_report(report.source.directory)) is None  # no baseline


def test_a_difference_that_is_not_significant_is_not_stated(tmp_path):
    for row in ("one", "other"):
        put_result(tmp_path, row, "pope", items_table(0.5 if row == "one" else 0.51, benchmark="pope"))
    figure = only(forest_plots(build_report(tmp_path, baseline="one")), "forest-pope-accuracy")
    assert figure.rows[0][4] == "not significant"
    assert figure.alt.endswith("none of 1 is significant.")


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_correlations_are_scipys_and_their_test_tries_all_orders(kind):
    x, y = [3.0, 1.0, 4.0, 1.5, 9.0], [2.0, 1.0, 3.0, 5.0, 8.0]
    found = correlation(kind, x, y)
    compute = stats.spearmanr if kind == "spearman" else stats.pearsonr
    assert found.value == pytest.approx(compute(x, y).statistic)
    every = [compute(order, y).statistic for order in itertools.permutations(x)]
    above, below = (np.mean([sign * each >= sign * found.value - 1e-9 for each in every]) for sign in (1, -1))
    assert found.p_value == pytest.approx(min(1, 2 * min(above, below)))
    assert found.low < found.value < found.high


def test_the_interval_of_a_correlation_is_fishers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    pearson = correlation("pearson", x, y)
    expected = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (pearson.low, pearson.high) == pytest.approx((expected.low, expected.high))
    spearman = correlation("spearman", x, y)
    half = 1.959964 * math.sqrt((1 + spearman.value**2 / 2) / 9)
    assert math.atanh(spearman.high) - math.atanh(spearman.value) == pytest.approx(half, rel=1e-4)


def test_each_model_is_left_out_and_the_first_metric_selects_among_the_others():
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 5.0], [10.0, 30.0, 20.0, 40.0, 60.0, 35.0]
    found = leave_one_out(x, y)
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    right = [0.5 + 0.5 * np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs]
    assert found.ordered == pytest.approx(np.mean(right))
    assert found.ordered_low < found.ordered < found.ordered_high
    rhos = [stats.spearmanr(np.delete(x, i), np.delete(y, i)).statistic for i in range(6)]
    assert (found.rho_low, found.rho_high) == pytest.approx((min(rhos), max(rhos)))
    # the last two tie: their mean, 47.5, is 12.5 below the best; without the best the last is selected, 40 - 35
    assert found.worst == 12.5
    assert found.regret == pytest.approx((4 * 12.5 + 5 + 0) / 6)
    perfect = leave_one_out(range(6), range(6))
    assert (perfect.ordered, perfect.ordered_high, perfect.regret) == (1, 1, 0)
    assert perfect.ordered_low < 0.95
    assert leave_one_out(range(6), range(0, -6, -1)).ordered == 0


def test_every_score_of_an_encoder_alone_is_a_predictor_and_signs_are_reversed_where_lower_is_better(tmp_path):
    """CKA grows with the skill, the Gromov-Wasserstein distance falls: both predict, and the first figure stays."""
    results = put_results(tmp_path / "results", SIX)
    for row, skill in SIX.items():
        items = items_table(skill, benchmark="retrieval")
        path = put_result(results, row, "alignment", items, primary=("exact_match", "gromov_wasserstein"))
        distance = {"value": 1 - skill, "ci_low": None, "ci_high": None, "higher_is_better": False, "ci_method": "none"}
        distance |= {"aggregation": None, "columns": [], "label": "Gromov-Wasserstein", "n": 120, "clusters": 60}
        content = json.loads(path.read_text(encoding="utf-8"))
        content["metrics"]["gromov_wasserstein"] = content["metrics"]["exact_match"] | distance
        edit(path, benchmark_type="alignment", metrics=content["metrics"])
    found = correlation_figures(build_report(results))
    assert [line[0] for line in found.rows][:3] == [
        "retrieval T→I R@1 and gqa exact match",
        "alignment exact match and gqa exact match",
        "alignment Gromov-Wasserstein ↓ and gqa exact match",
    ]
    assert len(found.rows) == 6
    assert all(line[2] == "1.00" for line in found.rows)
    assert found.rows[2][4] == "1.00 to 1.00"
    assert found.rows[2][6].startswith("100 % (")
    assert found.rows[2][7] == "0.0 (0.0)"
    assert [figure.name for figure in found.figures] == ["relation-retrieval-gqa", "relation-retrieval-pope"]
    report = build_report(results)
    page = render_page(report)
    assert 'id="predictors-of-mllm-scores"' in page
    assert "pairs ordered right" in page
    below = render_markdown(report).partition("## Predictors of MLLM scores\n")[2].splitlines()
    assert [line.split("|")[1].strip() for line in below if line.startswith("|")][2:] == [row[0] for row in found.rows]
    assert report.overall[0].ranked == report.overall[0].averaged == ("gqa", "pope")
    assert {cell.mark for cell in report.table.cells.values() if cell.column.benchmark == "alignment"} == {""}
    assert "Not ranked, not averaged: alignment, which describes features and scores no task." in report.notes


def test_an_order_of_models_at_chance_is_said_to_be_noise(tmp_path):
    results = put_results(tmp_path / "results", SIX)
    for number, row in enumerate(SIX):
        near, far = 0.5 + number / 100, 0.8 + number / 50
        for benchmark, skill in (("pope", far if row == "best" else near), ("gqa", near if row == "best" else far)):
            items = items_table(skill, benchmark=benchmark)
            put_result(results, row, benchmark, items, blind={"chance": {"hit": np.full(len(items), 0.5)}})
    line = "5 of 6 models are not significantly above chance on pope accuracy: their order on it may be noise."
    notes = correlation_figures(build_report(results)).notes
    assert [note for note in notes if "above chance" in note] == [line]  # on gqa it is one of six


def test_equal_scores_have_no_correlation_and_select_nothing(tmp_path):
    results = put_results(tmp_path / "results", dict.fromkeys(SIX, 0.5))
    found = correlation_figures(build_report(results))
    assert found.rows[0][2] == "— (all scores equal)"
    assert found.rows[0][4:8] == ("—", "—", "—", "—")


def test_six_rows_in_perfect_order_are_not_taken_for_certainty():
    found = correlation("spearman", range(6), range(6))
    assert (found.value, found.high) == pytest.approx((1, 1))
    assert found.low < 0.7
    assert found.p_value == pytest.approx(2 / 720)
    assert correlation("spearman", range(9), range(9)).p_value == pytest.approx(2 / 362_880)
    assert correlation("pearson", [1, 2, 3, 4, 6, 7], [5] * 6) is None


def test_retrieval_is_set_against_every_mllm_benchmark(six):
    found = correlation_figures(six)
    assert [figure.name for figure in found.figures] == ["relation-retrieval-gqa", "relation-retrieval-pope"]
    assert [line[0] for line in found.rows] == [
        "retrieval T→I R@1 and gqa exact match",
        "retrieval T→I R@1 and pope accuracy",
    ]
    x, y = (next(c for c in six.table.columns if c.benchmark == name) for name in ("retrieval", "pope"))
    (relation,) = correlated_pairs(six, x, y)
    assert relation.spearman.value == pytest.approx(1)
    assert found.rows[1][1:5] == ("6", "1.00", f"{relation.spearman.low:.2f} to 1.00", "1.00 to 1.00")
    assert float(found.rows[1][5]) == pytest.approx(2 * 2 / 720, abs=1e-3)  # two tests, corrected


def test_three_rows_are_points_without_a_correlation_and_the_page_says_so(tmp_path):
    results = put_results(tmp_path / "results")
    found = correlation_figures(build_report(results))
    titles = [figure.title.split(" against ")[0] for figure in found.figures]
    assert titles == ["gqa exact match", "pope accuracy"]
    assert {row[0] for row in found.figures[0].rows} == {"untrained", "clip", "clips"}
    assert found.rows == found.notes == ()
    assert "Predictors" not in render_markdown(build_report(results))
    assert (
        "3 models have both a score of the encoder alone and an MLLM score. A correlation needs 6 models" in found.lead
    )
    shutil.rmtree(results / "untrained")
    found = correlation_figures(build_report(results))
    assert found.figures == ()
    assert "2 models have both" in found.lead


def test_rows_of_two_llms_or_recipes_and_cells_measured_otherwise_are_not_mixed(six):
    def with_rows(**fields: str) -> FigureSet:
        """The figures of rows with other fields, ``clip`` with the first letter of each."""
        rows = tuple(
            dataclasses.replace(row, **{name: text[0] if row.name == "clip" else text for name, text in fields.items()})
            for row in six.table.rows
        )
        return correlation_figures(dataclasses.replace(six, table=dataclasses.replace(six.table, rows=rows)))

    for fields in ({"llm": "big"}, {"llava_variant": "ours"}):
        found = with_rows(**fields)
        assert [len(figure.rows) for figure in found.figures] == [5, 5]
        assert found.rows == ()
    named = with_rows(llm="b", llava_variant="r").figures[0]
    assert named.name == "relation-retrieval-gqa-b-r"
    assert named.title.endswith(", b, r")
    other = items_table(0.45, benchmark="pope", seed=1)
    put_result(six.source.directory, "clip", "pope", other, protocol={"prompt": "other"})
    again = correlation_figures(build_report(six.source.directory))
    assert [len(figure.rows) for figure in again.figures] == [6, 5]
    assert [line[0] for line in again.rows] == ["retrieval T→I R@1 and gqa exact match"]


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
    (table,) = category_tables(report.source)
    cells = {(cell.row, cell.column.metric): cell for cell in table.cells.values()}
    items = with_kinds({"random": 0.9, "popular": 0.5})
    assert cells["clips", "random"].value == pytest.approx(100 * items[items["category"] == "random"]["hit"].mean())
    assert cells["clips", "random"].ci_low < cells["clips", "random"].value < cells["clips", "random"].ci_high
    assert cells["clips", "random"].delta.significant
    assert not cells["clips", "popular"].delta.significant
    figure = only(category_figures(report), "kinds-pope")
    assert figure.headers == ("category", "items", "clip", "clips")
    assert [row[:2] for row in figure.rows] == [("popular", "120"), ("random", "120")]
    assert "(▲ +" in figure.rows[1][3]
    assert "≈" in figure.rows[0][3]
    assert figure.alt.endswith("significantly different from the baseline: clips better on random.")


def test_p_values_of_all_kinds_are_corrected_together(tmp_path):
    for benchmark in ("pope", "gqa"):
        put_result(tmp_path, "clip", benchmark, with_kinds({"a": 0.5, "b": 0.5}))
        put_result(tmp_path, "clips", benchmark, with_kinds({"a": 0.9, "b": 0.5}))
    tables = category_tables(build_report(tmp_path, baseline="clip").source)
    assert [table.comparisons for table in tables] == [4, 4]
    smallest = min(cell.delta.p_adjusted for table in tables for cell in table.cells.values() if cell.delta)
    put_result(tmp_path / "one", "clip", "pope", with_kinds({"a": 0.5, "b": 0.5}))
    put_result(tmp_path / "one", "clips", "pope", with_kinds({"a": 0.9, "b": 0.5}))
    (table,) = category_tables(build_report(tmp_path / "one", baseline="clip").source)
    half = min(cell.delta.p_adjusted for cell in table.cells.values() if cell.delta)
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
    (table,) = category_tables(source)
    assert [row.name for row in table.rows] == ["clip-0", "clips-0"]
    cell = table.cells["clips-0", "pope", "a"]
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
