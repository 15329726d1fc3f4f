"""Check the coverage of the reports' intervals, the false alarms of their tests and their power, by simulation.

    python scripts/check_statistics.py                       (about two hours on one core)
    python scripts/check_statistics.py --trials 60           (about 20 minutes)

In each simulated table all models are equally good in the population of images and trainings, and differ at random:
each model answers some images in its own way in all trainings, and each training answers some images differently and is
a little better or worse overall. 95 % intervals of scores and of differences must contain the truth in 95 of 100 cases;
the Holm-corrected tests of a table may have a false alarm in 5 of 100 tables. Then models differ, and the power is
compared with that of t tests over seeds (differences at equal seed, Holm-corrected), which know the seed variance only.
Each figure is followed by twice its standard error.

Part ``ranks``: averages and mean ranks of models with a distance, equal ones with tied true ranks, also by percentile
intervals of a bootstrap over images. Part ``plans``: a pilot of a few seeds recommends a number of seeds for a
difference (``clips-bench study power``), and 80 of 100 studies of that size must find it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.report.differences import compare_models
from benchmarks.report.scores import model_spreads, with_noise, with_spreads
from benchmarks.report.table import Cell, Place, Table
from benchmarks.report.table import Column as TableColumn
from benchmarks.results.baselines import gain_scores
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.measure import ItemTable, with_gallery
from benchmarks.results.noise import (
    Estimate,
    Scores,
    TrainingNoise,
    average_scores,
    difference_estimate,
    p_values,
    training_noise,
)
from benchmarks.results.power import Components, variance_components
from benchmarks.results.result_types import BLOCKER
from benchmarks.results.statistics import (
    LEVEL,
    average_difference,
    compare,
    compare_with_zero,
    holm_correction,
    image_scores,
    scores_interval,
)
from benchmarks.study.study_record import RowRecord

Generator = np.random.Generator
COLUMNS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "share": ("mean", ("x",)),
    "F1": ("f1", ("said", "is")),
    "MME": ("sum_of_group_means", ("x", "group")),
    "CIDEr": ("mean_of_scores", ("x",)),
    "rare CIDEr": ("mean_of_scores", ("x",)),
    "median": ("median", ("x",)),
}


@dataclass(frozen=True, kw_only=True)
class World:
    """A table of equal models.

    Args:
        kind: of the metric, a key of `COLUMNS`.
        images: of each benchmark.
        questions: about each image; the mean number if ``by_rank``.
        by_rank: whether the numbers of questions fall as 1 / rank of the image, and are not equal.
        models: rows of the table.
        pretrained: number of models that are evaluated once.
        seeds: of each other model.
        tests: metrics, each on its own benchmark.
        lasting: ratio of images that a model answers in its own way with every seed.
        per_training: ratio of answers that vary between trainings.
        training: standard deviation of a training's ability, in standard deviations of a score over 300 images.
        unequal: factor of that deviation for the first model, or the last one if it is negative.
        few: seeds of this model, if they are not as many as those of others.
        lost: number of models of which one seed is left.
        llms: rows of each model, as those of an encoder in several LLaVAs, with the same results.
        weak: number of additional rows with 1 % right answers, as of controls, that are not tested.
        right: ratio of right answers.
    """

    kind: str = "share"
    images: int = 300
    questions: int = 1
    by_rank: bool = False
    models: int = 2
    pretrained: int = 0
    seeds: int = 1
    tests: int = 1
    lasting: float = 0.25
    per_training: float = 0.15
    training: float = 0.0
    unequal: float = 1.0
    few: int = 0
    lost: int = 0
    llms: int = 1
    weak: int = 0
    right: float = 0.6

    @property
    def spread(self) -> float:
        """Standard deviation of a training's share of right answers."""
        return self.training * 0.5 / math.sqrt(300)

    @property
    def place_of_unequal(self) -> int:
        """The model whose trainings differ more; the first one is the baseline."""
        return self.pretrained if self.unequal > 0 else self.models - 1

    def __str__(self) -> str:
        rows = f"{self.models} models" + (f", {self.pretrained} of them pretrained" if self.pretrained else "")
        varied = f", training ±{self.training:g}" if self.seeds > 1 and self.training else ""
        varied += f", {'last' if self.unequal < 0 else 'first'} one ×{abs(self.unequal):g}" if self.unequal != 1 else ""
        varied += f", this one with {self.few} seed{'s' if self.few > 1 else ''}" if self.few else ""
        varied += f", {self.lost} with one seed left" if self.lost else ""
        varied += f", each with {self.llms} LLMs" if self.llms > 1 else ""
        varied += f", {self.weak} weak rows" if self.weak else ""
        about = f"{self.kind} {self.right:.0%}" if self.kind == "share" else self.kind
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        questions = f"{self.questions} as 1/rank" if self.by_rank else f"{self.questions}"
        return f"{about}, {self.images} images × {questions}, {rows}, {seeds}, {self.tests} tests{varied}"


