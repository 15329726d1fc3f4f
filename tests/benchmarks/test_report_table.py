"""The two tables of a report and its sentences: which models are tested and marked, and what is said of them."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_material import METRICS, edit, items_table, put_failure, put_hits, put_result, put_results, rendered

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.report.differences import compare_models
from benchmarks.report.load_results import read_source
from benchmarks.report.notes import MARKDOWN
from benchmarks.report.plots import forest_plots
from benchmarks.report.report import Report, Selection, build_report
from benchmarks.report.scores import mean_tables, seed_tables
from benchmarks.report.table import Cell, Column
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.noise import TrainingNoise
from benchmarks.results.statistics import compare, wilson_interval
from benchmarks.tasks.evaluation import MetricSpec
from clips.errors import UserError

COUNT = 120


def cell(report: Report, row: str, benchmark: str = "gqa") -> Cell:
    return next(each for each in report.table.scores if (each.row, each.column.benchmark) == (row, benchmark))


def marks(report: Report, benchmark: str = "gqa") -> dict[str, str]:
    return {each.row: each.mark for each in report.table.scores if each.column.benchmark == benchmark}


def text_of(report: Report) -> str:
    return "\n".join([report.answer, *report.other_sentences, *report.all_notes(MARKDOWN)])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def report(results: Path) -> Report:
    return build_report(results, baseline="clip")


def test_pairing_is_by_item_and_not_by_place(tmp_path):
    items = items_table(0.5, benchmark="gqa")
    put_result(tmp_path, "one", "gqa", items)
    put_result(tmp_path, "two", "gqa", items.sample(frac=1, random_state=0))
    report = build_report(tmp_path, baseline="one")
    delta = cell(report, "two").delta
    assert (delta.value, delta.p_adjusted) == (0, 1)
    assert set(marks(report).values()) == {""}
    assert "do not differ significantly" in report.answer
    assert not any(map(report.table.detectable, report.table.columns))  # nothing is known of it


def test_models_of_other_settings_are_not_ranked_together_but_of_other_inputs_they_are(tmp_path):
    put_results(tmp_path)
    assert "Input settings differ" not in text_of(build_report(tmp_path))
    put_result(tmp_path, "lucky", "gqa", items_table(0.95, benchmark="gqa", seed=9), protocol={"data_hash": "easier"})
    large = items_table(0.9, benchmark="gqa", seed=2)
    put_result(tmp_path, "large", "gqa", large, protocol={"input_size": 224})
    report = build_report(tmp_path, baseline="clip")
    assert marks(report) == {"clip": "", "clips": "", "untrained": "", "lucky": "", "large": "best"}
    assert (cell(report, "lucky").group, cell(report, "lucky").delta) == (1, None)
    (note,) = [note.text for note in report.notes if note.is_about(cell(report, "lucky"), "protocol")]
    assert note.startswith("† lucky on gqa exact match was measured under different settings")
    assert "easier" in note
    assert "224 for large" in text_of(report)
    put_result(tmp_path, "large", "gqa", large, protocol={"input_features": "mean"})
    features = "features: not stated for clip, clips, lucky and untrained; mean for large."
    assert features in text_of(build_report(tmp_path))


def test_the_differences_of_two_models_that_are_each_others_baseline_are_opposite(results):
    source, items = read_source(results), ItemScores()
    baselines = {"clip": "clips", "clips": "clip"}
    rows = tuple(dataclasses.replace(row, baseline=baselines.get(row.name)) for row in source.rows)
    table = seed_tables(dataclasses.replace(source, rows=rows), items)[0]
    (table,) = compare_models([table], items)
    deltas = {each.row: each.delta for each in table.scores if each.column.benchmark == "gqa" and each.delta}
    assert {*deltas} == {*baselines}
    one, other = deltas["clip"], deltas["clips"]
    assert (one.cell.row, one.other.row, other.cell.row, other.other.row) == ("clip", "clips", "clips", "clip")
    values = {each.row: each.value for each in table.scores if each.column.benchmark == "gqa"}
    assert one.value == pytest.approx(values["clip"] - values["clips"])
    assert (other.value, other.ci_low, other.ci_high) == pytest.approx((-one.value, -one.ci_high, -one.ci_low))
    assert other.p_adjusted == one.p_adjusted


@pytest.mark.parametrize(("higher_is_better", "best"), [(False, "untrained"), (None, None)])
def test_lower_is_better_and_neither_is_better_are_respected(tmp_path, higher_is_better, best):
    put_results(tmp_path)
    for path in tmp_path.glob("*/gqa.json"):
        edit(path, "exact_match", higher_is_better=higher_is_better)
    report = build_report(tmp_path, baseline="clip")
    assert {row for row, mark in marks(report).items() if mark} == ({best} if best else set())
    assert ("untrained beats" in " ".join(report.sentences)) == (best is not None)


def test_differences_are_corrected_for_their_number_and_read_from_the_items(report):
    assert report.table.comparisons == 3 * 4  # each row with the baseline, and the best with the worst
    pair = [ItemScores().of_model([report.source.outcomes[row, "gqa"]], "exact_match") for row in ("clips", "clip")]
    delta, expected = cell(report, "clips").delta, compare(*pair, TrainingNoise())
    assert (delta.p_value, delta.value) == (expected.p_value, 100 * expected.value)
    assert (delta.ci_low, delta.ci_high) == (100 * expected.low, 100 * expected.high)
    assert 0 < delta.p_value <= delta.p_adjusted / 2
    assert 0 < delta.min_detectable < abs(delta.value)  # it was shown
    smaller, larger = sorted([delta.min_detectable, cell(report, "untrained").delta.min_detectable])
    text = f"{smaller:.1f} to {larger:.1f}"
    assert report.table.detectable(delta.cell.column) == text
    assert f'<span class="interval">{text}</span>' in rendered(report, "html")


@pytest.mark.parametrize(("few", "many"), [("one", "two"), ("two", "one")])
def test_in_a_tie_of_protocols_the_one_with_more_items_is_the_main_one(tmp_path, few, many):
    for row, count in ((few, 20), (many, 120)):
        items = items_table(0.5, benchmark="gqa", count=count)
        put_result(tmp_path, row, "gqa", items, protocol={"questions": count, "limit": count})
    report = build_report(tmp_path)
    assert (cell(report, many).group, cell(report, few).group) == (0, 1)
    assert report.table.columns[0].items == "120"
    assert cell(build_report(tmp_path, baseline=few), few).group == 0


def test_rows_that_agree_in_every_item_are_no_more_certain_than_their_number(tmp_path):
    for row in ("one", "two"):
        put_result(tmp_path, row, "gqa", items_table(0.5, benchmark="gqa", count=12))
    delta, share = cell(build_report(tmp_path, baseline="one"), "two").delta, 100 * wilson_interval(0, 6)[1]
    assert (delta.value, delta.ci_low, delta.ci_high) == pytest.approx((0, -share, share))  # of six images


def test_the_answer_says_what_the_tests_say(results, report, tmp_path):
    assert report.answer.startswith("clips beats clip by ")
    assert "on retrieval T→I R@1" in report.answer
    assert report.sentences[-1].startswith("untrained loses to clip by ")
    bare = build_report(results)
    average = "clips has the best average over 2 benchmarks of the LLaVA, 61.2 [55.1, 67.2], significantly above"
    assert bare.answer.startswith(average)
    assert average in report.answer
    assert "Significantly better than all others by paired tests: clips on " in bare.answer
    two = build_report(results, baseline="clip", selection=Selection(models=("clip", "clips")))
    assert "average" not in two.answer
    alone = build_report(results, selection=Selection(models=("clip", "clips")))  # without a baseline
    assert re.search(r"[^.]+ by [\d.]+ points \[[^]]+\][^.]+", two.answer)
    assert alone.answer.endswith(f" {two.answer}")
    assert alone.other_sentences == []
    for row, right in (("one", 60), ("two", 62)):
        put_hits(tmp_path, row, "gqa", right)
    close = r"one and two do not differ significantly on gqa exact match \(−1\.7 \[\S+ to \S+\]\)\."
    assert re.search(close, build_report(tmp_path).answer)
    assert not deltas(alone)


def test_an_interval_of_a_small_difference_has_its_decimals(tmp_path):
    hits = np.arange(40_000) // 2 % 2  # both questions about an image, or none
    items = items_table(0.5, benchmark="gqa", count=40_000).assign(thumbnail=None, score=0.0)
    for row, more in (("one", 0), ("two", 16)):
        added = (hits == 0) & (np.arange(40_000) % 2 == 0) & (np.arange(40_000) < 4 * more)
        put_result(tmp_path, row, "gqa", items.assign(hit=hits | added))
    answer = build_report(tmp_path, baseline="one").answer
    low = re.fullmatch(r"two beats one by 0\.04 points \[(0\.\d\d+), 0\.\d\d+\] on gqa exact match\.", answer)
    assert low is not None
    assert float(low[1]) > 0


def test_a_forest_plot_says_what_the_table_says(results, report):
    figure = next(each for each in forest_plots(report.table).figures if each.name == "forest-pope-accuracy")
    deltas = {row: cell(report, row, "pope").delta for row in ("clips", "untrained")}
    assert [(row[0], row[1], row[4]) for row in figure.rows] == [
        ("clips", f"+{deltas['clips'].value:.1f}", "better"),
        ("untrained", f"−{-deltas['untrained'].value:.1f}", "worse"),
    ]
    assert figure.alt.endswith("significant: clips and untrained.")
    assert forest_plots(build_report(results).table) is None  # no baseline


def test_a_difference_that_is_not_significant_is_not_stated_and_the_tests_are_counted(tmp_path, report):
    for row in ("one", "other"):
        put_result(tmp_path, row, "pope", items_table(0.5 if row == "one" else 0.51, benchmark="pope"))
    close = build_report(tmp_path, baseline="one")
    figure = next(each for each in forest_plots(close.table).figures if each.name == "forest-pope-accuracy")
    assert figure.rows[0][4] == "not significant"
    assert figure.alt.endswith("none of 1 is significant.")
    assert "one test, whose p-value needs no correction" in text_of(close)
    every = "the p-values of all 12 tests (pairs with the baseline and the top model) Holm-corrected together"
    assert every in text_of(report)


def test_a_score_without_variance_has_no_interval_and_the_reason_is_said(tmp_path):
    items = items_table(0.5, benchmark="gqa").assign(hit=0.5)
    for row in ("one", "two"):
        put_result(tmp_path, row, "gqa", items)
    put_result(tmp_path, "three", "gqa", items_table(0.7, benchmark="gqa"))
    report = build_report(tmp_path, baseline="one")
    reason = "the score does not vary over the images"
    assert f"No interval: one on gqa exact match and two on gqa exact match. Reason: {reason}." in report.texts
    known = pd.read_csv(io.StringIO(rendered(report, "csv"))).set_index("model")[["ci_low", "ci_high"]].notna()
    assert known.T.to_dict("list") == {"one": [False] * 2, "three": [True] * 2, "two": [False] * 2}


def test_many_metrics_without_a_difference_are_counted(tmp_path):
    equal = ["retrieval", "pope", "mme", "docvqa", "infovqa", "chartqa", "ocrbench"]
    for row, skill in (("clip", 0.3), ("clips", 0.7)):
        put_result(tmp_path, row, "gqa", items_table(skill, benchmark="gqa"))
        for name in equal:
            put_result(tmp_path, row, name, items_table(0.5, benchmark=name))
    every = build_report(tmp_path, baseline="clip")
    assert every.answer.startswith("clips beats clip by ")
    assert "on 8 metrics of 7 benchmarks." in every.answer
    part = build_report(tmp_path, baseline="clip", selection=Selection(benchmarks=("gqa", *equal[:6]))).answer
    names = part.partition("no significant difference on 7 metrics of ")[2].partition(".")[0]
    assert {*names.replace(" and ", ", ").split(", ")} == {*equal[:6]}


@pytest.mark.parametrize("more", [{"items": "other "}, {"protocol": {"prompt": "other"}}])
def test_a_model_that_was_not_tested_with_the_top_one_is_not_tied(tmp_path: Path, more: dict[str, object]) -> None:
    for row, right in (("one", 90), ("two", 88), ("far", 20)):
        put_hits(tmp_path, row, "gqa", right)
    put_hits(tmp_path, "other", "gqa", 85, **more)
    put_hits(tmp_path, "other too", "gqa", 20, **more)
    report = build_report(tmp_path, baseline="two")
    assert marks(report) == {"one": "tied", "two": "tied", "far": "", "other": "best", "other too": ""}
    same = "items" if "items" in more else "settings"
    legend = report.all_notes(MARKDOWN)
    assert f"Best (bold): significantly better than every other model of its column with the same {same}." in legend
    assert any(line.startswith(f"Tied (italics): the top model of its column with the same {same}") for line in legend)
    assert f"other was not tested against two on gqa exact match, because the {same} differ." in report.sentences
    apart = "gqa exact match: the items differ, so only models of one group are tested against each other"
    assert (apart in text_of(report)) == (same == "items")


def test_models_with_other_shares_of_unread_answers_are_not_better_without_that_word(tmp_path: Path) -> None:
    put_hits(tmp_path, "base", "gqa", 60, unread=1)
    put_hits(tmp_path, "plain", "gqa", 100, unread=2)
    put_hits(tmp_path, "guessed", "gqa", 110, unread=30)
    swapped = "0.8 % of base and 25.0 % of guessed on gqa"
    report = build_report(tmp_path, baseline="base")
    texts = [report.answer, *report.other_sentences]
    plain, guessed = (next(text for text in texts if text.startswith(f"{name} beats")) for name in ("plain", "guessed"))
    assert "read" not in plain
    assert f"; different shares of answers were not read: {swapped}." in guessed
    (line,) = [note for note in report.texts if note.startswith("Answers not read (")]  # not of plain's few
    assert line.endswith(": 25.0 % of guessed on gqa (as wrong answers: exact match 66.7 instead of 91.7).")
    assert any(note.startswith("Models with different scores") and swapped in note for note in report.texts)
    ending = f"different shares of answers were not read: 25.0 % of guessed and 1.7 % of plain on gqa; {swapped}."
    assert build_report(tmp_path).answer.endswith(ending)
    answers = {
        row: build_comparison(CompareConfig(first=str(tmp_path / row), second=str(tmp_path / "base"))).answer
        for row in ("guessed", "plain")
    }
    assert answers["plain"].startswith("A plain beats B base by ")
    assert "read" not in answers["plain"]
    assert answers["guessed"].endswith(
        "different shares of answers were not read: 25.0 % of A guessed and 0.8 % of B base on gqa."
    )


def deltas(report: Report) -> dict[tuple[str, str, str], float]:
    cells = [each for each in report.table.scores if each.delta]
    return {(each.row, each.column.benchmark, each.column.metric): each.delta.p_adjusted for each in cells}


def test_columns_are_chosen_after_the_tests_and_rows_before(results, report) -> None:
    part = build_report(results, baseline="clip", selection=Selection(benchmarks=("pope:accuracy", "gqa")))
    assert [column.metric for column in part.table.columns] == ["accuracy", "exact_match"]
    assert deltas(part) == {key: p for key, p in deltas(report).items() if key[1] != "retrieval"}
    assert part.table.comparisons == report.table.comparisons
    assert "Omitted from this table: 2 of 4 columns. Tests are corrected for all columns" in part.texts[0]
    assert "retrieval" not in part.answer
    more = build_report(results, selection=Selection(benchmarks=("pope:Share of Yes", "pope:yes")))
    assert [column.metric for column in more.table.columns] == ["yes"]  # which the main table lacks
    assert all(each.value is not None for each in more.table.scores)
    rows = build_report(results, baseline="clip", selection=Selection(models=("untrained", "clip")))
    assert [row.name for row in rows.table.rows] == ["untrained", "clip"]
    assert {each.row for each in rows.table.scores if each.mark == "best"} == {"clip"}
    assert rows.table.comparisons == 4
    assert rows.texts[0].startswith("Omitted from this table: 1 of 3 models.")
    alone = build_report(results, baseline="clip", selection=Selection(models=("c*s", "untrained")))
    assert [row.name for row in alone.table.rows] == ["clips", "untrained"]
    assert {row.baseline for row in alone.table.rows} == {None}  # as it is omitted
    assert not deltas(alone)


def chance_report(folder: Path, skills: dict[str, float], chance: float, yes: float | None = None) -> Report:
    """Rows of some skill on pope, and on gqa of which chance is not known."""
    ways = {"chance": chance} | ({} if yes is None else {"always yes": yes})
    blind = {way: {"hit": np.full(COUNT, value)} for way, value in ways.items()}
    for row, skill in skills.items():
        put_result(folder, row, "pope", items_table(skill, benchmark="pope", count=COUNT), blind=blind)
        put_result(folder, row, "gqa", items_table(skill, benchmark="gqa", count=COUNT))
    return build_report(folder)


@pytest.mark.parametrize(
    ("chance", "yes", "answer", "below"),
    [
        (0.05, None, "", None),
        (0.45, None, "", "or is worse): clip on pope accuracy."),
        (0.05, 0.45, "", "or is worse): clip on pope accuracy (always yes)."),
        (0.9, None, "No model is significantly above chance on pope accuracy.", ": clips and clip on pope accuracy."),
    ],
)
def test_models_not_above_chance_are_named(tmp_path, chance, yes, answer, below):
    built = chance_report(tmp_path, {"clip": 0.45, "clips": 0.7}, chance, yes)
    assert built.answer.endswith(answer or built.answer)
    assert ("chance" in built.answer) == bool(answer)
    said = [line for line in built.texts if line.startswith("Not significantly above chance")]
    assert bool(said) == (below is not None)
    assert not below or said[0].endswith(below)
    assert marks(built, "pope") == {"clip": "", "clips": "" if answer else "best"}
    assert marks(built) == {"clip": "", "clips": "best"}
    if answer:  # it is not said of a row that was measured otherwise
        items = items_table(0.99, benchmark="pope", count=COUNT)
        put_result(tmp_path, "other", "pope", items, protocol={"shots": 5})
        assert "No model is significantly above chance" not in build_report(tmp_path).answer


@pytest.mark.parametrize(
    ("chance", "yes", "text"),
    [
        (0.5, 0.61, "50.0 (always yes 61.0)"),
        (0.0002, None, "0.02"),
        (0.1 * 3, 0.2, "30.0"),
        (0.1 * 3, 0.1 * 3 + 1e-16, "30.0"),
    ],
)
def test_trivial_baselines_that_score_above_chance_are_shown(tmp_path, chance, yes, text):
    gqa, pope = chance_report(tmp_path, {"clip": 0.4}, chance, yes).table.columns
    assert (gqa.chance_text, pope.chance_text) == ("", text)


def test_every_format_has_the_chance_level_if_one_is_known(tmp_path):
    built = chance_report(tmp_path, {"clip": 0.4, "clips": 0.7}, chance=0.5, yes=0.61)
    page = rendered(built, "html")
    assert page.count('<th scope="row">chance</th>') == 2  # wide, and narrow
    assert "always yes 61.0" in page
    assert "| chance | | 50.0 (always yes 61.0) |" in re.sub(" +", " ", rendered(built, "markdown"))
    assert r"chance & & \shortstack[r]{50.0\\{\scriptsize always yes 61.0}}" in re.sub(
        " +", " ", rendered(built, "latex")
    )
    lines = pd.read_csv(io.StringIO(rendered(built, "csv"))).set_index(["model", "benchmark"])[["chance", "always_yes"]]
    assert lines.loc["clip", "pope"].to_dict() == {"chance": 50, "always_yes": pytest.approx(61)}
    assert lines.loc["clip", "gqa"].isna().all()
    for file in tmp_path.glob("*/pope.json"):
        file.unlink()
    alone = build_report(tmp_path)
    assert not any("chance" in rendered(alone, name) for name in ("html", "markdown", "latex"))


def test_chance_is_that_of_the_rows_that_know_it_and_of_no_other_protocol(tmp_path):
    for row, protocol, chance in (("aged", {}, None), ("clip", {}, 0.4), ("crop", {}, 0.5), ("far", {"shots": 5}, 0.6)):
        blind = {"chance": {"hit": np.full(COUNT, chance)}} if chance else None
        items = items_table(0.6, benchmark="pope", count=COUNT)
        put_result(tmp_path, row, "pope", items, protocol=protocol, blind=blind)
    frame = pd.read_csv(io.StringIO(rendered(build_report(tmp_path), "csv")))
    assert frame["chance"].fillna(-1).tolist() == [50, 50, 50, -1]


def test_captions_are_credited_to_the_images_if_they_are_better_than_with_another_one(tmp_path, monkeypatch):
    columns = {
        "CIDEr": {"columns": ("own",)},
        "CIDEr_other_image": {"columns": ("others",), "higher_is_better": None, "baseline_of": "CIDEr"},
        "CIDEr_over_other_image": {"columns": ("gain",), "gain_of": "CIDEr"},
    }
    specs = {
        name: MetricSpec(label=name, aggregation="mean_of_scores", **how, condition="other_image" if at else "")
        for at, (name, how) in enumerate(columns.items())
    }
    monkeypatch.setitem(METRICS, "recaption", specs)
    rng = np.random.default_rng(0)

    def put(row: str, own: float, others: float) -> Report:
        items = items_table(0.5, benchmark="recaption", count=COUNT)
        scores = {"own": own + rng.normal(0, 0.3, COUNT), "others": others + rng.normal(0, 0.3, COUNT)}
        if own == others:  # a captioner that repeats the web caption, for any image
            scores["others"] = scores["own"]
        items = items.assign(thumbnail=None, **scores, score=scores["own"], gain=scores["own"] - scores["others"])
        put_result(tmp_path, row, "recaption", items, primary=("CIDEr",))
        return build_report(tmp_path)

    put("generic (seed 0)", 0.9, 1.0)
    alone = put("generic (seed 1)", 0.9, 1.0)
    assert "No score is credited to the images on recaption CIDEr." in alone.answer
    put("specific (seed 0)", 1.2, 0.1)
    report = put("specific (seed 1)", 1.05, 0.1)
    assert "‡ generic (seed 1) on recaption CIDEr is not credited to the images" in text_of(report)
    assert "credited" not in report.answer
    assert marks(report, "recaption")["specific (seed 0)"] == "best"
    difference = (
        r"Gain over blind on recaption CIDEr \(120 items\): generic \(seed 0\) −\d+\.\d \[−.*; specific .* \+1\d\d"
    )
    assert re.search(difference, text_of(report))
    assert "other image: another sample's image and the same web caption" in text_of(report)
    assert "guessing" not in text_of(report)

    source, items = read_source(tmp_path), ItemScores()
    rows = tuple(dataclasses.replace(row, encoder=row.name[:-9], seed=int(row.name[-2])) for row in source.rows)
    source = dataclasses.replace(source, rows=rows)
    table, _ = mean_tables(seed_tables(source, items), source, items)
    assert {cell.row: (len(cell.by_seed), cell.credited) for cell in table.scores} == {
        "generic": (2, False),
        "specific": (2, True),
    }
    report = put("repeats", 0.9, 0.9)
    assert "repeats ±0.0 [—] over other image" in text_of(report)  # a gain of exactly 0 has no interval
    assert "‡ repeats on recaption CIDEr is not credited to the images" in text_of(report)


def test_a_failure_is_a_word_in_the_table_and_its_file_in_a_note(tmp_path):
    put_results(tmp_path / "results")
    put_failure(tmp_path / "results", "odd", "pope", "/home/me/data/pope.tar: broken")
    report = build_report(tmp_path)
    markdown, latex, page = (rendered(report, name) for name in ("markdown", "latex", "html"))
    assert re.search(r"\| odd +\| +not run \| +failed \|", markdown)
    assert "- odd on pope: failed, see results/odd/pope.json.\n" in markdown
    assert "home" not in markdown + latex
    assert latex.count("odd ") == 1
    assert "odd & not run & failed & " in latex
    assert 'title="failed: /home/me/data/pope.tar: broken">failed<' in page


def no_numbers(results: Path) -> None:
    for row in ("one", "two"):
        put_failure(results, row, "pope", "out of memory")


def one_row(results: Path) -> None:
    put_result(results, "one", "pope", items_table(0.5, benchmark="pope"))


def no_items(results: Path) -> None:
    for row, skill in (("one", 0.3), ("two", 0.8)):
        edit(put_result(results, row, "pope", items_table(skill, benchmark="pope")), items=None)


def holes(results: Path) -> None:
    put_results(results)
    put_failure(results, "odd", "pope", "reason with a <tag> & an end.")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_numbers, ["There is no number yet; the table states", "one and two on pope: failed for the same reason"]),
        (one_row, ["One model: there is no other to compare it with."]),
        (no_items, ["No two models could be tested against each other.", "their items are missing: one and two on po"]),
        (holes, ["odd on pope: failed, see odd/pope.json.", "odd on gqa and retrieval: missing: no result"]),
    ],
)
def test_the_report_says_what_is_missing(tmp_path: Path, make, said: list[str]):
    make(tmp_path)
    text = text_of(build_report(tmp_path))
    assert [each for each in said if each not in text] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "clap"}, "unknown baseline model 'clap'; did you mean 'clip'"),
        ({"selection": Selection(models=("clap",))}, r"unknown name in 'models' 'clap'; did you mean 'clip"),
        ({"selection": Selection(benchmarks=("pop",))}, r"unknown name in 'benchmarks' 'pop'; did you mean 'pope'"),
        ({"selection": Selection(benchmarks=("pope:accurate",))}, r"of pope in 'benchmarks' 'accurate'; did you mean"),
        ({"selection": Selection(benchmarks=("pope:beauty",))}, r"\(known: accuracy, share of yes, yes\)"),
    ],
)
def test_an_unknown_name_is_rejected(results, settings, message):
    with pytest.raises(UserError, match=message):
        build_report(results, **settings)


@pytest.mark.parametrize(
    ("benchmark", "label", "title"),
    [
        ("pope", "F1", "pope F1"),
        ("pope", "POPE F1", "POPE F1"),
        ("act", "exact match", "act exact match"),  # or another such benchmark has the same title
        ("exact", "exactness", "exact exactness"),
        ("match", "exact match", "match exact match"),
    ],
)
def test_a_title_has_the_benchmark_once(benchmark, label, title):
    column = Column(benchmark=benchmark, metric="m", label=label, scale=1.0, higher_is_better=True)
    assert column.title == title


def test_a_directory_without_results_is_rejected(tmp_path):
    with pytest.raises(UserError, match="no such file or directory"):
        build_report(tmp_path / "none")
    with pytest.raises(UserError, match=r"expected study\.json or result files"):
        build_report(tmp_path)


def test_an_encoder_and_a_llava_in_one_directory_lack_no_benchmark_of_each_other(tmp_path):
    put_result(tmp_path, "mine", "retrieval", items_table(0.5, benchmark="retrieval"), primary=("t2i_r1",))
    for name in ("gqa", "pope"):
        put_result(tmp_path, "mine-llava", name, items_table(0.5, benchmark=name))
    put_result(tmp_path, "other-llava", "gqa", items_table(0.4, benchmark="gqa"))
    table = build_report(tmp_path).table
    kinds = {(cell.row, cell.column.benchmark): cell.missing and cell.missing.kind for cell in table.scores}
    assert kinds["mine", "gqa"] == kinds["mine-llava", "retrieval"] == "not applicable"
    assert kinds["other-llava", "pope"] == "missing"
    assert not kinds["mine", "retrieval"]
    text = rendered(build_report(tmp_path), "markdown")
    assert "other-llava on pope: missing: no result file" in text
    assert "not applicable" not in text
    assert "—" not in text  # an empty cell is one that cannot have a number
    assert "textemdash" not in rendered(build_report(tmp_path), "latex")
    assert 'title="not applicable: a benchmark of LLaVAs' in rendered(build_report(tmp_path), "html")
    # A failed result lacks the protocol by which the kinds are told apart.
    path = put_failure(tmp_path, "failed-llava", "sugarcrepe_mcq", "out of memory")
    edit(path, benchmark_type="choice")
    table = build_report(tmp_path).table
    kinds = {(cell.row, cell.column.benchmark): cell.missing and cell.missing.kind for cell in table.scores}
    assert kinds["failed-llava", "pope"] == kinds["other-llava", "sugarcrepe_mcq"] == "missing"


def test_the_verdict_is_about_the_model_with_the_best_balance(tmp_path):
    """One metric won and three lost is less than three tied and one lost."""
    for place, benchmark in enumerate(("gqa", "ai2d", "mmstar", "vizwiz")):
        for row, skill in (("spiky", 0.9 if place == 0 else 0.2), ("steady", 0.6), ("stable", 0.62)):
            digest = f"{len(row)}{row[2]}".encode().hex() * 16
            put_result(tmp_path, row, benchmark, items_table(skill, benchmark="gqa", seed=place), digest=digest)
    assert build_report(tmp_path).verdict in {
        f"{row} against the best of the other models: 0 won, 3 tied, 1 lost." for row in ("steady", "stable")
    }
