"""Means over seeds, and scores against settings: known numbers, from results written by the harness's own writer."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bench_reader import evaluate
from bench_world import write_images, write_lines
from report_material import edit, items_table, put_result, rendered
from report_study import SHARES, STUDY, record_study, section, write_study
from scipy import stats

from benchmarks.report.load_results import limit_rows
from benchmarks.report.page import render_page
from benchmarks.report.plots import forest_plots, length_curves, length_figures, sweep_panels
from benchmarks.report.report import build_report
from benchmarks.results.formatting import join_row_names
from benchmarks.results.noise import Scores, training_noise
from benchmarks.results.statistics import compare, image_scores, scores_interval
from benchmarks.study.state import PARENT_MODULES
from benchmarks.tasks.encoders.long_retrieval import metric_suffix
from benchmarks.tasks.registry import configure
from clips.errors import UserError


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study's output with three encoders, three seeds each."""
    return write_study(tmp_path_factory.mktemp("seeds") / "out", SHARES)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_shows_means_with_both_kinds_of_noise(study):
    built = build_report(study)
    (column,) = built.table.columns
    assert [row.name for row in built.table.rows] == ["pretrained", "whole", "part.block.8", "part.block.16"]
    cell = built.table.cells(column)[3]
    assert cell.value == pytest.approx(36)
    # over seeds 0, 5, 5 and 6 points, pooled: 4.6 with 8 degrees of freedom; nothing but luck makes images less than it
    pooled = ((0 + 25 + 25 + 36) / 4) ** 0.5
    assert cell.ci_high - cell.ci_low > 2 * stats.t.ppf(0.975, 8) * pooled / 3**0.5
    assert cell.by_seed == pytest.approx({0: 30, 1: 36, 2: 42})
    # 1.96 × sqrt(0.36 × 0.64 / 100 images) is 9.4; the other seeds have less
    assert 8.5 < cell.image_ci_half_width < 9.5
    assert cell.delta.baseline == "whole"
    assert cell.delta.value == pytest.approx(11)
    assert cell.delta.ci_low < 11 - stats.t.ppf(0.975, 8) * pooled * (2 / 3) ** 0.5
    assert built.table.comparisons == 5  # three with the baseline and three with the best, of which one is both
    assert build_report(study, pairs="all").table.comparisons == 6
    constant = built.table.cells(column)[2].delta
    assert constant.ci_low < 25 < 30 < 35 < constant.ci_high  # equal differences are no certainty
    assert "part.block.8 beats whole by 30.0 points" in " ".join([built.answer, *built.sentences])
    assert any("and the seed variance" in remark for remark in built.texts)


def test_another_baseline_is_a_model_and_compared_at_equal_seed(study):
    one = build_report(study, baseline="part.block.8 (seed 1)")
    assert {row.baseline for row in one.source.rows} == {None, "part.block.8 (seed 1)"}
    built = build_report(study, baseline="part.block.8")
    compared = {row.name: row.baseline for row in built.source.rows if row.seed == 2}
    assert compared.pop("part.block.8 (seed 2)") is None
    assert set(compared.values()) == {"part.block.8 (seed 2)"}
    deltas = {cell.row: cell.delta for cell in built.table.scores}
    assert deltas["part.block.8"] is None
    assert (deltas["whole"].baseline, deltas["whole"].value) == ("part.block.8", pytest.approx(-30))
    assert deltas["part.block.16"].value == pytest.approx(-19)
    with pytest.raises(UserError, match=r"\(known: part.block.16, part.block.8, pretrained, whole\)$"):
        build_report(study, baseline="part")


def test_both_kinds_of_noise_and_every_seed_are_in_the_csv(study):
    built = build_report(study)
    lines = {line["model"]: line for line in rows_of(rendered(built, "seeds"))}
    assert float(lines["whole"]["seed 2"]) == pytest.approx(30)
    assert float(lines["whole"]["value"]) == pytest.approx(25)
    assert lines["whole"]["num_seeds"] == "3"
    assert float(lines["whole"]["image_ci_half_width"]) > 5
    assert len(rows_of(rendered(built, "csv"))) == 4


def test_a_model_that_was_evaluated_once_has_one_number(study, tmp_path):
    """Its result stands in the row of each seed."""
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    for seed in (1, 2):
        file = copied / "results" / f"pretrained-s{seed}" / "retrieval.json"
        file.write_text(file.read_text().replace(f"pretrained {seed}", "pretrained 0"))
    for encoder in [*SHARES][1:]:
        (copied / "results" / f"{encoder}-s2" / "retrieval.json").unlink()
    built = build_report(copied)
    lines = {line["model"]: line for line in rows_of(rendered(built, "seeds"))}
    assert (lines["pretrained"]["num_seeds"], lines["pretrained"]["seed 1"]) == ("1", "")
    assert lines["whole"]["num_seeds"] == "2"
    assert built.table.seeds == 2  # those that have run
    (copied / "results/pretrained-s0/retrieval.items.parquet").unlink()
    without = build_report(copied)
    assert {line["model"]: line for line in rows_of(rendered(without, "seeds"))}["pretrained"]["num_seeds"] == "1"
    not_tested = "Not tested, because the items do not determine the score: pretrained on retrieval T→I R@1."
    assert not_tested in without.texts
    assert not any("scores for different items" in note for note in without.texts)


