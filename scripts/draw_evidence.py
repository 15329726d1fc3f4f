"""Draw the curves of docs/evidence.md: retrieval by caption length, a panel for each figure of a study.

    python scripts/draw_evidence.py runs/inverse_effect docs/inverse_effect.svg

T→I R@1. Bars are 95 % intervals; the dashed line and its band are those of full captions.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

METRIC = "t2i_r1"
COLORS = {"truncate": "#0072b2", "random": "#d55e00", "block": "#009e73", "sub_captions": "#cc79a7"}
_REST = "#555555"


class Point(NamedTuple):
    """A score with its interval, and the number of caption tokens; None for full captions."""

    tokens: float | None
    value: float
    low: float
    high: float


Curves = dict[str, list[Point]]


def read(run: Path) -> dict[str, Curves]:
    """Figure → curve → its points, in the study's order."""
    found: dict[str, Curves] = defaultdict(lambda: defaultdict(list))
    with (run / "report/sweep.csv").open(newline="", encoding="utf-8") as stream:
        head, *rows = csv.reader(stream)
    for row in rows:
        entry = dict(zip(head, row, strict=True))
        if entry["metric"] == METRIC:
            value = float(entry["value"])
            low, high = (float(entry[side] or value) for side in ("ci_low", "ci_high"))
            found[row[0].rpartition(":")[0]][row[1]].append(Point(float(row[2]) if row[2] else None, value, low, high))
    return found


def draw_panel(axes: Any, title: str, curves: Curves) -> None:
    for number, (name, points) in enumerate(curves.items()):
        first = points[0]
        if first.tokens is None:
            axes.axhline(first.value, color=_REST, linestyle="--", linewidth=1.2, label="whole")
            axes.axhspan(first.low, first.high, color=_REST, alpha=0.12, linewidth=0)
            continue
        x = [(point.tokens or 0) * 1.04 ** (number - 1.5) for point in points]  # so that bars do not overlap
        errors = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
        axes.errorbar(x, [p.value for p in points], errors, color=COLORS.get(name, _REST), marker="o", ms=3, label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({point.tokens for points in curves.values() for point in points if point.tokens})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Write the figure of a study's output."""
    run, target = map(Path, sys.argv[1:])
    figures = read(run)
    columns = min(3, len(figures))
    with matplotlib.rc_context({"svg.hashsalt": "evidence", "font.size": 8, "font.family": "sans-serif"}):
        figure = Figure(figsize=(max(2.8 * columns, 5), 2.6 * -(-len(figures) // columns)), layout="constrained")
        panels = figure.subplots(-(-len(figures) // columns), columns, squeeze=False)
        for axes, (title, curves) in zip(panels.flat, figures.items(), strict=False):
            draw_panel(axes, title, curves)
        for axes in panels[-1]:
            axes.set_xlabel("tokens kept of a caption")
        for row in panels:
            row[0].set_ylabel("T→I R@1")
        handles: dict[str, Any] = {}
        for axes in panels.flat:
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
        figure.savefig(target, format="svg", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