class Column:
    """One metric of a world: its images, and models on them."""

    def __init__(self, world: World, rng: Generator) -> None:
        self.world, self.rng = world, rng
        counts = np.full(world.images, world.questions)
        if world.by_rank:
            shares = 1 / np.arange(1, world.images + 1)
            counts = np.maximum(1, np.round(world.images * world.questions * shares / shares.sum())).astype(int)
        self.owner: Any = np.repeat(np.arange(world.images), counts)
        self.ease = self._ease()
        self.yes = rng.integers(0, 2, len(self.owner)).astype(float)
        self.groups = np.array([f"category {place % 10}" for place in self.owner], dtype=object)
        self.luck = rng.random(len(self.owner))

    def _ease(self) -> np.ndarray:
        """(images,) the probability of a right answer, or the mean score, of each image."""
        world, rng = self.world, self.rng
        if world.kind in {"share", "MME"}:
            return rng.beta(3 * world.right, 3 * (1 - world.right), world.images)
        return rng.gamma(4.0, 0.25, world.images)

    def model(self, place: int, gain: float = 0.0) -> Scores:
        """The scores of a model whose mean exceeds that of the others by ``gain``."""
        formula, names = COLUMNS[self.world.kind]
        trained = place >= self.world.pretrained and self.world.seeds > 1
        return image_scores(
            formula, self.tables(place, gain), names, self.owner, items=range(len(self.owner)), trained=trained
        )

    def benchmarks(self, place: int) -> list[Scores]:
        """The scores of a model on a benchmark for each question about an image; all of them show the same images."""
        tables, world = self.tables(place), self.world
        images = np.arange(world.images).astype(str).astype(object)
        found = [
            image_scores("mean", [{"x": table["x"][question :: world.questions]} for table in tables], ("x",), images,
                         items=range(world.images), trained=world.seeds > 1)
            for question in range(world.questions)
        ]  # fmt: skip
        return [dataclasses.replace(scores, images=np.unique(images)) for scores in found]

    def tables(self, place: int, gain: float = 0.0) -> list[dict[str, np.ndarray]]:
        """The items of each training of a model."""
        world, rng = self.world, self.rng
        own = rng.random(world.images) < world.lasting
        ease = np.where(own, self._ease(), self.ease)[self.owner]
        luck = np.where(own[self.owner], rng.random(len(ease)), self.luck)
        trained = place >= world.pretrained
        spread = world.spread * (abs(world.unequal) if place == world.place_of_unequal else 1.0)
        tables, seeds = [], world.seeds
        if not trained or place >= world.models - world.lost:
            seeds = 1
        elif world.few and place == world.place_of_unequal:
            seeds = world.few
        for _ in range(seeds):
            shift = gain + (rng.normal() * spread if trained else 0.0)
            varies = rng.random(len(luck)) < world.per_training if trained else None
            draws = luck if varies is None else np.where(varies, rng.random(len(luck)), luck)
            tables.append(self._answers(place, ease, draws, shift))
        return tables

    def weak_models(self) -> list[Scores]:
        """Rows near 0 %, whose trainings therefore hardly differ."""
        tables = (self.rng.random((self.world.weak, self.world.seeds, len(self.owner))) < 0.01).astype(float)
        return [image_scores("mean", [{"x": row} for row in each], ("x",), self.owner, trained=True) for each in tables]

    def _answers(self, place: int, ease: np.ndarray, luck: np.ndarray, shift: float) -> dict[str, np.ndarray]:
        """The items of one training, from uniform draws ``luck`` and its additional ability ``shift``."""
        kind = self.world.kind
        if kind == "F1":  # models have different rates of yes, and the same F1 of 0.8
            hits = 0.72 + 0.25 * (place % 5) / 4
            alarms = 2 * hits / 0.8 - hits - 1
            return {"said": (luck < np.where(self.yes == 1, hits + shift, alarms)).astype(float), "is": self.yes}
        if kind in {"share", "MME"}:
            right = self.world.right
            chance = ease + shift * ease * (1 - ease) / (0.75 * right * (1 - right))
            answers = (luck < chance).astype(float)
            return {"x": answers if kind == "share" else 100 * answers, "group": self.groups}
        if kind == "rare CIDEr":  # most captions have nothing in common with human ones
            return {"x": (1 + 2 * shift) * ease * stats.gamma.ppf(np.maximum(0, luck - 0.7) / 0.3, 1.5) / 0.45}
        return {"x": (1 + 2 * shift) * ease * stats.gamma.ppf(luck, 1.5) / 1.5}

    @property
    def truth(self) -> float:
        """The metric of every model in the population; the median is that of a large sample."""
        known = {"share": self.world.right, "F1": 0.8, "MME": 1000 * self.world.right}
        if self.world.kind == "median":
            return _large_sample_median()
        return known.get(self.world.kind, 1.0)


@functools.cache
def _large_sample_median() -> float:
    rng, count = np.random.default_rng(0), 4_000_000
    ease, others = rng.gamma(4.0, 0.25, (2, count))
    scores = np.where(rng.random(count) < World.lasting, others, ease) * rng.gamma(1.5, 1 / 1.5, count)
    return float(np.median(scores))


@dataclass(frozen=True)
class Found:
    """Ratios of intervals that contain the truth (of scores, of differences), and of tables with a false alarm."""

    scores: float
    differences: float
    alarms: float


class NoItems(ItemScores):
    """The simulated scores have no items."""

    def of_model(self, *_: object, **__: object) -> None:
        return None


