"""Every table, interval and verdict of docs/scores/README.md, from the scores of its studies and each image's hits.

    python scripts/judge_claims.py docs/scores
    python scripts/judge_claims.py docs/scores --export runs/lengths    # add the scores of a finished study
    python scripts/judge_claims.py docs/scores --figure docs/equal_compute.svg --claims docs/claims.svg

``STUDY.csv`` has a line for each encoder, seed and metric, with the minutes and, of an encoder, the steps and MFLOPs
per sample of its training; ``STUDY.parquet`` the value of each item, from which the others are computed, by the noise
model of docs/statistics.md. A claim is a weighted sum of the means over seeds of several encoders. It is tested
together with the others of its experiment (Holm), at 5 %. docs/scores/README.md lists what was reworded or added
after the studies.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.report.figures import Figure, LegendEntry, Palette, render_svg
from benchmarks.report.load_results import read_source
from benchmarks.report.plots import plot_intervals
from benchmarks.report.text_table import markdown_frame
from benchmarks.results.formatting import commit_text
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.measure import ItemTable, with_gallery
from benchmarks.results.noise import ALPHA, Scores, TrainingNoise, contrast_estimate, p_values, training_noise
from benchmarks.results.result_types import BLOCKER
from benchmarks.results.results import Result, read_items
from benchmarks.results.statistics import holm_correction, image_scores, scores_interval
from benchmarks.study.state import find_producer, read_record
from clips.core.artifact import MANIFEST, read_manifest
from clips.core.durable import atomic_write
from clips.errors import UserError

_SCALE = 100.0  # hits to per cent, and CIDEr as in papers
_MEANS = ("mean", "mean_of_scores")
# exported, though no primary metrics; the first is of code before the second
_ALSO = ("CIDEr_gain", "CIDEr_over_other_image")
_GAIN = "gain over another image"
_KEY = ["encoder", "seed", "benchmark", "metric"]
_RANK_ONE = {"i2t_r1", "t2i_r1"}  # whose misses have an image that blocks them
_ROUNDING = 1e-3  # of a value in the CSV, in points
T2I = "t2i_r1"
_CIDER = "nocaps_CIDEr"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement and the contrast that decides it.

    Args:
        name: a letter for the experiment, and a number unless it is a contrast.
        text: in the words of the paper, where it is one of the paper's.
        study: name of the study.
        benchmark: name of the column.
        metric: of the column.
        weights: encoder → weight of its mean over seeds.
        seeds: planned number; there is no verdict with fewer.
        above: the verdict if the contrast is significantly above 0.
        below: the verdict if it is significantly below 0.
        condition: its column in the table of contrasts; a contrast has an interval and no verdict. Empty for a claim.
        requires: a benchmark and its metrics, of which the first that was measured of these encoders is above 0 for all
            their seeds, or nothing is decided.
    """

    name: str
    text: str
    study: str
    benchmark: str
    metric: str = T2I
    weights: Mapping[str, float]
    seeds: int
    above: str = "reproduced"
    below: str = "contradicted"
    condition: str = ""
    requires: tuple[str, ...] = ()


# FLOPs of a sample in those of CLIP at L/14 (scripts/configs/clips-l-14.yaml): at 224 pixels, and over its three stages
COSTS = {
    "clip": (1.0, 1.0),
    "veclip": (1.0, 1.0),
    "multi_positive": (1.07, 1.29),
    "sentences": (1.22, 1.88),
    "clips": (1.58, 2.45),
}


def _run(name: str, steps: int) -> str:
    """The name of a recipe's encoder after so many steps with 25 % noise; those of B have no number of steps."""
    return f"{name}.25" if steps == 300 and name in ("clip", "clips", "multi_positive") else f"{name}.25.{steps}"


def minus_after(name: str, steps: float) -> dict[str, float]:
    """Weights of minus a recipe's score after so many steps, linear in their logarithm between those that are run."""
    short = max(run for run in (150, 300, 600) if run <= steps or run == 150)
    share = math.log(steps / short) / math.log(2)
    return {_run(name, short): share - 1, _run(name, 2 * short): -share}


