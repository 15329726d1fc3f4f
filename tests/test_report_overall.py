"""Averages and mean ranks over the benchmarks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from report_material import items_table, put_result, put_results
from test_bench_exchange import VLM
from test_bench_exchange import run as import_file

from benchmarks.report.formats.latex import render_latex
from benchmarks.report.load_results import read_source
from benchmarks.report.overall import is_ratio, mean_estimate, overall_texts
from benchmarks.report.report import build_report
from benchmarks.report.table import Column
from benchmarks.results.noise import Estimate
from benchmarks.results.results import read_items

SHOWN = {"accuracy": 100.0, "R@1": 100.0, "CIDEr": 100.0, "points": 1.0}
ESTIMATE = Estimate(
    **{"value": 0.5, "image_variance": 0.04, "training_variance": 0.0, "image_degrees": 10.0},
    **{"training_degrees": 0, "skewness": 0.0, "clusters": 100, "signs": 100},
)


def test_the_average_has_the_variance_of_independent_benchmarks(tmp_path):
    put_results(tmp_path)
    overall = build_report(tmp_path).overall
    assert overall.averaged == overall.ranked == ("gqa", "pope", "retrieval")
    values, variances = [], []
    for benchmark in overall.averaged:
        items = read_items(read_source(tmp_path).results(benchmark)["clips"])
        of_images = items.groupby("image")["hit"].mean()
        values.append(of_images.mean())
        variances.append(of_images.var() / len(of_images))
    found = overall.averages["clips"]
    assert found.value == pytest.approx(100 * np.mean(values))
    half = 100 * 1.96 * np.sqrt(sum(variances)) / 3
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)
    assert max(overall.p_values.values()) < 0.05
    assert overall.sentence.startswith("clips has the best average over 3 benchmarks, 59.2 [54.2, 64.2], significantly")


def test_errors_of_one_training_add_up():
    value, error, degrees = mean_estimate([ESTIMATE] * 4)
    assert (value, error, degrees) == (0.5, pytest.approx(0.1), pytest.approx(40))
    trained = dataclasses.replace(ESTIMATE, image_variance=0.0, training_variance=0.04, training_degrees=3)
    assert mean_estimate([trained] * 4)[1:] == (pytest.approx(0.2), pytest.approx(3))


def test_a_rank_is_as_certain_as_the_tests(tmp_path):
    put_results(tmp_path, {"low": 0.1, "same": 0.6, "same too": 0.6, "top": 0.8})
    assert all(math.isnan(rank.low) for rank in build_report(tmp_path).overall.ranks.values())  # not all are tested
    overall = build_report(tmp_path, pairs="all").overall
    found = {row: (rank.low, rank.value, rank.high) for row, rank in overall.ranks.items()}
    assert found == {"low": (4, 4, 4), "same": (2, 2.5, 3), "same too": (2, 2.5, 3), "top": (1, 1, 1)}


def test_benchmarks_that_a_model_lacks_do_not_count(tmp_path):
    put_results(tmp_path)
    put_result(tmp_path, "clip", "zoo", items_table(0.5, benchmark="zoo"))
    put_result(tmp_path, "clip", "gqa", items_table(0.5, benchmark="gqa"), protocol={"prompt": "other"})
    complete = build_report(tmp_path).overall
    assert complete.averaged == ("pope", "retrieval")
    for row in ("clip", "clips", "untrained"):
        (tmp_path / row / "pope.items.parquet").unlink()
    report = build_report(tmp_path)
    overall = report.overall
    for row, average in overall.averages.items():
        assert average.value == pytest.approx(complete.averages[row].value)
        assert np.isnan(average.low)
    assert overall.ranked == ("pope", "retrieval")
    assert overall.sentence == "clips has the highest average over 2 benchmarks, 56.2, without an interval, because " \
        "there is none on pope."  # fmt: skip
    assert overall_texts(overall, "clips")[1] == "—"
    assert "nan" not in render_latex(report).lower()


def test_points_and_cider_are_not_averaged_with_ratios():
    columns = [
        Column(benchmark="b", metric="m", label=label, scale=scale, higher_is_better=True)
        for label, scale in SHOWN.items()
    ]
    assert [column.label for column in columns if is_ratio(column)] == ["accuracy", "R@1"]
    assert is_ratio(dataclasses.replace(columns[0], scale=1.0, metric="gpt_eval_score"))  # MMBench's


def test_averages_include_mmbench(tmp_path: Path) -> None:
    kinds = {"mmbench_en_dev": "MMBench_DEV_EN", "ai2d": "AI2D_TEST"}
    for name in ("a", "b"):
        for file in kinds.values():
            import_file(VLM / f"Tiny-VL_{file}_acc.csv", output=tmp_path, model_name=name)
    report = build_report(tmp_path)
    shown = [cell.value for (name, _, _), cell in report.table.cells.items() if name == "a"]
    assert set(report.overall.averaged) == kinds.keys()
    average = report.overall.averages["a"]
    assert average.value == pytest.approx(sum(shown) / len(kinds))
    assert average.low < average.value < average.high


def test_models_with_other_items_are_not_tested_by_their_average(tmp_path: Path) -> None:
    put_results(tmp_path)
    for benchmark in ("pope", "gqa", "retrieval"):
        items = items_table(0.9, benchmark=benchmark)
        put_result(tmp_path, "other", benchmark, items.assign(item="x" + items["item"]))
    p_values = build_report(tmp_path).overall.p_values
    tested = {pair for pair in p_values if "other" not in pair}
    assert len(tested) == 3
    assert all((p_values[pair] < 0.05) == (pair in tested) for pair in p_values)
