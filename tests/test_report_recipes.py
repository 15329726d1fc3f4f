"""A study of two recipes and two seeds: what is shown, chosen and drawn tells the recipes apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_material import items_table, put_result

from benchmarks.report.report import build_report
from benchmarks.report.row_selection import Selection
from benchmarks.report.sweep_figures import sweep_panels
from benchmarks.study import study_commands
from benchmarks.study.step_state import StepRecord, write_record
from benchmarks.study.study_record import StudyRecord, write_study_record

STUDY = """
name: small
seeds: [0, 1]
encoders:
  part: {vary: {recipe.caption_tokens: [8, 16]}}
llms: {tiny: {}}
recipes: {short: {}, long: {}}
benchmarks: {pope: {data: d}}
figures:
  - {benchmark: pope, encoders: part, x: recipe.caption_tokens}
"""
SHARES = {("8", "short"): 0.2, ("16", "short"): 0.4, ("8", "long"): 0.5, ("16", "long"): 0.8}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's output with two encoders in two LLaVAs each, two seeds each."""
    output, file = tmp_path / "out", tmp_path / "study.yaml"
    file.write_text(f"{STUDY}output: {output}\n", encoding="utf-8")
    monkeypatch.setattr(study_commands, "check_command", lambda words: None)
    monkeypatch.setattr(study_commands, "command_version", lambda words: 1)
    keyed = study_commands.resolve_study(study_commands.StudyConfig(study=str(file)))
    record: StudyRecord = study_commands.study_record(keyed, str(file))
    write_study_record(output, record)
    for step in keyed.plan.steps:
        key = keyed.keys[step.name].key
        write_record(
            output,
            StepRecord(name=step.name, kind=step.kind, command="", key=key, status="done", started=1.0, seconds=1.0),
        )
    for row in record.rows:
        share = SHARES[row.encoder.rpartition(".")[2], row.llava_variant or ""] + 0.05 * (row.seed or 0)
        items = items_table(0.0, benchmark="pope", count=100)
        items["hit"] = items["score"] = [float(number < round(100 * share)) for number in range(100)]
        put_result(output / "results", Path(row.cells["pope"].result).parent.name, "pope", items)
    return output


def test_a_figure_against_a_setting_has_a_curve_for_each_recipe(study: Path) -> None:
    (panel,) = sweep_panels(build_report(study))
    found = {curve.name: {x: cell.value for x, cell in curve.points.items()} for curve in panel.curves}
    assert found == {
        "part, short": {8.0: pytest.approx(22.5), 16.0: pytest.approx(42.5)},
        "part, long": {8.0: pytest.approx(52.5), 16.0: pytest.approx(82.5)},
    }
    assert panel.slope is not None
    assert panel.slope.value == pytest.approx(25)


def test_points_that_were_measured_otherwise_are_on_no_curve(study: Path) -> None:
    built = build_report(study)
    place = ("part.16 by long", "pope", "accuracy")
    cells = dict(built.table.cells)
    cells[place] = dataclasses.replace(cells[place], group=1, protocol_differences=("prompt: other",))
    mixed = dataclasses.replace(built, table=dataclasses.replace(built.table, cells=cells))
    (panel,) = sweep_panels(mixed)
    assert [list(curve.points) for curve in panel.curves] == [[8.0, 16.0], [8.0]]


def test_rows_that_are_left_out_are_counted_recipe_by_recipe(study: Path) -> None:
    part = build_report(study, selection=Selection(rows=("part.8 by *",)))
    assert [row.name for row in part.table.rows] == ["part.8 by short", "part.8 by long"]
    assert part.remarks[0].startswith("Left out of this table: 2 of 4 rows.")