def simulated_table(world: World, rng: Generator, gain: float = 0.0) -> tuple[Table, list[Column]]:
    """A report's table of models, of which all but the first are better by ``gain``, and the images of its columns.

    The training noise is also that of weak models, which are not in the table. The first model is the baseline.
    """
    columns = [Column(world, rng) for _ in range(world.tests)]
    scores = [
        [*(column.model(place, gain if place else 0.0) for place in range(world.models)), *column.weak_models()]
        for column in columns
    ]
    places = [place for _ in range(world.llms) for place in range(len(scores[0]))]
    names = [f"{place} {llm}" for llm in range(world.llms) for place in range(len(scores[0]))]
    shown = tuple(
        TableColumn(benchmark=str(number), metric="x", label="x", scale=1.0, higher_is_better=True)
        for number in range(len(columns))
    )
    lines: list[list[Cell]] = []
    for column, models in zip(shown, scores, strict=True):
        cells = list[Cell]()
        for name, place in zip(names, places, strict=True):
            result: Any = SimpleNamespace(path=str(place), model={"hash": str(place)})
            model = models[place]
            by_seed = dict[int | None, float](enumerate(model.values.tolist())) if world.seeds > 1 else {}
            cells.append(
                Cell(row=name, column=column, value=model.value, by_seed=by_seed, results=(result,), evidence=model,
                     ci_low=model.value, ci_high=model.value)  # scores without an interval are not tested
            )  # fmt: skip
        lines.append(with_noise(cells))
    spreads = model_spreads(lines)
    kept = [
        cell
        for cells in lines
        for cell, place in zip(with_spreads(cells, spreads), places, strict=True)
        if place < world.models
    ]
    rows = tuple(
        RowRecord(name=name, encoder=str(place), baseline=f"0 {name.split()[1]}" if place else None)
        for name, place in zip(names, places, strict=True)
        if place < world.models
    )
    return Table(rows=rows, columns=shown, scores=kept), columns


def corrected(table: Table, *, all_pairs: bool) -> dict[frozenset[Place], float]:
    """Pair → corrected p-value of the tests of a report."""
    (table,) = compare_models([table], NoItems(), all_pairs=all_pairs)
    return {pair: difference.p_adjusted for pair, difference in table.tested.items()}


def known(cell: Cell) -> Scores:
    """The scores of a simulated cell, which always has them."""
    assert cell.evidence is not None
    return cell.evidence


def simulate(world: World, trials: int, seed: int = 7, *, all_pairs: bool = False) -> Found:
    """Simulate tables of equal models."""
    rng, alarms = np.random.default_rng(seed), 0
    scores, differences = list[bool](), list[bool]()
    for _ in range(trials):
        table, columns = simulated_table(world, rng)
        for shown, column in zip(table.columns, columns, strict=True):
            if len(scores) < 20 * trials:
                first, *_, last = table.cells(shown)[: world.models]
                interval = scores_interval(known(last), last.noise)
                low, high = (math.nan if end is None else end for end in (interval.low, interval.high))
                scores.append(low <= column.truth <= high)
                between = compare(known(first), known(last), last.noise)
                differences.append(not (between.low > 0 or between.high < 0))
        alarms += min(corrected(table, all_pairs=all_pairs).values()) < LEVEL
    return Found(float(np.mean(scores)), float(np.mean(differences)), alarms / trials)


def simulate_averages(world: World, trials: int, seed: int = 7) -> Found:
    """Simulate averages over benchmarks that show the same images, one for each question about an image."""
    rng, alarms = np.random.default_rng(seed), 0
    scores, differences = list[bool](), list[bool]()
    for _ in range(trials):
        column = Column(world, rng)
        averages = [average_scores(found, [1.0] * len(found))
                    for found in (column.benchmarks(place) for place in range(world.models))]  # fmt: skip
        noise = training_noise(averages if world.seeds > 1 else [])
        scores.append(covers(averages[-1], noise, column.truth))
        pairs = [difference_of(*pair, noise) for pair in itertools.combinations(averages, 2)]
        differences.append(abs(pairs[0].value) <= pairs[0].quantile(1 - LEVEL) * pairs[0].standard_error)
        alarms += min(holm_correction([*p_values(pairs)])) < LEVEL
    return Found(float(np.mean(scores)), float(np.mean(differences)), alarms / trials)


def difference_of(first: Scores, second: Scores, noise: TrainingNoise) -> Estimate:
    """The difference of two averages, whose parts all have an interval."""
    found = average_difference(first, second, noise)
    assert found is not None
    return found


