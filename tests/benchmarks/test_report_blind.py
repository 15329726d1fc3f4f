"""The gain over blind in a report: what is shown, and what is not credited."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_material import edit, items_table, put_result, rendered
from report_study import record_study

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.report.plots import forest_plots, gain_figures
from benchmarks.report.report import LatexStyle, Selection, build_report
from benchmarks.results.baselines import add_blind_columns
from benchmarks.results.noise import TrainingNoise, difference_estimate
from benchmarks.results.results import read_items

COUNT = 240
ROWS = list(range(0, COUNT, 2))


def _with_blind_runs(items: pd.DataFrame, lost: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Items whose answers without the image lose a ratio of the right ones."""
    sighted = items["hit"].to_numpy()[ROWS]
    answers = {"sighted": {"hit": sighted}}
    for kind, ratio in lost.items():
        missed = np.random.default_rng([seed, len(kind)]).random(len(ROWS)) < ratio
        answers[kind] = {"hit": np.where(missed, 0.0, sighted)}
    add_blind_columns(items, ROWS, answers)
    return items


def _write(results: Path, lost: dict[str, dict[str, float]], blind: Sequence[str] = ("gqa",)) -> Path:
    """``clips`` above ``clip``, on two benchmarks; by model the ratios of answers that are lost without the image."""
    for row, skill in {"clip": 0.3, "clips": 0.7}.items():
        for name in ("gqa", "mmstar"):
            items = items_table(skill, benchmark=name, count=COUNT)
            put_result(results, row, name, _with_blind_runs(items, lost[row]) if name in blind else items)
    return results


LOOKS = {"blank": 0.6, "shuffled": 0.7}
DOES_NOT = {"blank": 0.6, "shuffled": 0.03}


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("looks"), {"clip": LOOKS, "clips": LOOKS})


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("blind"), {"clip": LOOKS, "clips": DOES_NOT})


def test_a_score_above_both_runs_is_credited(looking):
    report = build_report(looking, baseline="clip")
    best = report.table.cell("clips", "gqa", "exact_match")
    assert (best.credited, best.mark, best.withheld) == (True, "best", "")
    assert {kind: gain.n for kind, gain in best.gains.items()} == {"blank": 120, "shuffled": 120}
    gain = best.gains["blank"]
    shown = report.source.outcomes["clips", "gqa"]
    items = read_items(shown)
    assert gain.value == pytest.approx(100 * (items["sighted:hit"] - items["blank:hit"]).mean())
    assert gain.baseline == pytest.approx(100 * items["blank:hit"].mean())
    assert 0 < gain.ci_low < gain.value < gain.ci_high
    assert report.table.cell("clips", "mmstar", "exact_match").credited is None
    assert "clips beats clip by" in report.answer
    assert not any("‡" in note for note in report.texts)
    start = "Gain over blind on gqa exact match (120 items): clips "
    (line,) = [note for note in report.texts if note.startswith(start)]
    assert "over blank and" in line
    (figure,) = gain_figures(report.table).figures
    kinds = [("clips", "blank"), ("clips", "shuffled"), ("clip", "blank"), ("clip", "shuffled")]
    assert [row[:2] for row in figure.rows] == kinds


def test_a_score_that_needs_no_image_is_not_credited(blind):
    """It is above a blank image, and not above another item's: no mark, and no better one in any sentence."""
    report = build_report(blind, baseline="clip")
    top = report.table.cell("clips", "gqa", "exact_match")
    assert (top.credited, top.mark, top.withheld) == (False, "", "best")
    assert report.table.cell("clips", "mmstar", "exact_match").mark == "best"
    assert "clips beats clip by" in report.answer
    assert " on mmstar" in report.answer
    assert "on gqa" not in report.answer.partition("not credited")[0]
    assert "not credited to the images: the difference on gqa exact match" in report.answer
    assert "of the same model without the image: clips on gqa" in report.answer
    (reason,) = [note.text for note in report.notes if note.is_about(top, "uncredited")]
    assert reason.startswith("‡ clips on gqa exact match is not credited to the images and has no mark")
    assert not any(note.is_about(top, "protocol") for note in report.notes)
    assert "not significantly better than with another item's image. These items detect a gain of" in reason
    assert "‡ |" in rendered(report, "markdown")
    assert r"\ddag" in rendered(report, "latex") or "‡" in rendered(report, "latex")
    assert 'aria-label="not credited to the images, see the note">‡</a>' in rendered(report, "html")
    assert re.search(r"clips beats clip by \S+ points \[[^]]+\] on mmstar", build_report(blind).answer)
    for baseline in ("clips", "clip"):  # nor is a baseline's lead
        assert "on gqa" not in build_report(blind, baseline=baseline).answer.partition("not credited")[0]
    table = build_comparison(CompareConfig(first=str(blind / "clips"), second=str(blind / "clip"))).table
    verdicts = {
        column.benchmark: cell.delta.verdict for column in table.columns for cell in table.cells(column) if cell.delta
    }
    assert verdicts == {"gqa": "not credited", "mmstar": "better"}


