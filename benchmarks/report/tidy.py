"""The table as data: a tidy (long) frame, a line for each model and metric; the wide ones are views of it.

``table.csv`` is this frame, and `COLUMNS` says what stands in it; behind `chance` there is a column for each other way
of answering without looking (``always_yes``, ``majority_class``). Values are scaled as shown: per cent where papers
print per cent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import finite_or_none
from benchmarks.results.results import CHANCE

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Mapping[str, str] = {
    "model": "name of the row",
    "benchmark": "name of the benchmark",
    "metric": "name of the metric; empty where no model has a number",
    "label": "the metric as a column's head says it",
    "value": "empty where `missing` says why there is none",
    "ci_low": "lower end of the 95 % interval",
    "ci_high": "upper end of the 95 % interval",
    "n": "items that the value was computed from",
    "n_full": "items of the whole benchmark where the value was computed from a part of it",
    "chance": "what guessing among the answers gives on the same items; empty outside of the main protocol",
    "num_seeds": "trainings behind the value, where there are several",
    "image_ci_half_width": "with several seeds: half the width of one seed's interval over images, on average",
    "baseline": "the model that the difference is taken to",
    "delta": "value minus the baseline's",
    "delta_ci_low": "lower end of its 95 % interval; empty where none can be given",
    "delta_ci_high": "upper end of its 95 % interval",
    "p_value": "of the paired test of this difference alone",
    "p_adjusted": "the same, corrected by Holm's method for all tests of the table",
    "significant": "whether p_adjusted is below 0.05",
    "min_detectable_difference": "the smallest true difference that one such test shows four times in five",
    "mark": "best: tests tell it from all others of its metric and protocol; tied: at the top, not told apart",
    "scale": "what the metric is multiplied by to be shown",
    "higher_is_better": "empty where neither is better",
    "protocol_group": "values are comparable only within a group; 0 is the main protocol",
    "missing": "why there is no value: `failed: …`, `missing: …`, …",
    "notes": "what differs from the main protocol",
}


def tidy(table: Table, full_sizes: Mapping[tuple[str, str], int | None] | None = None) -> pd.DataFrame:
    """The table as a long frame with the columns of `COLUMNS`, models and metrics in the table's order.

    Args:
        table: the table.
        full_sizes: (model, benchmark) → items of the whole benchmark, where a part was measured.
    """
    import pandas as pd

    cells = [table.cell(row, column) for row in table.rows for column in table.columns]
    lines = [_line(cell, (full_sizes or {}).get((cell.row, cell.column.benchmark))) for cell in cells]
    ways = dict.fromkeys(_field(way) for column in table.columns for way in column.chance_levels if way != CHANCE)
    place = [*COLUMNS].index(CHANCE) + 1
    frame = pd.DataFrame(lines, columns=[*[*COLUMNS][:place], *ways, *[*COLUMNS][place:]])
    return frame.astype(dict.fromkeys(("n", "n_full", "num_seeds"), "Int64") | {"significant": "boolean"})


def _line(cell: Cell, full_size: int | None) -> dict[str, object]:
    column, delta, gap = cell.column, cell.delta, cell.missing
    blind = {} if cell.group else column.chance_levels
    return {
        "model": cell.row,
        "benchmark": column.benchmark,
        "metric": column.metric,
        "label": column.label,
        **cell_fields(cell),
        "n": cell.n or None,
        "n_full": full_size,
        **{_field(way): value for way, value in blind.items()},
        **(
            {
                "baseline": delta.baseline,
                "delta": delta.value,
                "delta_ci_low": finite_or_none(delta.ci_low),
                "delta_ci_high": finite_or_none(delta.ci_high),
                "p_value": delta.p_value,
                "p_adjusted": delta.p_adjusted,
                "significant": delta.significant,
                "min_detectable_difference": finite_or_none(delta.min_detectable_difference),
            }
            if delta
            else {}
        ),
        "mark": cell.mark or None,
        "scale": column.scale,
        "higher_is_better": column.higher_is_better,
        "protocol_group": cell.group,
        "missing": f"{gap.kind}: {gap.reason}" if gap else None,
        "notes": "; ".join(cell.protocol_differences) or None,
    }


def _field(way: str) -> str:
    return way.replace(" ", "_")


def cell_fields(cell: Cell) -> dict[str, object]:
    """A cell's value with its interval, and what several seeds say."""
    return {
        "value": cell.value,
        "ci_low": cell.ci_low,
        "ci_high": cell.ci_high,
        "num_seeds": len(cell.by_seed) or None,
        "image_ci_half_width": cell.image_ci_half_width,
    }


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """The wide view of a tidy frame: a line a model, and for each metric its filled fields side by side."""
    fields = [name for name in frame if name not in {"model", "benchmark", "metric", "label", "scale"}]
    names = frame["benchmark"] + ("/" + frame["metric"]).where(frame["metric"] != "", "")
    places = [(name, field) for name in dict.fromkeys(names) for field in fields]
    found = frame.assign(column=names).pivot(index="model", columns="column", values=fields)
    found = found.swaplevel(axis=1)[places].reindex(dict.fromkeys(frame["model"])).dropna(axis=1, how="all")
    found.columns = [" ".join(name) for name in found.columns]
    return found.reset_index()
