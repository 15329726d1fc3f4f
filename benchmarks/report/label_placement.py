"""Placement of the labels of a scatter plot, without overlaps of labels and points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.report.figure import PointLabel
from benchmarks.report.palette import Palette

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
