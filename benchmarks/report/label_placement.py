"""Where the labels of a scatter plot's points go, so that none is on another or on a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.report.figure import PointLabel
from benchmarks.report.palette import Palette

_DIRECTIONS = (45, 135, 315, 225, 0, 180, 90, 270)  # degrees; slanting ones first, away from the intervals' strokes
_DISTANCES = (6, 11, 17, 24, 32, 42)  # from the point's middle to the label's edge
_NEAR = _DISTANCES[0]
_POINT = 4  # half a point's width
_SIZE = 7.5

Place = tuple[float, float]


def place_labels(
    points: Sequence[Place], sizes: Sequence[Place], within: tuple[float, float, float, float]
) -> list[Place]:
    """The middle of each point's label: the first free place around it, nearer ones first.

    Args:
        points: (x, y) of each, in points of the page.
        sizes: width and height of each label.
        within: left, bottom, right and top of where labels may be.
    """
    taken = [_box(point, (2 * _POINT, 2 * _POINT)) for point in points]
    found = []
    for point, size in zip(points, sizes, strict=True):
        candidates = [
            (sum(_overlap(box, other) for other in taken) + _outside(box, within), middle, box)
            for middle in _around(point, size)
            for box in [_box(middle, size)]
        ]
        _, middle, box = min(candidates, key=lambda each: each[0])  # the first of equals
        taken.append(box)
        found.append(middle)
    return found


def _around(point: Place, size: Place) -> list[Place]:
    places = []
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:
            way = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            x, y = (
                at + each * distance + round(each) * wide / 2 for at, each, wide in zip(point, way, size, strict=True)
            )
            places.append((x, y))
    return places


def _box(middle: Place, size: Place) -> tuple[float, float, float, float]:
    return middle[0] - size[0] / 2, middle[1] - size[1] / 2, middle[0] + size[0] / 2, middle[1] + size[1] / 2


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    wide, high = (min(one[2 + side], other[2 + side]) - max(one[side], other[side]) for side in (0, 1))
    return wide * high if wide > 0 and high > 0 else 0.0


def _outside(box: Sequence[float], within: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, within)


def draw_labels(sheet: Any, axes: Any, labels: Sequence[PointLabel], inks: Palette) -> None:
    """Write the labels next to their points; the axes stay as they are, whatever is written.

    Args:
        sheet: matplotlib's figure, all else drawn.
        axes: where the points are.
        labels: what to write.
        inks: the colors.
    """
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    texts = [
        axes.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", ha="center", va="center")
        for label in labels
    ]
    for text in texts:
        text.set(fontsize=_SIZE, color=inks["ink-soft"], in_layout=False)
    sheet.draw_without_rendering()
    unit = 72 / sheet.dpi
    boxes = [text.get_window_extent() for text in texts]
    points = [tuple(unit * axes.transData.transform((label.x, label.y))) for label in labels]
    inside = axes.get_window_extent()
    within = (unit * inside.x0, unit * inside.y0, unit * inside.x1, unit * inside.y1)
    places = place_labels(points, [(unit * box.width, unit * box.height) for box in boxes], within)
    for text, (x, y), (left, bottom) in zip(texts, points, places, strict=True):
        text.set_position((left - x, bottom - y))
        if math.hypot(left - x, bottom - y) > 2 * _NEAR + _SIZE:
            axes.annotate(
                "",
                (text.xy),
                (left - x, bottom - y),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": inks["line"], "linewidth": 0.8, "shrinkA": 4, "shrinkB": 3},
                in_layout=False,
            )
