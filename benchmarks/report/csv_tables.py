"""CSV: for spreadsheets and programs, one file per table.

``table.csv`` is the scores as a tidy (long) frame; docs/report.md describes its columns. After ``chance`` there is a
column for each other trivial baseline (``always_yes``, ``majority_class``). Values are scaled for display, as in
papers: most are per cent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from benchmarks.report.curves import sweep_panels
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Difference, Table
from benchmarks.results.blind import BLIND_KINDS
from benchmarks.results.formatting import finite_or_none, strip_control_chars
from benchmarks.results.protocol import INPUT_PREFIX
from benchmarks.results.results import CHANCE
from benchmarks.tasks.listing import full_size

if TYPE_CHECKING:
    import pandas as pd

_OF_INPUT = ("resolution", "tokens")  # the same for all metrics of a benchmark, so a wide table would repeat them
_OF_MODELS = ("model", "model_name", "group")
_OF_COLUMNS = ("benchmark", "benchmark_name", "metric", "label", "scale")


def render_csv(report: Report) -> str:
    """The tidy table: one line for each model and metric."""
    return csv_text(score_frame(report.table, report.source.model_ids))


def render_wide(report: Report) -> str:
    """One line per model, with the non-empty fields of each metric as columns."""
    frame = score_frame(report.table, report.source.model_ids)
    fields = [name for name in frame if name not in {*_OF_MODELS, *_OF_COLUMNS, *_OF_INPUT}]
    metrics = frame["benchmark"] + ("/" + frame["metric"]).where(frame["metric"] != "", "")
    columns = [(metric, field) for metric in dict.fromkeys(metrics) for field in fields]
    view = frame.assign(column=metrics).pivot(index="model", columns="column", values=fields)
    view = view.swaplevel(axis=1)[columns].reindex(dict.fromkeys(frame["model"])).dropna(axis=1, how="all")
    view.columns = [" ".join(name) for name in view.columns]
    return csv_text(frame[[*_OF_MODELS]].drop_duplicates().merge(view, left_on="model", right_index=True))


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
    return _csv(
        {
            "model": report.source.model_id(cell.row),
            "benchmark": cell.column.key,
            "metric": cell.column.metric,
            **_value_fields(cell),
            **{f"seed {seed}": value for seed, value in cell.by_seed.items()},
        }
        for cell in _by_row(report.table)
        if cell.by_seed
    )


def render_pairs(report: Report) -> str:
    """One line per pair of models and metric; empty unless the report has all pairs."""
    return _csv(
        {
            "model": report.source.model_id(pair.cell.row),
            "other": report.source.model_id(pair.other.row),
            "benchmark": pair.cell.column.key,
            "metric": pair.cell.column.metric,
            "difference": pair.value,
            "ci_low": finite_or_none(pair.ci_low),
            "ci_high": finite_or_none(pair.ci_high),
            "p_value": pair.p_value,
            "p_adjusted": pair.p_adjusted,
            "significant": pair.significant,
            "credited": pair.credited,
            "num_tests": report.table.comparisons,
        }
        for pair in _best_first(report.table)
    )


def _best_first(table: Table) -> Iterator[Difference]:
    """The tested pairs of each ranked column, each with the better model first, in the order of the scores."""
    for column in table.columns if table.all_pairs else ():
        numbers = [cell for cell in column.cells if column.ranked and cell.value is not None]
        numbers.sort(key=lambda cell: cell.value or 0.0, reverse=bool(column.higher_is_better))
        for cell, other in itertools.combinations(numbers, 2):
            if found := table.tested.get(frozenset({cell, other})):
                yield found if found.cell is cell else Difference(cell=cell, other=other, p_adjusted=found.p_adjusted)


def render_sweep_csv(report: Report) -> str:
    """One line for each point of the sweep figures, with the slope of its curve; empty without sweeps."""
    return _csv(
        {
            "figure": panel.title,
            "curve": curve.name,
            panel.label: value,
            "benchmark": panel.column.key,
            "metric": panel.column.metric,
            **_value_fields(cell),
            "slope": curve.slope.value if curve.slope else None,
            "slope_ci_low": curve.slope.low if curve.slope else None,
            "slope_ci_high": curve.slope.high if curve.slope else None,
        }
        for panel in sweep_panels(report.source, report.table)
        for curve in panel.curves
        for value, cell in curve.cells
    )


def score_frame(table: Table, model_ids: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The scores as a frame, models and metrics in the table's order.

    Args:
        table: the table.
        model_ids: displayed name of a model → its name in files, if they differ.
    """
    import pandas as pd

    baselines = list(dict.fromkeys(name for column in table.columns for name in column.chance_levels))
    with_gains = any(cell.gains for cell in table.scores)
    frame = pd.DataFrame([_line(cell, baselines, with_gains=with_gains) for cell in _by_row(table)])
    if frame.empty:
        return frame
    frame["group"] = frame["model"].map({row.name: row.group or None for row in table.rows})
    for name in ("model", "baseline"):
        frame[name] = frame[name].replace(dict(model_ids or {}))
    counts = ("n", "n_full", "num_seeds", *_OF_INPUT)
    return frame.astype(dict.fromkeys(counts, "Int64") | {"significant": "boolean"})


