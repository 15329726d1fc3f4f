"""CLIP_benchmark's JSON, open_clip's ``results.jsonl`` and mteb's JSON: numbers without items.

Scale: all ratios are from 0 to 1 in all three. None of them states an interval; only open_clip states the number of
items.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.exchange.imported import (
    NOT_STATED,
    Imported,
    encoder_metrics,
    is_number,
    make_imported,
    measured_metric,
    parse,
    unknown_metric,
)
from benchmarks.results.result_types import Metric
from benchmarks.tasks.encoders.mieb_tasks import METRIC_NAMES
from benchmarks.tasks.evaluation import MetricSpec
from clips.errors import UserError
from clips.text_files import read_json, read_json_lines

BENCHMARK_NAMES: dict[str, str] = {
    "imagenet1k": "imagenet",
    "mscoco_captions": "coco",
    "mscoco_captions2014": "coco",
    "Imagenet1kZeroShot": "imagenet",
    "MSCOCOT2IRetrieval": "coco_t2i",
    "MSCOCOI2TRetrieval": "coco_i2t",
    "Flickr30kT2IRetrieval": "flickr30k_t2i",
    "Flickr30kI2TRetrieval": "flickr30k_i2t",
}
"""Peers' names of data (without ``wds/``) → this suite's; others stay as they are."""
_PRIMARY = ("acc1", "t2i_r1", "i2t_r1", "t2i_r5", "i2t_r5", "mean_average_precision", "main_score", "clip_val_loss")
Names = Mapping[str, str | None]
"""Pattern of a tool's metric → this suite's name, or None for numbers that are no metric; ``recall@5`` → ``r5``."""
_CLIP_BENCHMARK: Names = {
    r"(?:lp_)?(acc[15]|mean_per_class_recall)": r"\1",
    r"image_retrieval_recall@(\d+)": r"t2i_r\1",
    r"text_retrieval_recall@(\d+)": r"i2t_r\1",
    r"(mean_average_precision)": r"\1",
    r"lr|weight_decay|epochs|seed|batch_size|fewshot_k": None,  # settings of the linear probe
}
_OPEN_CLIP: Names = {
    r"image_to_text_R@(\d+)": r"i2t_r\1",
    r"text_to_image_R@(\d+)": r"t2i_r\1",
    r"image_to_text_(mean|median)_rank": r"i2t_\1_rank",
    r"text_to_image_(mean|median)_rank": r"t2i_\1_rank",
    r"(clip_val_loss|val_generative_loss)": r"\1",
    r"imagenet(?:v2)?-zeroshot-val-top[15]|epoch|num_samples": None,
}


@dataclass(frozen=True, kw_only=True)
class ClipBenchmark:
    """The fields of CLIP_benchmark's JSON."""

    dataset: str
    model: str
    pretrained: str
    task: str
    metrics: Mapping[str, Any]
    language: str = "en"


@dataclass(frozen=True, kw_only=True)
class Mteb:
    """The fields of mteb's JSON of a task; ``scores`` has a list of subsets for each split."""

    task_name: str
    mteb_version: str
    scores: Mapping[str, Sequence[Mapping[str, Any]]]
    dataset_revision: str | None = None
    date: float | None = None


def read_clip_benchmark(file: Path) -> list[Imported]:
    """One model on one dataset; ``NaN`` (accuracy at 5 of fewer than 5 classes) is omitted.

    ``text_retrieval_recall@k`` is an image's: whether one of its captions is among the first k.
    """
    found = parse(ClipBenchmark, read_json(file), file)
    dataset = found.dataset.removeprefix("wds/")
    name = BENCHMARK_NAMES.get(dataset, dataset)
    variant = [found.task] * (found.task == "linear_probe") + [found.language] * (found.language != "en")
    settings = {name: value for name, value in found.metrics.items() if name in {"lr", "epochs", "seed", "fewshot_k"}}
    return [
        make_imported(
            file,
            tool="CLIP_benchmark",
            model="-".join(filter(None, (found.model, found.pretrained))),
            benchmark="_".join([name, *variant]),
            benchmark_type="retrieval" if "retrieval" in found.task else "classification",
            metrics=_metrics(file, "CLIP_benchmark", _CLIP_BENCHMARK, found.metrics),
            primary=_PRIMARY,
            settings={"task": found.task, "dataset": found.dataset, "language": found.language, **settings},
        )
    ]


