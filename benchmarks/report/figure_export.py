"""Export of matplotlib figures: inline SVG with the page's CSS colors, SVG and PDF."""

from __future__ import annotations

import contextlib
import functools
import html
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any, Literal

from benchmarks.report.figure import Figure, Palette, light_palette
from benchmarks.results.formatting import shorten_name, strip_control_chars

_WIDTH = 4.4


def render_inline_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element of the page without its legend, in the colors of the page's scheme."""
    drawn, bottom = _drawn(figure)
    for legend in drawn.legends:
        legend.set_visible(False)
    text = _save(figure, "svg").decode()
    for legend in drawn.legends:
        legend.set_visible(True)
    if drawn.legends:
        width, height = (72 * side for side in drawn.get_size_inches())
        text = re.sub(r'viewBox="[^"]+"', f'viewBox="0 {height - bottom:g} {width:g} {bottom:g}"', text, count=1)
    variables = {color: f"var(--{name})" for name, color in light_palette().colors.items()}
    colors = re.compile("|".join(variables))
    text = re.sub(r' style="[^"]*"', lambda style: colors.sub(lambda found: variables[found[0]], style[0]), text)
    return _minimal_svg(text, f'role="img" aria-label="{html.escape(strip_control_chars(figure.alt))}"')


def render_svg(figure: Figure) -> str:
    """The figure as an SVG file in light colors, with its legend, title and description."""
    text = _save(figure, "svg").decode()
    title, alt = html.escape(strip_control_chars(figure.title)), html.escape(strip_control_chars(figure.alt))
    text = _minimal_svg(text, 'xmlns="http://www.w3.org/2000/svg" role="img" font-family="sans-serif"')
    return re.sub(r"(<svg[^>]*>)", rf"\1<title>{_escaped(title)}</title><desc>{_escaped(alt)}</desc>", text, count=1)


def render_pdf(figure: Figure) -> bytes:
    """The figure as a PDF file in light colors, with its legend."""
    return _save(figure, "pdf")


def _save(figure: Figure, file_format: Literal["svg", "pdf"]) -> bytes:
    from matplotlib.backends import backend_pdf, backend_svg

    canvas = {"svg": backend_svg.FigureCanvasSVG, "pdf": backend_pdf.FigureCanvasPdf}[file_format]
    stream, drawn = io.BytesIO(), _drawn(figure)[0]
    with _figure_settings(figure):  # savefig would draw the figure twice
        getattr(canvas(drawn), f"print_{file_format}")(stream, metadata=_NO_DATE[file_format])
    return stream.getvalue()


@functools.lru_cache(maxsize=128)  # a report's figures, drawn once for all formats
def _drawn(figure: Figure) -> tuple[Any, float]:
    """matplotlib's figure with its final layout, and the height of the part below the legend in points."""
    with _figure_settings(figure):
        return _draw_figure(figure, light_palette())


@contextlib.contextmanager
def _figure_settings(figure: Figure) -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(_settings(light_palette(), figure.name)), warnings.catch_warnings():
        # SVG stores characters, and the reader's fonts have them; PDF shows a box for those missing in matplotlib's
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _draw_figure(figure: Figure, palette: Palette) -> tuple[Any, float]:
    from matplotlib import figure as matplotlib_figure

    drawn = matplotlib_figure.Figure(figsize=(_WIDTH, figure.height), layout="constrained")
    axes = drawn.add_subplot()
    figure.plot(axes, palette)
    axes.set_xlabel(strip_control_chars(figure.x_label))
    axes.set_ylabel(strip_control_chars(figure.y_label))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if figure.vertical_grid else "y", linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
    bottom = 72 * figure.height
    if figure.legend:
        legend = _add_legend(drawn, figure, palette)
        extent = legend.get_window_extent()
        drawn.set_size_inches(_WIDTH, figure.height + extent.height / 72)
    engine = drawn.get_layout_engine()
    assert engine is not None
    engine.execute(drawn)
    drawn.set_layout_engine("none")  # a second pass would take as long as drawing
    if figure.legend:
        bottom = legend.get_window_extent().y0
    return drawn, bottom


_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _settings(palette: Palette, salt: str) -> dict[Any, Any]:
    return {
        "figure.dpi": 72,  # that of both formats, so that the layout is theirs
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": palette["ink-soft"],
        "axes.labelcolor": palette["ink-soft"],
        "xtick.color": palette["ink-soft"],
        "ytick.color": palette["ink-soft"],
        "axes.edgecolor": palette["line"],
        "grid.color": palette["line"],
        "text.parse_math": False,
        "axes.unicode_minus": True,
    }


def _add_legend(drawn: Any, figure: Figure, palette: Palette) -> Any:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=palette.series(key.color), marker="o", linestyle="", label=shorten_name(key.label, 40))
        for key in figure.legend
    ]
    columns = max(1, min(3, 60 // max(min(len(key.label), 40) + 4 for key in figure.legend)))
    return drawn.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handletextpad=0.1
    )


def _minimal_svg(text: str, attributes: str) -> str:
    """matplotlib's SVG without prologue, metadata, fixed size and unused ids, which several figures would share."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", rf'<svg viewBox="\1" {_escaped(attributes)}>', text, count=1)
    used = {*re.findall(r"(?:href=\"|url\()#([\w.-]+)", text)}
    text = re.sub(r"\s+id=\"([^\"]*)\"", lambda found: found[0] if found[1] in used else "", text)
    text = text.replace("xlink:href", "href")
    return re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)


def _escaped(text: str) -> str:
    """Text escaped for the replacement string of `re.sub`."""
    return text.replace("\\", r"\\")
