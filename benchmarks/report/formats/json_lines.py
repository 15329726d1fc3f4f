"""JSON lines: the main table for programs, a line a cell."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report.model import Report
from benchmarks.report.table import Cell, Delta
from benchmarks.wording import finite

SCHEMA = 2
SCHEMA_FILE = Path(__file__).with_name("cell.schema.json")
"""JSON Schema of a line; a change that a reader must know of raises ``SCHEMA`` and its ``version``."""


def render_json(report: Report) -> str:
    """The main table for programs: a line a cell with interval, protocol group, mark and difference to the baseline.

    JSON lines, since a .json in a directory below results would be taken for a result. ``SCHEMA_FILE`` explains a line.
    """
    cells = [
        {
            "schema": SCHEMA,
            "row": row.name,
            "benchmark": column.benchmark,
            "metric": column.metric,
            "label": column.label,
            **mean_fields(cell),
            "items": cell.n or None,
            "full_size": report.full_size(column, row.name),
            "blind": {} if cell.group else dict(column.blind),
            "protocol_group": cell.group,
            "unlike": list(cell.unlike),
            "mark": cell.mark or None,
            "gap": f"{cell.gap.kind}: {cell.gap.reason}" if cell.gap else None,
            "delta": _json_delta(cell.delta),
        }
        for row in report.table.rows
        for column in report.table.columns
        for cell in [report.table.cell(row, column)]
    ]
    return "".join(json.dumps(cell, ensure_ascii=False, allow_nan=False) + "\n" for cell in cells)


def _json_delta(delta: Delta | None) -> dict[str, object] | None:
    if delta is None:
        return None
    return {
        "baseline": delta.baseline,
        "value": delta.value,
        "low": finite(delta.low),
        "high": finite(delta.high),
        "p_corrected": delta.p_value,
        "smallest_shown": finite(delta.smallest),
    }


def mean_fields(cell: Cell) -> dict[str, object]:
    """A cell's value with its interval, and what several seeds say, for programs."""
    return {
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "half width over pictures": cell.sampling,
        "seeds": len(cell.by_seed) or None,
    }
