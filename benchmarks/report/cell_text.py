"""How a table's columns, values, intervals and gaps are put into words, the same in every format."""

from __future__ import annotations

from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import decimals_needed, format_number

_LOPSIDED = 0.25  # of an interval's width: how much longer one side may be before both are told
_LONGEST_REASON = 60


def decimals(column: Column) -> int:
    """Decimal places that a column's values are shown with: per cent and large numbers to a tenth, else a hundredth."""
    return 1 if column.scale == 100 or column.largest >= 10 else 2


def column_title(column: Column) -> str:
    """The column named in a sentence: ``"pope F1"``; the benchmark is left out where the label names it."""
    label, benchmark = column.label, column.benchmark
    return label if benchmark.casefold() in label.casefold() else f"{benchmark} {label}"


def column_head(column: Column) -> str:
    """The column's title, with an arrow where lower is better."""
    return column_title(column) + (" ↓" if column.higher_is_better is False else "")


def margin(cell: Cell) -> str:
    """The 95 % interval beside its value: ``±1.2``, or ``+8.0/−0.0`` where it is lopsided; empty without one."""
    if cell.ci_low is None or cell.ci_high is None or cell.value is None:
        return ""
    places, above, below = decimals(cell.column), cell.ci_high - cell.value, cell.value - cell.ci_low
    if abs(above - below) <= _LOPSIDED * (above + below):
        half = (above + below) / 2
        return f"±{format_number(half, decimals_needed(half, places))}"
    up, down = (format_number(end, decimals_needed(end, places)) for end in (above, below))
    return f"+{up}/\N{MINUS SIGN}{down}"


def score(cell: Cell) -> str:
    """A cell's value with its interval."""
    return f"{format_number(cell.value, decimals(cell.column))} {margin(cell)}".rstrip()


def ends(cell: Cell) -> str:
    """The 95 % interval by its ends, ``51.0 – 57.6``; empty without one."""
    if cell.ci_low is None or cell.ci_high is None:
        return ""
    places = decimals_needed(cell.ci_high - cell.ci_low, decimals(cell.column))
    return f"{format_number(cell.ci_low, places)} – {format_number(cell.ci_high, places)}"


def group_sign(cell: Cell) -> str:
    """A dagger for each step away from the column's main protocol."""
    return "†" * cell.group


def short_gap(cell: Cell) -> str:
    """What stands in a cell without a number; empty where there is one."""
    return (
        ""
        if cell.missing is None
        else {"missing": "not run", "not applicable": "—"}.get(cell.missing.kind, cell.missing.kind)
    )


def gap_words(cell: Cell) -> str:
    """As ``short_gap``, with the reason of a failure or of an invalid file, cut where it is long; the whole reason
    stands below the table."""
    if cell.missing is None or cell.missing.kind not in {"failed", "invalid"}:
        return short_gap(cell)
    reason = " ".join(cell.missing.reason.split())
    short = reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1].rstrip() + "…"
    return f"{cell.missing.kind}: {short}"