_A = functools.partial(Claim, study="lengths", seeds=6)
_B = functools.partial(Claim, study="positives", benchmark="held_out", seeds=3)
_C = functools.partial(Claim, study="captioner", seeds=5)
_NOISES = (0, 25, 50)
_OURS: dict[str, Any] = {"above": "holds", "below": "does not hold"}  # of claims that are not the paper's
_LOOKS = ("captions", _GAIN)
_SEES = ("recaption", "CIDEr_over_other_image")
_DESCRIBES = ("recaption", "CIDEr_gain", "CIDEr_over_other_image")  # recaption writes the second instead of the first
CLAIMS: tuple[Claim, ...] = (
    # A, the inverse effect
    _A(name="A1", text="shorter synthetic captions train better, short queries", benchmark="short",
       weights={"sentence": 1, "whole": -1}),
    _A(name="A2", text="shorter synthetic captions train better, long queries", benchmark="long",
       weights={"sentence": 1, "whole": -1}, **_OURS),
    _A(name="A3", text="a fixed sentence has more than half of the gain of a sampled one", benchmark="short",
       weights={"fixed_sentence": 1, "sentence": -0.5, "whole": -0.5},
       above="it has more", below="it has less"),
    *(_A(name="A", text=f"{first} − {second}", benchmark=benchmark, weights={first: 1, second: -1},
         condition=f"{benchmark} queries")
      for first, second in (("random_32", "whole"), ("fixed_sentence", "whole"), ("sentence", "fixed_sentence"),
                            ("shuffled", "whole"), ("sentence", "shuffled"), ("truncate_32", "whole"),
                            ("sentence", "truncate_32"), ("sentence", "whole.50"), ("sentence", "whole.100"))
      for benchmark in ("short", "long")),
    *(_A(name="A", text=f"{first} − mean of sentence and whole", benchmark=benchmark,
         weights={first: 1, "sentence": -0.5, "whole": -0.5}, condition=f"{benchmark} queries")
      for first in ("fixed_sentence", "shuffled") for benchmark in ("short", "long")),
    # B, several positives under noise
    _B(name="B1", text="CLIPS is above CLIP at equal samples",
       weights={f"{name}.{noise}": sign / 3 for noise in _NOISES for name, sign in (("clips", 1), ("clip", -1))}),
    _B(name="B2", text="a clean second positive is above none",
       weights={f"{name}.{noise}": sign / 3 for noise in _NOISES
                for name, sign in (("multi_positive", 1), ("clip", -1))}),
    _B(name="B3", text="a synthetic second positive is above a second web caption, under noise",
       weights={f"{name}.{noise}": sign / 2 for noise in _NOISES[1:]
                for name, sign in (("multi_positive", 1), ("two_web", -1))}, **_OURS),
    _B(name="B4", text="the gain of the second positive is larger with 50 % noise than without",
       weights={"multi_positive.50": 1, "clip.50": -1, "multi_positive.0": -1, "clip.0": 1}, **_OURS),
    *(_B(name="B", text=f"{first} − {second}", condition=f"{noise} % noise",
         weights={f"{first}.{noise}": 1, f"{second}.{noise}": -1})
      for first, second in (("clips", "clip"), ("multi_positive", "clip"), ("two_web", "clip"),
                            ("multi_positive", "two_web"), ("clips", "multi_positive"))
      for noise in _NOISES),
    *(_B(name="B", text=f"{first} − {second}", condition="mean",
         weights={f"{name}.{noise}": sign / 3 for noise in _NOISES for name, sign in ((first, 1), (second, -1))})
      for first, second in (("two_web", "clip"), ("clips", "multi_positive"))),
    *(_B(name="B", text=f"multi_positive − {second}", condition=f"from {low} to {high} %",
         weights={f"multi_positive.{high}": 1, f"{second}.{high}": -1,
                  f"multi_positive.{low}": -1, f"{second}.{low}": 1})
      for second, low, high in (("clip", 0, 25), ("clip", 25, 50), ("two_web", 0, 50))),
    # C, the captioner
    _C(name="C1", text="the captioner helps retrieval, equal samples", benchmark="held_out",
       weights={"clips": 1, "multi_positive": -1}, requires=_DESCRIBES),
    _C(name="C2", text="the same, 1.5 times the samples without it", benchmark="held_out",
       weights={"clips": 1, "multi_positive_long": -1}, requires=_DESCRIBES),
    _C(name="C3", text="the captioner helps a linear probe, equal samples", benchmark="objects", metric="acc1",
       weights={"clips": 1, "multi_positive": -1}, requires=_DESCRIBES),
    _C(name="C4", text="the captioner helps inside a LLaVA, equal samples", benchmark="captions",
       metric=_CIDER, weights={"clips": 1, "multi_positive": -1}, requires=_LOOKS),
    # added after the results of C1 to C4
    _C(name="C5", text="a captioner with teacher forcing helps retrieval, equal samples", benchmark="held_out",
       weights={"teacher_forced": 1, "multi_positive": -1}, requires=_SEES, **_OURS),
    _C(name="C6", text="a captioner with teacher forcing helps a linear probe, equal samples", benchmark="objects",
       metric="acc1", weights={"teacher_forced": 1, "multi_positive": -1}, requires=_SEES, **_OURS),
    _C(name="C7", text="a captioner with teacher forcing helps inside a LLaVA, equal samples", benchmark="captions",
       metric=_CIDER, weights={"teacher_forced": 1, "multi_positive": -1}, requires=_LOOKS, **_OURS),
    *(_C(name="C", text=f"{first} − {second}", condition=metric, benchmark=benchmark, metric=metric,
         weights={first: 1, second: -1})
      for first, second in (("multi_positive_long", "multi_positive"), ("teacher_forced", "clips"))
      for benchmark, metric in (("held_out", T2I), ("objects", "acc1"))),
    # D, equal compute
    *(_B(name=f"D{number}", text=f"CLIPS is above CLIP at equal compute, by the cost at L/14 and {what}",
         weights={"clips.25": 1} | minus_after("clip", 300 * cost), **_OURS)
      for number, (what, cost) in enumerate(zip(("224 px", "the whole schedule"), COSTS["clips"], strict=True), 1)),
    *(_B(name="D", text=f"{name} − {other}{label}", condition=f"{steps} steps",
         weights={_run(name, steps): 1} | minus_after(other, steps * COSTS[name][cost] / COSTS[other][cost]))
      for name, other, cost, label in (
          ("clips", "clip", 0, ", 224 px"), ("clips", "clip", 1, ""), ("multi_positive", "clip", 1, ""),
          ("sentences", "clip", 1, ""), ("veclip", "clip", 1, ""), ("clips", "veclip", 0, ", 224 px"),
          ("clips", "veclip", 1, ""), ("multi_positive", "veclip", 1, ""), ("clips", "sentences", 1, ""),
          ("clips", "multi_positive", 0, ", 224 px"), ("clips", "multi_positive", 1, ""))
      for steps in (150, 300, 600)
      if 150 <= steps * COSTS[name][cost] / COSTS[other][cost] <= (1200 if other == "clip" else 600)),
    *(_B(name="D", text="clips − clip after 600 steps, its best", condition=f"{steps} steps",
         weights={_run("clips", steps): 1, "clip.25.600": -1})
      for steps in (150, 300, 600)),
    *(_B(name="D", text="clips − multi_positive, equal samples", condition=f"{steps} steps",
         weights={_run("clips", steps): 1, _run("multi_positive", steps): -1})
      for steps in (150, 300, 600)),
)  # fmt: skip


