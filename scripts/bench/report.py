"""CPU seconds of ``clips-bench report`` for many models and benchmarks, on generated results of the published sizes.

Of VQAv2 there are 20,000 questions of its 214,354, unless ``--vqav2_questions`` is another number.

    python scripts/bench/report.py --output /data/report_case                # writes the results, then measures
    python scripts/bench/report.py --output /data/report_case --profile 40   # the slowest functions as well

A model answers the same questions with its own ability, so that items correlate between models as real ones do.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.results.protocol import Entries, fingerprint
from benchmarks.results.results import CHANCE, Result, result_path, write_result
from benchmarks.tasks.encoders.retrieval import METRICS as RETRIEVAL_METRICS
from benchmarks.tasks.encoders.retrieval import PRIMARY as RETRIEVAL_PRIMARY
from benchmarks.tasks.evaluation import MAX_THUMBNAILS, MetricSpec, compute_metric, thumbnails
from benchmarks.tasks.mllm.chance_levels import POPE_KINDS
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS

TEXT = "a red dog cat on the left of small table with two people near old bus and green kite in front"
WORDS = np.array(TEXT.split(" "))


@dataclass(frozen=True)
class Shape:
    """A benchmark's size: images, items for each image, and the names of its categories."""

    images: int
    questions: int
    categories: tuple[str, ...] = ("",)


SHAPES: Mapping[str, Shape] = {
    "coco": Shape(5000, 5),
    "pope": Shape(500, 18, POPE_KINDS),
    "mme": Shape(1187, 2, tuple(f"ability {number}" for number in range(14))),
    "gqa": Shape(398, 32, ("choose", "compare", "logical", "query", "verify")),
    "textvqa_val": Shape(3166, 2),
    "nocaps_val": Shape(4500, 1, ("in-domain", "near-domain", "out-domain")),
    "scienceqa_img": Shape(2017, 1),
    "ai2d": Shape(3088, 1),
    "vqav2_val": Shape(40504, 6, ("yes/no", "number", "other")),
}
LIMITS: dict[str, int] = {"gqa": 12_578, "textvqa_val": 5000, "vqav2_val": 20_000}


def make_thumbnails(rng: np.random.Generator, count: int) -> list[Image.Image]:
    """Images with as much detail as photographs, whose JPEGs have 5 to 8 KB."""
    waves = rng.random((count, 12, 16, 3)) * 255
    images = [Image.fromarray(wave.astype(np.uint8)).resize((160, 120), Image.Resampling.BICUBIC) for wave in waves]
    noise = Image.effect_noise((160, 120), 25).convert("RGB")
    return [Image.blend(image, noise, 0.2) for image in images]


