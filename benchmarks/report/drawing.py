"""matplotlib's figures as parts of the page: inline SVG whose colours are the page's CSS variables."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

SERIES_COLOURS = 8
_INK, _FAINT = "#010203", "#040506"  # stand-ins, replaced by CSS variables of the page
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _FAINT,
    "grid.color": _FAINT,
    "text.parse_math": False,
}


def draw_panel(plot: Callable[[Any], None], *, x_label: str, y_label: str, salt: str) -> str:
    """What ``plot`` draws on the axes that it is given, as an inline ``<svg>``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    settings: Any = _SETTINGS | {"svg.hashsalt": salt}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        plot(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
        axes.tick_params(length=3)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return page_svg(text.getvalue())


def series_colour(place: int) -> str:
    """The colour to plot a series with, which becomes the page's ``--series-<place>``."""
    return f"#0a0b{0xC0 + place % SERIES_COLOURS:02x}"


def page_svg(text: str) -> str:
    """matplotlib's SVG made part of a page: no prologue, no metadata, no fixed size, colours as CSS variables."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", r'<svg viewBox="\1" role="img" aria-hidden="true">', text, count=1
    )
    text = re.sub(r"\s+id=\"(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick)[._]?\w*\"", "", text)
    text = text.replace("xlink:href", "href")
    text = text.replace(_INK, "var(--ink-soft)").replace(_FAINT, "var(--line)")
    for place in range(SERIES_COLOURS):
        text = text.replace(series_colour(place), f"var(--series-{place})")
    return re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