# ---------------------------------------------------------------- export: a study's results → docs/scores


def export(directory: Path, scores: Path) -> None:
    """Write ``STUDY.csv`` and ``STUDY.parquet`` of a study's results; those of a metric that is no mean are left out.

    Raises:
        UserError: no study, or no such result.
    """
    source, tables = read_source(directory), ItemScores()
    if source.study is None:
        raise UserError(f"{directory}: expected the output of a study")
    trainings = {path: find_producer(directory / path) for row in source.rows for path in row.artifacts.values()}
    lines, items = [], []
    for row in source.rows:
        encoder = directory / row.artifacts.get("encoder", ".") / MANIFEST
        training = read_manifest(encoder.parent) if encoder.is_file() else {}
        flops = (training.get("last") or {}).get("flops_per_sample")
        for benchmark in source.benchmarks:
            result = source.outcomes[row.name, benchmark]
            if not isinstance(result, Result):
                continue
            frame, step = tables.items(result), read_record(directory, row.cells[benchmark].step)
            if frame is None:
                continue
            made = trainings.get(row.artifacts.get("llava" if result.benchmark_type == "mllm" else "encoder", ""))
            for name, metric, values in _means(result, frame):
                key = {"encoder": row.model, "seed": row.seed, "benchmark": benchmark, "metric": name}
                kept = pd.DataFrame({"item": frame["item"], "image": frame["image"], "value": values, **key})
                if BLOCKER in frame and name in _RANK_ONE:
                    kept[BLOCKER] = frame[BLOCKER]
                if name == "CIDEr":  # of recaption
                    kept["caption"] = frame["item"].map(read_items(result).set_index("item")["prediction"])
                items.append(kept[kept["value"].notna()])
                lines.append({
                    "study": source.study.name,
                    "commit": commit_text(step.git) if step else "",
                    **key,
                    "value": round(metric, 6),
                    "n": len(items[-1]),
                    "minutes": round(made[1].seconds / 60, 1) if made else None,
                    "steps": training.get("steps"),
                    "mflop": round(flops / 1e6, 1) if flops else None,
                })  # fmt: skip
    if not lines:
        raise UserError(f"{directory}: expected results with items")
    scores.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(lines).astype({"steps": "Int64"}).to_csv(
        scores / f"{source.study.name}.csv", index=False, lineterminator="\n"
    )
    table = pd.concat(items, ignore_index=True).astype({"value": "float32", "seed": "Int64"})
    table.to_parquet(scores / f"{source.study.name}.parquet", index=False, compression="zstd")


