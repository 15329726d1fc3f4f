"""What ``clips-bench compare`` prints and writes: a comparison in the terminal, as Markdown, HTML, JSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.trust.comparison import Comparison, Line
from benchmarks.trust.diff import column_of
from benchmarks.wording import column_head, decimals, enough, finite, number, span, visible
from clips.visible import markdown_text, shown

_INTERVAL = "95 % interval"
_HEADS = ("", "A", "B", "A−B", _INTERVAL, "p", "smallest", "")
_TEMPLATES = Path(__file__).parents[1] / "report" / "templates"


def print_comparison(comparison: Comparison) -> None:
    """All of it in the terminal; names are text, never markup."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    print_lines(comparison.lines)
    for line in comparison.said():
        console.print(Text(visible(line)))


def print_lines(lines: Sequence[Line]) -> None:
    """The lines as a table, rows of another pair below each other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for rows in dict.fromkeys(line.rows for line in lines):
        table = Table(title=Text(visible(f"A {rows[0]}, B {rows[1]}")), title_justify="left")
        table.add_column("", overflow="fold")  # never cut: names often differ at their ends
        for head in _HEADS[1:-1]:
            table.add_column(head, justify="right", no_wrap=head != _INTERVAL)  # which may break at its "to"
        table.add_column("")
        for line in lines:
            if line.rows == rows:
                table.add_row(*(Text(visible(text)) for text in _cells(line)))
        console.print(table)
        unlike = {line.benchmark: "; ".join(line.unlike) for line in lines if line.rows == rows and line.unlike}
        for benchmark, reason in unlike.items():
            console.print(Text(visible(f"{benchmark} was measured otherwise: {reason}.")))
    if said := about_tests(lines):
        console.print(Text(said, style="dim"))


def about_tests(lines: Sequence[Line]) -> str:
    """What p and smallest mean; empty where nothing was tested."""
    tests = sum(line.difference is not None for line in lines)
    if not tests:
        return ""
    return (
        f"p: paired tests over images, Holm-corrected for {tests}; intervals are each for itself. smallest: the "
        "smallest true difference that a single such test would show four times in five, by the spread that was seen. "
        "The noise of training is in none of them."
    )


def _cells(line: Line) -> list[str]:
    column = column_of(line.benchmark, line.name, max(line.first, line.second, key=lambda metric: abs(metric.value)))
    places, scale = decimals(column), column.scale
    values = [number(metric.value * scale, places) for metric in (line.first, line.second)]
    gain = "" if line.unlike else number((line.first.value - line.second.value) * scale, places, sign=True)
    found = line.difference
    if found is None:
        return [column_head(column), *values, gain, "", "", "", line.verdict]
    interval = span(found.low * scale, found.high * scale, places)
    smallest = number(found.smallest * scale, enough(found.smallest * scale, places))
    return [column_head(column), *values, gain, interval, f"{line.p_value:.2g}", smallest, line.verdict]


def as_fields(line: Line) -> dict[str, Any]:
    """A line for programs, values scaled as shown."""
    scale, found = line.first.scale, line.difference
    return {
        "a": line.rows[0],
        "b": line.rows[1],
        "benchmark": line.benchmark,
        "metric": line.name,
        "value_a": line.first.value * scale,
        "value_b": line.second.value * scale,
        "difference": None if line.unlike else (line.first.value - line.second.value) * scale,
        "low": finite(found.low * scale) if found else None,
        "high": finite(found.high * scale) if found else None,
        "p_corrected": line.p_value if found else None,
        "smallest_shown": finite(found.smallest * scale) if found else None,
        "items": line.first.n,
        "same_model": line.same_model,
        "unlike": "; ".join(line.unlike) or None,
        "training": (line.training.in_short or None) if line.training else None,
        "uneven_training": ("; ".join(line.training.uneven) or None) if line.training else None,
        "verdict": line.verdict,
    }


def render_json(comparison: Comparison) -> str:
    """A list of lines."""
    fields = [as_fields(line) for line in comparison.lines]
    return json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_csv(comparison: Comparison) -> str:
    """One line a metric."""
    import pandas as pd

    return pd.DataFrame([as_fields(line) for line in comparison.lines]).to_csv(index=False, lineterminator="\n")


def render_markdown(comparison: Comparison) -> str:
    """A table for each pair of rows, and what is said of the rest."""
    parts = [f"# {markdown_text(comparison.title)}", f"**{markdown_text(comparison.answer)}**"]
    for rows, lines in comparison.by_rows().items():
        cells = [_pipes(_HEADS), _pipes(["---", *["---:"] * 6, "---"]), *(_pipes(_cells(line)) for line in lines)]
        parts += [f"## A {markdown_text(rows[0])}, B {markdown_text(rows[1])}", "\n".join(cells)]
    said = [*comparison.unlike(), *comparison.said()[1:], about_tests(comparison.lines)]
    parts.append("\n".join(f"- {markdown_text(line)}" for line in said if line))
    return "\n\n".join(parts) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


def render_html(comparison: Comparison) -> str:
    """A page that needs nothing else."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, _TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    return environment.get_template("comparison.html.jinja").render(
        comparison=comparison,
        heads=_HEADS,
        cells=_cells,
        about_tests=about_tests(comparison.lines),
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
    )


WRITERS: dict[str, Callable[[Comparison], str]] = {
    ".json": render_json,
    ".csv": render_csv,
    ".md": render_markdown,
    ".html": render_html,
}