def test_figures_are_of_the_means_and_examples_of_the_first_seed(study):
    built = build_report(study)
    figures = {figure.name: figure for figure in forest_plots(built.table).figures}
    rows = [row[:2] for row in figures["forest-retrieval-t2i-r1"].rows]
    assert rows == [("part.block.8", "+30.0"), ("part.block.16", "+11.0"), ("pretrained", "−15.0")]
    assert [(row.encoder, row.seed) for row in limit_rows(built.source).rows] == [(name, 0) for name in SHARES]


def test_equal_seeds_have_an_unknown_variance_and_no_test(tmp_path):
    shares = {"pretrained": (0.1,) * 3, "whole": (0.2,) * 3, "part.block.8": (0.5,) * 3, "part.block.16": (0.3,) * 3}
    built = build_report(write_study(tmp_path / "out", shares))
    assert built.table.comparisons == 0
    text = " ".join(built.texts)
    assert not re.search("evaluated once|items have the same score|and the seed variance|has one seed", text)
    reason = "the seeds of every model with several seeds have equal scores"
    assert f"Reason: {reason}: their variance is unknown." in text
    assert f"No test on retrieval T→I R@1, because {reason}: their variance is unknown (" in text
    for file in (tmp_path / "out").glob("results/*-s[12]/*.json"):
        file.unlink()
    text = " ".join(build_report(tmp_path / "out").texts)  # one seed of each
    assert "means over" not in text
    assert "do not include seed variance" in text
    assert "Each trained model has one seed" in text