def _means(result: Result, frame: pd.DataFrame) -> Iterator[tuple[str, float, pd.Series]]:
    """Name, value in points and items of the metrics that are a mean over items, and the gain over another image."""
    for name in (*result.primary, *_ALSO):
        metric = result.metrics.get(name)
        if metric is None or metric.aggregation not in _MEANS or len(metric.columns) > 1:
            continue
        if metric.scale != _SCALE:
            raise UserError(f"{result.path}: {name}: expected a metric in per cent")
        column = metric.columns[0]
        yield name, metric.value * _SCALE, frame[column]
        if f"shuffled:{column}" in frame:
            gain = frame[f"sighted:{column}"] - frame[f"shuffled:{column}"]
            yield _GAIN, float(gain.mean()) * _SCALE, gain


# ---------------------------------------------------------------- the noise model on these items


@dataclass(frozen=True)
class Column:
    """One metric of one benchmark: encoder → its scores, the same → its seeds, and the noise of all."""

    scores: dict[str, Scores]
    seeds: dict[str, tuple[int, ...]]
    noise: TrainingNoise


def read_study(folder: Path, study: str) -> dict[tuple[str, str], Column]:
    """(benchmark, metric) → its column, as a report has it.

    Raises:
        UserError: a file is missing, or the CSV contradicts the items.
    """
    try:
        lines = pd.read_csv(folder / f"{study}.csv")
        items = pd.read_parquet(folder / f"{study}.parquet")
    except FileNotFoundError as error:
        raise UserError(f"{folder}: expected {study}.csv and {study}.parquet ({error})") from None
    means = _SCALE * items.groupby(_KEY)["value"].mean()
    stated = lines.set_index(_KEY)["value"]
    if sorted(means.index) != sorted(stated.index) or (means - stated).abs().max() > _ROUNDING:
        raise UserError(f"{folder / study}.csv: expected the means of the items in {study}.parquet")
    columns: dict[tuple[str, str], Column] = {}
    spreads: dict[str, list[float]] = {}
    for (benchmark, metric), part in items.groupby(["benchmark", "metric"]):
        of_encoder = {str(name): of_items(rows, str(metric)) for name, rows in part.groupby("encoder")}
        seeds = {str(name): tuple(sorted(set(rows["seed"]))) for name, rows in part.groupby("encoder")}
        noise = training_noise([*of_encoder.values()])
        columns[str(benchmark), str(metric)] = Column(of_encoder, seeds, noise)
        for name, found in of_encoder.items():
            if (spread := noise.relative_spread(found)) is not None:
                spreads.setdefault(name, []).append(spread)
    for column in columns.values():  # a model's own half of the variance is the mean over the table, as in a report
        for name, found in column.scores.items():
            spread = fmean(spreads[name]) if name in spreads else None
            column.scores[name] = dataclasses.replace(found, spread=spread)
    return columns


