"""``MEASURES``: what all formats show of a line of the scores; and the CSV files, for spreadsheets and programs.

``table.csv`` is the scores as a tidy (long) frame; docs/report.md describes its columns. Values are scaled for display,
as in papers: most are per cent.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Difference, Table
from benchmarks.results.baselines import WITHOUT_IMAGE
from benchmarks.results.formatting import finite_or_none, strip_control_chars
from benchmarks.results.protocol import input_number
from benchmarks.results.results import CHANCE
from benchmarks.tasks.listing import full_size

if TYPE_CHECKING:
    import pandas as pd

TextFormat = Literal["page", "markdown", "latex", "terminal"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column of ``table.csv``, a text in the cells of the main table, or both.

    Args:
        name: of the column; empty for a text only.
        value: cell → a number, text or bool; None if it has none.
        dtype: of pandas, for counts and bools that some lines lack.
        of_score: whether ``seeds.csv`` has the column, too.
        text: cell → what stands next to its number; empty to omit it.
        heading: of the text, for the page; ``{cell}`` is the cell.
        formats: that show the text; LaTeX next to inline intervals only.
    """

    name: str = ""
    value: Callable[[Cell], object] = lambda cell: None
    dtype: str = ""
    of_score: bool = False
    text: Callable[[Cell], str] = lambda cell: ""
    heading: str = ""
    formats: tuple[TextFormat, ...] = ("page", "markdown", "latex", "terminal")


def _of_delta(get: Callable[[Difference], object]) -> Callable[[Cell], object]:
    return lambda cell: get(cell.delta) if cell.delta else None


def _of_input(name: str) -> Callable[[Cell], object]:
    return lambda cell: input_number(cell.all_results[0].protocol, name) if cell.all_results else None


def _groups(table: Table) -> Iterator[Measure]:
    groups = {row.name: row.group or None for row in table.rows}
    yield Measure(name="group", value=lambda cell: groups[cell.row])


def _chance_levels(table: Table) -> Iterator[Measure]:
    """Chance, then each other trivial baseline (``always_yes``, ``majority_class``)."""

    def level(name: str) -> Callable[[Cell], object]:
        return lambda cell: None if cell.group else cell.column.chance_levels.get(name)

    for name in dict.fromkeys([CHANCE, *(name for column in table.columns for name in column.chance_levels)]):
        yield Measure(name=name.replace(" ", "_"), value=level(name))


def _gains(table: Table) -> Iterator[Measure]:
    """The score without the image, and the gain of the image, if the table has any."""
    if not any(cell.gains for cell in table.scores):
        return

    def of(kind: str, get: Callable[[Cell], object]) -> Callable[[Cell], object]:
        return lambda cell: get(cell.gains[kind]) if kind in cell.gains else None

    yield Measure(name="n_blind", value=lambda cell: next((each.n for each in [*cell.gains.values()][::-1]), None))
    for kind in WITHOUT_IMAGE:
        if any(kind in cell.gains for cell in table.scores):
            yield Measure(name=kind, value=of(kind, lambda gain: gain.baseline))
            yield Measure(name=f"{kind}_gain", value=of(kind, lambda gain: gain.value))
            yield Measure(name=f"{kind}_gain_ci_low", value=of(kind, lambda gain: gain.ci_low))
            yield Measure(name=f"{kind}_gain_ci_high", value=of(kind, lambda gain: gain.ci_high))
            tested = of(kind, lambda gain: gain.against_zero and gain.against_zero.p_value)
            yield Measure(name=f"{kind}_gain_p_value", value=tested)
    yield Measure(name="credited", value=lambda cell: cell.credited)


