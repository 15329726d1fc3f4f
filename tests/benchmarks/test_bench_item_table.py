"""Tables of items from any harness: the numbers are those of plain numpy, and of the same results in a directory."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs_blocks import ROOT, blocks
from generators import explore, sizes
from hypothesis import strategies as st
from rich.console import Console

import benchmarks
from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.cli import main
from benchmarks.exchange.import_command import ImportConfig, run_import
from benchmarks.exchange.item_table import document_columns, read_item_tables, results_of
from benchmarks.report.categories import category_tables
from benchmarks.report.examples import answer_galleries
from benchmarks.report.load_results import ReportSource, name_by_model, read_source, source_of_items
from benchmarks.report.measures import score_frame
from benchmarks.report.report import Selection, build_report
from benchmarks.report.text_table import print_report, render_markdown
from benchmarks.results.item_scores import ItemScores
from benchmarks.tasks.encoders import retrieval
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS
from clips.errors import UserError

NUMBERS = ["model", "benchmark", "metric", "value", "ci_low", "ci_high", "n", "delta", "p_value", "p_adjusted"]


def scores(count: int = 40, *, models: tuple[str, ...] = ("one", "two"), seed: int = 0, **fields: Any) -> pd.DataFrame:
    """Ratios of models of rising skill on the same items."""
    random = np.random.default_rng(seed)
    difficulty = random.random(count)
    return pd.DataFrame(
        {"model": name, "benchmark": "quiz", "metric": "accuracy", "item": f"q{item}", **fields,
         "score": float(random.random() + 0.3 * place > difficulty[item])}
        for place, name in enumerate(models) for item in range(count)
    )  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Lines of some models, seeds, benchmarks and metrics, in any order, with and without the optional columns."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    lines = []
    seeds = draw(st.sampled_from([[None], [4], [0, 1], [3, 5, 7]]))
    for benchmark in draw(st.sampled_from([["quiz"], ["quiz", "exam"]])):
        count, shared = draw(st.integers(3, 30)), draw(st.integers(1, 3))
        metrics = draw(st.sampled_from([["score"], ["accuracy", "loss"], ["item", "per cent"]]))
        for model, seed, metric in itertools.product(("a/b", "clip"), seeds, metrics):
            for item in range(count):
                value = {"loss": random.normal(), "per cent": 100 * random.random()}.get(
                    metric, float(random.random() > 0.5)
                )
                lines.append(
                    {"model": model, "benchmark": benchmark, "metric": metric, "item": item, "score": value,
                     "seed": seed, "image": f"i{item // shared}", "category": "x" if item % 2 else "",
                     "scale": 100 if metric == "per cent" else None, "chance": None if metric == "loss" else 0.25,
                     "higher_is_better": metric != "loss", "protocol": "3 shots", "prediction": "yes"}
                )  # fmt: skip
    every = itertools.product(("a/b", "clip"), seeds, ("exam",))
    lacking = draw(st.sets(st.sampled_from([*every]), max_size=2))  # of the second benchmark
    lines = [line for line in lines if (line["model"], line["seed"], line["benchmark"]) not in lacking]
    table = pd.DataFrame(lines).sample(frac=1, random_state=int(random.integers(2**31)), ignore_index=True)
    if seeds == [None] or draw(st.booleans()):
        left_out = draw(st.sets(st.sampled_from(["image", "category", "chance", "protocol", "prediction"])))
        table = table.drop(columns=[*left_out])
    return table.drop(columns="seed") if seeds == [None] else table


@sizes
def test_a_table_gives_the_means_of_numpy_and_the_numbers_of_a_directory(examples: int, tmp_path: Path) -> None:
    numbers = itertools.count()

    def check(data: st.DataObject) -> None:
        table, folder = data.draw(tables()), tmp_path / str(next(numbers))
        folder.mkdir()
        baseline = data.draw(st.sampled_from([None, "clip"]))
        made = benchmarks.compare(table, baseline=baseline)
        seeds = [name for name in ("seed",) if name in table]
        for line in made.scores.itertuples():
            own = table[(table["model"] == line.model) & (table["benchmark"] == line.benchmark)]
            own = own[own["metric"] == line.metric]
            if own.empty:
                assert (np.isnan(line.value), line.missing) == (True, "missing: the tables have no line")
                continue
            per_cent = 1 if line.metric == "per cent" else 100 if line.metric != "loss" else 1
            expected = own.groupby(seeds)["score"].mean().mean() if seeds else own["score"].mean()
            assert line.value == pytest.approx(per_cent * expected, abs=1e-9)
            assert line.n == own["item"].nunique()
        by_model = made.scores.set_index(["model", "benchmark", "metric"])["value"]
        for pair in made.differences.itertuples():
            key = pair.benchmark, pair.metric
            assert pair.difference == pytest.approx(by_model[pair.model, *key] - by_model[pair.other, *key], abs=1e-9)
        form = data.draw(st.sampled_from(["parquet", "csv", "directory"]))
        if form == "parquet":
            table.to_parquet(path := folder / "table.parquet")
        else:
            table.to_csv(path := folder / "table.csv", index=False)
        if form == "directory":
            run_import(ImportConfig(files=(str(path),), output=str(path := folder / "r")))
        frame = benchmarks.compare(path, baseline=baseline).scores
        frame["model"] = frame["model"].replace("a-b", "a/b")
        order = ["model", "benchmark", "metric"]
        expected_frame = made.scores[NUMBERS].sort_values(order, ignore_index=True)
        got = frame[NUMBERS].sort_values(order, ignore_index=True)
        pd.testing.assert_frame_equal(got, expected_frame, obj=form, check_exact=False, rtol=1e-9)

    explore(check, examples // 6)


@sizes
def test_names_of_items_are_the_same_from_every_file(examples: int, tmp_path: Path) -> None:
    """Also of integers beside an empty cell, of which pandas makes floats, and of 64 bits."""

    def check(data: st.DataObject) -> None:
        first, step = data.draw(st.sampled_from([(0, 1), (5, 10), (2**53, 1), (2**62, 7)]), "ids")
        count, shared = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 3))
        table = scores(count)
        number = table["item"].str[1:].astype(int)
        for name, place in (("item", number), ("image", number // shared)):
            table[name] = (first + place * step).astype("Int64")
        if data.draw(st.booleans(), "a published number"):
            line = {"model": "paper", "benchmark": "quiz", "metric": "accuracy", "score": 50.0}
            table = pd.concat([table, pd.DataFrame([line])], ignore_index=True)
        whole = table.assign(source="a paper")
        form = data.draw(st.sampled_from(["frame", "parquet", "arrow", "csv", "floats"]), "form")
        if form == "frame":
            results = results_of(whole)
        elif form == "parquet":
            whole.sample(frac=1, random_state=0).to_parquet(tmp_path / "table.parquet")  # with an index of its own
            results = read_item_tables([tmp_path / "table.parquet"])
        elif form == "arrow":  # of a writer other than pandas, which notes its types
            pq.write_table(pa.Table.from_pandas(whole).replace_schema_metadata(), tmp_path / "table.parquet")
            results = read_item_tables([tmp_path / "table.parquet"])
        else:
            lossy = form == "floats" and first < 2**53
            (whole.astype({"item": float, "image": float}) if lossy else whole).to_csv(tmp_path / "t.csv", index=False)
            results = read_item_tables([tmp_path / "t.csv"])
        for result, items in results:
            if items is not None:
                names = {str(first + item * step): str(first + item // shared * step) for item in range(count)}
                assert dict(zip(items["item"], items["image"], strict=True)) == names
                assert result.metrics["accuracy"].clusters == -(-count // shared)

    explore(check, examples)


@pytest.mark.parametrize("kind", [int, str])
def test_a_seed_that_a_float_cannot_hold_is_rejected(kind: type) -> None:
    table = scores().assign(seed=2**53 + 1).astype({"seed": kind})
    with pytest.raises(UserError, match=r"row 0: seed: expected an integer below 2\^53, got 9007199254740993"):
        results_of(table)


@sizes
def test_every_number_is_its_own_models(examples: int, tmp_path: Path) -> None:
    """Names that look like another model's seed, items like images, and metrics like each other: right, or rejected."""
    counts = {"right": 0, "rejected": 0}

    def check(data: st.DataObject) -> None:
        random, lines = np.random.default_rng(data.draw(st.integers(0, 2**32))), []
        names = st.sampled_from(["a", "a-s1", "a (seed 1)", "a/s1", "b", "x" * 198])
        models = data.draw(
            st.lists(st.tuples(names, st.sampled_from([None, 1, 12, 13])), min_size=2, max_size=5, unique=True)
        )
        metrics = data.draw(st.sampled_from([("F1", "f1"), ("x y", "x_y"), ("x_y", "x y")]))
        for model, seed in models:
            skill, shuffled = data.draw(st.sampled_from([0.1, 0.5, 0.9])), data.draw(st.permutations(metrics))
            for metric in shuffled:
                right = random.random(80) < (skill if metric == metrics[0] else 1 - skill)
                of_result = {"model": model, "seed": seed, "benchmark": "m", "metric": metric}
                lines += [{**of_result, "item": f"{item:016d}",
                           "image": f"{item - 40:016d}" if item >= 40 else None, "score": float(value),
                           "category": "even" if item % 2 == 0 else "odd"}
                          for item, value in enumerate(right)]  # fmt: skip
        table = pd.DataFrame(lines)
        try:
            made = benchmarks.compare(table)
        except UserError as error:
            if not re.search("unlike|seed: expected one, as other lines", str(error)):
                raise
            counts["rejected"] += 1
            return
        counts["right"] += 1
        means = (
            table.groupby(["model", "seed", "metric"], dropna=False)["score"].mean().groupby(["model", "metric"]).mean()
        )
        assert {(line.model, line.metric): round(line.value, 9) for line in made.scores.itertuples()} == {
            key: round(100 * value, 9) for key, value in means.items()
        }
        assert (made.scores["ci_low"] <= made.scores["value"]).all()
        assert (made.scores["ci_high"] >= made.scores["value"]).all()
        for pair in made.differences.itertuples():
            expected = 100 * (means[pair.model, pair.metric] - means[pair.other, pair.metric])
            assert pair.difference == pytest.approx(expected, abs=1e-9)
            assert pair.ci_low <= pair.difference <= pair.ci_high
        source = source_of_items(results_of(table), Path("frame"))
        results = source.results("m").values()
        assert all(result.metrics[metrics[0]].clusters == 80 for result in results)  # no item has another one's image
        encoders = {name: row.encoder for row in source.rows for name in (row.name, row.model)}
        for categories in category_tables(source, ItemScores()):
            assert {row.encoder for row in categories.rows} == {model for model, _ in models}
            first = table["metric"].iloc[0]
            for cell in categories.scores:
                own = table[(table["model"] == encoders[cell.row]) & (table["metric"] == first)]
                own = own[own["category"] == cell.column.metric].groupby("seed", dropna=False)["score"].mean().mean()
                assert cell.value == pytest.approx(100 * own)
        for metric in metrics:
            chosen = build_report(source, selection=Selection(benchmarks=(f"m:{metric}",))).table.columns
            assert [column.metric for column in chosen] == [metric]

    explore(check, examples // 4)
    assert min(counts.values()) > 0


@sizes
def test_a_model_or_a_seed_in_another_scale_is_rejected(examples: int, tmp_path: Path) -> None:
    """Hits of another size always, and other ratios beside points.

    Points of 10 beside per cent look like a model that is bad, and are not known.
    """

    def check(data: st.DataObject) -> None:
        hits = data.draw(st.booleans(), "hits")
        scale = st.sampled_from([0.01, 1, 2, 4.9, 5, 10, 100] if hits else [1, 5, 10, 100])
        runs = list(itertools.product(("one", "two"), (1, 2)))
        scales = dict(zip(runs, data.draw(st.lists(scale, min_size=4, max_size=4)), strict=True))
        frames = [scores(models=(model,)).assign(seed=seed) for model, seed in runs]
        if not hits:
            frames = [frame.assign(score=(frame["score"] + frame.index / len(frame)) / 2) for frame in frames]
            for frame in frames:
                frame.loc[0, "score"] = 1.0
        for (model, seed), frame in zip(runs, frames, strict=True):
            frame["score"] *= scales[model, seed]
        different = len({*scales.values()}) > 1
        if different and (hits or 1 in scales.values()):
            said = r"(0 and [\d.]+|at most 1), those of '(?:one|two)' "
            with pytest.raises(UserError, match=rf"score: expected one scale, .* this model's scores are {said}"):
                benchmarks.compare(pd.concat(frames))
            return
        ratio = 100 if max(scales.values()) <= 1 else 1
        values = benchmarks.compare(pd.concat(frames)).scores.set_index("model")["value"]
        assert values["one"] == pytest.approx(ratio * pd.concat(frames[:2])["score"].mean())

    explore(check, examples // 6)


def test_a_stated_scale_is_that_of_every_model_and_of_a_published_number() -> None:
    table, ratios = scores(), scores(models=("three",))
    per_cent = table.assign(score=100 * table["score"], scale=100)
    with pytest.raises(UserError, match="row 80: score: expected per cent, as the scale is 100"):
        benchmarks.compare(pd.concat([per_cent, ratios]))
    line = {"model": "paper", "benchmark": "quiz", "metric": "accuracy", "score": 53.6, "source": "s", "scale": 100}
    with pytest.raises(UserError, match="row 80: scale: expected the metric's items to state theirs, too"):
        benchmarks.compare(pd.concat([per_cent.drop(columns="scale"), pd.DataFrame([line])]))
    frame = benchmarks.compare(pd.concat([per_cent, pd.DataFrame([line])])).scores.set_index("model")
    assert frame.loc["paper", "value"] == 53.6
    assert list(frame["display_factor"]) == [100, 100, 100]
    assert frame.loc["one", "value"] == pytest.approx(100 * table.query("model == 'one'")["score"].mean())
    judged = table.assign(score=10 * table["score"], scale=10)
    frame = benchmarks.compare(pd.concat([judged, pd.DataFrame([{**line, "score": 7.5, "scale": 10}])])).scores
    assert frame.set_index("model").loc["paper", "value"] == 7.5
    assert frame["value"][0] == pytest.approx(judged.query("model == 'one'")["score"].mean())
    coco = {"benchmark": "coco", "metric": "t2i_r1", "source": "s"}
    two = [{**coco, "model": "x", "score": 53.6, "scale": 100}, {**coco, "model": "y", "score": 0.61}]
    with pytest.raises(UserError, match=r"0\.61 may be a ratio or per cent"):
        benchmarks.compare(pd.DataFrame(two))
    with pytest.raises(UserError, match="higher_is_better: expected that of the metric's items, True"):
        benchmarks.compare(pd.concat([per_cent, pd.DataFrame([{**line, "higher_is_better": False}])]))


@sizes
def test_a_published_number_is_the_same_in_every_scale(examples: int) -> None:
    """Of each known metric, and of an unknown one: the largest possible number is 1, 100 or the metric's own."""
    of_tasks = ((task, {**entry.metrics, **entry.extra}) for task, entry in TASK_METRICS.items())
    known = [(task, name, spec) for task, specs in of_tasks for name, spec in specs.items()]
    known += [("coco", name, spec) for name, spec in retrieval.METRICS.items()]

    def shown(lines: list[dict[str, Any]]) -> list[float]:
        frame = pd.DataFrame(lines).assign(source="s", model=[f"m{place}" for place in range(len(lines))])
        return benchmarks.compare(frame).scores["value"].tolist()

    def check(data: st.DataObject) -> None:
        task, name, spec = data.draw(st.sampled_from([*known, ("mine", "mine", None)]), "metric")
        share = data.draw(st.floats(0.02, 0.99), "share of the largest")
        line: dict[str, Any] = {"benchmark": task, "metric": name}
        formula = spec and spec.aggregation
        if formula in {"sum_of_group_means", "median"}:
            points = round(5000 * share)
            lines, expected = [{"score": points}, {"score": points, "scale": 5000}], points
        elif formula == "mean_of_scores":
            lines, expected = [{"score": 2 * share, "scale": 1}, {"score": 200 * share, "scale": 100}], 200 * share
        else:
            largest = spec.most * spec.scale if spec else 100
            lines = [{"score": share * scale, "scale": scale} for scale in sorted({1, 100, largest})]
            expected = share * largest
        more = {} if spec else {"higher_is_better": True}
        assert shown([line | more | each for each in lines]) == pytest.approx([expected] * len(lines))

    explore(check, examples // 4)


def test_very_small_scores_are_ranked() -> None:
    table = scores(60, models=("low", "middle", "high"))
    table["score"] = [-1e-10 * (3 - place) + 1e-13 * item for place in range(3) for item in range(60)]
    frame = benchmarks.compare(table).scores.set_index("model")
    assert frame["mark"].fillna("").to_dict() == {"low": "", "middle": "", "high": "best"}


def test_the_models_of_a_directory_and_of_a_table_are_one_only_if_both_state_seeds(tmp_path: Path) -> None:
    scores().to_csv(tmp_path / "one.csv", index=False)
    scores(models=("one",)).assign(seed=3).to_csv(tmp_path / "seed.csv", index=False)
    run_import(ImportConfig(files=(str(tmp_path / "one.csv"),), output=str(tmp_path / "r")))
    message = "expected the seed of each result of 'one', as 'one \\(seed 3\\)' has one"
    with pytest.raises(UserError, match=message):
        benchmarks.compare(tmp_path / "r", tmp_path / "seed.csv")
    run_import(ImportConfig(files=(str(tmp_path / "seed.csv"),), output=str(tmp_path / "r")))
    with pytest.raises(UserError, match=message):
        benchmarks.compare(tmp_path / "r")


def test_arguments_of_compare_that_say_nothing_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one frame, or paths alone"):
        benchmarks.compare(scores(), tmp_path / "more.csv")
    with pytest.raises(UserError, match="pairs: 'baseline' needs the name of one"):
        benchmarks.compare(scores(), pairs="baseline")


def test_lower_is_better_on_the_examples() -> None:
    table = scores(6).assign(score=lambda lines: 6.5 * lines["score"], higher_is_better=False)
    answers = [answer for gallery in answer_galleries(source_of_items(results_of(table), Path("frame")))
               for card in gallery.browsed for answer in card.answers]  # fmt: skip
    assert {answer.score for answer in answers} == {"6.5", "0"}


def test_the_note_on_models_that_are_not_tested_names_an_item() -> None:
    table = scores(20)
    lacking = table[(table["model"] == "one") | (table["item"] != "q7")]
    text = render_markdown(build_report(source_of_items(results_of(lacking), Path("frame"))))
    assert "of one group are tested against each other: two (lacks 1 of 20 items, 'q7' for example); one." in text
    other = table.assign(image=np.where((table["model"] == "one") & (table["item"] == "q7"), "i", table["item"]))
    text = render_markdown(build_report(source_of_items(results_of(other), Path("frame"))))
    assert "(has other images for 1 of 20 items, 'q7' for example)" in text


def test_a_paired_test_is_scipys_of_the_differences_between_many_independent_items() -> None:
    from scipy import stats

    table = scores(4000)
    (pair,) = benchmarks.compare(table, baseline="one").differences.itertuples()
    wide = table.pivot(index="item", columns="model", values="score")
    expected = stats.ttest_rel(wide["two"], wide["one"])
    assert pair.p_value == pytest.approx(expected.pvalue, rel=0.02)
    low, high = expected.confidence_interval()
    assert (pair.ci_low, pair.ci_high) == pytest.approx((100 * low, 100 * high), rel=0.02)
    assert pair.significant == (pair.p_adjusted < 0.05)


def test_items_of_one_image_are_one_cluster_and_models_of_other_items_or_protocols_are_not_tested() -> None:
    table = scores(200)
    apart = benchmarks.compare(table).scores
    shared = benchmarks.compare(table.assign(image=[f"i{int(item[1:]) // 20}" for item in table["item"]])).scores
    assert np.allclose(apart["value"], shared["value"])
    assert not np.allclose(apart["ci_low"], shared["ci_low"])
    assert len(benchmarks.compare(table).differences) == 1
    for other in (table.assign(item=table["model"] + table["item"]), table.assign(protocol=table["model"])):
        with pytest.warns(UserWarning, match="no models were tested: expected scores for exactly the same items"):
            assert benchmarks.compare(other).differences.empty


def test_seeds_of_a_model_are_a_row_and_a_published_number_stands_beside_it(tmp_path: Path) -> None:
    seeds = pd.concat([scores(seed=seed).assign(seed=seed) for seed in range(3)])
    published = pd.DataFrame(
        [{"model": "paper", "benchmark": "quiz", "metric": "accuracy", "score": 61.5, "scale": 100, "source": "a paper",
          "ci_low": 60, "ci_high": 63, "n": 500, "seed": None}]
    )  # fmt: skip
    seeds.to_parquet(tmp_path / "items.parquet")
    published.to_csv(tmp_path / "published.csv", index=False)
    frame = benchmarks.compare(tmp_path / "items.parquet", tmp_path / "published.csv").scores.set_index("model")
    assert frame["num_seeds"].to_dict() == {"one": 3, "two": 3, "paper": 1}
    assert frame.loc["paper", ["value", "ci_low", "ci_high", "n"]].tolist() == [61.5, 60, 63, 500]
    text = render_markdown(build_report(read_source(tmp_path / "items.parquet", tmp_path / "published.csv")))
    assert "61.5 ±1.5†§" in text
    assert "their items are missing: paper on quiz." in text
    assert "images" not in render_markdown(build_report(source_of_items(results_of(seeds), Path("frame")))).replace(
        "credited to the images", ""
    )


def test_a_published_number_in_the_points_of_the_items() -> None:
    table = scores(50)
    table["score"] = 20 + 30 * table["score"]
    line = {"model": "paper", "benchmark": "quiz", "metric": "accuracy", "score": 41.0, "source": "a paper"}
    frame = benchmarks.compare(pd.concat([table, pd.DataFrame([line])])).scores.set_index("model")
    assert frame.loc["paper", "value"] == 41
    assert frame["display_factor"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_model_or_a_seed_may_lack_a_benchmark(tmp_path: Path, seeds: int) -> None:
    every = pd.concat([scores(seed=seed).assign(seed=seed, benchmark=name) for seed in range(seeds) for name in "xy"])
    lacks = every[~((every["model"] == "two") & (every["benchmark"] == "y") & (every["seed"] == seeds - 1))]
    published = {"model": "paper", "benchmark": "x", "metric": "accuracy", "score": 61.5, "scale": 100, "source": "s"}
    table = pd.concat([lacks, pd.DataFrame([published])], ignore_index=True)
    if seeds == 1:  # as of pretrained models
        table = table.drop(columns="seed")
    for baseline in (None, "one"):
        frame = benchmarks.compare(table, baseline=baseline).scores.set_index(["model", "benchmark"])
        assert frame.loc[("paper", "y"), "missing"] == "missing: the tables have no line"
        assert frame.loc[("two", "y"), "value"] > 0 if seeds > 1 else frame.loc[("two", "y"), "missing"]
    table.to_csv(tmp_path / "table.csv", index=False)
    assert "paper" in render_markdown(build_report(read_source(tmp_path / "table.csv")))


def test_two_tables_are_compared_as_two_directories_are(tmp_path: Path) -> None:
    for seed, name in enumerate(("old", "new")):
        scores(seed=seed).to_csv(tmp_path / f"{name}.csv", index=False)
    sides = CompareConfig(first=str(tmp_path / "old.csv"), second=str(tmp_path / "new.csv"))
    report = build_comparison(sides)
    assert [row.name for row in report.table.rows] == ["A one", "B one", "A two", "B two"]
    assert {frozenset({each.cell.row, each.other.row}) for each in report.table.differences} == {
        frozenset({"A one", "B one"}), frozenset({"A two", "B two"})
    }  # fmt: skip


def test_a_report_of_a_table_beside_results(tmp_path: Path, monkeypatch, capsys) -> None:
    scores(models=("one",)).to_csv(tmp_path / "one.csv", index=False)
    scores().query("model == 'two'").to_csv(tmp_path / "two.csv", index=False)
    run_import(ImportConfig(files=(str(tmp_path / "one.csv"),), output=str(tmp_path / "r")))
    monkeypatch.setattr(sys, "argv", ["clips-bench", "report", str(tmp_path / "two.csv"), str(tmp_path / "r")])
    assert main() == 0
    assert "one" in (said := capsys.readouterr().out)
    assert "two" in said
    assert (tmp_path / "report" / "index.html").is_file()
    joined = build_report(read_source(tmp_path / "two.csv", tmp_path / "r"), pairs="all")
    together = benchmarks.compare(pd.concat([pd.read_csv(tmp_path / f"{name}.csv") for name in ("one", "two")]))
    order = ["model", "benchmark"]
    one, other = (frame[NUMBERS].sort_values(order, ignore_index=True) for frame in
                  (score_frame(joined.table), together.scores))  # fmt: skip
    pd.testing.assert_frame_equal(one, other)
    with pytest.raises(UserError, match="expected one result of 'one' on 'quiz'"):
        read_source(tmp_path / "one.csv", tmp_path / "r")


WRONG = [
    ({"score": "high"}, "row 3: score: expected a number, got 'high'"),
    ({"score": None}, "row 3: score: expected a value, got none"),
    ({"score": float("inf")}, "row 3: score: expected a number, got 'inf'"),
    ({"model": ""}, "row 3: model: expected a value, got none"),
    ({"item": "q2"}, "row 3: expected one item 'q2' of one on quiz, accuracy, got two"),
    ({"item": None}, "row 3: item: expected a name, or for a published number its source"),
    ({"item": None, "source": "s"}, "row 3: item: expected a name, as other lines of the metric have"),
    ({"n": 3}, "row 3: n: expected none, as the line has an item"),
    ({"seed": 1.5}, "row 3: seed: expected an integer, got '1.5'"),
    ({"higher_is_better": "1"}, None),
    ({"higher_is_better": "maybe"}, "row 3: higher_is_better: expected true or false, got 'maybe'"),
    ({"scale": -1}, "scale: expected a number above 0"),
    ({"scale": 1, "score": 1.5}, "row 3: score: expected 0 to 1, as the scale is 1"),
    ({"model": "…"}, "row 3: model: expected a name with letters or digits, got '…'"),
    ({"model": "o/ne"}, None),
    ({"item": ["a"]}, "row 3: item: expected a text, got \"['a']\""),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_line_is_named(fields: dict[str, Any], message: str | None) -> None:
    table = scores(6).astype(object)
    for name, value in fields.items():
        if name not in table:
            table[name] = None
        table.at[3, name] = value
    if message is None:
        results_of(table)
        return
    with pytest.raises(UserError) as raised:
        results_of(table)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("scale", 1, 100),
        ("higher_is_better", True, False),
        ("protocol", "3 shots", "0 shots"),
        ("image", "a", "b"),
        ("target", "yes", "no"),
    ],
)
def test_lines_that_contradict_each_other_are_named(name: str, first: object, second: object) -> None:
    table = pd.concat([scores(3), scores(3).assign(metric="f1")], ignore_index=True).astype(object)
    table[name] = None
    table.at[0, name] = first
    results_of(table)  # what a line leaves out, another one may state
    same = (
        9 if name == "target" else 3 if name in ("scale", "higher_is_better") else 6
    )  # of the other model; of the same item's other metric
    table.at[same, name] = second
    with pytest.raises(UserError, match=f"row {same}: {name}: expected one value for each .*, got two"):
        results_of(table)


def test_what_the_tests_leave_out_is_said(tmp_path: Path) -> None:
    table = scores(models=("one", "two", "three"))
    lacking = table[(table["model"] != "three") | (table["item"] != "q7")]
    with pytest.warns(
        UserWarning, match=r"one group .*: three \(lacks 1 of 40 items, 'q7' for example\); two and one\."
    ):
        assert len(benchmarks.compare(lacking).differences) == 1
    assert "three (lacks 1 of 40 items, 'q7' for example)" in printed(lacking)
    copied = pd.concat([table, table[table["model"] == "two"].assign(model="copy")])
    said = printed(copied, models=("one", "two", "copy"))
    assert "1 pair of models has the same score on every item." in said
    assert "Omitted from this table: 1 of 4 models. Tests do not count three." in said
    (note,) = [each.text for each in build_report(source_of(copied)).notes if each.kind == "equal"]
    assert note == "two and copy have the same score on every item of quiz accuracy."
    assert "equal" not in {each.kind for each in build_report(source_of(table.assign(score=1.0))).notes}


def source_of(table: pd.DataFrame) -> ReportSource:
    return name_by_model(source_of_items(results_of(table), Path("frame")))


def printed(table: pd.DataFrame, **selection: Any) -> str:
    """What the terminal says of the report, in one line."""
    stream = io.StringIO()
    print_report(build_report(source_of(table), selection=Selection(**selection)), Console(file=stream, width=400))
    return " ".join(stream.getvalue().split())


def test_a_file_that_is_no_table_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty.csv").write_text("model,benchmark,metric,item,score\n")
    (tmp_path / "lacks.csv").write_text("model,benchmark,metric,item\na,b,c,d\n")
    (tmp_path / "more.csv").write_text("model,benchmark,metric,item,score\na,b,c,d,1,2\n")
    (tmp_path / "twice.csv").write_text("model,benchmark,metric,item,score,score\na,b,c,d,1,2\n")
    (tmp_path / "x.json").write_text("{}")
    said = {
        "broken.parquet": "not a readable parquet file", "empty.csv": "expected at least one line, got none",
        "lacks.csv": "expected a column 'score' (found model, benchmark, metric, item)",
        "more.csv": "Expected 5 columns, got 6", "twice.csv": "got 'score' twice",
        "x.json": "expected a directory, or a table of items", "missing.csv": "no such",
    }  # fmt: skip
    for name, message in said.items():
        monkeypatch.setattr(sys, "argv", ["clips-bench", "report", str(tmp_path / name)])
        assert main() == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
        assert not (tmp_path / "report").exists()


def test_comparing_needs_no_torch() -> None:
    code = (
        "import sys, time, pandas as pd, numpy as np\n"
        "from benchmarks import compare\n"
        "frame = pd.DataFrame([(m, 'b', 'acc', i, (i + k) % 3 > 0) for k, m in enumerate('xy') for i in range(9)],"
        " columns='model benchmark metric item score'.split())\n"
        "assert len(compare(frame).scores) == 2\n"
        "print([name for name in ('torch', 'transformers', 'lmms_eval', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PEERS = Path(__file__).parent / "peer_files"


def harness_totals() -> dict[str, dict[str, float]]:
    """Model → its score as the harness states it, in its own files."""
    stated: dict[str, dict[str, float]] = {"lm_eval": {}, "inspect_logs": {}, "vlmevalkit": {}, "mteb": {}}
    for file in (PEERS / "lm_eval").glob("*/results_*.json"):
        stated["lm_eval"][file.parent.name] = json.loads(file.read_text())["results"]["sums"]["acc,none"]
    for model in ("vila_8b", "vila_13b"):  # of the excerpt, by its own column
        sheet = pd.read_excel(PEERS / "vlmevalkit" / f"{model}_POPE_auxmatch.xlsx")
        stated["vlmevalkit"][model] = (sheet["answer"] == sheet["extracted"]).mean()
    return stated


@pytest.mark.filterwarnings("ignore")  # of the harnesses
@pytest.mark.parametrize("harness", ["lm_eval", "inspect_logs", "vlmevalkit", "mteb"])
def test_the_documented_lines_read_the_files_of_other_harnesses(
    harness: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = [block.text for block in blocks("docs/item-tables.md") if block.language == "python"]
    code = next(text for text in python if f'"{harness}' in text)
    if harness == "inspect_logs":
        pytest.importorskip("inspect_ai")
    shutil.copytree(PEERS / harness, tmp_path / harness)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, harness, "exec"), {})
    scores = benchmarks.compare(tmp_path / "items.parquet").scores
    by_model = dict(zip(scores["model"], scores["value"] / 100, strict=True)) if harness != "inspect_logs" else {}
    assert len(set(scores["model"])) == 2
    if harness == "mteb":
        from mteb import TaskResult

        files = [file for file in PEERS.glob("mteb/results/*/*/*.json") if file.name != "model_meta.json"]
        tasks = {(file.parts[-3], file.stem): TaskResult.from_disk(file).get_score() for file in files}
        shared = {name for _, name in tasks if sum(other == name for _, other in tasks) == 2}
        assert len(shared) == scores["n"].iloc[0] >= 10
        for model, value in by_model.items():
            assert value == pytest.approx(np.mean([tasks[model, name] for name in shared]))
    elif harness == "inspect_logs":
        from inspect_ai.log import list_eval_logs, read_eval_log

        for log in map(read_eval_log, list_eval_logs(str(PEERS / harness))):
            for score in log.results.scores:
                line = scores[(scores["model"] == log.eval.model) & (scores["metric"] == f"score_{score.name}")]
                assert line["value"].item() / 100 == pytest.approx(score.metrics["accuracy"].value)
    else:
        assert by_model == pytest.approx(harness_totals()[harness])


def test_the_documented_columns_are_those_that_are_read() -> None:
    text = (ROOT / "docs" / "item-tables.md").read_text(encoding="utf-8")
    for name, meaning in document_columns():
        assert f"| {name} | {meaning} |" in text
