"""Random studies for the report's tests, and what their items say of them, computed without the report's code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.report.load_results import MissingValue, ReportSource
from benchmarks.results.baselines import SIGHTED, add_blind_columns, gain_name
from benchmarks.results.noise import (
    Scores,
    TrainingNoise,
    difference_estimate,
    metric_estimate,
    p_values,
    training_noise,
)
from benchmarks.results.protocol import fingerprint
from benchmarks.results.results import Metric, Result
from benchmarks.results.statistics import PairedDifference, compare, compare_with_zero, scores_interval
from benchmarks.study.study_record import RowRecord
from benchmarks.tasks.evaluation import MetricSpec, blind_metrics, compute_metric

MODELS = ("ant", "bee", "cat", "dog", "elk")
LABELS = {"accuracy": True, "CIDEr": True, "error": False, "yes": None, "points": True}
KINDS = {
    "usual": 0.56, "missing": 0.06, "protocol": 0.08, "items": 0.07, "part": 0.05, "one seed's part": 0.02,
    "single": 0.03, "copy": 0.05, "all equal": 0.04, "one seed left": 0.04,
}  # fmt: skip
"""What is special about a model's results on a benchmark → how often; "part", "single": items that have a score."""
SHAPES = {"any": 0.55, "complete": 0.15, "twins": 0.15, "mixed": 0.15}
"""Of a study: any results; a number in each cell; that and two identical models; and one model that is better than its
baseline on one benchmark and worse on the others, while the rest equal it."""
ODD = {"usual": 0.45, "all equal": 0.25, "some seeds": 0.1, "missing": 0.05, "part": 0.05, "single": 0.05, "copy": 0.05}
"""The same of an odd study."""
NOT_RUN = "not run yet"
Pair = frozenset[str]


@dataclasses.dataclass
class Measured:
    """The numbers of one model on one benchmark.

    Args:
        group: 0 for the main protocol.
        value: of the mean over its seeds, in per cent.
        scores: None if its seeds have scores for different items.
        items: names of the items, and which of them have no score; unique if its seeds differ in them.
        seeds: number of different results.
        rows: names of the seeds' rows.
        by_row: the value of each of them, of a pretrained model that of the first.
    """

    group: int
    value: float
    scores: Scores | None
    items: object
    seeds: int
    rows: tuple[str, ...]
    by_row: dict[str, float]


