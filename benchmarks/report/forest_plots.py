"""Forest plots, one per metric: the difference of each model from its baseline, and from itself without the image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.report.figures import Figure, FigureSet, Palette, safe_file_name
from benchmarks.report.table import ALPHA, UNCREDITED, Table
from benchmarks.results.formatting import difference_ci_text, join_or_count, join_with_and, shorten_name

_MARKERS = {
    "better": ("^", "gain"),
    "worse": ("v", "loss"),
    "not credited": ("D", "ink-soft"),
    "not significant": ("o", "ink-soft"),
}
_LEAD = (
    "Each model minus its baseline, with the 95 % interval, in the order of the differences. Filled triangles are "
    "significant, Holm-corrected for all comparisons of the main table (▲ better, ▼ worse); open circles are not."
)
_CREDIT_NOTE = (
    f" {UNCREDITED}: the model's score is not credited to the images; a diamond: a significant difference whose better "
    "score is not."
)
_GAIN_LEAD = (
    "The score minus that of the same LLaVA on the same questions without their image, with its 95 % interval. Filled "
    "triangles are significant (▲ the image helps, ▼ it hurts); open circles are not. A score is credited to the "
    "images if it is above every run without them."
)


def forest_plots(table: Table) -> FigureSet | None:
    """A figure for each ranked metric with a difference from a baseline; None without any."""
    figures, note = [], ""
    for column in table.columns if table.baselines else ():
        deltas = [cell.delta for cell in column.cells if cell.delta is not None]
        if not deltas or not column.ranked:
            continue
        deltas.sort(key=lambda delta: -delta.value)
        if any(delta.cell.credited is False or delta.credited is False for delta in deltas):
            note = _CREDIT_NOTE
        baselines = list(dict.fromkeys(delta.baseline for delta in deltas))
        names = [
            f"{delta.cell.row}{UNCREDITED * (delta.cell.credited is False)}"
            + (f" − {delta.baseline}" if len(baselines) > 1 else "")
            for delta in deltas
        ]
        significant = [name for name, delta in zip(names, deltas, strict=True) if delta.significant]
        found = (
            f"significant: {join_with_and(significant)}." if significant else f"none of {len(deltas)} is significant."
        )
        figures.append(
            Figure(
                name=safe_file_name("forest", column.key, column.metric),
                title=column.title + column.arrow,
                alt=f"Forest plot of differences on {column.title}: {found}",
                plot=_plotter(names, [(each.value, each.ci_low, each.ci_high, each.verdict) for each in deltas]),
                x_label=f"difference from {shorten_name(baselines[0])}" if len(baselines) == 1 else "difference",
                headers=(
                    *("model", "difference", "95 % interval", "corrected p", "significant"),
                    "minimum detectable difference",
                ),
                rows=tuple(
                    (name, each.number, each.interval, f"{each.p_adjusted:.3g}", each.verdict, each.detectable)
                    for name, each in zip(names, deltas, strict=True)
                ),
                height=0.75 + 0.24 * len(deltas),
                vertical_grid=True,
            )
        )
    return FigureSet(lead=_LEAD + note, figures=tuple(figures)) if figures else None


def gain_figures(table: Table) -> FigureSet | None:
    """A figure for each ranked metric with blind runs; None without any."""
    figures = []
    for column in table.columns:
        lines = [(cell, *each) for cell in column.cells for each in cell.gains.items()]
        if not lines or not column.ranked:
            continue
        text, better = column.text, column.higher_is_better
        places = [
            "not significant" if gain.p_value >= ALPHA else "better" if gain.credits(better) else "worse"
            for *_, gain in lines
        ]
        points = [
            (gain.value, gain.ci_low, gain.ci_high, place) for (*_, gain), place in zip(lines, places, strict=True)
        ]
        credited = list(dict.fromkeys(cell.row for cell, *_ in lines if cell.credited))
        names = join_or_count(credited or ["none"], "models")
        figures.append(
            Figure(
                name=safe_file_name("blind", column.key, column.metric),
                title=column.title + column.arrow,
                alt=f"Forest plot of the gain of the image on {column.title}: credited: {names}.",
                plot=_plotter([f"{cell.row}, {kind}" for cell, kind, _ in lines], points),
                x_label="gain over the score without the image",
                headers=(
                    *("model", "without the image", "score", "score on these items", "gain", "95 % interval"),
                    *("p", "items"),
                ),
                rows=tuple(
                    (
                        *(cell.row, kind, text(gain.blind), text(gain.sighted), text(gain.value, sign=True)),
                        difference_ci_text(gain.ci_low, gain.ci_high, column.places),
                        *(f"{gain.p_value:.2g}", f"{gain.n:,}"),
                    )
                    for cell, kind, gain in lines
                ),
                height=0.75 + 0.24 * len(lines),
                vertical_grid=True,
            )
        )
    return FigureSet(lead=_GAIN_LEAD, figures=tuple(figures)) if figures else None


def _plotter(names: Sequence[str], lines: Iterable[tuple[float, float, float, str]]) -> Any:
    """Draw a named line for each value with its interval and verdict."""

    def plot(axes: Any, palette: Palette) -> None:
        axes.axvline(0, color=palette["ink-soft"], linewidth=1)
        for y, (value, low, high, verdict) in enumerate(lines):
            marker, color = _MARKERS[verdict][0], palette[_MARKERS[verdict][1]]
            if math.isfinite(low):
                axes.hlines(y, low, high, color=color, linewidth=1.4)
            face, size = (palette["sheet"], 4.5) if verdict == "not significant" else (color, 5.5)
            axes.plot(value, y, marker, color=color, markerfacecolor=face, markersize=size)
        axes.set_yticks(range(len(names)), [shorten_name(name, 40 if " − " in name else 28) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)

    return plot
