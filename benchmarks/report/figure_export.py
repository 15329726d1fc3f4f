"""Export of matplotlib figures, with labels that do not overlap: inline SVG with the page's CSS colors, SVG and PDF."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.report.figure import COLOR_NAMES, PLACEHOLDER_PALETTE, Figure, Palette, PointLabel, light_palette
from benchmarks.results.formatting import shorten_name, strip_control_chars

_DIRECTIONS = (45, 135, 315, 225, 0, 180, 90, 270)  # degrees; diagonals first, away from the strokes of intervals
_DISTANCES = (6, 11, 17, 24, 32, 42)  # from the point's center to the label's edge
_POINT_RADIUS = 4
_FONT_SIZE = 7.5

XY = tuple[float, float]
_Box = tuple[float, float, float, float]  # left, bottom, right, top


def place_labels(points: Sequence[XY], sizes: Sequence[XY], bounds: _Box) -> list[XY]:
    """The center of each point's label: the first free position around the point, by distance.

    Args:
        points: (x, y) of each, in points.
        sizes: width and height of each label.
        bounds: left, bottom, right and top of the area for labels.
    """
    occupied = [_box(point, (2 * _POINT_RADIUS, 2 * _POINT_RADIUS)) for point in points]
    centers = []
    for point, size in zip(points, sizes, strict=True):
        candidates = [
            (sum(_overlap(box, other) for other in occupied) + _area_outside(box, bounds), center, box)
            for center in _positions(point, size)
            for box in [_box(center, size)]
        ]
        _, center, box = min(candidates, key=lambda each: each[0])
        occupied.append(box)
        centers.append(center)
    return centers


def _positions(point: XY, size: XY) -> list[XY]:
    positions = []
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:
            dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            x = point[0] + dx * distance + round(dx) * size[0] / 2
            y = point[1] + dy * distance + round(dy) * size[1] / 2
            positions.append((x, y))
    return positions


def _box(center: XY, size: XY) -> _Box:
    return center[0] - size[0] / 2, center[1] - size[1] / 2, center[0] + size[0] / 2, center[1] + size[1] / 2


def _overlap(first: _Box, second: _Box) -> float:
    width, height = (min(first[2 + axis], second[2 + axis]) - max(first[axis], second[axis]) for axis in (0, 1))
    return width * height if width > 0 and height > 0 else 0.0


def _area_outside(box: _Box, bounds: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, bounds)


def draw_labels(figure: Any, axes: Any, labels: Sequence[PointLabel], palette: Palette) -> None:
    """Draw the labels next to their points, without a change of the axes' limits.

    Args:
        figure: matplotlib's figure, complete except for the labels.
        axes: of the points.
        labels: the labels.
        palette: the colors.
    """
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    texts = [
        axes.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", ha="center", va="center")
        for label in labels
    ]
    for text in texts:
        text.set(fontsize=_FONT_SIZE, color=palette["ink-soft"], in_layout=False)
    figure.draw_without_rendering()
    unit = 72 / figure.dpi
    boxes = [text.get_window_extent() for text in texts]
    points = [tuple(unit * axes.transData.transform((label.x, label.y))) for label in labels]
    area = axes.get_window_extent()
    bounds = (unit * area.x0, unit * area.y0, unit * area.x1, unit * area.y1)
    centers = place_labels(points, [(unit * box.width, unit * box.height) for box in boxes], bounds)
    for text, (x, y), (label_x, label_y) in zip(texts, points, centers, strict=True):
        offset = label_x - x, label_y - y
        text.set_position(offset)
        if math.hypot(*offset) > 2 * _DISTANCES[0] + _FONT_SIZE:
            axes.annotate(
                "",
                text.xy,
                offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": palette["line"], "linewidth": 0.8, "shrinkA": 4, "shrinkB": 3},
                in_layout=False,
            )


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
