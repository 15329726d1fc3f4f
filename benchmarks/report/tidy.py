"""The table as data: a tidy (long) frame with one line per model and metric; wide tables are views of it.

``table.csv`` is this frame, and `COLUMNS` describes its columns; after ``chance`` there is a column for each other
trivial baseline (``always_yes``, ``majority_class``). Values are scaled for display, as in papers: most are per cent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.report.table import BaselineDifference, Cell, Table
from benchmarks.results.formatting import finite_or_none
from benchmarks.results.results import CHANCE

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Mapping[str, str] = {
    "model": "name of the model",
    "benchmark": "name of the benchmark",
    "metric": "name of the metric; empty where no model has a number",
    "label": "the metric as the column's header shows it",
    "model_name": "the model as the report shows it; the same as `model` without a display name",
    "benchmark_name": "the benchmark as the report shows it",
    "group": "heading above the model; empty without one",
    "value": "empty if `missing` states a reason",
    "ci_low": "lower end of the 95 % interval",
    "ci_high": "upper end of the 95 % interval",
    "n": "items that the value was computed from",
    "n_full": "items of the full benchmark if the value was computed from a part of it",
    "chance": "score of guessing among the answers on the same items; empty outside of the main protocol",
    "num_seeds": "number of seeds if the value is a mean over seeds",
    "image_ci_half_width": "with several seeds: average half width of a single seed's interval over images",
    "baseline": "the model that is subtracted in delta",
    "delta": "value minus the baseline's",
    "delta_ci_low": "lower end of its 95 % interval; empty if unknown",
    "delta_ci_high": "upper end of its 95 % interval",
    "p_value": "of the paired test of this difference alone",
    "p_adjusted": "the same, corrected by Holm's method for all tests of the table",
    "significant": "whether p_adjusted is below 0.05",
    "min_detectable_difference": "the true difference that one such test detects with power 0.8",
    "mark": "best: significantly better than all others of its metric with the same protocol and items; tied: at the "
    "top, or not significantly different from it",
    "scale": "factor by which the metric is multiplied for display",
    "higher_is_better": "empty if neither is better",
    "protocol_group": "values are comparable only within a group; 0 is the main protocol",
    "missing": "why there is no value: `failed: …`, `missing: …`, …",
    "notes": "differences from the main protocol, and whether it was measured elsewhere",
    "resolution": "of the image tower, in pixels",
    "tokens": "that an image has in the LLM, at most if it has tiles; of LLaVAs",
}

BLIND_COLUMNS: Mapping[str, str] = {
    "n_blind": "items that were also asked without their image",
    **{
        f"{kind}{field}": about.format(how)
        for kind, how in {"blank": "with a blank image", "shuffled": "with another item's image"}.items()
        for field, about in {
            "": "score {} on the items of n_blind",
            "_gain": "score with the own image on these items, minus that {}",
            "_gain_ci_low": "lower end of the 95 % interval of the gain over the score {}",
            "_gain_ci_high": "upper end of the 95 % interval of the gain over the score {}",
            "_gain_p_value": "of the paired test of the gain over the score {}",
        }.items()
    },
    "credited": "whether the gain over every run without the image is significant",
}
"""Further columns, after the trivial baselines, if any model has blind runs."""


def tidy(
    table: Table,
    of_results: Mapping[tuple[str, str], Mapping[str, object]] | None = None,
    model_ids: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The table as a long frame with the columns of `COLUMNS`, models and metrics in the table's order.

    Args:
        table: the table.
        of_results: (model, benchmark) → the columns that only its results know.
        model_ids: displayed name of a model → its name in files, if they differ.
    """
    import pandas as pd

    cells = [table.cell(row, column) for row in table.rows for column in table.columns]
    lines = [_line(cell) | dict((of_results or {}).get((cell.row, cell.column.benchmark), {})) for cell in cells]
    names = list(COLUMNS)
    after_chance = names.index(CHANCE) + 1
    baselines = (_field(name) for column in table.columns for name in column.chance_levels if name != CHANCE)
    blind = BLIND_COLUMNS if any(cell.gains for cell in cells) else ()
    names[after_chance:after_chance] = [*dict.fromkeys(baselines), *blind]
    frame = pd.DataFrame(lines, columns=names)
    frame["group"] = frame["model"].map({row.name: row.group or None for row in table.rows})
    for name in ("model", "baseline"):
        frame[name] = frame[name].replace(dict(model_ids or {}))
    counts = ("n", "n_full", "num_seeds", *_OF_INPUT)
    return frame.astype(dict.fromkeys(counts, "Int64") | {"significant": "boolean"})