def covers(scores: Scores, noise: TrainingNoise, truth: float) -> bool:
    """Whether the interval of a score has the truth."""
    found = scores_interval(scores, noise)
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def simulate_few(items: int, right: float, trials: int, seed: int = 7) -> Found:
    """Simulate averages over a benchmark of few items and one of 300 items, 50 % right, of two equal models.

    The models answer half of the items alike.
    """
    rng, alarms = np.random.default_rng(seed), 0
    scores, differences = list[bool](), list[bool]()
    for _ in range(trials):
        parts: list[list[Scores]] = [[], []]
        for number, (count, share) in enumerate(((items, right), (300, 0.5))):
            ease = rng.random(count)
            names = np.array([f"{number} {place}" for place in range(count)], dtype=object)
            for found in parts:
                own = np.where(rng.random(count) < 0.5, ease, rng.random(count))
                hits = {"x": (own < share).astype(float)}
                of_images = image_scores("mean", [hits], ("x",), np.arange(count), items=names)
                found.append(dataclasses.replace(of_images, images=names))
        averages = [average_scores(found, [1.0, 1.0]) for found in parts]
        scores.append(covers(averages[0], TrainingNoise(), (right + 0.5) / 2))
        between = difference_of(averages[0], averages[1], TrainingNoise())
        differences.append(abs(between.value) <= between.quantile(1 - LEVEL) * between.standard_error)
        alarms += p_values([between])[0] < LEVEL
    return Found(float(np.mean(scores)), float(np.mean(differences)), alarms / trials)


def simulate_retrieval(images: int, hubs: float, trials: int, *, gallery: bool = True) -> float:
    """Ratio of intervals of a difference of T→I R@1 that contain its mean, of models that share their gallery.

    Args:
        images: of the gallery, one caption each.
        hubs: standard deviation of what an image's similarity with all captions has in common.
        trials: number of galleries.
        gallery: whether the influence of images as answers counts.
    """
    rng, found = np.random.default_rng(12), []
    names = np.array([f"{place:04d}" for place in range(images)], dtype=object)
    for _ in range(trials):
        content = rng.normal(size=(images, 12))
        texts, models = content + 0.9 * rng.normal(size=content.shape), []
        for noise in (0.5, 0.6):
            sides = [side + noise * rng.normal(size=side.shape) for side in (texts, content)]
            queries, answers = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
            similarity = queries @ answers.T
            similarity += hubs * np.maximum(0, rng.standard_t(3, images))
            above = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
            blockers = [names[first] if only else None
                        for first, only in zip(similarity.argmax(axis=1), above == 1, strict=True)]  # fmt: skip
            frame = pd.DataFrame({"image": names, "t2i_r1": (above == 0).astype(float), BLOCKER: blockers})
            table = ItemTable(frame, names, np.arange(images), names)
            scores = image_scores("mean", [{"x": frame["t2i_r1"].to_numpy()}], ("x",), names, items=names)
            models.append(with_gallery(scores, ("t2i_r1",), [table]) if gallery else scores)
        between = compare(models[0], models[1], TrainingNoise())
        found.append((between.value, between.low, between.high))
    values, lows, highs = np.array(found).T
    return float(np.mean((lows <= values.mean()) & (values.mean() <= highs)))


def found_differences(world: World, trials: int, gain: float) -> tuple[float, float, float]:
    """The power for differences of ``gain`` standard deviations of training from the first model, the baseline.

    Of the reports' tests, by default and of all pairs, and of t tests over seeds.
    """
    rng = np.random.default_rng(8)
    default, every, students = list[bool](), list[bool](), list[bool]()
    for _ in range(trials):
        table, _ = simulated_table(world, rng, gain * world.spread)
        for found, all_pairs in ((default, False), (every, True)):
            tests = corrected(table, all_pairs=all_pairs)
            found += [p < LEVEL for pair, p in tests.items() if "0 0" in {row for row, _ in pair}]
        scores = [[known(cell) for cell in table.cells(column)] for column in table.columns]
        alone = [float(stats.ttest_1samp(other.values - models[0].values, 0).pvalue)
                 for models in scores for other in models[1:]]  # fmt: skip
        students += [p_value < LEVEL for p_value in holm_correction(alone)]
    return float(np.mean(default)), float(np.mean(every)), float(np.mean(students))


@dataclass(frozen=True)
class FoundGains:
    """Ratios of intervals of the gain over blind that contain the truth, and of scores that are credited."""

    intervals: float
    by_one: float
    by_both: float


def simulate_blind(world: World, trials: int, gain: float = 0.0, seed: int = 10) -> FoundGains:
    """Simulate a score with the image and two without: equal in the population, or lower by ``gain`` without it.

    The world's first model is the score with the image, the next two are those without: they answer most questions
    alike, since one LLaVA gives all answers.
    """
    rng = np.random.default_rng(seed)
    inside, one, both = list[bool](), list[bool](), list[bool]()
    for _ in range(trials):
        column = Column(world, rng)
        sighted, *blind = (column.model(place, 0.0 if place else gain) for place in range(3))
        gains = [gain_scores(sighted, each) for each in blind]
        noise = training_noise(gains)
        found = [compare_with_zero(each, noise) for each in gains]
        inside += [each.low <= gain <= each.high for each in found]
        one.append(found[0].low > 0)
        both.append(all(each.low > 0 for each in found))
    return FoundGains(float(np.mean(inside)), float(np.mean(one)), float(np.mean(both)))


def smallest_is_found(world: World, trials: int) -> tuple[float, float]:
    """The power of a single test for the stated minimum detectable difference, and that difference."""
    rng = np.random.default_rng(9)
    columns = [Column(world, rng) for _ in range(trials)]
    equal = [compare(column.model(0), column.model(1), TrainingNoise()) for column in columns]
    size = float(np.nanmedian([found.min_detectable for found in equal]))
    found = [compare(column.model(1, size), column.model(0), TrainingNoise()) for column in columns]
    return float(np.mean([each.p_value < LEVEL for each in found])), size