class World:
    """A random study: models with seeds, benchmarks, and results of all kinds that real ones have.

    An ``odd`` one has few images, constant scores, missing seeds, seeds that vary more for one model than for another,
    and scores in points of 100.
    """

    def __init__(self, number: int, *, odd: bool = False) -> None:
        self.rng = rng = np.random.default_rng(number)
        self.odd = odd
        self.shape = str(rng.choice([*SHAPES], p=[*SHAPES.values()]))
        count = rng.choice([1, 2, 3, 4, 5], p=[0.04, 0.2, 0.26, 0.26, 0.24]) if self.shape == "any" else 3
        self.models = [str(name) for name in rng.permutation(MODELS)[: min(count, 2 + number % 2) if odd else count]]
        self.num_seeds = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15] if odd else [0.5, 0.2, 0.3]))
        self.trained = {model: bool(rng.random() < 0.8) for model in self.models}
        self.baseline = str(rng.choice(self.models)) if rng.random() < 0.6 else None
        shares = [0.6, 0.1, 0.05, 0.05, 0.2] if odd else [0.55, 0.2, 0.15, 0.1, 0.0]
        labels = [str(rng.choice([*LABELS], p=shares)) for _ in range(rng.integers(1, 3 if odd else 5))]
        if self.shape != "any":
            labels, self.baseline = (
                ["accuracy"] * (2 if odd else 3),
                self.models[0] if self.shape == "mixed" else self.baseline,
            )
        self.benchmarks = {f"b{place}": label for place, label in enumerate(labels)}
        self.frames: dict[Path, pd.DataFrame] = {}
        self.outcomes: dict[tuple[str, str], Result | MissingValue] = {}
        for benchmark in self.benchmarks:
            self._measure(benchmark)

    def row_name(self, model: str, seed: int) -> str:
        return model if self.num_seeds == 1 else f"{model} (seed {seed})"

    def _measure(self, benchmark: str) -> None:
        rng, label = self.rng, self.benchmarks[benchmark]
        images, per_image = int(rng.choice([1, 2, 5, 30] if self.odd else [6, 30, 90])), int(rng.choice([1, 2]))
        difficulty = rng.random(images * per_image)
        equal_seeds, chance, mllm = rng.random() < 0.2, rng.random() < 0.4, rng.random() < 0.5
        first: list[np.ndarray] = []
        for model in self.models:
            kinds = ODD if self.odd else KINDS
            kind = str(rng.choice([*kinds], p=[*kinds.values()])) if self.shape == "any" else "usual"
            spread = float(rng.choice([0.01, 0.04, 0.3])) if self.odd else 0.04
            skill, gain = float(rng.choice([0.2, 0.45, 0.5, 0.55, 0.85])), float(rng.choice([0.0, 0.3], p=[0.3, 0.7]))
            if self.shape == "mixed":
                kind, skill = "copy", 0.5
                if model == self.models[1]:
                    kind, skill = "usual", 0.85 if benchmark == "b0" else 0.2
            elif self.shape == "twins" and model == self.models[1]:
                kind = "copy"
            own: list[np.ndarray] = []
            for seed in range(self.num_seeds):
                scores = (difficulty < skill + rng.normal(0, spread)) ^ (rng.random(len(difficulty)) < 0.1)
                scores = scores.astype(float) * (1.0 if label != "CIDEr" else rng.random(len(difficulty)) * 2)
                if kind == "copy" and first:
                    scores = first[min(seed, len(first) - 1)]
                if kind == "all equal":
                    ends = (0.0, 1.0) if self.odd else (0.5, 1.0)
                    scores = np.full(len(difficulty), ends[0] if skill < 0.5 else ends[1])
                if kind in {"part", "single"} or (kind == "one seed's part" and seed):
                    end = 1 if kind == "single" else max(1, len(scores) // 2)
                    scores = np.where(np.arange(len(scores)) < end, scores, np.nan)
                if own and (equal_seeds or not self.trained[model]):
                    scores = own[0]
                own.append(scores)
                row = self.row_name(model, seed)
                lacks = kind == "some seeds" and rng.random() < 0.5
                if kind == "missing" or (kind == "one seed left" and seed) or lacks:
                    self.outcomes[row, benchmark] = MissingValue(kind="missing", reason=NOT_RUN)
                    continue
                frame = pd.DataFrame(
                    {"item": [f"{'other ' * (kind == 'items')}{place}" for place in range(len(scores))]}
                )
                frame["image"] = [f"image {place // per_image}" for place in range(len(scores))]
                frame["category"], frame["hit"] = "", scores * (100 if label == "points" else 1)
                how = "other" if kind == "protocol" else "main"
                result = self._result(row, benchmark, frame, how, chance, gain if mllm else None)
                self.outcomes[row, benchmark] = result
            first = first or own

    def _result(
        self, row: str, benchmark: str, frame: pd.DataFrame, prompt: str, chance: bool, gain: float | None
    ) -> Result:
        label, model = self.benchmarks[benchmark], row.split(" ")[0]
        spec = MetricSpec(
            label=label,
            columns=("hit",),
            higher_is_better=LABELS[label],
            aggregation="mean_of_scores" if label == "CIDEr" else "mean",
            **({"scale": 1.0, "most": 100.0} if label == "points" else {}),
        )
        blind: dict[str, Metric] = {}
        levels = {"chance": {"hit": np.full(len(frame), 0.5)}} if chance and label == "accuracy" else {}
        metric = compute_metric(frame, spec, baselines=levels)
        if gain is not None and self.num_seeds == 1 and LABELS[label]:  # a part of the right answers needs the image
            hit = frame["hit"].to_numpy()
            blank = np.where(np.arange(len(hit)) % 10 < 10 * gain, 0.0 * hit, hit)
            add_blind_columns(frame, range(len(hit)), {SIGHTED: {"hit": hit}, "blank": {"hit": blank}})
            blind = blind_metrics(frame, {"m": metric})
        path = Path(f"/none/{row}/{benchmark}.json")
        self.frames[path] = frame
        protocol = {"benchmark": benchmark, "prompt": prompt}
        digest = row if self.trained[model] else model
        return Result(
            model_name=row, benchmark=benchmark, status="ok",
            benchmark_type="mllm" if gain is not None else "retrieval",
            model={"path": f"encoders/{row}", "hash": digest}, metrics={"m": metric, **blind}, primary=("m",),
            protocol=protocol,
            fingerprint=fingerprint(protocol), items="items", path=path,
        )  # fmt: skip

    def source(self) -> ReportSource:
        rows = [
            RowRecord(
                name=self.row_name(model, seed),
                encoder=model,
                seed=seed if self.num_seeds > 1 else None,
                baseline=self.row_name(self.baseline, seed) if self.baseline and model != self.baseline else None,
                artifacts={"encoder": "e", "llava": "l"} if self.trained[model] else {},
            )
            for model in self.models
            for seed in range(self.num_seeds)
        ]
        return ReportSource(
            title="random", question="", notes=(), rows=tuple(rows), benchmarks=tuple(self.benchmarks),
            outcomes=self.outcomes, steps=(), study=None, directory=Path("/none"),
        )  # fmt: skip


class Truth:
    """What the items of a world say; the noise model's formulas have tests of their own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.measured = {(model, name): found for name in world.benchmarks for model, found in self._column(name)}
        self.noise = {
            (name, group): training_noise([
                each.scores for model in world.models
                if (each := self.measured.get((model, name))) and each.group == group and each.scores is not None
            ] if world.num_seeds > 1 else [])
            for name in world.benchmarks for group in (0, 1)
        }  # fmt: skip
        self._set_spreads()

    def _set_spreads(self) -> None:
        """The variance over a model's seeds relative to that of all models, averaged over its ranked metrics."""
        spreads: dict[tuple[str, ...], list[float]] = {}
        for (_, benchmark), each in self.measured.items():
            if each.scores is not None and self.ranked(benchmark):
                spread = self.noise[benchmark, each.group].relative_spread(each.scores)
                spreads.setdefault(each.rows, []).extend([] if spread is None else [spread])
        for each in self.measured.values():
            if each.scores is not None and spreads.get(each.rows):
                each.scores = dataclasses.replace(each.scores, spread=float(np.mean(spreads[each.rows])))

    def title(self, benchmark: str) -> str:
        return f"{benchmark} {self.world.benchmarks[benchmark]}"

    def ranked(self, benchmark: str) -> bool:
        return LABELS[self.world.benchmarks[benchmark]] is not None

    def scale(self, benchmark: str) -> float:
        return 1.0 if self.world.benchmarks[benchmark] == "points" else 100.0

    def has_interval(self, model: str, benchmark: str) -> bool:
        each = self.measured[model, benchmark]
        if each.scores is None:
            return False
        return scores_interval(each.scores, self.noise[benchmark, each.group]).low is not None

    def sign(self, benchmark: str) -> int:
        return -1 if LABELS[self.world.benchmarks[benchmark]] is False else 1

    def _column(self, benchmark: str) -> Iterator[tuple[str, Measured]]:
        world = self.world
        results = {
            row: each for (row, name), each in world.outcomes.items() if name == benchmark and isinstance(each, Result)
        }
        prompts = [str(each.protocol["prompt"]) for each in results.values()]
        main = "main" if prompts.count("main") > prompts.count("other") else "other"
        if prompts and prompts.count("main") == prompts.count("other"):
            of_base = {
                str(each.protocol["prompt"]) for row, each in results.items() if row.split(" ")[0] == world.baseline
            }
            sizes = dict.fromkeys(prompts, 0)
            for each in results.values():
                prompt = str(each.protocol["prompt"])
                sizes[prompt] = max(sizes[prompt], each.metrics["m"].n)
            main = next(iter(of_base), max(sizes, key=lambda prompt: sizes[prompt]))
        for model in world.models:
            own = [results[row] for seed in range(world.num_seeds) if (row := world.row_name(model, seed)) in results]
            if own:
                group = int(own[0].protocol["prompt"] != main)
                yield model, self._measured(model, own, group, self.scale(benchmark))

    def _measured(self, model: str, results: list[Result], group: int, scale: float) -> Measured:
        rows = tuple(each.model_name for each in results)
        frames = [self.world.frames[each.path].sort_values("item") for each in results if each.path]
        value = scale * float(np.mean([np.nanmean(frame["hit"]) for frame in frames]))
        if not self.world.trained[model]:
            frames = frames[:1]
        by_row = {row: scale * float(np.nanmean(frame["hit"])) for row, frame in zip(rows, frames, strict=False)}
        missing = frames[0]["hit"].isna().to_numpy()
        if any((frame["hit"].isna() != missing).any() for frame in frames):
            return Measured(
                group=group, value=value, scores=None, items=object(), seeds=len(frames), rows=rows, by_row=by_row
            )
        items = tuple(frames[0]["item"]), tuple(missing)
        images, owner = np.unique(frames[0]["image"], return_inverse=True)
        values, influence = [], []
        for frame in frames:
            hit = frame["hit"].to_numpy()
            values.append(np.nanmean(hit))
            others = [hit[(owner != place) & ~missing] for place in range(len(images))]
            without = np.array([rest.mean() if len(rest) else np.nan for rest in others])
            inside = np.bincount(owner, ~missing, len(images)) > 0
            if inside.sum() > 1:  # what the mean loses without an image, as the jackknife asks
                influence.append(np.where(inside, (1 - 1 / inside.sum()) * (values[-1] - without), 0.0))
            else:
                each = np.where(missing, 0.0, hit - values[-1]) / (~missing).sum()
                influence.append(np.bincount(owner, each, len(images)))
        most = 100.0 / scale
        inside = all(np.nanmax(frame["hit"]) <= most for frame in frames)
        bounded = inside and results[0].metrics["m"].aggregation == "mean"
        scores = Scores(
            values=np.array(values), influence=np.array(influence), enters=np.bincount(owner, ~missing) > 0,
            items=np.array(items[0], dtype=object), trained=self.world.trained[model] and self.world.num_seeds > 1,
            largest=most if bounded else None,
        )  # fmt: skip
        return Measured(
            group=group, value=value, scores=scores, items=items, seeds=len(frames), rows=rows, by_row=by_row
        )

    def unknown_noise(self, benchmark: str, pair: Iterable[str]) -> bool:
        """Whether the seeds of every model with several seeds agree, so that a trained model has no test."""
        found = [self.measured[model, benchmark] for model in pair]
        trained = any(each.scores is not None and each.scores.trained for each in found)
        return trained and self.noise[benchmark, found[0].group].without_spread

    def testable(self, benchmark: str, first: str, second: str) -> bool:
        one, other = (self.measured.get((model, benchmark)) for model in (first, second))
        if one is None or other is None or one.group != other.group or one.items != other.items:
            return False
        return self.has_interval(first, benchmark) and self.has_interval(second, benchmark)

    def factor(self, benchmark: str, pair: Pair) -> float:
        """Of a p-value: half the number of models of which the top one was chosen, unless the pair was planned."""
        if self.world.baseline in pair:
            return 1.0
        return next(len(models) for models in self.sets(benchmark) if pair <= set(models)) / 2

    def difference(self, benchmark: str, first: str, second: str) -> tuple[PairedDifference, float]:
        """The difference of two models, and its p-value, not corrected."""
        one, other = (self.measured[model, benchmark].scores for model in (first, second))
        assert one is not None
        assert other is not None
        noise = self.noise[benchmark, self.measured[first, benchmark].group]
        return compare(one, other, noise), float(p_values([difference_estimate(one, other, noise)])[0])

    def sets(self, benchmark: str) -> list[list[str]]:
        """The models with the same protocol and items, best first."""
        found: dict[object, list[str]] = {}
        measured = {
            model: self.measured[model, benchmark] for model in self.world.models if (model, benchmark) in self.measured
        }
        for model in sorted(measured, key=lambda name: -self.sign(benchmark) * round(measured[name].value, 9)):
            found.setdefault((measured[model].group, measured[model].items), []).append(model)
        return [*found.values()]

    def needed(self) -> set[tuple[str, Pair]]:
        """The tests that marks and differences from the baseline need."""
        found = set()
        for benchmark in self.world.benchmarks:
            pairs = [
                (model, self.world.baseline) for model in self.world.models if self.world.baseline not in {model, None}
            ]
            pairs += [(each[0], other) for each in self.sets(benchmark) for other in each[1:] if self.ranked(benchmark)]
            found |= {(benchmark, frozenset(pair)) for pair in pairs if self.testable(benchmark, pair[0], str(pair[1]))}
        return found

    def credited(self, model: str, benchmark: str) -> bool | None:
        result = next(each for (row, name), each in self.world.outcomes.items()
                      if row.split(" ")[0] == model and name == benchmark and isinstance(each, Result))  # fmt: skip
        known = gain_name("m", "blank") in result.metrics and self.ranked(benchmark)
        if not known or not self.has_interval(model, benchmark):
            return None
        frame = self.world.frames[Path(str(result.path))].sort_values("item")
        each = self.measured[model, benchmark]
        assert each.scores is not None
        lost = (frame["hit"] - frame["blank:hit"]).to_numpy()
        if not np.nansum(lost):
            return False
        missing, (images, owner) = np.isnan(lost), np.unique(frame["image"], return_inverse=True)
        value = lost[~missing].mean()
        influence = np.bincount(owner, np.where(missing, 0.0, lost - value) / (~missing).sum(), len(images))
        if ((counts := np.bincount(owner, ~missing, len(images))) > 0).sum() > 1:
            influence *= (1 - 1 / (counts > 0).sum()) / (1 - counts / counts.sum())
        gain = dataclasses.replace(each.scores, values=np.array([value]), influence=influence[None], is_gain=True)
        estimate = metric_estimate(gain, TrainingNoise())
        if not estimate.standard_error:
            tested = compare_with_zero(gain, TrainingNoise())
            return None if np.isnan(tested.low) else tested.low > 0
        return bool(p_values([estimate])[0] < 0.05 and value > 0)


def holm(raw: dict[tuple[str, Pair], float]) -> dict[tuple[str, Pair], float]:
    """Holm's step-down, written out."""
    found, largest = {}, 0.0
    for place, key in enumerate(sorted(raw, key=lambda each: raw[each])):
        largest = max(largest, min(1.0, (len(raw) - place) * raw[key]))
        found[key] = largest
    return found
