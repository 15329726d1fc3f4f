"""CSV: for spreadsheets and programs, one file per table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from benchmarks.report.report import Report
from benchmarks.report.significance import paired_difference
from benchmarks.report.sweep_figures import sweep_panels
from benchmarks.report.table import BaselineDifference, Cell
from benchmarks.report.tidy import cell_fields, tidy, wide
from benchmarks.results.formatting import finite_or_none, strip_control_chars

if TYPE_CHECKING:
    import pandas as pd


def render_csv(report: Report) -> str:
    """The tidy table: one line for each model and metric, see `benchmarks.report.tidy`."""
    return csv_text(_tidy_table(report))


def render_wide(report: Report) -> str:
    """One line per model, with the fields of each metric as columns."""
    return csv_text(wide(_tidy_table(report)))


def _tidy_table(report: Report) -> pd.DataFrame:
    cells = report.table.cells.values()
    of_results = {
        (cell.row, cell.column.benchmark): {
            "n_full": report.full_size(cell.column, cell.row),
            "resolution": report.input_size(cell.column, cell.row, "resolution"),
            "tokens": report.input_size(cell.column, cell.row, "tokens"),
        }
        for cell in cells
    }
    return tidy(report.table, of_results, report.source.model_ids)


def render_reference_csv(report: Report) -> str:
    """One line per published model: values as printed, and differences from the baseline if it is one of them."""
    table = report.reference_results
    if table is None:
        return ""
    return _csv(
        {
            "model": row.name,
            "set": row.set,
            "about": row.about,
            "source": row.source,
            **{column: row.values.get(column) for column in table.columns},
            **({f"{column} delta": table.delta(row, column) for column in table.columns} if table.baseline else {}),
        }
        for row in table.rows
    )


def render_seeds(report: Report) -> str:
    """One line per model and metric: mean over seeds, both intervals, every seed; empty without several seeds."""
    table = report.table
    return _csv(
        {
            "model": report.source.model_id(row.name),
            "benchmark": column.key,
            "metric": column.metric,
            **cell_fields(cell),
            **{f"seed {seed}": value for seed, value in cell.by_seed.items()},
        }
        for row in table.rows
        for column in table.columns
        if (cell := table.cell(row, column)).by_seed
    )


def render_pairs(report: Report) -> str:
    """One line per pair of models and metric; empty unless the report has all pairs."""
    return _csv(
        {
            "model": report.source.model_id(cell.row),
            "other": report.source.model_id(delta.baseline),
            "benchmark": cell.column.key,
            "metric": cell.column.metric,
            "difference": delta.value,
            "ci_low": finite_or_none(delta.ci_low),
            "ci_high": finite_or_none(delta.ci_high),
            "p_value": delta.p_value,
            "p_adjusted": delta.p_adjusted,
            "significant": delta.significant,
            "credited": delta.credited,
            "num_tests": report.table.comparisons,
        }
        for cell, delta in _pair_differences(report)
    )


def _pair_differences(report: Report) -> Iterator[tuple[Cell, BaselineDifference]]:
    """The tested pairs of models of each ranked column, each with the better one first, in the order of the scores."""
    table = report.table
    for column in table.columns if table.all_pairs else ():
        numbers = [cell for cell in table.column_cells(column) if column.ranked and cell.value is not None]
        best_first = sorted(numbers, key=lambda cell: cell.value or 0.0, reverse=bool(column.higher_is_better))
        for cell, other in itertools.combinations(best_first, 2):
            if delta := paired_difference(cell, other, report.evidence, table.p_values):
                yield cell, delta


def render_sweep_csv(report: Report) -> str:
    """One line for each point of the sweep figures, with the slope of its curve; empty without sweeps."""
    return _csv(
        {
            "figure": panel.title,
            "curve": curve.name,
            panel.label: value,
            "benchmark": panel.column.key,
            "metric": panel.column.metric,
            **cell_fields(cell),
            "slope": curve.slope.value if curve.slope else None,
            "slope_ci_low": curve.slope.low if curve.slope else None,
            "slope_ci_high": curve.slope.high if curve.slope else None,
        }
        for panel in sweep_panels(report)
        for curve in panel.curves
        for value, cell in curve.cells
    )


def _csv(lines: Iterable[Mapping[str, object]]) -> str:
    import pandas as pd

    return csv_text(pd.DataFrame(lines))


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV, safe to open in a spreadsheet; empty without lines."""
    return frame.map(_safe_cell).to_csv(index=False, lineterminator="\n") if len(frame) else ""


def _safe_cell(value: object) -> object:
    """The value; a string without control characters, and quoted if a spreadsheet would run it as a formula."""
    if not isinstance(value, str):
        return value
    clean = strip_control_chars(value)
    return f"'{clean}" if value[:1] in {"=", "+", "-", "@", "\t", "\r"} else clean