BENCHMARKS, RESAMPLES = 8, 400
"""Of a mean rank, and of its bootstrap."""


@dataclass(frozen=True)
class FoundRanks:
    """What one table says of averages and mean ranks over benchmarks.

    Args:
        averages: whether the interval of each model's average contains the true one.
        alarm: whether two equal averages differ significantly.
        ranks: whether the interval of each model's mean rank contains the true one.
        bootstrap: the same of percentile intervals of a bootstrap.
        widths: mean widths of both intervals of ranks.
    """

    averages: list[bool]
    alarm: bool
    ranks: list[bool]
    bootstrap: list[bool]
    widths: tuple[float, float]


def simulate_ranks(world: World, step: float, rng: Generator) -> FoundRanks:
    """Simulate a table of models whose true scores have the distance ``step``."""
    columns = [Column(world, rng) for _ in range(BENCHMARKS)]
    models = [[column.model(place, step * place) for place in range(world.models)] for column in columns]
    noise = TrainingNoise()
    names = [
        np.array([f"{number} {place}" for place in range(world.images)], dtype=object) for number in range(BENCHMARKS)
    ]
    named = [[dataclasses.replace(each, images=own) for each in row] for row, own in zip(models, names, strict=True)]
    averages = [average_scores(list(found), [1.0] * BENCHMARKS) for found in zip(*named, strict=True)]
    covered = [covers(average, noise, world.right + step * place) for place, average in enumerate(averages)]
    pairs = [*itertools.combinations(range(world.models), 2)]
    alarms = p_values([difference_of(averages[one], averages[other], noise) for one, other in pairs]).tolist()
    truth = np.arange(world.models, 0, -1.0) if step else np.full(world.models, (world.models + 1) / 2)
    estimates = [difference_estimate(row[one], row[other], noise) for row in models for one, other in pairs]
    adjusted = np.array(holm_correction(p_values(estimates).tolist())).reshape(BENCHMARKS, -1)
    low, high = np.ones((2, world.models)) * [[1], [world.models]]
    for number, (one, other) in enumerate(pairs):
        for place in range(BENCHMARKS):
            if adjusted[place, number] < LEVEL:
                better, worse = (one, other) if estimates[place * len(pairs) + number].value > 0 else (other, one)
                low[worse] += 1 / BENCHMARKS
                high[better] -= 1 / BENCHMARKS
    ends = np.quantile(np.mean([_bootstrapped_ranks(row, rng) for row in models], axis=0), [0.025, 0.975], axis=0)
    return FoundRanks(
        averages=covered,
        alarm=step == 0 and min(holm_correction(alarms)) < LEVEL,
        ranks=[bool(a - 1e-9 <= t <= b + 1e-9) for a, t, b in zip(low, truth, high, strict=True)],
        bootstrap=[bool(a <= t <= b) for a, t, b in zip(ends[0], truth, ends[1], strict=True)],
        widths=(float(np.mean(high - low)), float(np.mean(ends[1] - ends[0]))),
    )


def _bootstrapped_ranks(models: list[Scores], rng: Generator) -> np.ndarray:
    """(resamples, models) ranks with images drawn with replacement."""
    influence = np.stack([each.mean_influence for each in models])
    weights = rng.multinomial(influence.shape[1], np.full(influence.shape[1], 1 / influence.shape[1]), RESAMPLES)
    values = np.array([each.value for each in models]) + (weights - 1) @ influence.T
    return stats.rankdata(-values, axis=1)


def pilot(world: World, rng: Generator) -> Components:
    """The components that a study of equal models finds."""
    column = Column(world, rng)
    first, *others = models = [column.model(place) for place in range(world.models)]
    return variance_components([(other, first) for other in others], training_noise(models))


def power_of_study(world: World, gain: float, trials: int, rng: Generator) -> float:
    """The power of the first model's difference from the second, which is better by ``gain``."""
    found = []
    for _ in range(trials):
        column = Column(world, rng)
        shift = gain / 2 if world.kind == "rare CIDEr" else gain  # see `Column`
        models = [column.model(place, shift if place == 1 else 0.0) for place in range(world.models)]
        found.append(difference_estimate(models[1], models[0], training_noise(models)))
    return float(np.mean(p_values(found) < LEVEL))