def _line(cell: Cell) -> dict[str, object]:
    column, delta, missing = cell.column, cell.delta, cell.missing
    chance_levels = {} if cell.group else column.chance_levels
    return {
        "model": cell.row,
        "benchmark": column.key,
        "metric": column.metric,
        "label": column.label,
        "model_name": cell.row,
        "benchmark_name": column.benchmark,
        **cell_fields(cell),
        "n": cell.n or None,
        **{_field(name): value for name, value in chance_levels.items()},
        **_gain_fields(cell),
        **(_delta_fields(delta) if delta else {}),
        "mark": cell.mark or None,
        "scale": column.scale,
        "higher_is_better": column.higher_is_better,
        "protocol_group": cell.group,
        "missing": f"{missing.kind}: {missing.reason}" if missing else None,
        "notes": "; ".join([*cell.protocol_differences, *(["measured elsewhere"] * cell.measured_elsewhere)]) or None,
    }


def _delta_fields(delta: BaselineDifference) -> dict[str, object]:
    return {
        "baseline": delta.baseline,
        "delta": delta.value,
        "delta_ci_low": finite_or_none(delta.ci_low),
        "delta_ci_high": finite_or_none(delta.ci_high),
        "p_value": delta.p_value,
        "p_adjusted": delta.p_adjusted,
        "significant": delta.significant,
        "min_detectable_difference": finite_or_none(delta.min_detectable_difference),
    }


def _gain_fields(cell: Cell) -> dict[str, object]:
    fields: dict[str, object] = {"credited": cell.credited}
    for kind, gain in cell.gains.items():
        fields |= {
            "n_blind": gain.n,
            kind: gain.blind,
            f"{kind}_gain": gain.value,
            f"{kind}_gain_ci_low": finite_or_none(gain.ci_low),
            f"{kind}_gain_ci_high": finite_or_none(gain.ci_high),
            f"{kind}_gain_p_value": gain.p_value,
        }
    return fields


def _field(baseline: str) -> str:
    return baseline.replace(" ", "_")


def cell_fields(cell: Cell) -> dict[str, object]:
    """A cell's value with its interval, and the fields of several seeds."""
    return {
        "value": cell.value,
        "ci_low": cell.ci_low,
        "ci_high": cell.ci_high,
        "num_seeds": len(cell.by_seed) or None,
        "image_ci_half_width": cell.image_ci_half_width,
    }


_OF_INPUT = ("resolution", "tokens")  # the same for all metrics of a benchmark, so a wide table would repeat them
_OF_COLUMNS = ("benchmark", "benchmark_name", "metric", "label", "scale")


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """The wide view of a tidy frame: one line per model, with the non-empty fields of each metric as columns."""
    of_models = ["model", "model_name", "group"]
    fields = [name for name in frame if name not in {*of_models, *_OF_COLUMNS, *_OF_INPUT}]
    metrics = frame["benchmark"] + ("/" + frame["metric"]).where(frame["metric"] != "", "")
    columns = [(metric, field) for metric in dict.fromkeys(metrics) for field in fields]
    view = frame.assign(column=metrics).pivot(index="model", columns="column", values=fields)
    view = view.swaplevel(axis=1)[columns].reindex(dict.fromkeys(frame["model"])).dropna(axis=1, how="all")
    view.columns = [" ".join(name) for name in view.columns]
    return frame[of_models].drop_duplicates().merge(view, left_on="model", right_index=True)