@pytest.mark.parametrize("path", ["encoders/whole-s1", "elsewhere/renamed", ""])
def test_a_model_of_which_one_seed_is_left_has_the_training_noise_of_the_others(study, tmp_path, path):
    """Its only seed stood in a cache as a pretrained model, and its interval was over images only; so did one whose
    directory has another name since the study.
    """
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    for seed in (0, 2):
        (copied / "results" / f"whole-s{seed}" / "retrieval.json").unlink()
    left = copied / "results/whole-s1/retrieval.json"
    edit(left, model={**json.loads(left.read_text())["model"], "path": path})
    built = build_report(copied)

    def scores(*shares: float) -> Scores:
        items = items_table(0.0, benchmark="retrieval", count=200)
        hits = [{"hit": np.array([float(number < round(200 * share)) for number in range(200)])} for share in shares]
        return image_scores("mean", hits, ("hit",), items["image"], items=items["item"], trained=True)

    models = {name: scores(*shares) for name, shares in {**SHARES, "whole": (0.25,)}.items()}
    noise = training_noise([*models.values()])
    assert noise.of(models["whole"]) > 0
    assert [cell.row for cell in built.table.scores if "1 seed: most of" in cell.caution] == ["whole"]
    assert re.search(r"Few seeds: .* in only \d+ % with 1 seed \(whole\)", " ".join(built.texts))
    cells = {cell.row: cell for cell in built.table.scores}
    interval = scores_interval(models["whole"], noise)
    assert (cells["whole"].ci_low, cells["whole"].ci_high) == pytest.approx((100 * interval.low, 100 * interval.high))
    expected, delta = compare(models["part.block.16"], models["whole"], noise), cells["part.block.16"].delta
    assert (delta.ci_low, delta.ci_high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert delta.p_value == pytest.approx(expected.p_value)


def test_seeds_that_were_measured_otherwise_are_no_part_of_the_mean(study, tmp_path):
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    items = items_table(0.9, benchmark="retrieval", count=200)
    put_result(copied / "results", "whole-s1", "retrieval", items, protocol={"prompt": "other"}, primary=("t2i_r1",))
    report = build_report(copied)
    cell = report.table.cell("whole", "retrieval", "t2i_r1")
    assert (cell.group, cell.by_seed) == (0, pytest.approx({0: 20, 2: 30}))
    assert any(note.startswith("† whole (seed 1) on retrieval T→I R@1 was measured") for note in report.texts)
    items.loc[50:, ["hit", "score"]] = np.nan
    put_result(copied / "results", "whole-s1", "retrieval", items, primary=("t2i_r1",), digest="whole 1")
    lines = {line["model"]: line for line in rows_of(rendered(build_report(copied), "csv"))}
    assert (lines["whole"]["n"], lines["pretrained"]["n"]) == ("", "200")  # it was that of the first seed


def test_a_result_from_before_a_change_of_a_scripts_module_is_no_number(tmp_path):
    """Only the key was compared, which modules are no part of; the report showed numbers of the former data."""
    write_study(tmp_path / "out", {"whole": SHARES["whole"], "pretrained": SHARES["pretrained"]})
    former = {PARENT_MODULES: "former"}
    record_study(STUDY, tmp_path / "out", lambda step: {"parts": former} if "whole-s1" in step.name else {})
    cells = {cell.row: cell for cell in build_report(tmp_path / "out").table.scores}
    assert cells["whole"].by_seed == pytest.approx({0: 20, 2: 30})
    assert cells["pretrained"].value is not None
    notes = build_report(tmp_path / "out/results").texts  # without the study's own rows
    why = "not run since the study or the version of its command changed"
    assert f"Out of date: whole-s1 on retrieval: {why}." in notes


def test_the_rows_of_an_encoder_with_several_llms_are_one_model(tmp_path):
    """Each counted in the pool of training noise and in the family of tests: the same data gave narrower intervals."""
    found = {}
    for llms in ("{tiny: org/tiny}", "{tiny: org/tiny, small: org/small, other: org/other}"):
        text = STUDY[: STUDY.index("figures:")] + f"llms: {llms}\n"
        found[llms] = build_report(write_study(tmp_path / str(len(llms)), SHARES, text)).table
    one, three = found.values()
    assert (len(one.rows), len(three.rows)) == (4, 12)
    assert three.comparisons == one.comparisons == 5
    alone = {row.encoder: cell for row, cell in zip(one.rows, one.cells(one.columns[0]), strict=True)}
    assert {cell.mark for cell in alone.values()} == {"", "best"}
    for row, cell in zip(three.rows, three.cells(three.columns[0]), strict=True):
        same = alone[row.encoder]
        assert (cell.ci_low, cell.ci_high, cell.mark) == (same.ci_low, same.ci_high, same.mark)
        assert (cell.delta and cell.delta.p_adjusted) == (same.delta and same.delta.p_adjusted)


def test_the_result_of_another_row_is_no_number_of_a_cell(study, tmp_path):
    """A copy over a study's file stood there as the row's own, without a word."""
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    for kind in ("json", "items.parquet"):
        shutil.copy(*(copied / "results" / row / f"retrieval.{kind}" for row in ("part.block.8-s0", "whole-s0")))
    built = build_report(copied)
    outcome = built.source.outcomes["whole (seed 0)", "retrieval"]
    assert "expected 'whole-s0' on 'retrieval', got 'part.block.8-s0' on 'retrieval'" in outcome.reason
    cell = built.table.cells(built.table.columns[0])[1]
    assert cell.by_seed == pytest.approx({1: 25, 2: 30})


def test_a_figure_has_a_curve_for_each_strategy_and_a_level_for_other_models(study):
    built = build_report(study)
    (panel,) = sweep_panels(built.source, built.table)
    points = [(curve.name, tokens, cell.value) for curve in panel.curves for tokens, cell in curve.cells]
    assert points == [
        ("block", 8, pytest.approx(55)),
        ("block", 16, pytest.approx(36)),
        ("whole", None, pytest.approx(25)),
    ]
    # 8 to 16 tokens is one doubling: the slope is the difference of the two points, and as unsure
    ends = {cell.row: cell for cell in built.table.scores}
    reach = [ends[f"part.block.{tokens}"].ci_high - ends[f"part.block.{tokens}"].ci_low for tokens in (8, 16)]
    block, whole = panel.curves
    slope = block.slope
    assert slope.value == pytest.approx(-19)
    assert max(reach) / 2 < slope.high - slope.value < sum(reach) / 2
    assert slope.value - slope.low == pytest.approx(slope.high - slope.value, rel=0.3)
    assert whole.slope is None
    page = render_page(built)
    assert 'id="per-seed-results"' in page
    assert "&lt;Lengths&gt;" in page
    assert section(page, "sweeps").count("<svg") == 1


RECIPES_STUDY = """
name: small
seeds: [0, 1]
encoders:
  part: {sweep: {recipe.caption_tokens: [8, 16]}}
llms: {tiny: org/tiny}
llava_variants: {short: {}, long: {}}
benchmarks: {pope: {data: d}}
figures:
  - {benchmark: pope, encoders: part, x: recipe.caption_tokens}
"""
RECIPES_SHARES = {("8", "short"): 0.2, ("16", "short"): 0.4, ("8", "long"): 0.5, ("16", "long"): 0.8}


@pytest.fixture
def recipes_study(tmp_path: Path) -> Path:
    """A study's output with two encoders in two LLaVAs each, two seeds each."""
    output = tmp_path / "out"
    for row in record_study(RECIPES_STUDY, output).rows:
        share = RECIPES_SHARES[row.encoder.rpartition(".")[2], row.llava_variant or ""] + 0.05 * (row.seed or 0)
        items = items_table(0.0, benchmark="pope", count=100)
        items["hit"] = items["score"] = [float(number < round(100 * share)) for number in range(100)]
        put_result(output / "results", Path(row.cells["pope"].result).parent.name, "pope", items)
    return output


def test_a_figure_against_a_setting_has_a_curve_for_each_recipe(recipes_study: Path) -> None:
    built = build_report(recipes_study)
    (panel,) = sweep_panels(built.source, built.table)
    found = {curve.name: {x: cell.value for x, cell in curve.points.items()} for curve in panel.curves}
    assert found == {
        "part, short": {8.0: pytest.approx(22.5), 16.0: pytest.approx(42.5)},
        "part, long": {8.0: pytest.approx(52.5), 16.0: pytest.approx(82.5)},
    }
    assert panel.slope is not None
    assert panel.slope.value == pytest.approx(25)
    cells = built.table.cells(built.table.columns[0])
    place = [cell.row for cell in cells].index("part.16 by long")
    cells[place] = dataclasses.replace(cells[place], group=1)  # measured otherwise, it is on no curve
    (panel,) = sweep_panels(built.source, built.table)
    assert [list(curve.points) for curve in panel.curves] == [[8.0, 16.0], [8.0]]


PICTURES = 4


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows that read 10 words and all of them, of captions that tell their image by the 3rd, 6th, 12th, 24th word."""
    write_images(tmp_path / "images", PICTURES)
    captions = [" ".join([*["word"] * (place - 1), f"thing{n}", "end"]) for n, place in enumerate((3, 6, 12, 24))]
    rows = [{"image": f"images/{number}.png", "caption": text} for number, text in enumerate(captions)]
    data = str(write_lines(tmp_path / "long.jsonl", rows))
    for row, context, words in (("short", 10, (4, 8, 16)), ("whole", 100, (4, 8, 16)), ("other", 100, (8,))):
        config = configure(name="docci", task="long_retrieval", data=data, word_limits=words)
        evaluate(monkeypatch, tmp_path, config, pictures=PICTURES, context=context, row=row)
    return tmp_path / "results"


def test_a_curve_for_each_row_and_direction(results):
    report = build_report(results)
    drawn = length_figures(report.source, report.details)
    assert [figure.title for figure in drawn.figures] == ["docci: T→I R@1", "docci: I→T R@1"]
    assert drawn.figures[0].headers == ("words", "4", "8", "16", "whole", "truncated")
    labels = ("4", "8", "16", "whole")
    metrics = {label: "t2i_r1" if label == "whole" else f"t2i_r1{metric_suffix(int(label))}" for label in labels}
    curves = {curve.name: curve for curve in length_curves(report.details, "docci", metrics)}
    values = {name: {label: cell.value for label, cell in curve.points.items()} for name, curve in curves.items()}
    found = [100 * share for share in ((1 + 3 / 4) / 4, (2 + 2 / 4) / 4, (3 + 1 / 4) / 4, 1)]
    assert values["whole"] == pytest.approx(dict(zip(labels, found, strict=True)))
    assert values["short"] == pytest.approx(dict(zip(labels, [*found[:2], found[1], found[1]], strict=True)))
    assert list(values["other"]) == ["8", "whole"]
    assert (curves["short"].truncated, curves["whole"].truncated) == ("50 %", "0 %")
    assert {name for name, curve in curves.items() if curve.protocol_differences} == {"other"}  # two are alike
    shown = section(render_page(report), "recall-vs-caption-length")
    assert shown.count("<svg") == 2
    assert "short: 50 % truncated" in shown
    rows = re.findall(r"<tr>.*?</tr>", shown, re.DOTALL)
    (whole,) = [row for row in rows[: len(rows) // 2] if '<th scope="row">whole' in row]
    numbers = re.findall(r"<td>([\d.]+)", whole)
    assert numbers == ["43.8", "62.5", "81.2", "100.0", "0"]


def test_notes_name_a_model_once_with_its_seeds():
    rows = ["clip (seed 1)", "clip (seed 2)", "clip (seed 3) large", "clips (seed 10)"]
    assert join_row_names(rows) == "clip (seeds 1, 2), clip (seed 3) large and clips (seed 10)"
    assert join_row_names(f"{name} (seed {seed})" for name in "abcdefgh" for seed in (1, 2)).endswith(
        "f (seeds 1, 2) and 2 other models"
    )