SINGLE = [
    World(kind=kind, images=images, questions=questions, right=right)
    for kind, questions, rights in (
        ("share", 1, (0.5, 0.97)),
        ("share", 3, (0.6, 0.9)),
        ("F1", 1, (0.6,)),
        ("MME", 2, (0.7,)),
        ("CIDEr", 1, (0.6,)),
        ("rare CIDEr", 1, (0.6,)),
        ("median", 1, (0.6,)),
    )
    for right in rights
    for images in (50, 300, 5000)
]
SEEDS = [
    World(models=models, pretrained=pretrained, seeds=seeds, training=training, tests=tests, kind=kind, images=images)
    for kind, images, models, pretrained, seeds, training, tests in (
        ("share", 300, 2, 0, 2, 0.0, 12),
        ("share", 300, 2, 0, 3, 0.0, 12),
        ("share", 300, 2, 0, 3, 1.0, 12),
        ("share", 300, 2, 1, 3, 1.0, 12),
        ("share", 300, 2, 0, 5, 2.0, 12),
        ("share", 1000, 10, 3, 3, 0.5, 12),
        ("share", 5000, 5, 1, 3, 0.3, 6),
        ("share", 120, 4, 1, 2, 1.0, 9),
        ("F1", 500, 5, 2, 3, 0.5, 6),
        ("MME", 300, 5, 2, 3, 0.5, 6),
        ("CIDEr", 500, 5, 2, 3, 0.5, 6),
        ("CIDEr", 100, 3, 1, 5, 1.0, 12),
    )
] + [
    World(models=2, weak=4, images=1000, seeds=3, training=1.0, tests=6),
    World(models=3, seeds=5, lost=1, training=1.0, tests=6),
    World(models=3, seeds=3, llms=3, training=1.0, tests=6),
]
UNEQUAL = [
    World(models=models, seeds=seeds, images=1000, training=0.7, unequal=unequal, tests=tests)
    for tests in (1, 6)
    for models, unequal in ((2, 1.0), (2, 5.0), (6, 1.0), (6, 5.0), (6, -5.0))
    for seeds in (3, 5)
]
FEW_SEEDS = [  # the standard deviation over trainings is 0.9 points, and as many times as large in one model
    World(models=models, seeds=seeds, few=few, images=1000, training=0.31, unequal=unequal)
    for models, seeds, few in ((2, 6, 2), (2, 6, 3), (6, 6, 2), (6, 2, 0), (6, 3, 0), (6, 5, 0), (6, 3, 1))
    for unequal in (-1.0, -3.0, -5.0)
]
CLUSTERS = [
    World(images=images, questions=3, by_rank=by_rank, right=right)
    for images in (50, 200)
    for right in (0.5, 0.9)
    for by_rank in (False, True)
]
TABLES = [
    World(models=models, tests=tests, images=images, kind=kind)
    for kind, images, models, tests in (
        ("share", 100, 10, 1),
        ("share", 500, 20, 1),
        ("share", 50, 2, 120),
        ("share", 300, 2, 120),
        ("share", 300, 10, 12),
        ("F1", 300, 10, 4),
        ("MME", 200, 10, 4),
        ("CIDEr", 100, 2, 1),
        ("CIDEr", 300, 10, 4),
        ("CIDEr", 50, 2, 30),
        ("rare CIDEr", 300, 5, 4),
    )
]
BLIND = [
    World(kind=kind, images=images, questions=questions, right=right, lasting=lasting, models=3)
    for kind, questions, right, images in (
        ("share", 1, 0.5, 40),
        ("share", 1, 0.95, 60),
        ("share", 1, 0.95, 200),
        ("share", 1, 0.05, 100),
        ("share", 18, 0.8, 38),
        ("F1", 18, 0.6, 38),
        ("MME", 2, 0.7, 90),
        ("rare CIDEr", 1, 0.6, 300),
    )
    for lasting in (0.05, 0.5)
]
PAIRS = [  # few answers of a model's own: correlated models
    World(models=10, pretrained=10, tests=6, images=100, lasting=0.05, right=0.95),
    World(models=8, pretrained=2, seeds=3, training=0.5, tests=6, lasting=0.05),
    World(kind="rare CIDEr", models=8, pretrained=8, tests=6, images=100, lasting=0.05),
    World(kind="rare CIDEr", models=8, seeds=2, training=0.5, tests=6),
    World(kind="rare CIDEr", models=8, pretrained=2, seeds=3, training=0.5, tests=6, lasting=0.05),
    World(kind="F1", models=8, pretrained=2, seeds=3, training=0.5, tests=6),
]
AVERAGES = [  # over as many benchmarks as there are questions about an image
    World(images=400, questions=questions, models=models, seeds=seeds, training=training)
    for questions, models, seeds, training in ((4, 2, 1, 0.0), (8, 2, 1, 0.0), (8, 4, 3, 1.0))
]
WORLDS: Mapping[str, list[World]] = {
    "one training": SINGLE,
    "several seeds": SEEDS,
    "unequal": UNEQUAL,
    "tables": TABLES,
    "averages": AVERAGES,
    "seeds": FEW_SEEDS,
    "clusters": CLUSTERS,
}
# (a world, the true difference in standard deviations of its trainings): 1.5 of them, and 2 points
POWER = [
    (World(models=10, seeds=3, images=images, training=training), gain)
    for images in (1000, 5000)
    for training, gain in (
        (0.5, 1.5),
        (0.5, 0.02 / World(training=0.5).spread),
        (0.17, 0.02 / World(training=0.17).spread),
    )
] + [(World(models=10, tests=13, seeds=3, images=1000, training=0.5), 5.0)]

