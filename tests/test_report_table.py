"""The table model: marks, differences and comparability, on results written by the harness's own writer."""

from __future__ import annotations

import io
import itertools
import math
import re

import pandas as pd
import pytest
from report_material import SKILLS, edit, items_table, put_result, put_results, rendered
from rich.console import Console

from benchmarks.report.report import Report, build_report
from benchmarks.report.table import Cell, Column
from benchmarks.report.text_table import print_report
from benchmarks.results.formatting import decimals_needed, format_number
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.noise import TrainingNoise
from benchmarks.results.statistics import compare, wilson_interval
from benchmarks.study.display import Display
from clips.errors import UserError


def marks(report: Report, benchmark: str = "gqa") -> dict[str, str]:
    column = next(column for column in report.table.columns if column.benchmark == benchmark)
    return {cell.row: cell.mark for cell in column.cells}


def cell(report: Report, row: str, benchmark: str = "gqa"):  # type: ignore[no-untyped-def]
    found = next(cell for cell in report.table.scores if (cell.row, cell.column.benchmark) == (row, benchmark))
    return found


def lines_of(report: Report) -> pd.DataFrame:
    """``table.csv``, by model and benchmark; of retrieval the first metric."""
    lines = pd.read_csv(io.StringIO(rendered(report, "csv")))
    return lines.drop_duplicates(["model", "benchmark"]).set_index(["model", "benchmark"]).sort_index()


def test_rows_that_no_test_tells_apart_share_no_winner(tmp_path):
    for row, seed in (("one", 1), ("two", 2), ("far", 3)):
        items = items_table(0.6 if row != "far" else 0.1, benchmark="gqa", seed=5)
        luck = items_table(0.03, benchmark="gqa", seed=seed)["hit"]  # a few answers that differ by chance
        items["hit"] = items["score"] = (items["hit"] != luck).astype(float)
        put_result(tmp_path, row, "gqa", items)
    report = build_report(tmp_path, baseline="one")
    assert cell(report, "one").value != cell(report, "two").value
    assert marks(report) == {"one": "tied", "two": "tied", "far": ""}
    assert not cell(report, "two").delta.significant
    assert cell(report, "far").delta.significant


def test_pairing_is_by_item_and_not_by_place(tmp_path):
    items = items_table(0.5, benchmark="gqa")
    put_result(tmp_path, "one", "gqa", items)
    put_result(tmp_path, "two", "gqa", items.sample(frac=1, random_state=0))
    report = build_report(tmp_path, baseline="one")
    delta = cell(report, "two").delta
    assert (delta.value, delta.p_adjusted) == (0, 1)
    assert set(marks(report).values()) == {""}
    assert "do not differ significantly" in report.answer
    assert not any(
        remark.startswith("Minimum detectable difference") for remark in report.notes
    )  # nothing is known of it
    assert math.isnan(lines_of(report).loc["two", "gqa"].min_detectable_difference)


def test_different_protocols_are_not_ranked_together_and_named(tmp_path):
    put_results(tmp_path)
    put_result(tmp_path, "lucky", "gqa", items_table(0.95, benchmark="gqa", seed=9), protocol={"data_hash": "easier"})
    report = build_report(tmp_path, baseline="clip")
    assert marks(report)["clips"] == "best"
    assert cell(report, "lucky").group == 1
    assert cell(report, "lucky").delta is None
    assert any(
        "lucky on gqa exact match was measured under different settings" in remark and "easier" in remark
        for remark in report.notes
    )


def test_the_models_own_resolution_is_part_of_the_model_and_said(tmp_path):
    put_results(tmp_path)
    assert not any("Input settings differ" in remark for remark in build_report(tmp_path).notes)
    put_result(tmp_path, "large", "gqa", items_table(0.9, benchmark="gqa", seed=2), protocol={"input_size": 224})
    report = build_report(tmp_path, baseline="clip")
    assert marks(report)["large"] == "best"
    assert any("size: " in remark and "224 for large" in remark for remark in report.notes)
    put_result(tmp_path, "large", "gqa", items_table(0.9, benchmark="gqa", seed=2), protocol={"input_features": "mean"})
    notes = build_report(tmp_path).notes
    assert any("features: not stated for clip, clips and untrained; mean for large." in remark for remark in notes)


def test_lower_is_better_and_neither_is_better_are_respected(tmp_path):
    put_results(tmp_path)
    report = build_report(tmp_path, baseline="clip")
    assert marks(report) == {"clip": "", "clips": "best", "untrained": ""}
    assert rendered(report, "html").count('<span class="tag">baseline</span>') == 1
    for path in tmp_path.glob("*/gqa.json"):
        edit(path, "exact_match", higher_is_better=False)
    report = build_report(tmp_path, baseline="clip")
    assert marks(report) == {"clip": "", "clips": "", "untrained": "best"}
    assert "untrained beats" in " ".join(report.sentences)

    for path in tmp_path.glob("*/gqa.json"):
        edit(path, "exact_match", higher_is_better=None)
    assert set(marks(build_report(tmp_path, baseline="clip")).values()) == {""}


