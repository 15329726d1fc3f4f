"""Export of matplotlib figures: inline SVG with the page's CSS colors, and SVG and PDF files."""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import Any, Literal

from benchmarks.report.figure import Figure
from benchmarks.report.label_placement import draw_labels
from benchmarks.report.palette import COLOR_NAMES, PLACEHOLDER_PALETTE, Palette, light_palette
from benchmarks.results.formatting import shorten_name, strip_control_chars

_WIDTH = 4.4


def render_inline_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element of the page, in the colors of the page's scheme."""
    text = _save(figure, PLACEHOLDER_PALETTE, "svg", legend=False).decode()
    for name in COLOR_NAMES:
        text = text.replace(PLACEHOLDER_PALETTE[name], f"var(--{name})")
    return _minimal_svg(text, f'role="img" aria-label="{html.escape(strip_control_chars(figure.alt))}"')


def render_svg(figure: Figure) -> str:
    """The figure as an SVG file in light colors, with its legend, title and description."""
    text = _save(figure, light_palette(), "svg", legend=True).decode()
    title, alt = html.escape(strip_control_chars(figure.title)), html.escape(strip_control_chars(figure.alt))
    text = _minimal_svg(text, 'xmlns="http://www.w3.org/2000/svg" role="img" font-family="sans-serif"')
    return re.sub(r"(<svg[^>]*>)", rf"\1<title>{_escaped(title)}</title><desc>{_escaped(alt)}</desc>", text, count=1)


def render_pdf(figure: Figure) -> bytes:
    """The figure as a PDF file in light colors, with its legend."""
    return _save(figure, light_palette(), "pdf", legend=True)


def _save(figure: Figure, palette: Palette, file_format: Literal["svg", "pdf"], *, legend: bool) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(_settings(palette, figure.name)), warnings.catch_warnings():
        # SVG stores characters, and the reader's fonts have them; PDF shows a box for those missing in matplotlib's
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        stream = io.BytesIO()
        drawn = draw_figure(figure, palette, legend=legend)
        drawn.savefig(stream, format=file_format, transparent=True, metadata=_NO_DATE[file_format])
    return stream.getvalue()


def draw_figure(figure: Figure, palette: Palette, *, legend: bool) -> Any:
    """Draw a figure with matplotlib."""
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
    if legend and figure.legend:
        _add_legend(drawn, figure, palette)
    if figure.labels:
        draw_labels(drawn, axes, figure.labels, palette)
    return drawn


_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _settings(palette: Palette, salt: str) -> dict[Any, Any]:
    return {
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


def _add_legend(drawn: Any, figure: Figure, palette: Palette) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=palette.series(key.color), marker="o", linestyle="", label=shorten_name(key.label, 40))
        for key in figure.legend
    ]
    columns = max(1, min(3, 60 // max(min(len(key.label), 40) + 4 for key in figure.legend)))
    drawn.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handletextpad=0.1)


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