RANKS = [World(models=6, images=images, questions=questions) for images, questions in ((100, 1), (500, 3))]
PLANS = [  # a world, and the true difference
    (World(models=models, seeds=seeds, training=training, images=images, kind=kind), gain)
    for kind, images, models, seeds, training, gain in (
        ("share", 300, 3, 3, 1.0, 0.09),
        ("share", 300, 3, 3, 0.3, 0.09),
        ("share", 1000, 3, 3, 1.0, 0.07),
        ("share", 1000, 3, 6, 1.0, 0.07),
        ("share", 1000, 8, 3, 0.5, 0.05),
        ("rare CIDEr", 1000, 3, 3, 0.5, 0.2),
    )
]


def percent(share: float, trials: int) -> str:
    """A ratio and twice its standard error, in percent."""
    return f"{100 * share:5.1f} ±{200 * math.sqrt(max(share * (1 - share), 0.01) / trials):.1f}"


def print_blind(trials: int) -> None:
    """Print the coverage of gains over blind, and how often a model that does not look is credited, by three seeds."""
    print("blind: % of intervals of a gain of 0 with the truth, % credited falsely by one run and by both, 3 seeds")
    for world in BLIND:
        found = [simulate_blind(world, 4 * trials, seed=seed) for seed in (10, 11, 12)]
        figures = [percent(float(np.mean([getattr(each, name) for each in found])), 12 * trials)
                   for name in ("intervals", "by_one", "by_both")]  # fmt: skip
        spread = max(each.by_one for each in found) - min(each.by_one for each in found)
        print(f"  {world!s:<60} answers changed {world.lasting:.0%}", *figures, f"spread {spread:.1%}", flush=True)
    print("% credited of a gain of 5, 10 and 20 points, on 60, 120, 225, 675 and 3,000 images")
    for images in (60, 120, 225, 675, 3000):
        world = World(images=images, lasting=0.4, right=0.55)
        powers = [simulate_blind(world, trials, gain).by_both for gain in (0.05, 0.1, 0.2)]
        print(f"  {images} images:", *(percent(power, trials) for power in powers), flush=True)


def print_pairs(trials: int) -> None:
    """Print the familywise error of all pairs of models of a table, by three seeds."""
    print("pairs: % of tables of equal models in which any pair differs significantly, 3 seeds, and each seed's")
    for world in PAIRS:
        alarms = [simulate(world, trials, seed, all_pairs=True).alarms for seed in (7, 8, 9)]
        each = " ".join(f"{alarm:.1%}" for alarm in alarms)
        print(f"  {world!s:<92} own {world.lasting:.0%}", percent(float(np.mean(alarms)), 3 * trials), each, flush=True)


def print_coverage(title: str, trials: int) -> None:
    """Print the coverage of intervals and the false alarms of tests in the worlds of one part."""
    print(f"{title}: % of intervals with the truth (scores, differences), % of tables with a false alarm")
    for world in WORLDS[title]:
        rounds = trials if world.tests > 1 else 4 * trials
        found = (simulate_averages if title == "averages" else simulate)(world, rounds)
        figures = (percent(share, rounds) for share in (found.scores, found.differences, found.alarms))
        print(f"  {world!s:<92}", *figures, flush=True)


def print_retrieval(trials: int) -> None:
    """Print the coverage of differences of R@1 without and with the influence of images as answers."""
    print("retrieval: % of intervals of a difference with the truth, without and with images as answers")
    for hubs in (0.0, 0.02):
        shares = [simulate_retrieval(300, hubs, 4 * trials, gallery=gallery) for gallery in (False, True)]
        print(f"  300 images, hubs {hubs:g}", *(percent(share, 4 * trials) for share in shares), flush=True)


def print_few_hits(trials: int) -> None:
    """Print how often the difference of two shares near 0 or 1 has an interval, and how often that has the truth."""
    print("few: share of either model, % of pairs with an interval, % of these with the truth, median width in points")
    rng, rounds = np.random.default_rng(12), 4 * trials
    for images, one, two in ((1000, 0.001, 0.001), (1000, 0.003, 0.001), (1000, 0.01, 0.003), (100, 0.01, 0.05),
                             (100, 0.98, 0.99)):  # fmt: skip
        found = []
        for _ in range(rounds):
            ease = rng.random(images)  # half of the images are as easy for both
            other = np.where(rng.random(images) < 0.5, ease, rng.random(images))
            pair = [
                image_scores("mean", [{"x": (own < share).astype(float)}], ("x",), np.arange(images))
                for own, share in ((ease, one), (other, two))
            ]
            found.append(compare(pair[0], pair[1], TrainingNoise()))
        known = [each for each in found if not math.isnan(each.low)]
        inside = float(np.mean([each.low <= one - two <= each.high for each in known]))
        width = 100 * float(np.median([each.high - each.low for each in known]))
        share = 100 * len(known) / rounds
        print(f"  {images} images, {100 * one:g} % and {100 * two:g} %: {share:.0f},", percent(inside, len(known)),
              f"{width:.2f}", flush=True)  # fmt: skip


def print_few_averages(trials: int) -> None:
    """Print the coverage and false alarms of averages over a benchmark of few items and one of many."""
    print("few averages: % of intervals with the truth (averages, differences), % of tables with a false alarm")
    for items, right in ((5, 0.8), (5, 0.5), (10, 0.9), (20, 0.95), (50, 0.98), (200, 0.5)):
        found = simulate_few(items, right, 4 * trials)
        figures = (percent(share, 4 * trials) for share in (found.scores, found.differences, found.alarms))
        print(f"  {items} items, {right:.0%} right", *figures, flush=True)