def read_open_clip(file: Path) -> list[Imported]:
    """The last epoch of a training: its validation data, and ImageNet where it was evaluated."""
    lines = [row for _, row in read_json_lines(file, others=("epoch",))]
    if not lines:
        raise UserError(f"{file}: expected open_clip's results.jsonl, got no lines")
    last = lines[-1]
    count = int(last["num_samples"]) if is_number(last.get("num_samples")) else 0
    by_benchmark = {"validation": _metrics(file, "open_clip", _OPEN_CLIP, last, n=count)}
    for name in ("imagenet", "imagenetv2"):
        by_benchmark[name] = _metrics(
            file, "open_clip", {rf"{name}-zeroshot-val-top([15])": r"acc\1", ".*": None}, last
        )
    run = file.resolve().parents[1].name if file.resolve().parent.name == "checkpoints" else file.stem
    return [
        make_imported(
            file,
            tool="open_clip",
            model=run,
            benchmark=name,
            benchmark_type="retrieval" if name == "validation" else "classification",
            metrics=metrics,
            primary=_PRIMARY,
            settings={"input_epoch": str(last["epoch"])},  # a property of the model
        )
        for name, metrics in by_benchmark.items()
        if metrics
    ]


def read_mteb(file: Path) -> list[Imported]:
    """One model on one task, one result for each split and subset.

    ``recall_at_k`` stays under this name: it counts all right captions of an image, so with five of them it is at most
    1/5 at k = 1. On data that this suite evaluates itself (``BENCHMARK_NAMES``) ``hit_rate_at_k``, ``cv_recall_at_k``
    in earlier versions, is its R@k of a direction, and the accuracy its acc@1; other tasks keep mteb's names, as
    ``mieb:TASK`` does.
    """
    found = parse(Mteb, read_json(file), file)
    task, meta = found.task_name, file.with_name("model_meta.json")
    stated = read_json(meta) if meta.is_file() else {}
    model = str((stated.get("name") if isinstance(stated, dict) else "") or file.absolute().parents[1].name)
    way = next((way for way in ("T2I", "I2T") if way in task), "")
    own = {r"(?:hit_rate|cv_recall)_at_(\d+)": rf"{way.lower()}_r\1"} if way else {"accuracy": "acc1"}
    names = {**own, **METRIC_NAMES} if task in BENCHMARK_NAMES else METRIC_NAMES
    parts = [(split, scores) for split, subsets in found.scores.items() for scores in subsets]
    imported = []
    for split, scores in parts:
        subset = str(scores.get("hf_subset", "default"))
        variant = [split, *([subset] if subset != "default" else [])] if len(parts) > 1 else []
        imported.append(
            make_imported(
                file,
                tool="mteb",
                version=found.mteb_version,
                model=model.replace("__", "/"),
                benchmark="_".join([BENCHMARK_NAMES.get(task, task), *variant]),
                benchmark_type="retrieval" if "Retrieval" in task else "classification",
                metrics=_metrics(file, "mteb", names, scores),
                primary=_PRIMARY,
                settings={
                    "task": f"mteb's {task}",
                    "split": split,
                    "subset": subset,
                    "dataset_revision": found.dataset_revision or NOT_STATED,
                },
                created=datetime.datetime.fromtimestamp(found.date, datetime.UTC).isoformat() if found.date else "",
            )
        )
    return imported


def _metrics(file: Path, tool: str, names: Names, values: Mapping[str, Any], *, n: int = 0) -> dict[str, Metric]:
    """Name → metric of a tool's numbers; the first pattern that fits counts.

    Raises:
        UserError: a number that no pattern fits.
    """
    metrics = {}
    for theirs, value in values.items():
        fits = (
            found.expand(name) if name else "" for key, name in names.items() if (found := re.fullmatch(key, theirs))
        )
        if not is_number(value):
            continue
        name = next(fits, None)
        if name is None:
            raise unknown_metric(file, tool, theirs, names)
        if name:
            metrics[name] = measured_metric(_spec(name), float(value), n=n)
    return metrics


def _spec(name: str) -> MetricSpec:
    """This suite's metric of a name, else a ratio, or for losses and ranks a number of which less is better."""
    if known := encoder_metrics().get(name):
        return known
    worse = name.endswith(("loss", "_rank"))
    if found := re.fullmatch(r"(i2t|t2i)_r(\d+)", name):
        return MetricSpec(label=f"{'I→T' if found[1] == 'i2t' else 'T→I'} R@{found[2]}")
    return MetricSpec(label=name.replace("_", " "), scale=1.0 if worse else 100.0, higher_is_better=not worse)
