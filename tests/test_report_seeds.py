"""Means over seeds, and scores against settings: known numbers, from results written by the harness's own writer."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
from report_material import items_table, put_result
from scipy import stats

from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.html_page import render_page
from benchmarks.report.load_results import limit_rows
from benchmarks.report.report import build_report
from benchmarks.report.sections import built_sections, report_figures
from benchmarks.study import study_commands
from benchmarks.study.step_state import StepRecord, write_record
from benchmarks.study.study_record import read_study_record, write_study_record

SHARES = {
    "pretrained": (0.1, 0.1, 0.1),
    "whole": (0.2, 0.25, 0.3),
    "part.block.8": (0.5, 0.55, 0.6),
    "part.block.16": (0.3, 0.36, 0.42),
}
STUDY = """
name: small
baseline: whole
seeds: [0, 1, 2]
encoders:
  pretrained: {}
  whole: {recipe: {strategy: full}}
  part: {vary: {recipe.caption_strategy: [block], recipe.caption_tokens: [8, 16]}}
benchmarks: {retrieval: {data: d}}
figures:
  - {benchmark: retrieval, encoders: part, x: recipe.caption_tokens, beside: [whole], title: <Lengths>, label: tokens}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study's output with three encoders, three seeds each."""
    folder = tmp_path_factory.mktemp("seeds")
    output, file = folder / "out", folder / "study.yaml"
    file.write_text(f"{STUDY}output: {output}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_commands, "check_command", lambda words: None)
        patch.setattr(study_commands, "command_version", lambda words: 1)
        keyed = study_commands.resolve_study(study_commands.StudyConfig(study=str(file)))
        write_study_record(output, study_commands.study_record(keyed, str(file)))
    for step in keyed.plan.steps:
        record = StepRecord(
            name=step.name, kind=step.kind, command="", key=keyed.keys[step.name].key, status="done", started=1.0,
            seconds=1.0,
        )  # fmt: skip
        write_record(output, record)
    for encoder, shares in SHARES.items():
        for seed, share in enumerate(shares):
            items = items_table(0.0, benchmark="retrieval", count=200)
            items["hit"] = items["score"] = [float(number < round(200 * share)) for number in range(200)]
            put_result(
                output / "results",
                f"{encoder}-s{seed}",
                "retrieval",
                items,
                primary=("t2i_r1",),
                digest=f"{encoder} {seed}",
            )
    return output


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_shows_means_with_both_kinds_of_noise(study):
    built = build_report(study)
    (column,) = built.table.columns
    assert [row.name for row in built.table.rows] == ["pretrained", "whole", "part.block.8", "part.block.16"]
    cell = built.table.cell(built.table.rows[3], column)
    assert cell.value == pytest.approx(36)
    # over seeds 0, 5, 5 and 6 points, pooled: 4.6 with 8 degrees of freedom; nothing but luck makes images less than it
    pooled = ((0 + 25 + 25 + 36) / 4) ** 0.5
    assert cell.ci_high - cell.ci_low > 2 * stats.t.ppf(0.975, 8) * pooled / 3**0.5
    assert cell.by_seed == pytest.approx({0: 30, 1: 36, 2: 42})
    assert (
        8.5 < cell.image_ci_half_width < 9.5
    )  # 1.96 × sqrt(0.36 × 0.64 / 100 pictures) is 9.4; the other seeds have less
    assert cell.delta.baseline == "whole"
    assert cell.delta.value == pytest.approx(11)
    assert cell.delta.ci_low < 11 - stats.t.ppf(0.975, 8) * pooled * (2 / 3) ** 0.5
    assert built.table.comparisons == 6  # every pair, since the top was chosen by its score
    constant = built.table.cell(built.table.rows[2], column).delta
    assert constant.ci_low < 25 < 30 < 35 < constant.ci_high  # equal differences are no certainty
    assert "part.block.8 beats whole by 30.0 points" in " ".join([built.answer, *built.sentences])
    assert any("hold both kinds of noise" in remark for remark in built.remarks)


def test_both_kinds_of_noise_and_every_seed_are_in_the_csv(study):
    built = build_report(study)
    lines = {line["model"]: line for line in rows_of(REPORT_FORMATS["seeds"].render(built))}
    assert float(lines["whole"]["seed 2"]) == pytest.approx(30)
    assert float(lines["whole"]["value"]) == pytest.approx(25)
    assert lines["whole"]["num_seeds"] == "3"
    assert float(lines["whole"]["image_ci_half_width"]) > 5
    assert len(rows_of(REPORT_FORMATS["csv"].render(built))) == 4


def test_a_model_that_was_evaluated_once_has_one_number(study, tmp_path):
    """Its result stands in the row of each seed."""
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    for seed in (1, 2):
        file = copied / "results" / f"pretrained-s{seed}" / "retrieval.json"
        file.write_text(file.read_text().replace(f"pretrained {seed}", "pretrained 0"))
    lines = {line["model"]: line for line in rows_of(REPORT_FORMATS["seeds"].render(build_report(copied)))}
    assert (lines["pretrained"]["num_seeds"], lines["pretrained"]["seed 1"], lines["whole"]["num_seeds"]) == (
        "1",
        "",
        "3",
    )


def test_the_result_of_another_row_is_no_number_of_a_cell(study, tmp_path):
    """A copy over a study's file stood there as the row's own, without a word."""
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    for kind in ("json", "items.parquet"):
        shutil.copy(*(copied / "results" / row / f"retrieval.{kind}" for row in ("part.block.8-s0", "whole-s0")))
    built = build_report(copied)
    outcome = built.source.outcomes["whole (seed 0)", "retrieval"]
    assert "expected 'whole-s0' on 'retrieval', got 'part.block.8-s0' on 'retrieval'" in outcome.failure_reason
    cell = built.table.cell(built.table.rows[1], built.table.columns[0])
    assert cell.by_seed == pytest.approx({1: 25, 2: 30})


def test_a_figure_has_a_curve_for_each_strategy_and_a_level_for_what_stands_beside(study):
    built = build_report(study)
    lines = rows_of(REPORT_FORMATS["sweep"].render(built))
    assert [(line["curve"], line["tokens"], float(line["value"])) for line in lines] == [
        ("block", "8.0", pytest.approx(55)),
        ("block", "16.0", pytest.approx(36)),
        ("whole", "", pytest.approx(25)),
    ]
    # 8 to 16 tokens is one doubling: the slope is the difference of the two points, and as unsure
    ends = {row.name: built.table.cell(row, built.table.columns[0]) for row in built.table.rows}
    reach = [ends[f"part.block.{tokens}"].ci_high - ends[f"part.block.{tokens}"].ci_low for tokens in (8, 16)]
    slope, low, high = (float(lines[0][name]) for name in ("slope", "slope_ci_low", "slope_ci_high"))
    assert slope == pytest.approx(-19)
    assert max(reach) / 2 < high - slope < sum(reach) / 2
    assert slope - low == pytest.approx(high - slope, rel=0.3)
    assert lines[2]["slope"] == ""
    page = render_page(built)
    assert 'id="settings"' in page
    assert 'id="seeds"' in page
    assert "&lt;Lengths&gt;" in page
    section = page[page.index('id="settings"') :].partition("</section>")[0]
    assert section.count("<svg") == 1  # galleries have pictures in such ones


def test_figures_survive_the_record_and_galleries_look_at_the_first_seed(study):
    assert read_study_record(study).figures[0].reference_lines == ("whole",)
    rows = limit_rows(build_report(study).source).rows
    assert [(row.encoder, row.seed) for row in rows] == [(name, 0) for name in SHARES]


def test_figures_of_several_seeds_are_of_the_means(study):
    built = build_report(study)
    shown = {section.id: content for section, content in built_sections(built)}
    forest = {figure.name: figure for figure in shown["forest"].figures}["forest-retrieval-t2i-r1"]
    assert [row[0] for row in forest.rows] == ["part.block.8", "part.block.16", "pretrained"]
    assert forest.rows[0][1] == "+30.0"
    assert "setting-0-t2i-r1" in report_figures(built)