def print_limits(trials: int) -> None:
    """Print the coverage of one model's intervals where images add nothing, by its seeds and its spread."""
    print("limits: % of intervals with the truth, of one of six models; the others have three seeds")
    rng, rounds, images = np.random.default_rng(13), 4 * trials, np.arange(50)
    for seeds, factor in itertools.product((1, 2, 3), (1.0, 3.0, 5.0)):
        covered = []
        for _ in range(rounds):
            drawn = [*rng.normal(size=(5, 3)), factor * rng.normal(size=seeds)]
            models = [
                Scores(
                    values=row, influence=np.zeros((len(row), 50)), enters=np.ones(50, bool), items=images, trained=True
                )
                for row in drawn
            ]
            covered.append(covers(models[-1], training_noise(models), 0.0))
        print(f"  {seeds} seeds, {factor:g} times the spread:", percent(float(np.mean(covered)), rounds), flush=True)


def print_power(trials: int) -> None:
    """Print the ratio of true differences that tests of a report find, and the power of the stated minimum.

    The errors count the pairs of a table as one, since they share the baseline.
    """
    print("power: % of differences from the baseline found by the reports' tests, of all pairs, by t tests over seeds")
    for world, gain in POWER:
        rounds = max(1, trials // (4 if world.tests == 1 else 10))
        figures = (percent(share, rounds) for share in found_differences(world, rounds, gain))
        print(f"  {world!s:<80} {100 * gain * world.spread:.1f} points", *figures, flush=True)
    print("the minimum detectable difference: its size in points, % of single tests that find it")
    for images, questions in ((50, 3), (100, 5), (500, 2)):
        share, size = smallest_is_found(World(images=images, questions=questions), 2 * trials)
        print(f"  {images} images × {questions}: {100 * size:.1f}", percent(share, 2 * trials), flush=True)


def print_ranks(trials: int) -> None:
    """Print the coverage of averages and mean ranks."""
    print("ranks: % of averages with the truth, % of tables in which equal averages differ, % of mean ranks with the "
          "truth, the same of a bootstrap, and the mean widths of both")  # fmt: skip
    rounds = 3 * trials // 4
    for world, step in itertools.product(RANKS, (0.0, 0.01, 0.05)):
        rng = np.random.default_rng(11)
        found = [simulate_ranks(world, step, rng) for _ in range(rounds)]
        shares = [
            np.mean([getattr(each, name) for each in found]) for name in ("averages", "alarm", "ranks", "bootstrap")
        ]
        widths = np.mean([each.widths for each in found], axis=0)
        figures = (percent(float(share), rounds) for share in shares)
        print(f"  {world!s:<60} step {step:g}", *figures, "widths", *(f"{width:.2f}" for width in widths), flush=True)


def print_plans(trials: int) -> None:
    """Print the power that studies of the recommended numbers of seeds have.

    Pilots vary: it is the mean over them, next to the recommendations' 10 to 90 % range; and how often the printed
    range contains the number that has the power 0.8 in truth.
    """
    print("plans: % of studies of the recommended size that find the difference")
    rng, pilots, studies = np.random.default_rng(11), trials // 4, trials // 2
    for world, gain in PLANS:
        found = [pilot(world, rng) for _ in range(pilots)]
        print(f"  {world}: a difference of {100 * gain:g} points", flush=True)
        sizes = [parts.seeds_for(gain) for parts in found]
        known_sizes = [size for size in sizes if size is not None]
        steps = np.unique(np.quantile(known_sizes, np.linspace(0.05, 0.95, 10)).round().astype(int))
        curve = [power_of_study(dataclasses.replace(world, seeds=int(size)), gain, studies, rng) for size in steps]
        mean = float(np.mean(np.interp(known_sizes, steps, curve)))
        low, high = np.quantile(known_sizes, (0.1, 0.9))
        print(f"    power {percent(mean, studies * len(steps))}, recommended {low:.0f} to {high:.0f} seeds, "
              f"none for {len(sizes) - len(known_sizes)} of {len(sizes)} pilots", flush=True)  # fmt: skip
        enough = next((size for size, reached in zip(steps, curve, strict=True) if reached >= 0.8), None)
        if enough is not None:
            ranges = [[end.seeds_for(gain) for end in parts.bounds()] for parts in found]
            inside = [(low or 1e9) <= enough <= (high or 1e9) for low, high in ranges]
            print(f"    range contains {enough}: {percent(float(np.mean(inside)), len(inside))}", flush=True)


PARTS: Mapping[str, Callable[[int], None]] = {
    **{title: functools.partial(print_coverage, title) for title in WORLDS},
    "pairs": print_pairs,
    "blind": print_blind,
    "retrieval": print_retrieval,
    "few": print_few_hits,
    "few averages": print_few_averages,
    "limits": print_limits,
    "power": print_power,
    "ranks": print_ranks,
    "plans": print_plans,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--part", choices=PARTS, help="run one part only")
    given = parser.parse_args()
    for title in [given.part] if given.part else PARTS:
        PARTS[title](given.trials)


if __name__ == "__main__":
    main()