def test_differences_are_corrected_for_their_number(tmp_path):
    put_results(tmp_path)
    report = build_report(tmp_path, baseline="clip")
    assert report.table.comparisons == 3 * 4  # each row with the baseline, and the best with the worst
    pair = [ItemScores().of_model([report.source.outcomes[row, "gqa"]], "exact_match") for row in ("clips", "clip")]
    delta = cell(report, "clips").delta
    assert compare(*pair, TrainingNoise()).p_value == delta.p_value
    assert 0 < delta.p_value <= delta.p_adjusted / 2


def test_a_best_mark_and_the_difference_to_the_baseline_never_contradict_each_other(tmp_path):
    """Differences near the edge of what can be shown, many at once."""
    for gained in range(4, 28, 2):
        name = f"bench{gained}"
        base = items_table(0.5, benchmark=name, seed=1)
        better = base.copy()
        better.loc[base.index[base["hit"] == 0][:gained], ["hit", "score"]] = 1.0
        better.loc[base.index[base["hit"] == 1][:3], ["hit", "score"]] = 0.0
        put_result(tmp_path, "base", name, base)
        put_result(tmp_path, "better", name, better)
    report = build_report(tmp_path, baseline="base")
    cells = [cell for cell in report.table.scores if cell.row == "better"]
    assert {cell.mark for cell in cells} == {"best", ""}
    assert all((cell.mark == "best") == cell.delta.significant for cell in cells)


def test_the_minimum_detectable_difference_is_reported(tmp_path):
    put_results(tmp_path)
    report = build_report(tmp_path, baseline="clip")
    delta = cell(report, "clips").delta
    assert 0 < delta.min_detectable < abs(delta.value)  # it was shown
    line = lines_of(report).loc["clips", "gqa"]
    assert (line.baseline, line.min_detectable_difference) == ("clip", pytest.approx(delta.min_detectable))
    larger = max(delta.min_detectable, cell(report, "untrained").delta.min_detectable)
    said = next(remark for remark in report.notes if remark.startswith("Minimum detectable difference"))
    assert f"{format_number(larger, 1)} on gqa exact match" in said


def test_rows_that_agree_in_every_item_are_no_more_certain_than_their_number(tmp_path):
    for row in ("one", "two"):
        put_result(tmp_path, row, "gqa", items_table(0.5, benchmark="gqa", count=12))
    report = build_report(tmp_path, baseline="one")
    delta, share = cell(report, "two").delta, 100 * wilson_interval(0, 6)[1]  # of six images
    assert (delta.value, delta.ci_low, delta.ci_high) == pytest.approx((0, -share, share))
    assert f"{-share:+.1f} to {share:+.1f}".replace("-", "−") in rendered(report, "html")


def test_where_no_interval_can_be_given_the_page_says_so(tmp_path):
    items = items_table(0.5, benchmark="gqa").assign(hit=0.5)
    for row in ("one", "two"):
        put_result(tmp_path, row, "gqa", items)
    put_result(tmp_path, "three", "gqa", items_table(0.7, benchmark="gqa"))
    report = build_report(tmp_path, baseline="one")
    assert cell(report, "two").ci_low is None
    assert any(line.startswith("No interval: one on gqa exact match and two on gqa") for line in report.notes)
    known = lines_of(report)[["ci_low", "ci_high"]].notna().droplevel("benchmark")
    assert known.T.to_dict("list") == {"one": [False] * 2, "three": [True] * 2, "two": [False] * 2}


def test_the_answer_says_what_the_tests_say(tmp_path):
    put_results(tmp_path)
    report = build_report(tmp_path, baseline="clip")
    assert report.answer.startswith("clips beats clip by ")
    assert "on retrieval T→I R@1" in report.answer
    assert report.sentences[-1].startswith("untrained loses to clip by ")
    bare = build_report(tmp_path)
    assert bare.answer.startswith(
        "clips has the best average over 2 benchmarks of the LLaVA, 61.2 [55.1, 67.2], significantly above"
    )
    assert "Significantly better than all others by paired tests: clips on " in bare.answer