@pytest.mark.parametrize("names", [("gqa",), ("gqa", "mmstar")])
def test_no_average_rank_or_pair_credits_it(tmp_path, names):
    results = _write(tmp_path, {"clip": LOOKS, "clips": DOES_NOT}, names)
    report = build_report(results, pairs="all", latex=LatexStyle(marks="ranks"))
    assert "best average" not in report.answer
    assert "No model differs" not in report.answer
    named = "its score on gqa is" if len(names) == 1 else "its scores on gqa and mmstar are"
    assert f"clips has the highest average over 2 benchmarks, 63.3, but {named} not credited" in report.answer
    assert [text for text in report.overall[0].texts("clips") if "‡" in text] == ["63.3‡", "1.0‡"]
    assert not any("‡" in text for text in report.overall[0].texts("clip"))
    latex = rendered(report, "latex")
    line = next(line for line in latex.splitlines() if line.startswith("clips &"))
    assert line.count(r"\textbf") == 2 - len(names)
    assert r"\underline" not in line
    assert "‡: not credited" in latex or r"\textdaggerdbl}: not credited" in latex
    table = pd.read_csv(io.StringIO(rendered(report, "pairs")))
    assert [str(value) for value in table["credited"]] == ["False", "False" if len(names) == 2 else "nan"]
    above = build_report(results, baseline="clips")  # a baseline that is not credited
    plots = forest_plots(above.table)
    assert plots is not None
    assert next(row[4] for figure in plots.figures for row in figure.rows) == "not credited"
    assert "a diamond" in plots.lead


def test_the_data_table_has_the_scores_without_the_image(tmp_path, blind):
    report = build_report(blind)
    table = pd.read_csv(io.StringIO(rendered(report, "csv")))
    assert {"n_blind", "blank_gain", "shuffled_gain_p_value", "credited"} <= {*table}
    line = table[(table["model"] == "clips") & (table["benchmark"] == "gqa")].iloc[0]
    gain = report.table.cell("clips", "gqa", "exact_match").gains["shuffled"]
    assert (line["n_blind"], line["shuffled"], line["shuffled_gain"]) == (
        120,
        pytest.approx(gain.baseline),
        pytest.approx(gain.value),
    )
    assert line["shuffled_gain_ci_low"] <= line["shuffled_gain"] <= line["shuffled_gain_ci_high"]
    assert str(line["credited"]) == "False"
    assert table[table["benchmark"] == "mmstar"]["blank"].isna().all()
    plain = build_report(put_result(tmp_path / "plain", "a", "gqa", items_table(0.5, benchmark="gqa")).parents[1])
    assert "credited" not in rendered(plain, "csv")


def test_the_gains_of_two_models_are_compared_as_scores_without_ends(tmp_path):
    """They may differ by more than a score: by 1.6 of at most 1, where the limits of a score were."""
    for row, (sighted, blank) in {"looks": (0.9, 0.1), "lost": (0.1, 0.9)}.items():
        items = items_table(0.5, benchmark="gqa", count=20)
        order = np.random.default_rng(len(row)).permutation(20) / 20
        answers = {"sighted": {"hit": 1.0 * (order < sighted)}, "blank": {"hit": 1.0 * (order[::-1] < blank)}}
        add_blind_columns(items, range(20), answers)
        put_result(tmp_path, row, "gqa", items)
    chosen = Selection(benchmarks=("gqa:exact_match_over_blank",))
    table = build_report(tmp_path, baseline="lost", selection=chosen).table
    (delta,) = [cell.delta for cell in table.scores if cell.delta]
    assert delta.value == pytest.approx(160.0)
    evidence = [cell.evidence for cell in table.scores]
    low, high = difference_estimate(*evidence, TrainingNoise()).interval()
    assert delta.cell.row == "looks"
    assert sorted(map(abs, (delta.ci_low, delta.ci_high))) == pytest.approx(
        sorted(100 * abs(end) for end in (low, high))
    )
    assert delta.ci_low < 160 < delta.ci_high


