"""The text of a table's columns, values, intervals and missing values, the same in every format."""

from __future__ import annotations

from collections.abc import Container, Iterable

from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.formatting import decimals_needed, format_number, join_with_and

_MAX_ASYMMETRY = 0.25  # difference of the two sides of an interval that is still shown as ±, relative to its width
_MAX_REASON_CHARS = 60
_MAX_UNREAD = 4  # pairs in a sentence
UNCREDITED = "‡"
ELSEWHERE = "§"


def decimals(column: Column) -> int:
    """Decimal places of a column: 1 for per cent and values from 10, else 2."""
    return 1 if column.scale == 100 or column.largest >= 10 else 2


def column_title(column: Column) -> str:
    """The column's name in a sentence: ``"pope F1"``, without the benchmark if the label contains it."""
    label, benchmark = column.label, column.benchmark
    return label if benchmark.casefold() in label.casefold() else f"{benchmark} {label}"


def column_header(column: Column) -> str:
    """The column's title, with ↓ if lower is better."""
    return column_title(column) + (" ↓" if column.higher_is_better is False else "")


def margin(cell: Cell) -> str:
    """The 95 % interval relative to its value: ``±1.2``, or ``+8.0/−0.0`` if asymmetric; empty without one."""
    if cell.ci_low is None or cell.ci_high is None or cell.value is None:
        return ""
    places, above, below = decimals(cell.column), cell.ci_high - cell.value, cell.value - cell.ci_low
    if abs(above - below) <= _MAX_ASYMMETRY * (above + below):
        half = (above + below) / 2
        return f"±{format_number(half, decimals_needed(half, places))}"
    up, down = (format_number(end, decimals_needed(end, places)) for end in (above, below))
    return f"+{up}/\N{MINUS SIGN}{down}"


def score(cell: Cell) -> str:
    """A cell's value with its interval."""
    return f"{format_number(cell.value, decimals(cell.column))} {margin(cell)}".rstrip()


def interval_text(cell: Cell) -> str:
    """The ends of the 95 % interval, ``51.0 – 57.6``; empty without one."""
    if cell.ci_low is None or cell.ci_high is None:
        return ""
    places = decimals_needed(cell.ci_high - cell.ci_low, decimals(cell.column))
    return f"{format_number(cell.ci_low, places)} – {format_number(cell.ci_high, places)}"


def group_sign(cell: Cell) -> str:
    """One dagger for group 1, two for group 2, …; empty for the main protocol."""
    return "†" * cell.group


def signs(cell: Cell) -> str:
    """`group_sign`, ‡ for a score that is not credited to the images, and § for one that was measured elsewhere."""
    sign = group_sign(cell) + (UNCREDITED if cell.credited is False else "")
    return sign + (ELSEWHERE if cell.measured_elsewhere else "")


def unread_differences(table: Table, cells: Iterable[Cell], others: Container[str]) -> str:
    """``"14.0 % of a and 1.2 % of b on mmmu_val"``: where models with a significant difference differ in this, too.

    Args:
        table: the table.
        cells: of the better or worse models.
        others: the models that they are compared with.
    """
    found: dict[str, None] = {}
    for cell in cells:
        for (benchmark, metric, pair), shares in table.unread.items():
            same_column = (benchmark, metric) == (cell.column.benchmark, cell.column.metric)
            if same_column and cell.row in pair and any(row in others for row in pair - {cell.row}):
                found[
                    join_with_and([f"{share:.1f} % of {row}" for row, share in shares.items()]) + f" on {benchmark}"
                ] = None
    return "; ".join(found) if len(found) <= _MAX_UNREAD else f"{len(found)} pairs of models"


NOT_RUN = "not run"


def missing_label(cell: Cell) -> str:
    """The short text of a missing value; empty for a number."""
    if cell.missing is None:
        return ""
    return {"missing": NOT_RUN, "not applicable": "—"}.get(cell.missing.kind, cell.missing.kind)


def missing_text(cell: Cell) -> str:
    """As `missing_label`, with the shortened reason of a failure or an invalid file; a note has the full reason."""
    if cell.missing is None or cell.missing.kind not in {"failed", "invalid"}:
        return missing_label(cell)
    reason = " ".join(cell.missing.reason.split())
    short = reason if len(reason) <= _MAX_REASON_CHARS else reason[: _MAX_REASON_CHARS - 1].rstrip() + "…"
    return f"{cell.missing.kind}: {short}"
