"""``clips-bench study power``: where the noise of a study's differences comes from, and what a larger one needs."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report.cell_text import column_title, decimals
from benchmarks.report.formats.csv_tables import csv_text
from benchmarks.report.formats.markdown import markdown_frame, markdown_list
from benchmarks.report.row_selection import Selection
from benchmarks.report.table import Cell, Column
from benchmarks.report.text_table import print_frame
from benchmarks.results.formatting import decimals_needed, format_number
from benchmarks.results.item_scores import comparable
from benchmarks.results.noise import MIN_VARIANCE_RATIO, Scores
from benchmarks.results.power import MAX_SEEDS, Components, variance_components
from clips.core.artifact import atomic_write, log_info
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.report.report import Report

_UNLIMITED = 1000  # characters of a line where the output is no terminal


@dataclass(frozen=True, kw_only=True)
class PowerConfig:
    """Print the sources of the noise of a study's differences, and the seeds and images that detect a difference.

    Args:
        study: a study file, a study's output, or a directory of results.
        difference: the true difference to detect, in the unit of the report (points).
        benchmarks: only these: ``BENCHMARK`` or ``BENCHMARK:METRIC``; by default the columns of the report.
        seeds: numbers of seeds for which the images are printed.
        num_tests: number of tests that the planned study corrects together; 1 is a single test.
        output: also write the table to this file: .csv or .md.
    """

    study: str
    difference: float = 1.0
    benchmarks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (3,)
    num_tests: int = 1
    output: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.difference) and self.difference > 0):
            raise UserError(f"difference: expected a number above 0, got {self.difference}")
        if self.num_tests < 1:
            raise UserError(f"num_tests: expected at least 1, got {self.num_tests}")
        if any(not 2 <= seeds <= MAX_SEEDS for seeds in self.seeds):
            raise UserError(f"seeds: expected numbers from 2 to {MAX_SEEDS}, got {[*self.seeds]}")
        if self.output is not None and Path(self.output).suffix not in {".csv", ".md"}:
            raise UserError(f"output: expected a name that ends in .csv or .md, got '{self.output}'")


def print_power(config: PowerConfig) -> None:
    """Print the table; write it to ``output`` if given.

    Raises:
        UserError: no results there, or no two models with items on the same images and scores off the scale's ends.
    """
    from rich.console import Console
    from rich.text import Text

    from benchmarks.report.report import build_report
    from benchmarks.study.schema import read_study, resolve_study_file

    directory = Path(config.study)
    if not directory.is_dir():
        directory = read_study(resolve_study_file(config.study)).directory
    report = build_report(directory, selection=Selection(benchmarks=config.benchmarks))
    found = column_components(report)
    if not found:
        raise UserError(f"{directory}: expected two models with items of one benchmark, and scores not near 0 or 100 %")
    frame, notes = power_frame(found, config), power_notes(found, config)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)
    print_frame(frame, console)
    for note in notes:
        console.print(Text(note))
    if config.output:
        text = f"{markdown_frame(frame)}\n\n{markdown_list(notes)}\n"
        atomic_write(config.output, csv_text(frame.reset_index()) if config.output.endswith(".csv") else text)
        log_info(f"power: {config.output}")


def column_components(report: Report) -> dict[Column, Components]:
    """Ranked column → its components, over the differences from the baselines, else over all pairs of models."""
    found = {}
    for column in report.table.columns:
        cells = [cell for cell in report.table.column_cells(column) if cell.value is not None and cell.group == 0]
        pairs = list(_pairs(report, cells))
        if pairs and column.ranked:
            found[column] = variance_components(pairs, report.evidence.training_noise(cells[0]))
    return found


def _pairs(report: Report, cells: Sequence[Cell]) -> Iterator[tuple[Scores, Scores]]:
    """The comparable pairs of a column without models near an end of the scale, which have no noise to plan with."""
    scores = {cell.row: found for cell in cells if (found := report.evidence.scores(cell)) is not None}
    enough = MIN_VARIANCE_RATIO * max((each.image_variance for each in scores.values()), default=0.0)
    included = {row: each for row, each in scores.items() if each.image_variance >= enough > 0}
    rows = [row for row in report.table.rows if row.name in included]
    pairs = [(row.name, row.baseline) for row in rows if row.baseline in included]
    for first, second in pairs or itertools.combinations(included, 2):
        if comparable(included[first], included[second]):
            yield included[first], included[second]


def power_frame(found: dict[Column, Components], config: PowerConfig) -> pd.DataFrame:
    """A line for each column: the components, and what detects the difference."""
    import pandas as pd

    lines = [_line(column, parts, config) for column, parts in found.items()]
    index = pd.Index([column_title(column) for column in found], name="metric")
    return pd.DataFrame(lines, index=index, dtype=object).fillna("—")


def _line(column: Column, parts: Components, config: PowerConfig) -> dict[str, str]:
    size, tests = config.difference / column.scale, config.num_tests
    spread = math.sqrt(parts.total) * column.scale
    shown = f"{config.difference:g}"
    line = {
        "images": str(parts.num_images),
        "SD": format_number(spread, decimals_needed(spread, decimals(column))),
        "from images": _percent(parts.images, parts.total),
    }
    if parts.degrees:
        line["from image × seed"] = _percent(parts.interaction, parts.total)
        line["from training"] = _percent(parts.training, parts.total)
        line[f"seeds for {shown}"] = _needed(parts, lambda each: each.seeds_for(size, each.num_images, num_tests=tests))
    for seeds in config.seeds if parts.degrees else config.seeds[:1]:
        needed = functools.partial(Components.images_for, difference=size, seeds=seeds, num_tests=tests)
        line[f"images for {shown} with {seeds} seeds" if parts.degrees else f"images for {shown}"] = _needed(
            parts, needed
        )
    return line


def _needed(parts: Components, number: Callable[[Components], int | None]) -> str:
    """A number with its range: ``7 (4 to 19)``; ``none`` if no number suffices."""
    needed, *ends = (_count(number(each)) for each in (parts, *(parts.bounds() if parts.degrees else ())))
    return f"{needed} ({' to '.join(ends)})" if len(set(ends)) > 1 else needed


def _count(number: int | None) -> str:
    return "none" if number is None else f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.0f} %" if total else "—"


def power_notes(found: dict[Column, Components], config: PowerConfig) -> list[str]:
    """What the columns mean and assume."""
    level = f"5 % / {config.num_tests} tests" if config.num_tests > 1 else "5 %, a single test"
    notes = [
        "SD: standard deviation of the difference of two models, each trained once, over images and training runs, "
        "in points; the mean over the pairs of the report. Its parts are ratios of the variance.",
        f"Seeds and images with which a true difference of {config.difference:g} is detected with power 0.8 (level "
        f"{level}), for models that differ as much as these, in a study with as many trained models. 'none': not with "
        f"{MAX_SEEDS} seeds, or not with any number of images.",
    ]
    if any(parts.degrees for parts in found.values()):
        degrees = sorted({parts.degrees for parts in found.values() if parts.degrees})
        notes.append(
            f"The variance over seeds has {' to '.join(map(str, dict.fromkeys((degrees[0], degrees[-1]))))} degrees of "
            "freedom here; the numbers in parentheses are those at the ends of its 80 % interval."
        )
    if any(not parts.degrees for parts in found.values()):
        notes.append("Without several seeds whose scores differ, the variance due to training is unknown, not zero.")
    return notes