class Items:
    """The questions of one benchmark, and a model's answers to them."""

    def __init__(self, name: str) -> None:
        shape, rng = SHAPES[name], np.random.default_rng(len(name))
        self.name, self.shape = name, shape
        limit = LIMITS.get(name, shape.images * shape.questions)
        owner = np.repeat(np.arange(shape.images), shape.questions)[:limit]
        if name == "coco":  # a query for each image, then one for each caption
            owner = np.concatenate([np.arange(shape.images), owner])
        self.difficulty = 0.6 * rng.random(len(owner)) + 0.4 * rng.random(shape.images)[owner]
        images = [f"{name}/{number:06d}" for number in owner]
        pictures = make_thumbnails(rng, MAX_THUMBNAILS)
        categories = [shape.categories[number % len(shape.categories)] for number in range(len(owner))]
        if name == "mme":
            categories = [shape.categories[number // 2 % len(shape.categories)] for number in range(len(owner))]
        self.frame = pd.DataFrame(
            {
                "item": [f"{name}/{number}" for number in range(len(owner))],
                "image": images,
                "direction": np.where(np.arange(len(owner)) < 5000, "i2t", "t2i") if name == "coco" else "",
                "category": categories,
                "question": [" ".join(rng.choice(WORDS, 10)) for _ in owner],
                "prediction": "",
                "target": rng.choice(["yes", "no"], len(owner)),
                "score": 0.0,
                "thumbnail": thumbnails(images, lambda number: pictures[number % MAX_THUMBNAILS]),
            }
        )

    def answered(self, ability: float, seed: int) -> pd.DataFrame:
        """The items with the answers of a model, and the columns of the benchmark's metrics."""
        rng, table = np.random.default_rng([seed, len(self.name)]), self.frame.copy()
        right = (self.difficulty + 0.15 * rng.normal(size=len(table)) < ability).astype(float)
        table["prediction"] = [" ".join(rng.choice(WORDS, 6)) for _ in right]
        table["score"] = table["correct"] = right
        if self.name == "coco":
            rank = np.where(right > 0, 1.0, np.ceil(rng.exponential(12, len(right))) + 1)
            for direction in ("i2t", "t2i"):
                own = (table["direction"] == direction).to_numpy()
                table[f"{direction}_rank"] = np.where(own, rank, np.nan)
                for k in (1, 5, 10):
                    table[f"{direction}_r{k}"] = np.where(own, rank <= k, np.nan)
        if self.name == "pope":
            table["is_yes"] = (table["target"] == "yes").astype(float)
            table["said_yes"] = np.where(right > 0, table["is_yes"], 1 - table["is_yes"])
            table["hit_yes"] = table["is_yes"] * table["said_yes"]
            table["kind"] = table["category"].astype(object)
            for kind in POPE_KINDS:
                for name in ("said_yes", "is_yes"):
                    table[f"{name}_{kind}"] = table[name].where(table["category"] == kind)
        if self.name == "mme":
            both = np.repeat(right.reshape(-1, 2).sum(1), 2)
            points = np.where(np.arange(len(right)) % 2 == 0, 50 * both + 100 * (both == 2), np.nan)
            perception = table["category"].str.removeprefix("ability ").astype(int) < 10
            table["points"] = points
            table["perception"], table["cognition"] = points * 1.0, points * 1.0
            table.loc[~perception, "perception"], table.loc[perception, "cognition"] = np.nan, np.nan
        if self.name == "nocaps_val":
            table["score"] = table["cider"] = ability * rng.gamma(2, 0.6, len(right)) * (1.2 - self.difficulty)
            table["rouge"] = rng.beta(5, 5, len(right))
            for n in (1, 2, 3, 4):
                table[f"bleu_possible{n}"] = 11.0 - n
                table[f"bleu_matched{n}"] = rng.binomial(11 - n, ability / n, len(right)).astype(float)
            table["length"], table["reference_length"] = 10.0, 10.0
        return table


def specs_of(name: str) -> tuple[dict[str, MetricSpec], tuple[str, ...]]:
    """The metrics of a benchmark, and the primary ones."""
    if name == "coco":
        return dict(RETRIEVAL_METRICS), RETRIEVAL_PRIMARY
    task = TASK_METRICS[name]
    metrics = {key: spec for key, spec in {**task.metrics, **task.extra}.items() if spec.aggregation}
    return metrics, task.primary


def write_case(output: Path, models: int) -> None:
    """Write the results of ``models`` models; those that exist already are kept."""
    for name in SHAPES:
        items = None
        specs, primary = specs_of(name)
        for place in range(models):
            model = f"encoder-{place}"
            if result_path(output, model, name).is_file():
                continue
            items = items or Items(name)
            table = items.answered(0.45 + 0.025 * place, place)
            coin = {CHANCE: {"correct": np.full(len(table), 0.5)}} if name in ("pope", "scienceqa_img", "ai2d") else {}
            protocol: Entries = {"benchmark": name, "data_hash": name, "questions": len(table)}
            write_result(
                output,
                Result(
                    model_name=model,
                    benchmark=name,
                    benchmark_type="retrieval" if name == "coco" else "mllm",
                    status="ok",
                    model={"path": f"encoders/{model}", "hash": f"{place:064d}"},
                    metrics={key: compute_metric(table, spec, baselines=coin) for key, spec in specs.items()},
                    primary=primary,
                    protocol=protocol,
                    fingerprint=fingerprint(protocol),
                ),
                table,
            )
        print(f"{name}: written", flush=True)


def cpu_seconds(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a command and its children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory of the results; kept between runs")
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vqav2_questions", type=int, default=LIMITS["vqav2_val"])
    parser.add_argument("--baseline", help="of the report, for example encoder-0")
    parser.add_argument("--profile", type=int, help="print this number of slowest functions")
    given = parser.parse_args()
    LIMITS["vqav2_val"] = given.vqav2_questions
    write_case(given.output, given.models)
    arguments = ["report", str(given.output)] + (["--baseline", given.baseline] if given.baseline else [])
    if given.profile:
        from benchmarks.report.report_command import ReportConfig, run_report

        profile = cProfile.Profile()
        profile.runcall(run_report, ReportConfig(directory=str(given.output), baseline=given.baseline))
        stream = io.StringIO()
        pstats.Stats(profile, stream=stream).sort_stats("cumulative").print_stats(given.profile)
        print(stream.getvalue())
        return
    for _ in range(given.rounds):
        used, wall = cpu_seconds([sys.executable, "-m", "benchmarks", *arguments])
        print(f"{used:.1f} s of CPU, {wall:.1f} s of wall time", flush=True)


if __name__ == "__main__":
    main()
