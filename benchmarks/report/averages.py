"""Each model's average and mean rank over the benchmarks, with intervals, and the pairs of averages that differ.

Benchmarks of encoders and those of LLaVAs ask two questions, and have an average each. Both use the first metric of
each benchmark on which all models have a number under the main protocol. The average takes those in per cent, so that
points (MME) and CIDEr, which may exceed 100, do not outweigh the others.

An average is a metric like any other: its influences are summed by image, since benchmarks may show the same images,
and its variance over seeds is that of the averages of single seeds.

If every pair of models is tested, the interval of a rank counts the models that differ significantly: the true rank is
at least one more than the number of significantly better models, and likewise at most (Mogstad, Romano, Shaikh and
Wilhelm, Review of Economic Studies 91, 2024). A bootstrap of ranks has no such guarantee if models are
close. ``scripts/check_statistics.py --part ranks`` simulates both.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks.report.figures import Figure, FigureSet, safe_file_name
from benchmarks.report.plots import plot_intervals
from benchmarks.report.table import ALPHA, UNCREDITED, Cell, Column, Table
from benchmarks.results.formatting import format_number, join_or_count, join_with_and
from benchmarks.results.measure import comparable
from benchmarks.results.noise import Scores, average_scores, p_values, training_noise
from benchmarks.results.statistics import average_difference, holm_correction, scores_interval

_MIN_BENCHMARKS = 2
_PER_CENT = 100.0
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % interval; NaN without one, with the reason if that is about this number alone."""

    value: float
    low: float = math.nan
    high: float = math.nan
    no_interval: str = ""

    @property
    def text(self) -> str:
        """``51.0 – 57.6``; empty without an interval."""
        return "" if math.isnan(self.low) else f"{format_number(self.low, 1)} – {format_number(self.high, 1)}"


