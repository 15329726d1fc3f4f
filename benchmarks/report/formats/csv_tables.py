"""CSV: for spreadsheets and programs, one file a table."""

from __future__ import annotations

from benchmarks.report.formats.json_lines import mean_fields
from benchmarks.report.model import Report
from benchmarks.report.settings import setting_panels
from benchmarks.report.table import Cell
from benchmarks.wording import finite, visible


def render_csv(report: Report) -> str:
    """One line a row; for each metric its value, interval, difference with interval, p-value, mark and remark."""
    table = report.table
    lines = []
    for row in table.rows:
        line: dict[str, object] = {"row": _safe_cell(row.name)}
        for column in table.columns:
            line |= _csv_fields(table.cell(row, column), report.full_size(column, row.name))
        lines.append(line)
    return _csv(lines)


def _csv_fields(cell: Cell, full_size: int | None) -> dict[str, object]:
    name = f"{cell.column.benchmark}/{cell.column.metric}" if cell.column.metric else cell.column.benchmark
    delta = cell.delta
    remark = f"{cell.gap.kind}: {cell.gap.reason}" if cell.gap else "; ".join(cell.unlike)
    return {
        name: cell.value,
        f"{name} low": cell.low,
        f"{name} high": cell.high,
        f"{name} n": cell.n or None,
        f"{name} full size": full_size,
        **{f"{name} {way}": None if cell.group else value for way, value in cell.column.blind.items()},
        f"{name} delta": delta.value if delta else None,
        f"{name} delta low": finite(delta.low) if delta else None,
        f"{name} delta high": finite(delta.high) if delta else None,
        f"{name} delta p": delta.p_value if delta else None,
        f"{name} delta smallest shown": finite(delta.smallest) if delta else None,
        f"{name} mark": cell.mark or None,
        f"{name} remark": _safe_cell(remark) or None,
    }


def render_published(report: Report) -> str:
    """One line a published row, values as printed, and differences to the baseline if it is one of them."""
    table = report.published
    if table is None:
        return ""
    lines: list[dict[str, object]] = [
        {
            "row": _safe_cell(row.name),
            "set": row.set,
            "about": row.about,
            "source": row.source,
            **{column: row.values.get(column) for column in table.columns},
            **({f"{column} delta": table.delta(row, column) for column in table.columns} if table.baseline else {}),
        }
        for row in table.rows
    ]
    return _csv(lines)


def render_seeds(report: Report) -> str:
    """One line a row and metric: the mean over seeds, both kinds of noise, every seed; empty without several seeds."""
    table = report.table
    lines = [
        {
            "row": _safe_cell(row.name),
            "benchmark": column.benchmark,
            "metric": column.metric,
            **mean_fields(cell),
            **{f"seed {seed}": value for seed, value in cell.by_seed.items()},
        }
        for row in table.rows
        for column in table.columns
        if (cell := table.cell(row, column)).by_seed
    ]
    return _csv(lines)


def render_settings(report: Report) -> str:
    """One line for each point of the figures of scores against settings, with the curve's slope; empty without any."""
    lines = [
        {
            "figure": _safe_cell(panel.title),
            "curve": _safe_cell(curve.name),
            panel.label: value,
            "benchmark": panel.column.benchmark,
            "metric": panel.column.metric,
            **mean_fields(cell),
            "slope": curve.slope.value if curve.slope else None,
            "slope low": curve.slope.low if curve.slope else None,
            "slope high": curve.slope.high if curve.slope else None,
        }
        for panel in setting_panels(report)
        for curve in panel.curves
        for value, cell in curve.cells
    ]
    return _csv(lines)


def _csv(lines: list[dict[str, object]]) -> str:
    import pandas as pd

    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n") if lines else ""


def _safe_cell(text: str) -> str:
    """Text that a spreadsheet will not take for a formula, nor a terminal for a command."""
    clean = visible(text)
    return f"'{clean}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else clean
