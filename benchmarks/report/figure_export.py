"""matplotlib's figures as parts of the page, whose colors are the page's CSS variables, and as files of their own."""

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
    """The figure as an ``<svg>`` of the page: safe markup, whose colors follow the page's scheme."""
    text = _saved(figure, PLACEHOLDER_PALETTE, "svg", legend=False).decode()
    for name in COLOR_NAMES:
        text = text.replace(PLACEHOLDER_PALETTE[name], f"var(--{name})")
    return _bare(text, f'role="img" aria-label="{html.escape(strip_control_chars(figure.alt))}"')


def render_svg(figure: Figure) -> str:
    """The figure as a file of its own: the light colors, its legend drawn, its title and description inside."""
    text = _saved(figure, light_palette(), "svg", legend=True).decode()
    title, alt = html.escape(strip_control_chars(figure.title)), html.escape(strip_control_chars(figure.alt))
    text = _bare(text, 'xmlns="http://www.w3.org/2000/svg" role="img" font-family="sans-serif"')
    return re.sub(r"(<svg[^>]*>)", rf"\1<title>{_literal(title)}</title><desc>{_literal(alt)}</desc>", text, count=1)


def render_pdf(figure: Figure) -> bytes:
    """The figure as a page of PDF, as `standalone_svg`."""
    return _saved(figure, light_palette(), "pdf", legend=True)


def _saved(figure: Figure, inks: Palette, kind: Literal["svg", "pdf"], *, legend: bool) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(_settings(inks, figure.name)), warnings.catch_warnings():
        # SVG keeps characters, which the reader's fonts have; in PDF a box stands for those that matplotlib's lack
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        sheet = draw_figure(figure, inks, legend=legend)
        stream = io.BytesIO()
        sheet.savefig(stream, format=kind, transparent=True, metadata=_NO_DATE[kind])
    return stream.getvalue()


def draw_figure(figure: Figure, inks: Palette, *, legend: bool) -> Any:
    """The figure as matplotlib's, ready to be saved."""
    from matplotlib import figure as drawn

    sheet = drawn.Figure(figsize=(_WIDTH, figure.height), layout="constrained")
    axes = sheet.add_subplot()
    figure.plot(axes, inks)
    axes.set_xlabel(strip_control_chars(figure.x_label))
    axes.set_ylabel(strip_control_chars(figure.y_label))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if figure.upright else "y", linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
    if legend and figure.legend:
        _add_legend(sheet, figure, inks)
    if figure.labels:
        draw_labels(sheet, axes, figure.labels, inks)
    return sheet


_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _settings(inks: Palette, salt: str) -> dict[Any, Any]:
    return {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": inks["ink-soft"],
        "axes.labelcolor": inks["ink-soft"],
        "xtick.color": inks["ink-soft"],
        "ytick.color": inks["ink-soft"],
        "axes.edgecolor": inks["line"],
        "grid.color": inks["line"],
        "text.parse_math": False,
        "axes.unicode_minus": True,
    }


def _add_legend(sheet: Any, figure: Figure, inks: Palette) -> None:
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=inks.series(key.color), marker="o", linestyle="", label=shorten_name(key.label, 40))
        for key in figure.legend
    ]
    columns = max(1, min(3, 60 // max(min(len(key.label), 40) + 4 for key in figure.legend)))
    sheet.legend(handles=keys, loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handletextpad=0.1)


def _bare(text: str, attributes: str) -> str:
    """matplotlib's SVG without prologue, metadata, fixed size and the ids that several figures would share."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", rf'<svg viewBox="\1" {_literal(attributes)}>', text, count=1)
    used = {*re.findall(r"(?:href=\"|url\()#([\w.-]+)", text)}
    text = re.sub(r"\s+id=\"([^\"]*)\"", lambda found: found[0] if found[1] in used else "", text)
    text = text.replace("xlink:href", "href")
    return re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)


def _literal(text: str) -> str:
    """Text that stands for itself in a replacement."""
    return text.replace("\\", r"\\")