def of_items(rows: pd.DataFrame, metric: str) -> Scores:
    """One encoder's metric, from its items of all seeds."""
    tables = []
    for _, frame in rows.rename(columns={"value": metric}).sort_values("item").groupby("seed"):
        keys = (frame["item"] + "\n" + frame["image"]).to_numpy(dtype=object)
        names, clusters = np.unique(frame["image"].to_numpy(), return_inverse=True)
        tables.append(ItemTable(frame, keys, clusters, names))
    first = tables[0]
    if any(not np.array_equal(table.keys, first.keys) for table in tables):
        raise UserError(f"{rows['encoder'].iloc[0]}: expected the same items of {metric} for every seed")
    bounded = bool(rows["value"].between(0, 1).all())
    values = [{metric: table.frame[metric].to_numpy(float)} for table in tables]
    formula = _MEANS[0] if bounded else _MEANS[1]
    found = image_scores(formula, values, [metric], first.clusters, items=first.keys, trained=True)
    found = dataclasses.replace(found, images=first.images)
    if BLOCKER not in rows or rows[BLOCKER].isna().all():
        return found
    return with_gallery(found, (metric,), tables)


# ---------------------------------------------------------------- tables and verdicts


def score_table(columns: Mapping[tuple[str, str], Column]) -> pd.DataFrame:
    """Encoder × metric: the mean over seeds with its 95 % interval over images and seeds; and the number of seeds."""
    cells: dict[str, dict[str, str]] = {}
    for (benchmark, metric), column in columns.items():
        for name, scores in column.scores.items():
            found = scores_interval(scores, column.noise)
            ends = (found.low, found.high)
            text = "" if None in ends else " [" + ", ".join(f"{_SCALE * float(end or 0):.1f}" for end in ends) + "]"
            row = cells.setdefault(name, {"seeds": ""})
            seeds = str(len(column.seeds[name]))
            row["seeds"] = seeds if row["seeds"] in ("", seeds) else "not the same"
            row[f"{benchmark} {metric}"] = f"{_SCALE * scores.value:.1f}{text}"
    return pd.DataFrame.from_dict(cells, orient="index").fillna("—").sort_index().rename_axis("encoder")


