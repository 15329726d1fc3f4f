"""One of lmms-eval's tasks on a row's LLaVA: its answers, its scores by lmms-eval itself, and their intervals."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.mllm.captioning import NEED_JAVA, PictureScores, caption_scorers, java_works, tokenizer_name
from benchmarks.mllm.metrics import READERS, Reader, generic_reader, items_table
from benchmarks.mllm.tasks import data_root, go_offline, load_task, manager, quiet, reason
from benchmarks.outcome import Outcome, measure
from benchmarks.protocol import Entries
from benchmarks.registry import Benchmark, find
from benchmarks.results import Metric
from clips.artifact import directory_hash, versions
from clips.errors import UserError, suggest

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.config import BenchmarkConfig
    from benchmarks.models import Row


def evaluate(row: Row, config: BenchmarkConfig) -> Outcome:
    """Answers, metrics and items of a row's LLaVA on one task."""
    go_offline()
    from benchmarks.mllm.answering import LlavaBridge

    entry = find(config.entry)
    task = load_task(entry.task, entry.folder, data_root(config.data))
    model = LlavaBridge(
        loaded=row.llava,
        batch_size=row.config.batch_size,
        keep_pictures=True,
        kept=row.kept_answers(entry.task, data_hash(config)),
        processes=row.processes,
    )
    processor, settings = model.processor, _generation_settings(task, entry, config)
    absent = _leave_out(task, config)
    results, scores = _lmms_eval(model, task, entry, config, settings)
    samples = sorted(results["samples"][entry.task], key=lambda sample: sample["doc_id"])
    values = _values(results["results"][entry.task], task)
    reader = READERS.get(entry.task) or generic_reader(samples, list(values))
    pictures = {number: picture for (_, number), picture in model.pictures.items()}
    items = items_table(samples, pictures, reader.columns(samples, scores), reader.score)
    metrics = _metrics(reader, values, items, absent)
    return Outcome(
        metrics=metrics,
        primary=tuple(name for name in reader.primary if name in metrics),
        absent=absent,
        protocol=_protocol(task, entry, config, settings, len(samples))
        | {"precision": str(row.llava[0].dtype).removeprefix("torch.")}
        | input_of(processor),
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """SHA-256 of the files of the task's data set, of the whole root where the data set is not known by name."""
    root = data_root(config.data)
    dataset = root / find(config.entry).dataset
    if not dataset.is_dir():
        raise UserError(f"{root}: expected the data of {config.entry} in {find(config.entry).dataset}/ below it")
    return directory_hash(dataset, recorded=False)


def _generation_settings(task: Any, entry: Benchmark, config: BenchmarkConfig) -> dict[str, Any]:
    """The task's own generation settings; the length is capped by the config, or by us where the task says nothing."""
    settings = dict(task.config.generation_kwargs or {})
    cap = config.max_new_tokens or settings.get("max_new_tokens") or entry.max_new_tokens
    return settings | ({"max_new_tokens": cap} if cap else {})


def _leave_out(task: Any, config: BenchmarkConfig) -> dict[str, str]:
    """Keep lmms-eval from computing what is not wanted or not possible here; metric → why."""
    absent = dict.fromkeys(config.without, "left out by the config")
    if not java_works():
        absent |= dict.fromkeys(NEED_JAVA, "it is a Java program and there is no java here")
    unknown = set(config.without) - set(task.aggregation())
    if unknown:
        raise suggest(min(unknown), task.aggregation(), f"metric of '{config.name}'")
    return {name: why for name, why in absent.items() if task.aggregation().pop(name, None) is not None}


def _lmms_eval(
    model: Any, task: Any, entry: Benchmark, config: BenchmarkConfig, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], PictureScores]:
    """lmms-eval's own evaluation of one task, and what each picture adds to the caption metrics."""
    from lmms_eval.evaluator import simple_evaluate

    with tempfile.TemporaryDirectory() as folder, _plain_errors(entry.task), quiet(), caption_scorers() as scores:
        results = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager(entry.folder),
            limit=config.limit,
            bootstrap_iters=0,
            log_samples=True,
            gen_kwargs=f"max_new_tokens={settings['max_new_tokens']}" if "max_new_tokens" in settings else None,
            process_docs_parallel=1,
            cli_args=argparse.Namespace(output_path=folder, process_with_media=False),
        )
    return results, scores


@contextlib.contextmanager
def _plain_errors(task: str) -> Iterator[None]:
    """A scorer that refuses the data says so in one line, whatever lmms-eval wraps it in."""
    from tenacity import RetryError

    try:
        yield
    except (RetryError, AssertionError) as error:
        raise UserError(f"lmms-eval's scorer of {task} refuses the data ({reason(error)})") from None


def _values(found: Mapping[str, Any], task: Any) -> dict[str, float]:
    """lmms-eval's value of each of the task's metrics that is a number."""
    values = {}
    for key, value in found.items():
        name = key.partition(",")[0]
        if name in task.aggregation() and isinstance(value, int | float):
            values[name] = float(value)
    return values


def _metrics(
    reader: Reader, values: Mapping[str, float], items: pd.DataFrame, absent: dict[str, str]
) -> dict[str, Metric]:
    """The metrics that lmms-eval gave; those that it did not give are added to ``absent`` with the reason."""
    metrics: dict[str, Metric] = {}
    for name, spec in reader.metrics.items():
        if name in values and math.isfinite(values[name]):
            metrics[name] = measure(items, spec, values[name])
        else:
            absent.setdefault(
                name, "lmms-eval gives no number" if name in values else "no question of this data enters it"
            )
    for name, spec in reader.extra.items():
        metrics[name] = measure(items, spec)
    return metrics


def _protocol(
    task: Any, entry: Benchmark, config: BenchmarkConfig, settings: Mapping[str, Any], questions: int
) -> Entries:
    """What the numbers depend on besides the model and how it takes its input."""
    prompt = getattr(task, "lmms_eval_specific_kwargs", None) or {}
    shown = {name: value for name, value in prompt.items() if isinstance(value, str | int | bool)}
    protocol: Entries = {
        "task": f"lmms-eval's {entry.task}",
        "benchmark": config.name,
        "data_hash": data_hash(config),
        "split": str(task.config.test_split or task.config.validation_split),
        "questions": questions,
        "prompt": json.dumps(shown, ensure_ascii=False, sort_keys=True),
        "decoding": json.dumps(settings, ensure_ascii=False, sort_keys=True, default=str),
        "shots": int(task.config.num_fewshot or 0),
        "scorer": f"lmms-eval {versions()['lmms-eval']}",
        "task_version": str(task.VERSION),
    }
    return protocol | ({"caption_tokenizer": tokenizer_name()} if entry.task.startswith("nocaps") else {})


def input_of(processor: Any) -> Entries:
    """How the LLaVA takes pictures and text, as its directory records it."""
    from PIL.Image import Resampling

    images = processor.image_processor
    size = dict(images.size)
    template = processor.chat_template or processor.tokenizer.chat_template or ""
    return {
        "input_resolution": int(max(value for value in size.values() if value)),
        "input_resize": _resize(images),
        "input_interpolation": Resampling(int(images.resample)).name.lower(),
        "input_template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
    }


def _resize(images: Any) -> str:
    """How an image processor makes a square of a picture, or several."""
    if pinpoints := getattr(images, "image_grid_pinpoints", None):
        return "anyres " + " ".join(f"{height}x{width}" for height, width in pinpoints)
    if getattr(images, "do_center_crop", False):
        return "shortest side, centre crop"
    if getattr(images, "do_pad", False):
        return "pad"
    return "squash" if "height" in dict(images.size) else "other"