@dataclass(frozen=True, kw_only=True)
class Overall:
    """Averages and mean ranks.

    Args:
        averages: model → average, without intervals if a score has none; empty with fewer than two benchmarks in per
            cent.
        ranks: model → mean rank, 1 is best; empty with fewer than two benchmarks.
        averaged: the benchmarks of the averages.
        ranked: the benchmarks of the ranks.
        p_values: pair of models → Holm-corrected p-value of "their averages are equal", of the tested pairs.
        without_interval: the averaged benchmarks on which the items do not determine every score.
        uncredited: model → the ranked benchmarks on which its score is not credited to the images; only if there are.
        fewer_seeds: models of which not all seeds were evaluated on all averaged benchmarks; their averages are over
            fewer seeds than the numbers of the table.
        no_seed: models of which no seed was.
        of: ``" of the encoder"`` or ``" of the LLaVA"``, if a report has benchmarks of both.
    """

    averages: dict[str, Interval]
    ranks: dict[str, Interval]
    averaged: tuple[str, ...]
    ranked: tuple[str, ...]
    p_values: dict[frozenset[str], float]
    without_interval: tuple[str, ...] = ()
    uncredited: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fewer_seeds: tuple[str, ...] = ()
    no_seed: tuple[str, ...] = ()
    of: str = ""

    @property
    def sentence(self) -> str:
        """The model whose average is significantly above all others, or those with the highest; empty without averages.

        Models that were not tested against it are named, too. An average with a score that is not credited to the
        images is never called best, nor is one of several equal ones.
        """
        if not self.averages:
            return ""
        best, *others = self.order
        average = self.averages[best]
        # averages of models without a common seed are those of the table's numbers, as all are then
        names = join_or_count(self.fewer_seeds, "models") if self.fewer_seeds and not self.no_seed else ""
        fewer = f" (of {names}: only seeds that were evaluated on all of them)" if names else ""
        over = f"over {len(self.averaged)} benchmarks{self.of}{fewer}"
        value = format_number(average.value, 1)
        equal = [row for row in others if math.isclose(self.averages[row].value, average.value, abs_tol=_ROUNDING)]
        if equal:
            lower = " and no model a higher one" if len(equal) < len(others) else ""
            return f"{join_or_count([best, *equal], 'models')} have the same average {over}, {value}{lower}."
        blind = [benchmark for benchmark in self.uncredited.get(best, ()) if benchmark in self.averaged]
        highest = f"{best} has the highest average {over}, {value}"
        if blind:
            verb = "its score on {} is" if len(blind) == 1 else "its scores on {} are"
            return f"{highest}, but {verb.format(join_with_and(blind))} not credited to the images."
        if self.without_interval:
            on = join_or_count(self.without_interval, "benchmarks")
            reason = f"the items on {on} do not determine every model's score"
        elif self.no_seed:
            reason = f"no seed of {join_or_count(self.no_seed, 'models')} was evaluated on all of them"
        else:
            reason = average.no_interval
        if reason:
            return f"{highest}, without an interval, because {reason}."
        interval = f"[{format_number(average.low, 1)}, {format_number(average.high, 1)}]"
        untested = [row for row in others if frozenset({best, row}) not in self.p_values]
        beaten = [row for row in others if self._is_above(best, row)]
        close = [row for row in others if row not in beaten and row not in untested]
        if len(beaten) == len(others):
            return f"{best} has the best average {over}, {value} {interval}, significantly above all others."
        parts, subject = [f"{highest} {interval}"], "it is"
        if close:
            what = "from the highest (" if close[1:] else "(higher: "
            names = join_or_count([best, *close], "models")
            parts = [f"The averages of {names} {over} do not differ significantly {what}{best}, {value} {interval})"]
            apart = all(self._is_above(row, other) for row in close for other in beaten)
            subject = f"that of {best} is" if not apart else "all of them are" if close[1:] else "both are"
        parts += [f"{subject} significantly above {join_or_count(beaten, 'models')}"] if beaten else []
        parts += [f"{best} was not tested against {join_or_count(untested, 'others')}"] if untested else []
        return f"{'; '.join(parts)}."

    def _is_above(self, row: str, other: str) -> bool:
        is_higher = self.averages[row].value > self.averages[other].value
        return is_higher and self.p_values.get(frozenset({row, other}), 1.0) < ALPHA

    @property
    def order(self) -> list[str]:
        """The models by average, or by mean rank without averages, the best first."""
        if self.averages:
            return sorted(self.averages, key=lambda row: -self.averages[row].value)
        return sorted(self.ranks, key=lambda row: self.ranks[row].value)

    def rank(self, row: str) -> int:
        """The place of a model's average among all, 1 for the highest; equal ones share it."""
        own = self.averages[row].value
        return 1 + sum(other.value - own > _ROUNDING for other in self.averages.values())

    @property
    def columns(self) -> list[tuple[str, dict[str, Interval], tuple[str, ...]]]:
        """Title, numbers and benchmarks of the average and of the mean rank, where there are."""
        both = ("average", self.averages, self.averaged), ("mean rank", self.ranks, self.ranked)
        return [each for each in both if each[1]]

    def sign(self, row: str, benchmarks: Sequence[str]) -> str:
        """‡ if a model's score on one of some benchmarks is not credited to the images, else empty."""
        return UNCREDITED if {*self.uncredited.get(row, ())} & {*benchmarks} else ""

    def texts(self, row: str) -> list[str]:
        """Average and mean rank of a model, each with its interval, as text."""
        signed = [(numbers[row], self.sign(row, benchmarks)) for _, numbers, benchmarks in self.columns]
        return [text for each, sign in signed for text in (format_number(each.value, 1) + sign, each.text)]


def overall_scores(table: Table) -> tuple[Overall, ...]:
    """Averages and mean ranks of a tested table, of the benchmarks of encoders and of those of LLaVAs."""
    first: dict[str, Column] = {}
    for column in table.columns:
        if column.ranked:
            first.setdefault(column.benchmark, column)
    columns = [
        column
        for column in first.values()
        if all(each.value is not None and not each.group for each in table.cells(column))
    ]
    kinds = {of_llava: [column for column in columns if column.of_llava == of_llava] for of_llava in (False, True)}
    names = {False: " of the encoder", True: " of the LLaVA"} if all(kinds.values()) else {False: "", True: ""}
    if len(table.rows) < 2:
        return ()
    return tuple(
        _overall(table, ranked, names[of_llava]) for of_llava, ranked in kinds.items() if len(ranked) >= _MIN_BENCHMARKS
    )


