"""Does better retrieval go with a better LLaVA? Scores of the rows against each other, and their correlations.

The interval of a correlation is Fisher's, on the transformed scale, with Bonett and Wright's variance for Spearman's
(Psychometrika 65, 2000); a correlation of the ranks of one, to which that scale gives no width, is taken half the step
to the next value that ranks allow. Its p-value is of a permutation test, exact for up to seven rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.report.cell_text import column_title, score
from benchmarks.report.figure import Figure, FigureSet, number_points, safe_file_name
from benchmarks.report.palette import Palette
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import format_number
from benchmarks.results.statistics import holm_correction

MIN_ROWS = 4  # of a correlation
_FEWEST_POINTS = 3  # of a figure: two always lie on a line
_DRAWS = 9999  # scipy tries all orders where they are no more
_Z95 = 1.959963984540054
_HEADS = ("measures", "rows", "Spearman's ρ", "95 % interval", "corrected p", "Pearson's r", "95 % interval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlation:
    """A correlation of N rows, its 95 % interval and the p-value of "none"."""

    value: float
    low: float
    high: float
    p_value: float
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrelatedPair:
    """Two measures of the rows that have both, all of one LLM and recipe.

    There are no correlations of fewer than four rows, or where a measure is the same for all.
    """

    llm: str | None
    recipe: str | None = None
    pairs: tuple[tuple[Cell, Cell], ...]
    spearman: Correlation | None = None
    pearson: Correlation | None = None

    @property
    def correlated(self) -> bool:
        """Whether there are rows enough for a correlation."""
        return len(self.pairs) >= MIN_ROWS

    @property
    def common(self) -> str:
        """What the rows have in common, to be put behind a title."""
        return ", ".join(filter(None, (self.llm, self.recipe)))


def correlation(kind: Literal["spearman", "pearson"], x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Correlation of two measures; None where one has the same value in all rows.

    Args:
        kind: ``"spearman"`` (of ranks) or ``"pearson"``.
        x: (N,) one measure, N at least 4.
        y: (N,) the other.
    """
    import numpy as np
    from scipy import stats

    first, second = (stats.rankdata(each) if kind == "spearman" else np.asarray(each, float) for each in (x, y))
    first, second = first - first.mean(), second - second.mean()
    if min(np.ptp(first), np.ptp(second)) <= 1e-12:
        return None
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    test = stats.permutation_test(
        (first,),
        lambda each, axis=-1: (each * second).sum(axis=axis),
        permutation_type="pairings",
        n_resamples=_DRAWS,
        vectorized=True,
        rng=0,
    )
    value = float(np.clip(test.statistic, -1, 1))
    low, high = _interval(kind, value, len(x))
    return Correlation(value=value, low=low, high=high, p_value=float(test.pvalue), n=len(x))


def _interval(kind: str, value: float, n: int) -> tuple[float, float]:
    """95 % interval of a correlation of n ≥ 4 rows."""
    largest = 1 - 6 / (n * (n * n - 1))
    inner = max(-largest, min(largest, value))
    half = _Z95 * math.sqrt((1 + inner**2 / 2 if kind == "spearman" else 1) / (n - 3))
    return min(value, math.tanh(math.atanh(inner) - half)), max(value, math.tanh(math.atanh(inner) + half))


def correlation_figures(report: Report) -> FigureSet | None:
    """A figure for each MLLM benchmark against the first retrieval benchmark, and the correlations of all such pairs.

    None where the report has not both kinds; three rows have a figure without a correlation, and a word on why; where
    fewer have both there is that word alone.
    """
    retrieval, mllm = _columns(report, "retrieval"), _columns(report, "mllm")
    if not retrieval or not mllm:
        return None
    relations = [each for x in retrieval for y in mllm for each in correlated_pairs(report, x, y)]
    if not relations:
        return FigureSet(lead=_too_few(report, retrieval, mllm), figures=())
    corrected = iter(holm_correction([each.spearman.p_value for each in relations if each.spearman]))
    correlated = [each for each in relations if each.correlated]
    lines = tuple(_line(each, next(corrected) if each.spearman else math.nan) for each in correlated)
    first = [each for each in relations if each.pairs[0][0].column == relations[0].pairs[0][0].column]
    points = (
        "A point is a row: across its retrieval, upwards its score as a LLaVA's eyes, strokes their 95 % intervals. "
        "Rows of different LLMs or recipes are not mixed."
    )
    figures = tuple(_figure(report, each) for each in first)
    if not correlated:
        return FigureSet(lead=f"{points} {_too_few(report, retrieval, mllm)}", figures=figures)
    return FigureSet(
        lead=f"{points} A correlation over rows says nothing about causes.",
        figures=figures,
        remarks=(
            "Intervals of correlations are Fisher's, p-values of permutation tests of Spearman's ρ, Holm-corrected "
            "over the lines above. They take each row's scores as they are: the noise within a row is not in them.",
        ),
        heads=_HEADS,
        rows=lines,
    )