def caption_table(items: pd.DataFrame) -> pd.DataFrame:
    """What the captioners of a study write, by encoder.

    Columns: seeds; captions; distinct, the per cent of them that no other image has in the same seed; words, the mean
    number in a caption, and how many of these are distinct; the most frequent word with its share of all words; and the
    beginning of the caption of the first image with the first seed.
    """
    rows = {}
    for name, part in items.dropna(subset="caption").sort_values(["seed", "item"]).groupby("encoder"):
        words = part["caption"].str.lower().str.findall(r"[a-z']+")
        counts = words.explode().value_counts()
        rows[name] = {
            "seeds": part["seed"].nunique(),
            "captions": len(part),
            "distinct": f"{100 * (1 - part.duplicated(['seed', 'caption'], keep=False).mean()):.0f} %",
            "words": f"{words.str.len().mean():.0f} each, of {words.map(set).str.len().mean():.0f} kinds",
            "most frequent": f"{counts.index[0]} ({100 * counts.iloc[0] / counts.sum():.0f} %)",
            "first caption": textwrap.shorten(part["caption"].iloc[0], 80, placeholder=" …"),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("encoder")


def curves(folder: Path, column: Column) -> pd.DataFrame:
    """T→I R@1 of the encoders of `COSTS` by the FLOPs of their training, in those of 300 steps of clip.

    Columns: recipe, steps, value, low and high (a 95 % interval), cost (as it was here) and cost_l14 (if a sample had
    the cost at L/14, over the whole schedule).
    """
    lines = pd.read_csv(folder / "positives.csv").query("metric == @T2I").groupby("encoder")
    flops, steps = lines["mflop"].mean(), lines["steps"].first()
    rows = []
    for name, (_, cost) in COSTS.items():
        for encoder in (f"{name}.25{end}" for end in ("", ".150", ".300", ".600", ".1200")):
            if encoder in column.scores:
                found = scores_interval(column.scores[encoder], column.noise)
                share = steps[encoder] / steps["clip.25"]
                rows.append({
                    "recipe": name, "steps": steps[encoder], "value": _SCALE * column.scores[encoder].value,
                    "low": _SCALE * (found.low or 0.0), "high": _SCALE * (found.high or 0.0),
                    "cost": share * flops[encoder] / flops["clip.25"], "cost_l14": share * cost,
                })  # fmt: skip
    return pd.DataFrame(rows).sort_values(["recipe", "steps"], ignore_index=True)


SHOWN = {
    "A1": "sentence − whole caption, short queries",
    "A2": "sentence − whole caption, long queries",
    "B1": "CLIPS − CLIP, equal samples",
    "B2": "a second positive − none, equal samples",
    "C1": "captioner − none, equal samples",
    "D1": "CLIPS − CLIP, equal compute at 224 px",
    "D2": "CLIPS − CLIP, equal compute, all sizes",
    "E3": "CLIPS − CLIP, equal compute, in a race",
    "E4": "CLIPS − CLIP inside a LLaVA, its points",
}
"""The claims that README shows, in the words of the figure."""


def draw_claims(judged: pd.DataFrame) -> str:
    """SVG of the claims of `SHOWN`: estimates, 95 % intervals and verdicts."""
    verdicts = {claim.name: {claim.above: "better", claim.below: "worse"} for claim in CLAIMS}
    race = {"reproduced": "better", "contradicted": "worse"}
    lines, rows = [], []
    for name, text in SHOWN.items():
        claim = judged.loc[[name]].iloc[0]
        value, low, high = (float(number) for number in re.findall(r"[-+][\d.]+", claim["estimate"]))
        lines.append((value, low, high, verdicts.get(name, race).get(claim["verdict"], "not significant")))
        rows.append((text, claim["estimate"], claim["verdict"]))
    what = "; ".join(f"{text} {estimate}, {verdict}" for text, estimate, verdict in rows)
    return render_svg(
        Figure(
            name="claims",
            title="Claims of the paper on small photographs",
            alt=f"Differences in points of T→I R@1 (inside a LLaVA of its scores) with 95 % intervals: {what}",
            plot=plot_intervals([*SHOWN.values()], lines),
            x_label="points (R@1 of T→I, or of a LLaVA)",
            headers=("claim", "estimate", "verdict"),
            rows=tuple(rows),
            height=2.6,
            vertical_grid=True,
        )
    )


def draw_curves(table: pd.DataFrame) -> str:
    """SVG of `curves`; dashed lines are where clip has the FLOPs of 300 steps of clips at L/14."""

    def plot(axes: Any, palette: Palette) -> None:
        for place, (_, part) in enumerate(table.groupby("recipe")):
            color = palette.series(place)
            axes.plot(part["cost"], part["value"], color=color, linewidth=1.8, marker="o", markersize=3.5)
            axes.vlines(part["cost"], part["low"], part["high"], color=color, linewidth=1.2, alpha=0.6)
        for cost in COSTS["clips"]:
            axes.axvline(cost, linestyle="--", linewidth=0.8, color=palette["ink-soft"])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")

    names = [str(name) for name in table["recipe"].unique()]
    columns = ("recipe", "steps", "cost", "value", "low", "high")
    return render_svg(
        Figure(
            name="equal_compute",
            title="T→I R@1 by the FLOPs of the training",
            alt="T→I R@1 of five recipes after 150 to 1,200 steps, by the FLOPs of the training",
            plot=plot,
            x_label="FLOPs of the training, in those of 300 steps of clip",
            y_label="T→I R@1 (%)",
            legend=tuple(LegendEntry(color=place, label=name) for place, name in enumerate(names)),
            headers=columns,
            rows=tuple(tuple(str(value) for value in row) for row in table[[*columns]].to_numpy()),
        )
    )


def judge(claims: Sequence[Claim], columns: Mapping[str, Mapping[tuple[str, str], Column]]) -> pd.DataFrame:
    """A line for each claim: estimate, interval, Student's interval over seeds, corrected p-value, MDD, verdict and
    condition.
    """
    lines, raw = [], {}
    for claim in claims:
        column = columns.get(claim.study, {}).get((claim.benchmark, claim.metric))
        known = column.scores if column else {}
        line = {"claim": claim.name, "": claim.text, "estimate": "—", "seeds alone": "", "p": "", "MDD": "",
                "verdict": "not run", "condition": claim.condition}  # fmt: skip
        lines.append(line)
        if column is None or not known.keys() >= claim.weights.keys():
            continue
        estimate = contrast_estimate([known[name] for name in claim.weights], [*claim.weights.values()], column.noise)
        estimate = estimate.scaled(_SCALE)
        low, high = estimate.interval()
        line["estimate"] = f"{estimate.value:+.1f} [{low:+.1f}, {high:+.1f}]"
        line["MDD"] = f"{estimate.min_detectable:.1f}"
        line["verdict"] = "inconclusive"
        seeds = {column.seeds[name] for name in claim.weights}
        if len(seeds) == 1 and len(next(iter(seeds))) > 1:
            each = _SCALE * sum(weight * known[name].values for name, weight in claim.weights.items())
            line["seeds alone"] = "[{:+.1f}, {:+.1f}]".format(*_student_interval(np.asarray(each)))
        missing = [name for name in claim.weights if len(column.seeds[name]) < claim.seeds]
        if missing:
            line["verdict"] = f"incomplete: fewer than {claim.seeds} seeds of {', '.join(missing)}"
        elif not claim.condition and math.isfinite(low) and not _lacks(claim, columns[claim.study], line):
            raw[len(lines) - 1] = (claim, estimate.value, float(p_values([estimate])[0]))
    for experiment in dict.fromkeys(claim.name[0] for claim in claims):
        # claims that are not tested yet count as tests: a verdict does not change when they are
        own = {place: found for place, found in raw.items() if found[0].name[0] == experiment}
        absent = sum(not claim.condition and claim.name[0] == experiment for claim in claims) - len(own)
        corrected = holm_correction([found[2] for found in own.values()] + [1.0] * absent)
        for (place, (claim, value, _)), p_value in zip(own.items(), corrected[: len(own)], strict=True):
            lines[place]["p"] = f"{p_value:.2g}"
            if p_value < ALPHA:
                lines[place]["verdict"] = claim.above if value > 0 else claim.below
    return pd.DataFrame(lines).set_index("claim")


def contrast_table(judged: pd.DataFrame) -> pd.DataFrame:
    """Estimate and interval of the lines of `judge` that have a condition: contrast × condition."""
    lines = judged[judged["condition"] != ""]
    shown = lines["estimate"].where(~lines["verdict"].str.startswith("incomplete"), lines["estimate"] + " (incomplete)")
    indexed = shown.set_axis(pd.MultiIndex.from_frame(lines[["", "condition"]]))
    return indexed.unstack(sort=False).fillna("").rename_axis(index="contrast", columns=None)


def _lacks(claim: Claim, columns: Mapping[tuple[str, str], Column], line: dict[str, str]) -> bool:
    """Whether a score that the claim requires is not above 0 for every seed; the line then says so."""
    if not claim.requires:
        return False
    benchmark, *metrics = claim.requires
    for metric in metrics:
        found = columns[benchmark, metric].scores if (benchmark, metric) in columns else {}
        if measured := [found[name].values for name in claim.weights if name in found]:
            if all((values > 0).all() for values in measured):
                return False
            break
    line["verdict"] = f"not tested: {benchmark} {metric} is not above 0"
    return True


def _student_interval(values: np.ndarray | pd.Series) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds, by their spread alone."""
    half = float(stats.sem(values) * stats.t.ppf(1 - ALPHA / 2, len(values) - 1))
    return float(values.mean()) - half, float(values.mean()) + half


def judge_race(lines: pd.DataFrame) -> pd.DataFrame:
    """Claims E about ``race_photos``, whose hits were not kept: Student's intervals over pairs of equal seeds.

    Args:
        lines: of its CSV.
    """
    score = lines.set_index(["encoder", "metric", "seed"])["value"].unstack()  # seeds in columns
    retrieval = score.xs(T2I, level="metric")
    inside = score.drop(T2I, level="metric").groupby("encoder").mean()  # of a LLaVA: mean of CIDEr and exact match
    raced = retrieval.index
    orders = retrieval.corrwith(inside.loc[raced], method="spearman")
    repeated = inside.loc[raced].corr(method="spearman").to_numpy()[np.triu_indices(inside.shape[1], 1)].mean()
    pairs = [("E1", "retrieval", name, "clip") for name in ("veclip", "sentences", "clips")]
    pairs += [("E2", "retrieval", "sentences", "veclip")]
    pairs += [("E3", "retrieval", "clips", name) for name in raced if name != "clips"]
    pairs += [("E4", "LLaVA", "clips", "clip"), ("E5", "LLaVA", "caption_only", "clip")]
    found = []
    for claim, what, first, second in pairs:
        scores = retrieval if what == "retrieval" else inside
        found.append((claim, f"{first} − {second}, {what}", scores.loc[first] - scores.loc[second]))
    cider = score.xs(_CIDER, level="metric")
    found.append(("", "caption_only − clip, CIDEr alone", cider.loc["caption_only"] - cider.loc["clip"]))
    found.append(("E6", "Spearman's correlation of the orders", orders))
    rows = []
    for claim, text, values in found:
        mean, digits = float(values.mean()), 2 if claim == "E6" else 1
        low, high = _student_interval(values)
        if claim == "E6":
            verdict = "reproduced" if mean < 0.5 and high < 1 else "contradicted" if mean > 0.9 else "inconclusive"
            if repeated < 0.5:  # an order that is noise correlates with no other one
                verdict = f"not tested: the order inside a LLaVA correlates by {repeated:.1f} between seeds"
        else:
            verdict = "" if not claim else "reproduced" if low > 0 else "contradicted" if high < 0 else "inconclusive"
        rows.append({
            "claim": claim, "": text, "seeds": str(len(values)), "verdict": verdict,
            "estimate": f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("claim")[["", "estimate", "seeds", "verdict"]]


def _for_dark_pages(svg: str) -> str:
    style = "<style>@media (prefers-color-scheme: dark) { svg { filter: invert(1) hue-rotate(180deg); } }</style>"
    return svg.replace("</desc>", f"</desc>{style}", 1)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--export", type=Path, metavar="STUDY", help="output of a finished study")
    parser.add_argument("--figure", type=Path, metavar="SVG", help="the curves of equal compute")
    parser.add_argument("--claims", type=Path, metavar="SVG", help="the claims with their intervals")
    args = parser.parse_args()
    try:
        if args.export:
            export(args.export, args.scores)
        studies = {path.stem: read_study(args.scores, path.stem) for path in sorted(args.scores.glob("*.parquet"))}
        for name, columns in studies.items():
            means = score_table(columns)
            wide = len(means.columns) > len(means)
            print(f"## {name}\n\n{markdown_frame(means.T.rename_axis('') if wide else means)}\n")
            if name == "positives":
                table = curves(args.scores, columns["held_out", T2I])
                shown = table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
                print(f"## Equal compute\n\n{markdown_frame(shown.set_index('recipe'))}\n")
                if args.figure:
                    atomic_write(args.figure, _for_dark_pages(draw_curves(table)))
        for name in studies:
            if "caption" in (items := pd.read_parquet(args.scores / f"{name}.parquet")):
                print(f"## Captions of {name}\n\n{markdown_frame(caption_table(items).astype(str))}\n")
        judged = judge(CLAIMS, studies)
        tested = judged[judged["condition"] == ""].drop(columns=["", "condition"])
        print(f"## Claims\n\n{markdown_frame(tested)}\n")
        for letter in dict.fromkeys(claim.name[0] for claim in CLAIMS):
            found = judged[judged.index.str.startswith(letter)]
            claims = found[found["condition"] == ""].drop(columns="condition")
            print(f"## Claims {letter}\n\n{markdown_frame(claims)}\n")
            if len(claims) < len(found):
                print(f"## Contrasts {letter}\n\n{markdown_frame(contrast_table(found))}\n")
        if (race := args.scores / "race_photos.csv").is_file():
            lines = pd.read_csv(race)
            means = lines.pivot_table("value", "encoder", "metric").map("{:.1f}".format, na_action="ignore").fillna("")
            raced = judge_race(lines)
            print(f"## race_photos\n\n{markdown_frame(means)}\n\n## Claims E\n\n{markdown_frame(raced)}")
            if args.claims:
                atomic_write(args.claims, _for_dark_pages(draw_claims(pd.concat([judged, raced]))))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