def test_published_results_keep_their_gains_without_items(tmp_path):
    results = _write(tmp_path, {"clip": LOOKS, "clips": LOOKS})
    with_items = build_report(results).table.cell("clips", "gqa", "exact_match").gains
    for row in ("clip", "clips"):
        (results / row / "gqa.items.parquet").unlink()
        edit(results / row / "gqa.json", items=None)
    gains = build_report(results).table.cell("clips", "gqa", "exact_match").gains
    assert list(gains) == list(with_items) == ["blank", "shuffled"]
    for kind, gain in gains.items():
        known = with_items[kind]
        assert (gain.value, gain.ci_low, gain.n) == pytest.approx((known.value, known.ci_low, known.n))
        assert gain.baseline == pytest.approx(known.baseline)
        assert gain.against_zero is None


def test_the_gain_of_several_seeds_is_that_of_their_mean(tmp_path):
    """With the variance of the gain over trainings: 0.1, 0.3 and 0.5 are not as certain as three times 0.3."""
    widths = []
    for name, gains in (("uneven", (0.1, 0.3, 0.5)), ("even", (0.3, 0.3, 0.31))):
        output = tmp_path / name
        record_study(SEEDS, output)
        for encoder in ("whole", "other"):
            for seed, gain in enumerate(gains):
                items = items_table(0.0, benchmark="retrieval", count=COUNT)
                items["hit"] = items["score"] = [float(number % 10 < 7) for number in range(COUNT)]
                sighted = items["hit"].to_numpy()
                order = np.random.default_rng([seed, len(encoder)]).permutation(np.flatnonzero(sighted))
                blank = sighted.copy()
                blank[order[: round(gain * COUNT)]] = 0.0
                add_blind_columns(items, [*range(COUNT)], {"sighted": {"hit": sighted}, "blank": {"hit": blank}})
                put_result(
                    output / "results",
                    f"{encoder}-s{seed}",
                    "retrieval",
                    items,
                    primary=("t2i_r1",),
                    digest=f"{encoder} {seed}",
                )
        gain_of_mean = build_report(output).table.cell("whole", "retrieval", "t2i_r1").gains["blank"]
        assert gain_of_mean.value == pytest.approx(100 * np.mean([round(each * COUNT) / COUNT for each in gains]))
        widths.append(gain_of_mean.ci_high - gain_of_mean.ci_low)
    assert widths[0] > 3 * widths[1]
    for seed in (0, 2):  # what is left of a model has the other model's variance over trainings
        (tmp_path / "uneven/results" / f"whole-s{seed}" / "retrieval.json").unlink()
    alone = build_report(tmp_path / "uneven").table.cell("whole", "retrieval", "t2i_r1").gains["blank"]
    assert alone.ci_high - alone.ci_low > widths[0]


def test_seeds_with_different_blind_parts_have_no_gain_and_the_report_says_why(tmp_path):
    record_study(SEEDS, tmp_path)
    for encoder, sizes in {"whole": (10, 40, 40), "other": (40, 40, 40)}.items():
        for seed, size in enumerate(sizes):
            items = items_table(0.5, benchmark="retrieval", count=COUNT, seed=seed)
            sighted = items["hit"].to_numpy()[:size]
            blank = np.where(np.arange(size) < 4 * seed, 0.0, sighted)
            add_blind_columns(items, [*range(size)], {"sighted": {"hit": sighted}, "blank": {"hit": blank}})
            row, digest = f"{encoder}-s{seed}", f"{encoder} {seed}"
            put_result(tmp_path / "results", row, "retrieval", items, primary=("t2i_r1",), digest=digest)
    report = build_report(tmp_path)
    gains = {name: report.table.cell(name, "retrieval", "t2i_r1").gains for name in ("whole", "other")}
    assert [{kind: gain.n for kind, gain in each.items()} for each in gains.values()] == [{}, {"blank": 40}]
    (note,) = [note for note in report.texts if "has no gain over blind" in note]
    assert note == "whole on retrieval T→I R@1 has no gain over blind: the seeds have scores for different items."


def test_items_that_do_not_enter_the_metric_are_not_counted(tmp_path):
    items = _with_blind_runs(items_table(0.5, benchmark="gqa", count=COUNT), LOOKS)
    unscored = [name for name in items if name == "hit" or name.endswith(":hit")]
    items.loc[ROWS[:10], unscored] = np.nan
    put_result(tmp_path, "clip", "gqa", items)
    gains = build_report(tmp_path).table.cell("clip", "gqa", "exact_match").gains
    assert {kind: gain.n for kind, gain in gains.items()} == {"blank": len(ROWS) - 10, "shuffled": len(ROWS) - 10}


SEEDS = """
name: small
baseline: whole
seeds: [0, 1, 2]
encoders:
  whole: {recipe: {strategy: full}}
  other: {recipe: {strategy: block}}
benchmarks: {retrieval: {data: d}}
"""
