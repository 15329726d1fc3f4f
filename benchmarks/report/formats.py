"""The formats of a report: one entry each in ``FORMATS``. Each is a pure function from the report to text.

Names and reasons come from files that others wrote: every format escapes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.report.model import Report
from benchmarks.report.page import render_page
from benchmarks.report.published import REMARK
from benchmarks.report.remarks import LATEX, MARKDOWN
from benchmarks.report.settings import setting_panels
from benchmarks.report.table import Cell, Delta
from benchmarks.report.wording import column_head, decimals, gap_words, group_sign, margin, number


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file of the report: its name in the report directory and what makes its content (no file where empty)."""

    file: str
    render: Callable[[Report], str]


def render_csv(report: Report) -> str:
    """One line a row; for each metric its value, interval, difference with interval, p-value, mark and remark."""
    table = report.table
    lines = []
    for row in table.rows:
        line: dict[str, object] = {"row": _safe_cell(row.name)}
        for column in table.columns:
            line |= _csv_fields(table.cell(row, column))
        lines.append(line)
    return _csv(lines)


def _csv_fields(cell: Cell) -> dict[str, object]:
    name = f"{cell.column.benchmark}/{cell.column.metric}" if cell.column.metric else cell.column.benchmark
    delta = cell.delta
    remark = f"{cell.gap.kind}: {cell.gap.reason}" if cell.gap else "; ".join(cell.unlike)
    return {
        name: cell.value,
        f"{name} low": cell.low,
        f"{name} high": cell.high,
        f"{name} n": cell.n or None,
        f"{name} delta": delta.value if delta else None,
        f"{name} delta low": delta.low if delta else None,
        f"{name} delta high": delta.high if delta else None,
        f"{name} delta p": delta.p_value if delta else None,
        f"{name} delta smallest shown": _finite(delta.smallest) if delta else None,
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def render_json(report: Report) -> str:
    """The main table for programs: a line a cell with interval, protocol group, mark and difference to the baseline.

    JSON lines, since a .json in a directory below results would be taken for a result.
    """
    cells = [
        {
            "row": row.name,
            "benchmark": column.benchmark,
            "metric": column.metric,
            "label": column.label,
            **_mean_fields(cell),
            "items": cell.n or None,
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
        "low": delta.low,
        "high": delta.high,
        "p_corrected": delta.p_value,
        "smallest_shown": _finite(delta.smallest),
    }


def render_seeds(report: Report) -> str:
    """One line a row and metric: the mean over seeds, both kinds of noise, every seed; empty without several seeds."""
    table = report.table
    lines = [
        {
            "row": _safe_cell(row.name),
            "benchmark": column.benchmark,
            "metric": column.metric,
            **_mean_fields(cell),
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
            **_mean_fields(cell),
            "slope": curve.slope.value if curve.slope else None,
            "slope low": curve.slope.low if curve.slope else None,
            "slope high": curve.slope.high if curve.slope else None,
        }
        for panel in setting_panels(report)
        for curve in panel.curves
        for value, cell in curve.cells
    ]
    return _csv(lines)


def _mean_fields(cell: Cell) -> dict[str, object]:
    return {
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "half width over pictures": cell.sampling,
        "seeds": len(cell.by_seed) or None,
    }


def _csv(lines: list[dict[str, object]]) -> str:
    import pandas as pd

    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n") if lines else ""


def _safe_cell(text: str) -> str:
    """Text that a spreadsheet will not take for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def render_markdown(report: Report) -> str:
    """The main table, its remarks and the answer."""
    table = report.table
    heads = ["", *(_markdown(column_head(column)) for column in table.columns)]
    lines = [_pipes(heads), _pipes(["---", *(["---:"] * len(table.columns))])]
    for row in table.rows:
        cells = [_markdown_cell(table.cell(row, column)) for column in table.columns]
        lines.append(_pipes([_markdown(row.name), *cells]))
    remarks = [f"- {_markdown(remark)}" for remark in report.below(MARKDOWN)]
    title, question, answer = (_markdown(text) for text in (report.source.title, report.source.question, report.answer))
    parts = [f"# {title}", question, f"**{answer}**", "\n".join(lines), "\n".join(remarks), _markdown_published(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_published(report: Report) -> str:
    """The published rows as a table of their own, with their sources; empty without any."""
    table = report.published
    if table is None:
        return ""
    lines = [_pipes(["", *map(_markdown, table.heads())]), _pipes(["---", *(["---:"] * len(table.columns))])]
    lines += [_pipes([_markdown(table.name(row)), *map(_markdown, table.texts(row))]) for row in table.rows]
    sources = [f"- {_markdown(source)}" for source in table.sources()]
    return "\n\n".join(["## Published numbers", REMARK, "\n".join(lines), "\n".join(sources)])


def _markdown_cell(cell: Cell) -> str:
    if cell.value is None:
        return _markdown(gap_words(cell))
    value = number(cell.value, decimals(cell.column))
    marked = {"best": f"**{value}**", "tied": f"*{value}*", "": value}[cell.mark]
    return marked + (f" {margin(cell)}" if margin(cell) else "") + group_sign(cell)


def _pipes(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    special = {character: f"\\{character}" for character in "\\`*_{}[]|#~$!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return "".join(special.get(character, character) for character in " ".join(text.split()))


def render_latex(report: Report) -> str:
    """The main table for ``\\usepackage{booktabs}``, to be put inside a ``table`` environment."""
    table = report.table
    lines = [
        "% " + " ".join(report.answer.split()),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["", *(_latex(column_head(column)) for column in table.columns)]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [_latex_cell(table.cell(row, column)) for column in table.columns]
        lines.append(" & ".join([_latex(row.name), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [*("% " + " ".join(remark.split()) for remark in report.below(LATEX)), *_latex_published(report)]
    return "\n".join(lines) + "\n"


def _latex_published(report: Report) -> list[str]:
    """The published rows as a tabular of their own."""
    table = report.published
    if table is None:
        return []
    return [
        f"% {REMARK}",
        *(f"% {source}" for source in table.sources()),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["", *map(_latex, table.heads())]) + r" \\",
        r"\midrule",
        *(" & ".join([_latex(table.name(row)), *map(_latex, table.texts(row))]) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _latex_cell(cell: Cell) -> str:
    if cell.value is None:
        return _latex(gap_words(cell))
    value = _latex(number(cell.value, decimals(cell.column)))
    marked = {"best": rf"\textbf{{{value}}}", "tied": rf"\underline{{{value}}}", "": value}[cell.mark]
    return marked + _latex_margin(margin(cell)) + _latex(group_sign(cell))


def _latex_margin(text: str) -> str:
    if not text:
        return ""
    above, lopsided, below = text[1:].partition("/")
    inner = rf"^{{+{above}}}_{{-{below[1:]}}}" if lopsided else rf"\pm {above}"
    return rf" {{\scriptsize ${inner}$}}"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "−": r"$-$",
    "±": r"$\pm$",
    "—": "---",
    "†": r"\textsuperscript{\dag}",
    "↓": r"$\downarrow$",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


FORMATS: dict[str, Format] = {
    "html": Format(file="index.html", render=render_page),
    "csv": Format(file="table.csv", render=render_csv),
    "published": Format(file="published.csv", render=render_published),
    "json": Format(file="table.jsonl", render=render_json),
    "seeds": Format(file="seeds.csv", render=render_seeds),
    "settings": Format(file="settings.csv", render=render_settings),
    "markdown": Format(file="table.md", render=render_markdown),
    "latex": Format(file="table.tex", render=render_latex),
}
