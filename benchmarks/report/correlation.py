"""Correlations of scores of the encoders alone, which need no LLaVA, with their scores inside a LLaVA.

The intervals are Fisher's, with Bonett and Wright's variance for Spearman's correlation (Psychometrika 65, 2000) and
that of Fieller, Hartley and Pearson for Kendall's (Biometrika 44, 1957). A rank correlation of 1 has no width on the
transformed scale, so it is replaced by the middle between 1 and the next smaller value of N ranks. The p-values come
from permutation tests, exact for up to nine models.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.report.cell_text import column_header, column_title, decimals, score
from benchmarks.report.chance_level import is_above_chance
from benchmarks.report.figure import Figure, FigureSet, Palette, number_points, safe_file_name
from benchmarks.report.report import Report
from benchmarks.report.table import DESCRIPTIVE_TYPES, Cell, Column
from benchmarks.results.formatting import format_number
from benchmarks.results.statistics import Z95, holm_correction

MIN_MODELS = 6  # of a correlation
PREDICTORS_TITLE = "Predictors of MLLM scores"
_PREDICTORS = ("retrieval", "classification", "pointing", *DESCRIPTIVE_TYPES)
_MIN_POINTS = 3  # of a figure, since two points are always on a line
_NUM_RESAMPLES = 9999
_MAX_ORDERS = math.factorial(9)  # of models; up to this number the test takes all of them
HEADERS = (
    "metrics",
    "models",
    "Spearman's ρ",
    "95 % interval",
    "one left out",
    "corrected p",
    "pairs ordered right",
    "regret",
    "Pearson's r",
    "95 % interval",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlation:
    """A correlation over N models, its 95 % interval, and the p-value of "no correlation"."""

    value: float
    low: float
    high: float
    p_value: float
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """How well a metric selects the better model by another metric, with each of N models left out in turn.

    Args:
        rho_low: the smallest of the N Spearman correlations without one model.
        rho_high: the largest.
        ordered: ratio of the pairs (left-out model, other one) that the metric orders as the other metric does; ties of
            either count half.
        ordered_low: lower end of its 95 % interval.
        ordered_high: upper end.
        regret: mean over N of the best score of the remaining models minus that of the one with the highest metric.
        worst: the largest of these N.
    """

    rho_low: float
    rho_high: float
    ordered: float
    ordered_low: float
    ordered_high: float
    regret: float
    worst: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrelatedPair:
    """Two metrics of the models with both, one LLM and one recipe.

    There is no correlation of fewer than six models, or if a metric is equal for all.
    """

    llm: str | None
    recipe: str | None = None
    pairs: tuple[tuple[Cell, Cell], ...]
    spearman: Correlation | None = None
    pearson: Correlation | None = None
    left_out: LeaveOneOut | None = None

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
    all_orders = math.factorial(len(x))
    test = stats.permutation_test(
        (first,),
        lambda each, axis=-1: (each * second).sum(axis=axis),
        permutation_type="pairings",
        n_resamples=all_orders if all_orders <= _MAX_ORDERS else _NUM_RESAMPLES,
        vectorized=True,
        rng=0,
    )
    value = float(np.clip(test.statistic, -1, 1))
    low, high = _interval(kind, value, len(x))
    return Correlation(value=value, low=low, high=high, p_value=float(test.pvalue), n=len(x))


def _interval(kind: Literal["spearman", "pearson", "kendall"], value: float, n: int) -> tuple[float, float]:
    """95 % interval of a correlation over n ≥ 5 models."""
    largest = 1 - (2 / (n * (n - 1)) if kind == "kendall" else 6 / (n * (n * n - 1)))
    inner = max(-largest, min(largest, value))
    variance = {"spearman": (1 + inner**2 / 2) / (n - 3), "pearson": 1 / (n - 3), "kendall": 0.437 / (n - 4)}[kind]
    half = Z95 * math.sqrt(variance)
    return min(value, math.tanh(math.atanh(inner) - half)), max(value, math.tanh(math.atanh(inner) + half))


def leave_one_out(x: Sequence[float], y: Sequence[float]) -> LeaveOneOut:
    """See `LeaveOneOut`.

    Args:
        x: (N,) the metric that selects, N at least 5; higher is better.
        y: (N,) the metric to predict, likewise.
    """
    import numpy as np
    from scipy import stats

    first, second = np.asarray(x, float), np.asarray(y, float)
    n = len(first)
    signs = np.sign(np.subtract.outer(first, first)) * np.sign(np.subtract.outer(second, second))
    kendall = float(signs.sum() / (n * (n - 1)))  # of all ordered pairs; a model with itself has sign 0
    low, high = _interval("kendall", kendall, n)
    rhos, regrets = [], []
    for index in range(n):
        rest, scores = np.delete(first, index), np.delete(second, index)
        if min(np.ptp(rest), np.ptp(scores)) > 0:
            rhos.append(float(stats.spearmanr(rest, scores).statistic))
        regrets.append(float(scores.max() - scores[rest == rest.max()].mean()))
    return LeaveOneOut(
        rho_low=min(rhos, default=math.nan),
        rho_high=max(rhos, default=math.nan),
        ordered=(1 + kendall) / 2,
        ordered_low=(1 + low) / 2,
        ordered_high=(1 + high) / 2,
        regret=float(np.mean(regrets)),
        worst=max(regrets),
    )


@functools.lru_cache(maxsize=1)  # shared by all formats
def correlation_figures(report: Report) -> FigureSet | None:
    """A figure for each MLLM benchmark against the first predictor, and the correlations with all predictors.

    A predictor is a score of an encoder alone. None unless the report has both types of benchmarks. Three models give a
    figure without a correlation; fewer give only the reason.
    """
    predictors = [column for each in _PREDICTORS for column in _columns(report, each)]
    mllm = _columns(report, "mllm")
    if not predictors or not mllm:
        return None
    pairs = [each for y in mllm for x in predictors for each in correlated_pairs(report, x, y)]
    if not pairs:
        return FigureSet(lead=_too_few(report, predictors, mllm), figures=())
    p_adjusted = iter(holm_correction([each.spearman.p_value for each in pairs if each.spearman]))
    correlated = [each for each in pairs if each.correlated]
    lines = tuple(_line(each, next(p_adjusted) if each.spearman else math.nan) for each in correlated)
    first_column = pairs[0].pairs[0][0].column
    figures = tuple(_figure(report, each) for each in pairs if each.pairs[0][0].column == first_column)
    points = (
        "A point is a model: the score of its encoder alone on the x axis, its score inside a LLaVA on the y axis, "
        "with 95 % intervals. Models with different LLMs or recipes are not mixed."
    )
    if not correlated:
        return FigureSet(lead=f"{points} {_too_few(report, predictors, mllm)}", figures=figures)
    return FigureSet(
        lead=f"{points} A correlation over models is no evidence about causes.",
        figures=figures,
        notes=(
            "Intervals of correlations are Fisher's, p-values come from permutation tests of Spearman's ρ, "
            "Holm-corrected over the lines above. They do not include the noise of each model's scores.",
            "Each model is left out in turn: the range of Spearman's ρ of the others; the ratio of pairs of the "
            "left-out model with another one that the first metric orders as the second does, with its 95 % interval "
            "(50 % by chance); and the regret, by how many points the best of the others is above the one with the "
            "best first metric: mean, and maximum in brackets. Where lower is better (↓), a metric counts with its "
            "sign reversed.",
            *_near_chance(correlated),
        ),
        headers=HEADERS,
        rows=lines,
    )


def _columns(report: Report, benchmark_type: str) -> list[Column]:
    """The column of each benchmark of a type: the mean recall, else the first; all of those that describe features."""
    columns: dict[tuple[str, str], Column] = {}
    for column in report.table.columns:
        types = {result.benchmark_type for result in report.source.results(column.benchmark).values()}
        key = column.benchmark, column.metric if benchmark_type in DESCRIPTIVE_TYPES else ""
        preferred = column.metric == "mean_r1" or key not in columns
        ranked = column.higher_is_better if benchmark_type == "mllm" else column.higher_is_better is not None
        if benchmark_type in types and ranked and preferred:
            columns[key] = column
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
            first, second = ([_goodness(cell) for cell in column] for column in zip(*cells, strict=True))
            spearman, pearson = correlation("spearman", first, second), correlation("pearson", first, second)
            left_out = leave_one_out(first, second) if spearman else None
            pairs = dataclasses.replace(pairs, spearman=spearman, pearson=pearson, left_out=left_out)
        if len(cells) >= _MIN_POINTS:
            correlated.append(pairs)
    return correlated


def _goodness(cell: Cell) -> float:
    """The value, with its sign reversed where lower is better."""
    return (cell.value or 0.0) * (-1 if cell.column.higher_is_better is False else 1)


def _too_few(report: Report, predictors: Sequence[Column], mllm: Sequence[Column]) -> str:
    rows = report.table.rows
    most = max(
        sum(all(report.table.cell(row, column).value is not None for column in (x, y)) for row in rows)
        for x in predictors
        for y in mllm
    )
    subject = "No model has" if most == 0 else "One model has" if most == 1 else f"{most} models have"
    return (
        f"{subject} both a score of the encoder alone and an MLLM score. A correlation needs {MIN_MODELS} models with "
        "one LLM and recipe: with fewer its interval says little, whatever the scores."
    )


def _line(pair: CorrelatedPair, p_value: float) -> tuple[str, ...]:
    x, y = (cell.column for cell in pair.pairs[0])
    name = f"{column_header(x)} and {column_title(y)}{pair.suffix}"
    spearman, pearson = _value_and_interval(pair.spearman), _value_and_interval(pair.pearson)
    rho, ordered, regret = _left_out_texts(pair.left_out, decimals(y))
    return (name, str(len(pair.pairs)), *spearman, rho, format_number(p_value, 3), ordered, regret, *pearson)


def _left_out_texts(found: LeaveOneOut | None, places: int) -> tuple[str, str, str]:
    """The range of Spearman's ρ, the ratio of pairs with its interval, and the regret."""
    if found is None:
        return "—", "—", "—"
    pairs, low, high = (round(100 * each) for each in (found.ordered, found.ordered_low, found.ordered_high))
    return (
        f"{format_number(found.rho_low, 2)} to {format_number(found.rho_high, 2)}",
        f"{pairs} % ({low} to {high})",
        f"{format_number(found.regret, places)} ({format_number(found.worst, places)})",
    )


def _near_chance(correlated: Sequence[CorrelatedPair]) -> list[str]:
    """A sentence on each MLLM metric on which most models are not significantly above chance."""
    lines = []
    for pair in {(each.pairs[0][1].column.key, each.suffix): each for each in correlated}.values():
        above = [is_above_chance(cell) for _, cell in pair.pairs]
        if (num_near := above.count(False)) * 2 > len(above):
            lines.append(
                f"{num_near} of {len(above)} models are not significantly above chance on "
                f"{column_title(pair.pairs[0][1].column)}{pair.suffix}: their order on it may be noise."
            )
    return lines


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
    else:
        title += f" against {column_title(x)}"
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
