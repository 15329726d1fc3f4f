"""Figures as data, and their drawing by matplotlib: inline SVG in the page's CSS colors, SVG files and PDF."""

from __future__ import annotations

import contextlib
import functools
import html
import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.report.table import Cell
from benchmarks.results.formatting import shorten_name, strip_control_chars

SERIES_COLORS = 8
COLOR_NAMES = ("ink", "ink-soft", "line", "sheet", "gain", "loss", *(f"series-{each}" for each in range(SERIES_COLORS)))
_STYLE = Path(__file__).parent / "templates" / "style.css"
_WIDTH = 4.4


@dataclass(frozen=True)
class Palette:
    """Name of a color in ``style.css`` → hexadecimal color."""

    colors: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.colors[name]

    def series(self, index: int) -> str:
        """The color of the model at an index of the table."""
        return self.colors[f"series-{index % SERIES_COLORS}"]


@functools.cache
def light_palette() -> Palette:
    """The colors of the page in its light scheme; no two are equal."""
    colors = dict(re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}),", _STYLE.read_text(encoding="utf-8")))
    return Palette({name: colors[name] for name in COLOR_NAMES})


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """An entry of a figure's legend: the index of its color in the series, and its label."""

    color: int
    label: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Args:
        name: unique in the report, and a valid file name.
        title: above it.
        alt: its alternative text; the numbers are in the table.
        plot: draws on matplotlib's axes with a palette.
        x_label: name of the x axis.
        y_label: name of the y axis; may be empty.
        legend: the colors and their labels.
        headers: of the table of the drawn numbers.
        rows: of that table; the first cell of each is its header.
        height: in inches; the width is 4.4.
        vertical_grid: draw the grid lines at the values of the x axis instead of the y axis.
    """

    name: str
    title: str
    alt: str
    plot: Callable[[Any, Palette], None]
    x_label: str
    y_label: str = ""
    legend: tuple[LegendEntry, ...] = ()
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    height: float = 2.7
    vertical_grid: bool = False


@dataclass(frozen=True, kw_only=True)
class FigureSet:
    """The content of a section of figures.

    Args:
        lead: how to read the figures.
        figures: in order; the page folds those after the sixth.
        notes: below them.
        headers: of a table below them; empty without a table.
        rows: of that table.
    """

    lead: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def safe_file_name(*parts: str) -> str:
    """Join parts of a figure's name, which may come from untrusted files, to a file name."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts if part)


def plot_points(axes: Any, points: Sequence[tuple[float, Cell]], color: str, style: str = "-") -> None:
    """Plot a line through (x, cell) points, with vertical strokes for their 95 % intervals."""
    places, values = zip(*((x, cell.value) for x, cell in points), strict=True)
    axes.plot(places, values, style, color=color, linewidth=1.8, marker="o", markersize=3.5)
    intervals = [(x, cell.ci_low, cell.ci_high) for x, cell in points if cell.ci_low is not None]
    if intervals:
        axes.vlines(*zip(*intervals, strict=True), color=color, linewidth=1.2, alpha=0.6)


def render_inline_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element of the page without its legend, in the colors of the page's scheme."""
    text, (drawn, bottom) = _svg(figure), _drawn(figure)
    if figure.legend:
        start = text.index('<g id="legend_1">')
        ends, depth = re.finditer(r"<g\b|</g>", text[start:]), 0
        for tag in ends:  # to the end of the legend's group
            depth += 1 if tag[0] == "<g" else -1
            if not depth:
                text = text[:start].rstrip() + text[start + tag.end() :]
                break
        width, height = (72 * side for side in drawn.get_size_inches())
        text = re.sub(r'viewBox="[^"]+"', f'viewBox="0 {height - bottom:g} {width:g} {bottom:g}"', text, count=1)
    variables = {color: f"var(--{name})" for name, color in light_palette().colors.items()}
    colors = re.compile("|".join(variables))
    text = re.sub(r' style="[^"]*"', lambda style: colors.sub(lambda found: variables[found[0]], style[0]), text)
    return _minimal_svg(text, f'role="img" aria-label="{html.escape(strip_control_chars(figure.alt))}"')


