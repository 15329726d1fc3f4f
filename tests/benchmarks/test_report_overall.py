"""Averages and mean ranks over the benchmarks."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import yaml
from report_material import SKILLS, edit, items_table, put_hits, put_result, put_results
from report_study import record_study
from scipy import stats
from script_modules import load_script

from benchmarks.exchange.import_command import ImportConfig, run_import
from benchmarks.report.averages import is_ratio, overall_scores, overall_section
from benchmarks.report.latex import render_latex
from benchmarks.report.load_results import read_source
from benchmarks.report.report import build_report
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.noise import Scores, average_scores, training_noise
from benchmarks.results.results import read_items
from benchmarks.results.statistics import wilson_interval
from benchmarks.study.study_record import RowRecord

SHOWN = {"accuracy": 100.0, "R@1": 100.0, "CIDEr": 100.0, "points": 1.0}


@pytest.mark.parametrize("shared", [False, True])
def test_the_average_has_the_variance_of_its_images(tmp_path, shared):
    """Those of gqa and pope may be the same: as independent ones they gave intervals that held 88 % of averages."""
    for row, skill in SKILLS.items():
        for place, benchmark in enumerate(("gqa", "pope")):
            items = items_table(skill, benchmark=benchmark)  # the same images are hard in both
            numbers = items["image"].str.split("-").str[1].astype(int) + (0 if shared else 1000 * place)
            items["image"] = numbers.map("{:016x}".format)
            put_result(tmp_path, row, benchmark, items)
    (overall,) = build_report(tmp_path).overall
    assert overall.averaged == overall.ranked == ("gqa", "pope")
    by_image = []
    for benchmark in overall.averaged:
        items = read_items(read_source(tmp_path).results(benchmark)["clips"])
        by_image.append(items.groupby("image")["hit"].mean())
    found = overall.averages["clips"]
    assert found.value == pytest.approx(100 * np.mean(by_image))
    of_images = np.mean(by_image, axis=0) if shared else np.concatenate(by_image)
    assert (found.high - found.low) / 2 == pytest.approx(100 * 1.96 * stats.sem(of_images), rel=0.03)
    assert max(overall.p_values.values()) < 0.05


def test_images_of_encoders_benchmarks_are_known_by_their_hash(tmp_path):
    for benchmark in ("retrieval", "coco"):
        items = items_table(0.5, benchmark="retrieval")
        items["image_hash"] = items["image"].map(hash).map(str)
        items["image"] = f"{benchmark}/" + items["image"]
        for row in ("a", "b"):
            put_result(tmp_path, row, benchmark, items)
    scores = [ItemScores().of_model([each["a"]], name) for each, name in
              ((read_source(tmp_path).results(benchmark), metric)
               for benchmark, metric in (("retrieval", "t2i_r1"), ("coco", "exact_match")))]  # fmt: skip
    assert all(each is not None and len(each.images) == 60 for each in scores)
    average = average_scores([each for each in scores if each], [100.0, 100.0])
    assert len(average.images) == 60
    assert average.image_variance == pytest.approx(100**2 * scores[0].image_variance)  # the same items twice


def test_encoders_and_llavas_have_averages_of_their_own(tmp_path):
    put_results(tmp_path)
    for row, skill in {**SKILLS, "clips": 0.3}.items():
        put_result(tmp_path, row, "retrieval", items_table(skill, benchmark="retrieval"))
        result = put_result(tmp_path, row, "flickr", items_table(skill, benchmark="retrieval", seed=3))
        edit(result, benchmark_type="retrieval")
    report = build_report(tmp_path)
    encoder, llava = report.overall
    assert (encoder.averaged, llava.averaged) == (("flickr", "retrieval"), ("gqa", "pope"))
    assert report.answer.startswith("clip has the best average over 2 benchmarks of the encoder, 4")
    assert " clips has the best average over 2 benchmarks of the LLaVA, " in report.answer
    section = overall_section(report.overall)
    assert section.headers[1] == "average of the encoder"
    assert (
        {len(row) for row in section.rows} == {len(section.headers)} == {7}
    )  # without pair tests no interval of ranks
    assert all(text for row in section.rows for text in row)
    assert len(overall_section(build_report(tmp_path, pairs="all").overall).headers) == 9
    assert render_latex(report).count("all, encoder") == 1


def test_the_seed_variance_of_an_average_is_that_of_its_seeds():
    """Seeds that are better on one benchmark and worse on the other: as perfectly correlated errors, they added up."""
    images = np.array([f"{place}" for place in range(50)], dtype=object)

    def scores(*values: float) -> Scores:
        numbers = {"values": np.array(values), "influence": np.zeros((len(values), 50)), "enters": np.ones(50, bool)}
        return Scores(**numbers, items=images, images=images, trained=True)

    average = average_scores([scores(0.4, 0.5, 0.6), scores(0.7, 0.6, 0.51)], [100.0, 100.0])
    assert average.values == pytest.approx([55, 55, 55.5])
    assert training_noise([average]).variance == pytest.approx(np.var([55, 55, 55.5], ddof=1))


def test_an_average_is_of_the_seeds_that_all_benchmarks_have():
    images = np.array([f"{place}" for place in range(50)], dtype=object)
    seeds = {"gqa": {0: 10.0, 1: 50.0, 2: 60.0}, "pope": {1: 70.0, 2: 90.0}}
    columns, cells = [], []
    for benchmark, values in seeds.items():
        column = Column(benchmark=benchmark, metric="m", label="accuracy", scale=100.0, higher_is_better=True)
        for row in ("a", "b"):
            numbers = {"values": np.array([*values.values()]) / 100, "enters": np.ones(50, bool), "trained": True}
            evidence = Scores(**numbers, influence=np.zeros((len(values), 50)), items=images, images=images)
            value = float(np.mean([*values.values()]))
            cells.append(Cell(row=row, column=column, value=value, by_seed=values, evidence=evidence))
        columns.append(column)
    rows = tuple(RowRecord(name=name, encoder=name) for name in ("a", "b"))
    (overall,) = overall_scores(Table(rows=rows, columns=tuple(columns), scores=cells, seeds=3))
    assert overall.averages["a"].value == pytest.approx((50 + 60 + 70 + 90) / 4)
    assert overall.fewer_seeds == ("a", "b")


def test_the_interval_of_an_average_stays_on_its_scale(tmp_path):
    """Of two accuracies near 100 % it ended above 100; single scores never did."""
    for row, skill in {"best": 1.0, "good": 0.97, "weak": 0.02}.items():
        for seed, benchmark in enumerate(("gqa", "pope")):
            put_result(tmp_path, row, benchmark, items_table(skill, benchmark=benchmark, seed=seed, count=20))
    (overall,) = build_report(tmp_path).overall
    best, weak = overall.averages["best"], overall.averages["weak"]
    assert best.value < best.high <= 100.0
    assert weak.value > weak.low >= 0.0


def test_an_average_with_an_unbounded_score_is_unbounded():
    images = np.array([f"{place}" for place in range(4)], dtype=object)
    one = Scores(values=np.ones(1), influence=np.zeros((1, 4)), enters=np.ones(4, bool), items=images, images=images)
    ratio, points = (dataclasses.replace(one, largest=most) for most in (1.0, 100.0))
    assert average_scores([ratio, points], [100.0, 0.5]).largest == 75.0
    assert average_scores([ratio, one], [100.0, 1.0]).largest is None


def test_a_rank_is_as_certain_as_the_tests(tmp_path):
    put_results(tmp_path, {"low": 0.1, "same": 0.6, "same too": 0.6, "top": 0.8})
    assert all(math.isnan(rank.low) for rank in build_report(tmp_path).overall[0].ranks.values())  # not all are tested
    overall = build_report(tmp_path, pairs="all").overall[0]
    found = {row: (rank.low, rank.value, rank.high) for row, rank in overall.ranks.items()}
    assert found == {"low": (4, 4, 4), "same": (2, 2.5, 3), "same too": (2, 2.5, 3), "top": (1, 1, 1)}


def test_an_average_is_best_only_if_it_is_significantly_above_every_other(tmp_path):
    put_results(tmp_path, {"low": 0.1, "one": 0.5, "two": 0.52})
    (overall,) = build_report(tmp_path).overall
    said = r"The averages of two and one over 2 .* do not differ significantly \(higher: two, \d.*\]\); both are "
    assert re.fullmatch(said + r"significantly above low\.", overall.sentence)
    below = {**overall.averages, "one": dataclasses.replace(overall.averages["low"], value=0.0)}  # two's tie is noisy
    assert "that of two is significantly above low" in dataclasses.replace(overall, averages=below).sentence
    close = {**overall.p_values, frozenset({"one", "low"}): 0.5}
    alone = dataclasses.replace(overall, p_values=close).sentence
    assert alone.endswith("; that of two is significantly above low.")
    close[frozenset({"two", "low"})] = 0.5
    assert "do not differ significantly from the highest (" in dataclasses.replace(overall, p_values=close).sentence
    del close[frozenset({"two", "low"})], close[frozenset({"two", "one"})]
    untested = dataclasses.replace(overall, p_values=close).sentence
    assert untested.startswith("two has the highest average ")
    assert untested.endswith("; two was not tested against one and low.")


def test_an_average_without_an_interval_has_its_own_reason(tmp_path):
    """A model with one seed left had "seeds that do not differ"."""
    benchmarks = {"retrieval": {"data": "d"}, "long_retrieval": {"data": "d"}}
    encoders = {"one": {"recipe": {"name": "clip"}}, "equal": {}}
    content = {"name": "small", "seeds": [0, 1], "encoders": encoders, "benchmarks": benchmarks}
    record_study(yaml.safe_dump(content), tmp_path / "out")
    for row, right in (("one-s0", 90), ("equal-s0", 60), ("equal-s1", 60)):
        for benchmark in benchmarks:
            put_hits(tmp_path / "out/results", row, benchmark, right, digest=row)
            edit(tmp_path / "out/results" / row / f"{benchmark}.json", benchmark_type="retrieval")
    (overall,) = build_report(tmp_path / "out").overall
    reason = "because its score on long_retrieval has none."
    assert overall.sentence == f"one has the highest average over 2 benchmarks, 75.0, without an interval, {reason}"


def test_a_benchmark_that_is_all_right_is_not_certain(tmp_path):
    """Of 5 of 5 and 48 ± 5.6 % the average was 74.0 [71.2, 76.9], and all right against all wrong no difference."""
    for benchmark, right in (("gqa", 5), ("vqa", 58)):
        put_hits(tmp_path, "one", benchmark, right, scored=5 if benchmark == "gqa" else 120)
        put_hits(tmp_path, "other", benchmark, 0, scored=5 if benchmark == "gqa" else 120)
    (overall,) = build_report(tmp_path).overall
    average, (p_value,) = overall.averages["one"], overall.p_values.values()
    margins = [wilson_interval(5, 5)[0] - 1, wilson_interval(58, 120)[0] - 58 / 120]
    assert average.low == pytest.approx(average.value - 50 * math.hypot(*margins), abs=0.5)
    assert average.high == pytest.approx(average.value + 50 * (wilson_interval(58, 120)[1] - 58 / 120), abs=0.5)
    assert p_value < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("items", "right"), [(5, 0.8), (5, 0.5), (10, 0.9), (20, 0.95)])
def test_averages_with_a_small_benchmark_cover_the_truth(items, right):
    """Of 5 or 10 items 68 % of them did, of 20 items 88 %."""
    found = load_script("check_statistics.py").simulate_few(items, right, 300)
    assert found.scores >= 0.93
    assert found.differences >= 0.93
    assert found.alarms <= 0.07


def test_models_of_equal_means_share_their_rank():
    columns, cells = [], []
    for benchmark in ("gqa", "pope"):
        column = Column(benchmark=benchmark, metric="m", label="accuracy", scale=100.0, higher_is_better=True)
        for row, right in (("a", (89, 119, 119)), ("b", (109, 109, 109)), ("c", (80, 80, 80))):
            value = fmean(100 * (each / 200) for each in right)
            cells.append(Cell(row=row, column=column, value=value))
        assert cells[-3].value != cells[-2].value  # by a rounding error
        columns.append(column)
    rows = tuple(RowRecord(name=name, encoder=name) for name in ("a", "b", "c"))
    (overall,) = overall_scores(Table(rows=rows, columns=tuple(columns), scores=cells, seeds=3))
    assert {row: rank.value for row, rank in overall.ranks.items()} == {"a": 1.5, "b": 1.5, "c": 3.0}


def test_benchmarks_that_a_model_lacks_do_not_count(tmp_path):
    put_results(tmp_path)
    for row, skill in SKILLS.items():
        put_result(tmp_path, row, "ai2d", items_table(skill, benchmark="ai2d"))
    put_result(tmp_path, "clip", "zoo", items_table(0.5, benchmark="zoo"))
    put_result(tmp_path, "clip", "gqa", items_table(0.5, benchmark="gqa"), protocol={"prompt": "other"})
    complete = build_report(tmp_path).overall[0]
    assert complete.averaged == ("ai2d", "pope")
    for row in ("clip", "clips", "untrained"):
        (tmp_path / row / "pope.items.parquet").unlink()
    report = build_report(tmp_path)
    overall = report.overall[0]
    for row, average in overall.averages.items():
        assert average.value == pytest.approx(complete.averages[row].value)
        assert np.isnan(average.low)
    assert overall.ranked == ("ai2d", "pope")
    assert "clips has the highest average over 2 benchmarks of the LLaVA, 56.2" in overall.sentence
    assert overall.sentence.endswith(", because the items on pope do not determine every model's score.")
    assert overall.texts("clips")[1] == ""
    assert "nan" not in render_latex(report).lower()


def test_points_and_cider_are_not_averaged_with_ratios():
    columns = [
        Column(benchmark="b", metric="m", label=label, scale=scale, higher_is_better=True)
        for label, scale in SHOWN.items()
    ]
    assert [column.label for column in columns if is_ratio(column)] == ["accuracy", "R@1"]
    assert is_ratio(dataclasses.replace(columns[0], scale=1.0, metric="gpt_eval_score"))  # MMBench's


def test_averages_include_mmbench(tmp_path: Path) -> None:
    numbers = {"mmbench_en_dev": ("gpt_eval_score", 60.0), "ai2d": ("exact_match", 50.0)}
    lines = [
        f"{name},{benchmark},{metric},{value},a paper"
        for name in ("a", "b")
        for benchmark, (metric, value) in numbers.items()
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["model,benchmark,metric,score,source", *lines]))
    run_import(ImportConfig(files=(str(tmp_path / "rows.csv"),), output=str(tmp_path / "r")))
    (overall,) = build_report(tmp_path / "r").overall
    assert set(overall.averaged) == numbers.keys()
    assert overall.averages["a"].value == pytest.approx(55)


def test_models_with_other_items_are_not_tested_by_their_average(tmp_path: Path) -> None:
    put_results(tmp_path)
    for benchmark in ("pope", "gqa", "retrieval"):
        items = items_table(0.9, benchmark=benchmark)
        put_result(tmp_path, "other", benchmark, items.assign(item="x" + items["item"]))
    p_values = build_report(tmp_path).overall[0].p_values
    tested = {pair for pair in p_values if "other" not in pair}
    assert len(tested) == 3
    assert all((p_values[pair] < 0.05) == (pair in tested) for pair in p_values)