def test_all_formats_print_the_same_numbers(tmp_path):
    put_results(tmp_path)
    report = build_report(tmp_path, baseline="clip")
    texts = {name: rendered(report, name) for name in ("html", "markdown", "latex", "wide")}
    lines, wide = lines_of(report), pd.read_csv(io.StringIO(texts["wide"])).set_index("model")
    assert [*wide.index] == [row.name for row in report.table.rows]
    for row, benchmark in lines.index:
        found = cell(report, row, benchmark)
        line, metric = lines.loc[row, benchmark], found.column.metric
        delta = found.delta
        numbers = {
            **{"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high, "n": found.n},
            **({"delta": delta.value, "delta_ci_low": delta.ci_low, "delta_ci_high": delta.ci_high} if delta else {}),
            **({"p_value": delta.p_value, "p_adjusted": delta.p_adjusted} if delta else {}),
        }
        assert {name: line[name] for name in numbers} == numbers
        assert {name: wide.loc[row, f"{benchmark}/{metric} {name}"] for name in numbers} == numbers
        assert line.isna()["delta"] == (delta is None)
        assert line.mark == found.mark or (pd.isna(line.mark) and not found.mark)
        shown = format_number(found.value, 1)
        marked = {"html": shown, "markdown": f"**{shown}**", "latex": rf"\textbf{{{shown}}}"}
        for name, best in marked.items():
            assert (best if found.mark == "best" else shown) in texts[name]


def test_a_row_named_like_a_formula_is_text_in_a_spreadsheet(tmp_path):
    put_result(tmp_path, "clip", "gqa", items_table(0.5, benchmark="gqa"))
    report = build_report(tmp_path)
    report.table.scores[0].row = "=cmd()"
    assert "\n'=cmd()," in rendered(report, "csv")
    assert "\n'=cmd()," in rendered(report, "wide")


@pytest.mark.parametrize(
    ("value", "places", "sign", "text"),
    [
        (12.345, 1, False, "12.3"),
        (-0.04, 1, True, "±0.0"),
        (-2.5, 1, True, "−2.5"),
        (1234.5, 1, False, "1\u202f234.5"),
        (None, 1, False, "—"),
    ],
)
def test_numbers_read_well(value, places, sign, text):
    assert format_number(value, places, sign=sign) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (50, 48, 52.4, "±2.2"),
        (0, 0, 8, "+8.0/\N{MINUS SIGN}0.0"),
        (3.4, 0.5, 11, "+7.6/\N{MINUS SIGN}2.9"),
        (5, None, None, ""),
    ],
)
def test_asymmetric_intervals_have_both_sides(value, low, high, text):
    column = Column(benchmark="b", metric="m", label="x", scale=100.0, higher_is_better=True)
    assert Cell(row="r", column=column, value=value, ci_low=low, ci_high=high).margin == text


def test_no_results_and_an_unknown_baseline_are_rejected(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        build_report(tmp_path / "none")
    with pytest.raises(UserError, match=r"expected study\.json or result files"):
        build_report(tmp_path)
    put_results(tmp_path, {"clip": SKILLS["clip"]})
    with pytest.raises(UserError, match="unknown baseline model 'clap'; did you mean 'clip'"):
        build_report(tmp_path, baseline="clap")


@pytest.mark.parametrize(("value", "decimals"), [(0.0, 1), (12.3, 1), (0.004, 3), (-3e-9, 9), (4e-14, 1), (None, 1)])
def test_small_values_get_the_decimals_that_they_need_and_rounding_errors_none(value: float | None, decimals: int):
    assert decimals_needed(value, 1) == decimals


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_a_table_too_wide_for_the_terminal_is_split_between_its_columns(tmp_path, width):
    put_results(tmp_path)
    for benchmark in ("pope", "vizwiz", "a_name_as_long_as_this_one_is_for_a_terminal"):
        put_result(tmp_path, "only_gqas_kind", benchmark, items_table(0.4, benchmark="gqa"))
    report = build_report(tmp_path, display=Display(groups={"A group": ["clip*"]}))
    written = io.StringIO()
    print_report(report, Console(file=written, width=width, highlight=False))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    starts = [index for index, line in enumerate(lines) if line.startswith("┏")]
    parts = [lines[first:last] for first, last in itertools.pairwise([*starts, None])]
    parts = [part[: 1 + next(index for index, line in enumerate(part) if line.startswith("└"))] for part in parts]
    assert len(parts) == {24: 6, 40: 6, 60: 4, 80: 2}[width]  # headers wrap between words
    texts = ["".join(re.sub(r"[^\w.]", "", line) for line in part) for part in parts]  # of names that wrap, too
    for column in report.table.columns:  # no number is lost
        numbers = [each.number for each in column.cells]
        assert any(all(number in text for number in numbers if number != "—") for text in texts)
    for part in parts:  # each line with numbers belongs to a name
        body = part[part.index(next(line for line in part if line.startswith("┡"))) + 1 : -1]
        assert body[0].split("│")[1].strip()
    if width == 60:
        assert {"only_gqas_kind" in text for text in texts} == {True, False}  # not where it has not run
        assert any("A group: clip" in line for line in parts[0])
        assert all(word in "".join(part) for part in parts[:1] for word in report.table.columns[0].title.split())