def render_svg(figure: Figure) -> str:
    """The figure as an SVG file in light colors, with its legend, title and description."""
    title, alt = html.escape(strip_control_chars(figure.title)), html.escape(strip_control_chars(figure.alt))
    attributes = 'xmlns="http://www.w3.org/2000/svg" role="img" font-family="sans-serif"'
    described = f"<title>{title}</title><desc>{alt}</desc>"
    return re.sub(r"<svg[^>]*>", lambda found: found[0] + described, _minimal_svg(_svg(figure), attributes), count=1)


@functools.lru_cache(maxsize=128)  # of the page and of the file
def _svg(figure: Figure) -> str:
    return _save(figure, "svg").decode()


def render_pdf(figure: Figure) -> bytes:
    """The figure as a PDF file in light colors, with its legend."""
    return _save(figure, "pdf")


def _save(figure: Figure, file_format: Literal["svg", "pdf"]) -> bytes:
    # only that format's: PDF's imports the subsetting of fonts, in 0.3 s
    backend = importlib.import_module(f"matplotlib.backends.backend_{file_format}")
    no_date: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    stream, drawn = io.BytesIO(), _drawn(figure)[0]
    with _matplotlib(figure):  # savefig would draw the figure twice
        getattr(backend.FigureCanvas(drawn), f"print_{file_format}")(stream, metadata=no_date[file_format])
    return stream.getvalue()


@contextlib.contextmanager
def _matplotlib(figure: Figure) -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    palette = light_palette()
    settings: dict[Any, Any] = {
        "figure.dpi": 72,  # that of both formats, so that the layout is theirs
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "svg.hashsalt": figure.name,
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), palette["ink-soft"]),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), palette["line"]),
        "text.parse_math": False,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # SVG stores characters, and the reader's fonts have them; PDF shows a box for those missing in matplotlib's
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@functools.lru_cache(maxsize=128)  # a report's figures, drawn once for all formats
def _drawn(figure: Figure) -> tuple[Any, float]:
    """matplotlib's figure with its final layout, and the height of the part below the legend in points."""
    from matplotlib import figure as matplotlib_figure
    from matplotlib.lines import Line2D

    palette = light_palette()
    with _matplotlib(figure):
        drawn = matplotlib_figure.Figure(figsize=(_WIDTH, figure.height), layout="constrained")
        axes = drawn.add_subplot()
        figure.plot(axes, palette)
        axes.set_xlabel(strip_control_chars(figure.x_label))
        axes.set_ylabel(strip_control_chars(figure.y_label))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if figure.vertical_grid else "y", linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=3)
        legend = None
        if figure.legend:
            dots = {"marker": "o", "linestyle": ""}
            handles = [
                Line2D([], [], color=palette.series(key.color), label=shorten_name(key.label, 40), **dots)  # type: ignore[arg-type]
                for key in figure.legend
            ]
            columns = max(1, min(3, 60 // max(min(len(key.label), 40) + 4 for key in figure.legend)))
            look = {"frameon": False, "fontsize": 8, "handletextpad": 0.1}
            legend = drawn.legend(handles=handles, loc="outside upper left", ncols=columns, **look)
            drawn.set_size_inches(_WIDTH, figure.height + legend.get_window_extent().height / 72)
        engine = drawn.get_layout_engine()
        assert engine is not None
        engine.execute(drawn)
        drawn.set_layout_engine("none")  # a second pass would take as long as drawing
        return drawn, legend.get_window_extent().y0 if legend else 72 * figure.height


def _minimal_svg(text: str, attributes: str) -> str:
    """matplotlib's SVG without prologue, metadata, fixed size and unused ids, which several figures would share."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head = r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>"
    text = re.sub(head, lambda found: f'<svg viewBox="{found[1]}" {attributes}>', text, count=1)
    used = {*re.findall(r"(?:href=\"|url\()#([\w.-]+)", text)}
    text = re.sub(r"\s+id=\"([^\"]*)\"", lambda found: found[0] if found[1] in used else "", text)
    text = text.replace("xlink:href", "href")
    return re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