MEASURES: tuple[Measure | Callable[[Table], Iterator[Measure]], ...] = (
    Measure(name="model", value=lambda cell: cell.row),
    Measure(name="benchmark", value=lambda cell: cell.column.key),
    Measure(name="metric", value=lambda cell: cell.column.metric),
    Measure(name="label", value=lambda cell: cell.column.label),
    Measure(name="model_name", value=lambda cell: cell.row),
    Measure(name="benchmark_name", value=lambda cell: cell.column.benchmark),
    _groups,
    Measure(name="value", value=lambda cell: cell.value, of_score=True),
    Measure(name="ci_low", value=lambda cell: cell.ci_low, of_score=True),
    Measure(name="ci_high", value=lambda cell: cell.ci_high, of_score=True),
    Measure(text=lambda cell: cell.margin, formats=("markdown", "latex", "terminal")),
    Measure(
        text=lambda cell: cell.interval, heading="95 % interval, {cell.n} items; {cell.caution}", formats=("page",)
    ),
    Measure(name="n", value=lambda cell: cell.n or None, dtype="Int64"),
    Measure(
        name="n_full", dtype="Int64",
        value=lambda cell: max((size for each in cell.all_results if (size := full_size(each))), default=None),
    ),
    _chance_levels,
    _gains,
    Measure(name="num_seeds", value=lambda cell: len(cell.by_seed) or None, dtype="Int64", of_score=True),
    Measure(name="image_ci_half_width", value=lambda cell: cell.image_ci_half_width, of_score=True),
    Measure(name="baseline", value=_of_delta(lambda delta: delta.baseline)),
    Measure(name="delta", value=_of_delta(lambda delta: delta.value)),
    Measure(name="delta_ci_low", value=_of_delta(lambda delta: finite_or_none(delta.ci_low))),
    Measure(name="delta_ci_high", value=_of_delta(lambda delta: finite_or_none(delta.ci_high))),
    Measure(name="p_value", value=_of_delta(lambda delta: delta.p_value)),
    Measure(name="p_adjusted", value=_of_delta(lambda delta: delta.p_adjusted)),
    Measure(name="significant", value=_of_delta(lambda delta: delta.significant), dtype="boolean"),
    Measure(name="min_detectable_difference", value=_of_delta(lambda delta: finite_or_none(delta.min_detectable))),
    Measure(name="mark", value=lambda cell: cell.mark or None),
    Measure(name="display_factor", value=lambda cell: cell.column.scale),
    Measure(name="higher_is_better", value=lambda cell: cell.column.higher_is_better),
    Measure(name="protocol_group", value=lambda cell: cell.group),
    Measure(name="missing", value=lambda cell: cell.missing and f"{cell.missing.kind}: {cell.missing.reason}"),
    Measure(
        name="notes",
        value=lambda cell: "; ".join(
            [
                *cell.protocol_differences,
                *(["measured elsewhere"] * cell.measured_elsewhere),
                *filter(None, [cell.caution]),
            ]
        ) or None,
    ),
    Measure(name="resolution", value=_of_input("resolution"), dtype="Int64"),
    Measure(name="tokens", value=_of_input("tokens"), dtype="Int64"),
)  # fmt: skip
"""In the order of ``table.csv``; a function gives those that depend on the table. A new one is an entry here."""


def cell_texts(cell: Cell, shown_in: TextFormat) -> list[tuple[str, str]]:
    """Heading and text of what a format shows next to a cell's number."""
    own = [each for each in MEASURES if isinstance(each, Measure) and shown_in in each.formats]
    return [(each.heading.format(cell=cell).removesuffix("; "), text) for each in own if (text := each.text(cell))]


