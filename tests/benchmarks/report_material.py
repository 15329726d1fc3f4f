"""Results for the report's tests, written by the harness's own writer, with known differences between the rows."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.report import Report
from benchmarks.results.protocol import fingerprint
from benchmarks.results.results import Result, write_result
from benchmarks.tasks.evaluation import ChanceLevels, MetricSpec, blind_metrics, compute_metric
from benchmarks.tasks.mllm.unread import UNREAD_SPEC
from clips.core.artifact import directory_hash

KINDS = ("dog", "cup", "kite", "tree", "boat", "clock")
SKILLS = {"untrained": 0.05, "clip": 0.45, "clips": 0.62}


@functools.cache
def draw_image(number: int) -> bytes:
    """A small image with a disc, as JPEG."""
    image = Image.new("RGB", (96, 96), ((number * 37) % 200 + 40, (number * 71) % 200 + 40, 180))
    ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill=((number * 91) % 255, 90, 60))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=70)
    return stream.getvalue()


def items_table(skill: float, *, benchmark: str, count: int = 120, seed: int = 0) -> pd.DataFrame:
    """Items of one row; the same items for every skill, of which the better rows answer more."""
    difficulty = np.random.default_rng(seed).random(count)
    luck = np.random.default_rng([seed, round(skill * 1000)]).random(count) < 0.04
    right = (difficulty < skill) ^ luck
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    retrieval = benchmark == "retrieval"
    return pd.DataFrame(
        {
            "item": [f"{benchmark}/{i}" for i in range(count)],
            "image": [f"picture-{i // 2}" for i in range(count)],
            "direction": "t2i" if retrieval else "",
            "category": "",
            "question": [
                f"A {kind} beside a {KINDS[(i + 1) % len(KINDS)]} on a plain ground"
                if retrieval
                else f"Is there a {kind} in the picture?"
                for i, kind in enumerate(kinds)
            ],
            "prediction": [
                f"picture-{i // 2 if ok else (i // 2 + 7) % (count // 2)}" if retrieval else "yes" if ok else "no"
                for i, ok in enumerate(right)
            ],
            "target": [f"picture-{i // 2}" if retrieval else "yes" for i in range(count)],
            "score": right.astype(float),
            "thumbnail": [draw_image(i // 2) if i % 2 == 0 else None for i in range(count)],
            "hit": right.astype(float),
            "hit5": np.maximum(right, difficulty < skill + 0.25).astype(float),
        }
    )


METRICS = {
    "retrieval": {
        "t2i_r1": MetricSpec(label="T→I R@1", columns=("hit",)),
        "t2i_r5": MetricSpec(label="T→I R@5", columns=("hit5",)),
    },
    "pope": {
        "accuracy": MetricSpec(label="accuracy", columns=("hit",)),
        "yes": MetricSpec(label="share of yes", columns=("hit5",), higher_is_better=None),
    },
    "gqa": {"exact_match": MetricSpec(label="exact match", columns=("hit",))},
}
PRIMARY = {"retrieval": ("t2i_r1", "t2i_r5"), "pope": ("accuracy",), "gqa": ("exact_match",)}


def _unread_metrics(items: pd.DataFrame) -> dict[str, MetricSpec]:
    """The metrics of answers that were not read, if the items have such a column."""
    wrong = MetricSpec(
        label="exact match, unread answers as wrong",
        columns=("hit_unread_wrong",),
        baseline_of="exact_match",
        condition="unread_wrong",
    )
    known = {"unread": UNREAD_SPEC, "exact_match_unread_wrong": wrong}
    return {name: spec for name, spec in known.items() if set(spec.columns) <= set(items)}


def put_result(
    results: Path,
    row: str,
    benchmark: str,
    items: pd.DataFrame,
    *,
    protocol: dict[str, str | int] | None = None,
    primary: tuple[str, ...] | None = None,
    model: Path | None = None,
    blind: ChanceLevels | None = None,
    digest: str = "0123456789abcdef" * 4,
) -> Path:
    """Write one result as the harness would, of a made-up ``model`` unless there is one; a benchmark of another name
    than those above has gqa's metric.
    """
    measured = {"path": f"encoders/{row}", "hash": digest}
    if model is not None:
        measured = {"path": str(model), "hash": directory_hash(model)}
    metrics = {
        name: compute_metric(items, spec, baselines=blind or {})
        for name, spec in (METRICS.get(benchmark, METRICS["gqa"]) | _unread_metrics(items)).items()
    }
    stated = {"benchmark": benchmark, "data_hash": "abc", "items": len(items), "input_size": 64, **(protocol or {})}
    result = Result(
        model_name=row,
        benchmark=benchmark,
        benchmark_type="retrieval" if benchmark == "retrieval" else "mllm",
        status="ok",
        model=measured,
        metrics=metrics | blind_metrics(items, metrics),
        primary=primary or PRIMARY.get(benchmark, PRIMARY["gqa"]),
        protocol=stated,
        fingerprint=fingerprint(stated),
        seconds=1.5,
    )
    return write_result(results, result, items)


def edit(path: Path, metric: str | None = None, **changes: object) -> None:
    """Change fields of a JSON file, or of one metric of a result."""
    content = json.loads(path.read_text(encoding="utf-8"))
    (content if metric is None else content["metrics"][metric]).update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")


def put_failure(results: Path, row: str, benchmark: str, reason: str) -> Path:
    """Write a failed result."""
    return write_result(
        results,
        Result(
            model_name=row,
            benchmark=benchmark,
            benchmark_type="mllm",
            status="failed",
            failure_reason=reason,
            model={"path": "", "hash": ""},
        ),
    )


def put_hits(
    results: Path,
    row: str,
    benchmark: str,
    right: int,
    *,
    items: str = "",
    unread: int | None = None,
    scored: int = 120,
    **more: object,
) -> None:
    """A result on 120 images, of which the first ``right`` are right, and the first ``unread`` not read."""
    table = items_table(0.5, benchmark="gqa").assign(image=[f"image {number}" for number in range(120)])
    table["item"] = items + table["item"]
    table["hit"] = table["score"] = [float(number < right) if number < scored else np.nan for number in range(120)]
    if unread is not None:
        table["unread"] = [float(number < unread) for number in range(120)]
        table["hit_unread_wrong"] = table["hit"] * (1 - table["unread"])
    put_result(results, row, benchmark, table, **more)  # type: ignore[arg-type]


def rendered(report: Report, name: str) -> str:
    """The file of a format that has one."""
    return str(next(iter(REPORT_FORMATS[name](report).values())))


def put_results(results: Path, skills: dict[str, float] | None = None) -> Path:
    """Three rows on three benchmarks."""
    for row, skill in (skills or SKILLS).items():
        for seed, benchmark in enumerate(METRICS):
            put_result(results, row, benchmark, items_table(skill, benchmark=benchmark, seed=seed))
    return results