def _by_row(table: Table) -> Iterator[Cell]:
    return (column.cells[place] for place in range(len(table.rows)) for column in table.columns)


def _line(cell: Cell, baselines: Iterable[str], *, with_gains: bool) -> dict[str, object]:
    column, delta, missing = cell.column, cell.delta, cell.missing
    levels = {} if cell.group else column.chance_levels
    protocol = cell.all_results[0].protocol if cell.all_results else {}
    inputs = {name: protocol.get(INPUT_PREFIX + name) for name in _OF_INPUT}
    return {
        "model": cell.row,
        "benchmark": column.key,
        "metric": column.metric,
        "label": column.label,
        "model_name": cell.row,
        "benchmark_name": column.benchmark,
        "group": None,
        "value": cell.value,
        "ci_low": cell.ci_low,
        "ci_high": cell.ci_high,
        "n": cell.n or None,
        "n_full": max((size for each in cell.all_results if (size := full_size(each)) is not None), default=None),
        CHANCE: levels.get(CHANCE),
        **{name.replace(" ", "_"): levels.get(name) for name in baselines if name != CHANCE},
        **(_gain_fields(cell) if with_gains else {}),
        "num_seeds": len(cell.by_seed) or None,
        "image_ci_half_width": cell.image_ci_half_width,
        "baseline": delta.baseline if delta else None,
        "delta": delta.value if delta else None,
        "delta_ci_low": finite_or_none(delta.ci_low) if delta else None,
        "delta_ci_high": finite_or_none(delta.ci_high) if delta else None,
        "p_value": delta.p_value if delta else None,
        "p_adjusted": delta.p_adjusted if delta else None,
        "significant": delta.significant if delta else None,
        "min_detectable_difference": finite_or_none(delta.min_detectable) if delta else None,
        "mark": cell.mark or None,
        "scale": column.scale,
        "higher_is_better": column.higher_is_better,
        "protocol_group": cell.group,
        "missing": f"{missing.kind}: {missing.reason}" if missing else None,
        "notes": "; ".join([*cell.protocol_differences, *(["measured elsewhere"] * cell.measured_elsewhere)]) or None,
        **{name: value if isinstance(value, int) else None for name, value in inputs.items()},
    }


def _value_fields(cell: Cell) -> dict[str, object]:
    return {
        "value": cell.value,
        "ci_low": cell.ci_low,
        "ci_high": cell.ci_high,
        "num_seeds": len(cell.by_seed) or None,
        "image_ci_half_width": cell.image_ci_half_width,
    }


def _gain_fields(cell: Cell) -> dict[str, object]:
    fields: dict[str, object] = {"n_blind": None}
    for kind in BLIND_KINDS:
        gain = cell.gains.get(kind)
        fields["n_blind"] = gain.n if gain else fields["n_blind"]
        fields |= {
            kind: gain.blind if gain else None,
            f"{kind}_gain": gain.value if gain else None,
            f"{kind}_gain_ci_low": finite_or_none(gain.ci_low) if gain else None,
            f"{kind}_gain_ci_high": finite_or_none(gain.ci_high) if gain else None,
            f"{kind}_gain_p_value": gain.p_value if gain else None,
        }
    return fields | {"credited": cell.credited}


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