def _columns(report: Report, kind: str) -> list[Column]:
    """One ranked column of each benchmark of a kind: mean recall where there is one, else the first."""
    found: dict[str, Column] = {}
    for column in report.table.columns:
        kinds = {result.benchmark_type for result in report.source.results(column.benchmark).values()}
        if kind in kinds and column.higher_is_better and (column.metric == "mean_r1" or column.benchmark not in found):
            found[column.benchmark] = column
    return list(found.values())


def correlated_pairs(report: Report, x: Column, y: Column) -> list[CorrelatedPair]:
    """Two columns against each other, for each LLM and recipe by which three rows have both, measured alike.

    Rows of one encoder and two recipes are no two observations: their retrieval is the same number twice.
    """
    alike: dict[tuple[str | None, str | None], list[tuple[Cell, Cell]]] = {}
    for row in report.table.rows:
        pair = report.table.cell(row, x), report.table.cell(row, y)
        if all(cell.value is not None and cell.group == 0 for cell in pair):
            alike.setdefault((row.llm, row.llava_variant), []).append(pair)
    found = []
    for (llm, recipe), pairs in alike.items():
        if len(pairs) < _FEWEST_POINTS:
            continue
        relation = CorrelatedPair(llm=llm, recipe=recipe, pairs=tuple(pairs))
        if relation.correlated:
            values = [[cell.value or 0.0 for cell in cells] for cells in zip(*pairs, strict=True)]
            spearman, pearson = correlation("spearman", *values), correlation("pearson", *values)
            relation = dataclasses.replace(relation, spearman=spearman, pearson=pearson)
        found.append(relation)
    return found


def _too_few(report: Report, retrieval: Sequence[Column], mllm: Sequence[Column]) -> str:
    rows = report.table.rows
    most = max(
        sum(all(report.table.cell(row, column).value is not None for column in (x, y)) for row in rows)
        for x in retrieval
        for y in mllm
    )
    had = "No row has" if most == 0 else "One row has" if most == 1 else f"{most} rows have"
    return (
        f"{had} both a retrieval and an MLLM score. A correlation takes {MIN_ROWS} rows of one LLM and recipe "
        "at the least: with fewer its interval would reach from −1 to 1 whatever the scores."
    )


def _line(relation: CorrelatedPair, p_value: float) -> tuple[str, ...]:
    x, y = (cell.column for cell in relation.pairs[0])
    said = f"{column_title(x)} and {column_title(y)}" + (f", {relation.common}" if relation.common else "")
    spearman, pearson = _said(relation.spearman), _said(relation.pearson)
    return (said, str(len(relation.pairs)), *spearman, format_number(p_value, 3), *pearson)


def _said(found: Correlation | None) -> tuple[str, str]:
    if found is None:
        return "— (all rows alike)", "—"
    return format_number(found.value, 2), f"{format_number(found.low, 2)} to {format_number(found.high, 2)}"


def _figure(report: Report, relation: CorrelatedPair) -> Figure:
    x, y = (cell.column for cell in relation.pairs[0])
    places = {row.name: place for place, row in enumerate(report.table.rows)}
    legend, labels = number_points(
        [(places[across.row], across.row, across.value or 0.0, up.value or 0.0) for across, up in relation.pairs]
    )
    title, told = column_title(y), ""
    if relation.correlated:
        value, span = _said(relation.spearman)
        title += f": ρ = {value} ({span}), n = {len(relation.pairs)}"
        told = f"; Spearman's correlation {value}, 95 % interval {span}"
    return Figure(
        name=safe_file_name("relation", x.benchmark, y.benchmark, relation.llm or "", relation.recipe or ""),
        title=title + (f", {relation.common}" if relation.common else ""),
        alt=f"Scatter plot of {column_title(y)} against {column_title(x)} over {len(relation.pairs)} rows{told}.",
        plot=lambda axes, inks: _plot(relation, places if legend else {}, axes, inks),
        x_label=column_title(x),
        y_label=y.label,
        legend=legend,
        labels=labels,
        heads=("row", column_title(x), column_title(y)),
        rows=tuple((across.row, score(across), score(up)) for across, up in relation.pairs),
    )


def _plot(relation: CorrelatedPair, places: dict[str, int], axes: Any, inks: Palette) -> None:
    """The points, colored by the rows' places; grey where there are none."""
    for across, up in relation.pairs:
        color = inks.series(places[across.row]) if places else inks["ink-soft"]
        if across.ci_low is not None:
            axes.hlines(up.value, across.ci_low, across.ci_high, color=color, linewidth=1, alpha=0.5)
        if up.ci_low is not None:
            axes.vlines(across.value, up.ci_low, up.ci_high, color=color, linewidth=1, alpha=0.5)
        axes.plot(across.value, up.value, "o", color=color, markersize=5)
