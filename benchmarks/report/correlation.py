"""Correlations of the models' retrieval scores with their scores inside a LLaVA.

The intervals are Fisher's, with Bonett and Wright's variance for Spearman's correlation (Psychometrika 65, 2000). A
rank correlation of 1 has no width on the transformed scale, so it is replaced by the middle between 1 and the next
smaller value of N ranks. The p-values come from permutation tests, exact for up to seven models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.report.cell_text import column_title, score
from benchmarks.report.figure import Figure, FigureSet, Palette, number_points, safe_file_name
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import format_number
from benchmarks.results.statistics import holm_correction

MIN_MODELS = 4  # of a correlation
_MIN_POINTS = 3  # of a figure, since two points are always on a line
_NUM_RESAMPLES = 9999  # scipy enumerates all permutations if there are at most this number
_Z95 = 1.959963984540054
HEADERS = ("metrics", "models", "Spearman's ρ", "95 % interval", "corrected p", "Pearson's r", "95 % interval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlation:
    """A correlation over N models, its 95 % interval, and the p-value of "no correlation"."""

    value: float
    low: float
    high: float
    p_value: float
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrelatedPair:
    """Two metrics of the models with both, one LLM and one recipe.

    There is no correlation of fewer than four models, or if a metric is equal for all.
    """

    llm: str | None
    recipe: str | None = None
    pairs: tuple[tuple[Cell, Cell], ...]
    spearman: Correlation | None = None
    pearson: Correlation | None = None

    @property
    def correlated(self) -> bool:
        """Whether there are enough models for a correlation."""
        return len(self.pairs) >= MIN_MODELS

    @property
    def suffix(self) -> str:
        """The LLM and the recipe, to append to a title; may be empty."""
        return "".join(f", {name}" for name in (self.llm, self.recipe) if name)


def correlation(kind: Literal["spearman", "pearson"], x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Correlation of two metrics; None if one has the same value for all models.

    Args:
        kind: ``"spearman"`` (of ranks) or ``"pearson"``.
        x: (N,) one metric, N at least 4.
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
        n_resamples=_NUM_RESAMPLES,
        vectorized=True,
        rng=0,
    )
    value = float(np.clip(test.statistic, -1, 1))
    low, high = _interval(kind, value, len(x))
    return Correlation(value=value, low=low, high=high, p_value=float(test.pvalue), n=len(x))


def _interval(kind: str, value: float, n: int) -> tuple[float, float]:
    """95 % interval of a correlation over n ≥ 4 models."""
    largest = 1 - 6 / (n * (n * n - 1))
    inner = max(-largest, min(largest, value))
    half = _Z95 * math.sqrt((1 + inner**2 / 2 if kind == "spearman" else 1) / (n - 3))
    return min(value, math.tanh(math.atanh(inner) - half)), max(value, math.tanh(math.atanh(inner) + half))


def correlation_figures(report: Report) -> FigureSet | None:
    """A figure for each MLLM benchmark against the first retrieval benchmark, and the correlations of all such pairs.

    None unless the report has both types of benchmarks. Three models give a figure without a correlation; fewer give
    only the reason.
    """
    retrieval, mllm = _columns(report, "retrieval"), _columns(report, "mllm")
    if not retrieval or not mllm:
        return None
    pairs = [each for x in retrieval for y in mllm for each in correlated_pairs(report, x, y)]
    if not pairs:
        return FigureSet(lead=_too_few(report, retrieval, mllm), figures=())
    p_adjusted = iter(holm_correction([each.spearman.p_value for each in pairs if each.spearman]))
    correlated = [each for each in pairs if each.correlated]
    lines = tuple(_line(each, next(p_adjusted) if each.spearman else math.nan) for each in correlated)
    first_column = pairs[0].pairs[0][0].column
    figures = tuple(_figure(report, each) for each in pairs if each.pairs[0][0].column == first_column)
    points = (
        "A point is a model: its retrieval on the x axis, its score inside a LLaVA on the y axis, with 95 % intervals. "
        "Models with different LLMs or recipes are not mixed."
    )
    if not correlated:
        return FigureSet(lead=f"{points} {_too_few(report, retrieval, mllm)}", figures=figures)
    return FigureSet(
        lead=f"{points} A correlation over models is no evidence about causes.",
        figures=figures,
        notes=(
            "Intervals of correlations are Fisher's, p-values come from permutation tests of Spearman's ρ, "
            "Holm-corrected over the lines above. They do not include the noise of each model's scores.",
        ),
        headers=HEADERS,
        rows=lines,
    )


def _columns(report: Report, benchmark_type: str) -> list[Column]:
    """One ranked column of each benchmark of a type: the mean recall if there is one, else the first."""
    columns: dict[str, Column] = {}
    for column in report.table.columns:
        types = {result.benchmark_type for result in report.source.results(column.benchmark).values()}
        preferred = column.metric == "mean_r1" or column.benchmark not in columns
        if benchmark_type in types and column.higher_is_better and preferred:
            columns[column.benchmark] = column
    return list(columns.values())


def correlated_pairs(report: Report, x: Column, y: Column) -> list[CorrelatedPair]:
    """Two columns, for each LLM and recipe with at least three models of the main protocol.

    Recipes are separate, since models with the same encoder and different recipes have the same retrieval score.
    """
    by_recipe: dict[tuple[str | None, str | None], list[tuple[Cell, Cell]]] = {}
    for row in report.table.rows:
        pair = report.table.cell(row, x), report.table.cell(row, y)
        if all(cell.value is not None and cell.group == 0 for cell in pair):
            by_recipe.setdefault((row.llm, row.llava_variant), []).append(pair)
    correlated = []
    for (llm, recipe), cells in by_recipe.items():
        pairs = CorrelatedPair(llm=llm, recipe=recipe, pairs=tuple(cells))
        if pairs.correlated:
            values = [[cell.value or 0.0 for cell in column] for column in zip(*cells, strict=True)]
            spearman, pearson = correlation("spearman", *values), correlation("pearson", *values)
            pairs = dataclasses.replace(pairs, spearman=spearman, pearson=pearson)
        if len(cells) >= _MIN_POINTS:
            correlated.append(pairs)
    return correlated


def _too_few(report: Report, retrieval: Sequence[Column], mllm: Sequence[Column]) -> str:
    rows = report.table.rows
    most = max(
        sum(all(report.table.cell(row, column).value is not None for column in (x, y)) for row in rows)
        for x in retrieval
        for y in mllm
    )
    subject = "No model has" if most == 0 else "One model has" if most == 1 else f"{most} models have"
    return (
        f"{subject} both a retrieval and an MLLM score. A correlation needs {MIN_MODELS} models with one LLM and "
        "recipe: with fewer its interval reaches from −1 to 1 for any scores."
    )


def _line(pair: CorrelatedPair, p_value: float) -> tuple[str, ...]:
    x, y = (cell.column for cell in pair.pairs[0])
    name = f"{column_title(x)} and {column_title(y)}{pair.suffix}"
    spearman, pearson = _value_and_interval(pair.spearman), _value_and_interval(pair.pearson)
    return (name, str(len(pair.pairs)), *spearman, format_number(p_value, 3), *pearson)


def _value_and_interval(found: Correlation | None) -> tuple[str, str]:
    if found is None:
        return "— (all scores equal)", "—"
    return format_number(found.value, 2), f"{format_number(found.low, 2)} to {format_number(found.high, 2)}"


def _figure(report: Report, pair: CorrelatedPair) -> Figure:
    x, y = (cell.column for cell in pair.pairs[0])
    colors = {row.name: index for index, row in enumerate(report.table.rows)}
    legend, labels = number_points(
        [(colors[first.row], first.row, first.value or 0.0, second.value or 0.0) for first, second in pair.pairs]
    )
    title, details = column_title(y), ""
    if pair.correlated:
        value, interval = _value_and_interval(pair.spearman)
        title += f": ρ = {value} ({interval}), n = {len(pair.pairs)}"
        details = f"; Spearman's correlation {value}, 95 % interval {interval}"
    return Figure(
        name=safe_file_name("relation", x.key, y.key, pair.llm or "", pair.recipe or ""),
        title=title + pair.suffix,
        alt=f"Scatter plot of {column_title(y)} against {column_title(x)} over {len(pair.pairs)} models{details}.",
        plot=lambda axes, palette: _plot(pair, colors if legend else {}, axes, palette),
        x_label=column_title(x),
        y_label=y.label,
        legend=legend,
        labels=labels,
        headers=("model", column_title(x), column_title(y)),
        rows=tuple((first.row, score(first), score(second)) for first, second in pair.pairs),
    )


def _plot(pair: CorrelatedPair, colors: dict[str, int], axes: Any, palette: Palette) -> None:
    """Plot the points in the models' colors; all are gray if ``colors`` is empty."""
    for x, y in pair.pairs:
        color = palette.series(colors[x.row]) if colors else palette["ink-soft"]
        if x.ci_low is not None:
            axes.hlines(y.value, x.ci_low, x.ci_high, color=color, linewidth=1, alpha=0.5)
        if y.ci_low is not None:
            axes.vlines(x.value, y.ci_low, y.ci_high, color=color, linewidth=1, alpha=0.5)
        axes.plot(x.value, y.value, "o", color=color, markersize=5)