def _overall(table: Table, ranked: Sequence[Column], of: str) -> Overall:
    averaged = [column for column in ranked if is_ratio(column) and column.higher_is_better]
    averaged = averaged if len(averaged) >= _MIN_BENCHMARKS else []
    cells = {row.name: [table.cells(column)[place] for column in averaged] for place, row in enumerate(table.rows)}
    without_interval = tuple(
        each.benchmark for each in averaged if any(cell.evidence is None for cell in table.cells(each))
    )
    fewer_seeds, no_seed = [], []
    for row, own in cells.items() if averaged and not without_interval else ():
        seeds, common = _common_seeds(own)
        if not common:
            no_seed.append(row)
        elif any(len(each) > len(common) for each in seeds):
            fewer_seeds.append(row)
    averages, p_values = _averages(table, cells) if averaged else ({}, {})
    uncredited = {
        row.name: tuple(column.benchmark for column in ranked if table.cells(column)[place].credited is False)
        for place, row in enumerate(table.rows)
    }
    return Overall(
        averages=averages,
        ranks={row.name: _mean_rank(table, ranked, place) for place, row in enumerate(table.rows)},
        averaged=tuple(column.benchmark for column in averaged),
        ranked=tuple(column.benchmark for column in ranked),
        p_values=p_values,
        without_interval=without_interval,
        fewer_seeds=tuple(fewer_seeds),
        no_seed=tuple(no_seed),
        uncredited={row: names for row, names in uncredited.items() if names},
        of=of,
    )


def is_ratio(column: Column) -> bool:
    """Whether an average over benchmarks may include a metric: a ratio in per cent, as MMBench's is also stored."""
    stored = (column.metric, column.label, column.scale) == ("gpt_eval_score", "accuracy", 1)
    return stored or (column.scale == _PER_CENT and not column.label.endswith("CIDEr"))


def _averages(table: Table, cells: dict[str, list[Cell]]) -> tuple[dict[str, Interval], dict[frozenset[str], float]]:
    known = {row: scores for row, own in cells.items() if (scores := _average_scores(own)) is not None}
    if len(known) < len(cells):
        return {row: Interval(value=fmean(cell.value or 0.0 for cell in own)) for row, own in cells.items()}, {}
    keys = {row: tuple(cell.key for cell in own) for row, own in cells.items()}
    distinct = {key: row for row, key in keys.items()}
    noise = training_noise([known[row] for row in distinct.values()] if table.seeds else [])
    averages = {}
    for row, scores in known.items():
        without = [cell.column.benchmark for cell in cells[row] if cell.ci_low is None]
        interval = scores_interval(scores, noise)
        reason = f"its score on {without[0]} has none" if without else interval.reason
        ends = (math.nan, math.nan) if reason else (interval.low, interval.high)
        low, high = (math.nan if end is None else end for end in ends)
        averages[row] = Interval(value=scores.value, low=low, high=high, no_interval=reason)
    estimates = {
        frozenset({first, second}): estimate
        for first, second in itertools.combinations(distinct.values(), 2)
        if not (averages[first].no_interval or averages[second].no_interval)
        and all(comparable(one.evidence, two.evidence) for one, two in zip(cells[first], cells[second], strict=True))
        and (estimate := average_difference(known[first], known[second], noise)) is not None
    }
    corrected = dict(zip(estimates, holm_correction(p_values([*estimates.values()]).tolist()), strict=True))
    return averages, {
        frozenset({first, second}): corrected[pair]
        for first, second in itertools.combinations(known, 2)
        if (pair := frozenset({distinct[keys[first]], distinct[keys[second]]})) in corrected
    }


def _common_seeds(cells: Sequence[Cell]) -> tuple[list[list[int | None]], list[int | None]]:
    """The seeds of each cell with items, a single one of a pretrained model, and those that all of them have."""
    seeds = [
        [*cell.by_seed] if cell.evidence.num_seeds > 1 else [*cell.by_seed][:1] or [None]
        for cell in cells
        if cell.evidence is not None
    ]
    return seeds, [seed for seed in seeds[0] if all(seed in others for others in seeds)] if seeds else []