def score_frame(table: Table, model_ids: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The scores as a frame, models and metrics in the table's order.

    Args:
        table: the table.
        model_ids: displayed name of a model → its name in files, if they differ.
    """
    import pandas as pd

    entries = [[each] if isinstance(each, Measure) else each(table) for each in MEASURES]
    measures = [each for each in itertools.chain.from_iterable(entries) if each.name]
    frame = pd.DataFrame([{each.name: each.value(cell) for each in measures} for cell in _by_row(table)])
    if frame.empty:
        return frame
    for name in ("model", "baseline"):
        frame[name] = frame[name].replace(dict(model_ids or {}))
    return frame.astype({each.name: each.dtype for each in measures if each.dtype})


def _by_row(table: Table) -> Iterator[Cell]:
    return (table.cells(column)[place] for place in range(len(table.rows)) for column in table.columns)


def render_csv(report: Report) -> str:
    """The tidy table: one line for each model and metric."""
    return csv_text(score_frame(report.table, report.source.model_ids))


def render_wide(report: Report) -> str:
    """One line per model, with the non-empty fields of each metric as columns."""
    frame = score_frame(report.table, report.source.model_ids)
    of_models, of_columns = (
        ["model", "model_name", "group"],
        {"benchmark", "benchmark_name", "metric", "label", "display_factor"},
    )
    of_input = {"resolution", "tokens"}  # the same for all metrics of a benchmark
    fields = [name for name in frame if name not in {*of_models, *of_columns, *of_input}]
    metrics = frame["benchmark"] + ("/" + frame["metric"]).where(frame["metric"] != "", "")
    columns = [(metric, field) for metric in dict.fromkeys(metrics) for field in fields]
    view = frame.assign(column=metrics).pivot(index="model", columns="column", values=fields)
    view = view.swaplevel(axis=1)[columns].reindex(dict.fromkeys(frame["model"])).dropna(axis=1, how="all")
    view.columns = [" ".join(name) for name in view.columns]
    return csv_text(frame[of_models].drop_duplicates().merge(view, left_on="model", right_index=True))


def _score_fields(cell: Cell) -> dict[str, object]:
    return {each.name: each.value(cell) for each in MEASURES if isinstance(each, Measure) and each.of_score}


def render_seeds(report: Report) -> str:
    """One line per model and metric: mean over seeds, both intervals, every seed; empty without several seeds."""
    return _csv(
        {
            "model": report.source.model_id(cell.row),
            "benchmark": cell.column.key,
            "metric": cell.column.metric,
            **_score_fields(cell),
            **{f"seed {seed}": value for seed, value in cell.by_seed.items()},
        }
        for cell in _by_row(report.table)
        if cell.by_seed
    )


def difference_frame(table: Table, model_ids: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The tested pairs of models as a frame, a line for each ranked metric.

    With all pairs the better model comes first, in the order of the scores; else a model is followed by its baseline.
    """
    import pandas as pd

    lines, ids = [], dict(model_ids or {})
    for column in table.columns:
        cells = table.cells(column)
        pairs: Iterable[Difference | None] = (cell.delta for cell in cells)
        if table.all_pairs:
            numbers = [cell for cell in cells if column.ranked and cell.value is not None]
            numbers.sort(key=lambda cell: cell.value or 0.0, reverse=bool(column.higher_is_better))
            pairs = itertools.starmap(table.difference, itertools.combinations(numbers, 2))
        for pair in filter(None, pairs):
            line = {
                "model": ids.get(pair.cell.row, pair.cell.row),
                "other": ids.get(pair.other.row, pair.other.row),
                "benchmark": column.key,
                "metric": column.metric,
                "difference": pair.value,
                "ci_low": finite_or_none(pair.ci_low),
                "ci_high": finite_or_none(pair.ci_high),
                "p_value": pair.p_value,
                "p_adjusted": pair.p_adjusted,
                "significant": pair.significant,
                "min_detectable_difference": finite_or_none(pair.min_detectable),
                "credited": pair.credited,
                "num_tests": table.comparisons,
            }
            lines.append(line)
    return pd.DataFrame(lines, columns=_DIFFERENCE)


_DIFFERENCE = (
    *("model", "other", "benchmark", "metric", "difference", "ci_low", "ci_high", "p_value", "p_adjusted"),
    *("significant", "min_detectable_difference", "credited", "num_tests"),
)


def render_pairs(report: Report) -> str:
    """`difference_frame`; empty unless the report has all pairs."""
    return csv_text(difference_frame(report.table, report.source.model_ids)) if report.table.all_pairs else ""


def _csv(lines: Iterable[Mapping[str, object]]) -> str:
    import pandas as pd

    return csv_text(pd.DataFrame(lines))


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV, texts in quotation marks, safe to open in a spreadsheet; empty without lines."""

    def safe(value: object) -> object:
        if not isinstance(value, str):
            return value
        clean = strip_control_chars(value)
        # A spreadsheet would run a formula. A text that looks as an escaped one is escaped, too: ``'@`` is not ``@``.
        return f"'{clean}" if clean.lstrip("'")[:1] in {"=", "+", "-", "@", "\t", "\r"} else clean

    return frame.map(safe).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC) if len(frame) else ""