def _average_scores(cells: Sequence[Cell]) -> Scores | None:
    """The average of a model, of the seeds that were evaluated on all benchmarks; None if a score has no items."""
    evidence = [cell.evidence for cell in cells if cell.evidence is not None]
    seeds, common = _common_seeds(cells)
    if len(evidence) < len(cells) or not common:
        return None
    chosen = [[own.index(seed) for seed in common] for own in seeds]
    return average_scores(
        [
            dataclasses.replace(
                scores,
                values=scores.values[places],
                influence=scores.influence[places],
                blockers=scores.blockers[places] if scores.blockers.size else scores.blockers,
            )
            for scores, places in zip(evidence, chosen, strict=True)
        ],
        [cell.column.scale for cell in cells],
    )


def _mean_rank(table: Table, columns: Sequence[Column], place: int) -> Interval:
    """Mean over benchmarks of a model's rank; models of equal score share the mean of their ranks.

    Without a test of every pair, or an interval of every score, it has no interval.
    """
    values, lows, highs = [], [], []
    known = all(cell.ci_low is not None for column in columns for cell in table.cells(column))
    for column in columns:
        own = table.cells(column)[place]
        sign = 1 if column.higher_is_better else -1
        gaps = [
            (sign * (other.compared_value - own.compared_value), table.differs(own, other) is True)
            for other in table.cells(column)
            if other is not own
        ]
        values.append(1 + sum(gap > 0 for gap, _ in gaps) + sum(gap == 0 for gap, _ in gaps) / 2)
        lows.append(1 + sum(gap > 0 and differs for gap, differs in gaps))
        highs.append(1 + len(gaps) - sum(gap < 0 and differs for gap, differs in gaps))
    if not table.all_pairs or not known:
        return Interval(value=fmean(values))
    return Interval(value=fmean(values), low=fmean(lows), high=fmean(highs))


def _figure(overall: Overall) -> Figure:
    """The overview: each model's average with its interval, best first."""
    averages = {row: overall.averages[row] for row in overall.order}
    names = [row + overall.sign(row, overall.averaged) for row in averages]
    return Figure(
        name=safe_file_name("average", overall.of.removeprefix(" of the ")),
        title=f"Average over {len(overall.averaged)} benchmarks{overall.of}",
        alt=overall.sentence,
        plot=plot_intervals(
            names, [(each.value, each.low, each.high, "not significant") for each in averages.values()], zero=False
        ),
        x_label="average with its 95 % interval, %",
        headers=("model", "average", "95 % interval"),
        rows=tuple(
            (name, format_number(each.value, 1), each.text) for name, each in zip(names, averages.values(), strict=True)
        ),
        height=0.75 + 0.24 * len(names),
        vertical_grid=True,
    )


def overall_section(overalls: Sequence[Overall]) -> FigureSet | None:
    """The table of averages and mean ranks, best first; None without ranks."""
    if not overalls:
        return None
    sentences = []
    for overall in overalls:
        if overall.averages:
            sentences.append(f"The average{overall.of} is over {join_with_and(overall.averaged)}, all in per cent.")
            if missing := overall.without_interval:
                names = join_or_count(missing, "benchmarks")
                sentences.append(
                    f"It has no interval, because the items on {names} do not determine every model's score."
                )
        sentences.append(
            f"The mean rank{overall.of} (1 is best) is over {join_with_and(overall.ranked)}, the first metric of each."
        )
    rows = overalls[-1].order
    uncredited = f"{UNCREDITED} Includes a score that is not credited to the images."
    heads = [
        head for overall in overalls for title, *_ in overall.columns for head in (title + overall.of, "95 % interval")
    ]
    texts = [[text for overall in overalls for text in overall.texts(row)] for row in rows]
    shown = [place for place in range(len(heads)) if any(own[place] for own in texts)]  # ranks may have no interval
    return FigureSet(
        lead=" ".join(sentences),
        figures=tuple(_figure(overall) for overall in overalls if overall.averages),
        notes=(
            "Only benchmarks on which every model has a number under the main protocol count, and seeds that were "
            "evaluated on all of them. The interval of a mean rank follows from the tests of all pairs of models, "
            "which the option --pairs all makes: a rank is certain only as far as models differ significantly.",
            *([uncredited] if any(overall.uncredited for overall in overalls) else []),
        ),
        headers=("model", *(heads[place] for place in shown)),
        rows=tuple((row, *(own[place] for place in shown)) for row, own in zip(rows, texts, strict=True)),
    )
