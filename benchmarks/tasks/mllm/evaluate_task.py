"""One of lmms-eval's tasks on a row's LLaVA: its answers, its scores by lmms-eval itself, and their intervals."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.results import Metric
from benchmarks.tasks.benchmark import Benchmark
from benchmarks.tasks.data.caption_sets import file_stamps
from benchmarks.tasks.evaluation import ChanceLevels, Evaluation, compute_metric
from benchmarks.tasks.mllm.caption_metrics import JAVA_METRICS, is_java_available, tokenizer_name
from benchmarks.tasks.mllm.download_record import DOWNLOAD_RECORD, check_downloaded
from benchmarks.tasks.mllm.items import items_table
from benchmarks.tasks.mllm.judge import Judge, make_judge
from benchmarks.tasks.mllm.lmms_models import model_settings
from benchmarks.tasks.mllm.offline_tasks import data_root, go_offline, load_task, select_questions
from benchmarks.tasks.mllm.own_tasks import definition_hash
from benchmarks.tasks.mllm.task_images import first_images
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS, TaskMetrics, default_task_metrics
from benchmarks.tasks.registry import get_benchmark
from clips.core.artifact import directory_hash, library_versions
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig


def evaluate(row: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
    """Answers, metrics and items of a row's LLaVA, or of its model of lmms-eval's, on one task.

    Of several processes all answer and the first scores; the others give None.
    """
    go_offline()
    if row.config.lmms is not None:
        if row.processes.count > 1:
            raise UserError("lmms: one of lmms-eval's models runs in one process here; its arguments may spread it")
        return evaluate_task(row.lmms, config, row.config.output, model_settings(row.lmms, row.config.lmms.model))
    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel
    from benchmarks.tasks.mllm.lmms_scoring import run_only

    model = LlavaBridgeModel(
        loaded=row.llava,
        batch_size=row.config.batch_size,
        keep_pictures=True,
        kept=row.kept_answers(get_benchmark(config.entry).task, data_hash(config)),
        processes=row.processes,
    )
    about = {"precision": str(row.llava[0].dtype).removeprefix("torch.")} | input_settings(model.processor)
    if not row.processes.is_main:
        entry, task = get_benchmark(config.entry), _task(model, config)
        _leave_out(task, config)  # so that what the first process refuses is refused here, where nobody waits yet
        run_only(model, task, entry, _generation_settings(task, entry, config), limit=config.limit)
        return None
    return evaluate_task(model, config, row.config.output, about)


def evaluate_task(
    model: Any, config: BenchmarkConfig, results: str, about: Entries, only: Sequence[int] = ()
) -> Evaluation:
    """What a model of lmms-eval's gets on one task.

    Args:
        model: ours, one of lmms-eval's own, or answers that were made elsewhere.
        config: the benchmark.
        results: directory of the results, where the judge's replies are kept too.
        about: what the protocol says of the model's input and of how its answers were made.
        only: numbers of the questions to ask; by default all.
    """
    from benchmarks.tasks.mllm.lmms_scoring import run_and_score

    entry, task = get_benchmark(config.entry), _task(model, config)
    available = len(task.eval_docs_no_media)
    if only:
        select_questions(task, only)
    settings = _generation_settings(task, entry, config)
    absent = _leave_out(task, config)
    judge = make_judge(config, entry.task, results)
    names, directions = list(task.aggregation()), task.higher_is_better()
    scored = run_and_score(model, task, entry, settings, judge=judge, limit=config.limit)
    samples = scored.samples
    listed = None if entry.own else TASK_METRICS.get(entry.task)
    values = dict(scored.values) or dict.fromkeys(names)
    reader = listed or default_task_metrics(samples, values, directions, config.scale)
    pictures = _pictures(model, task, samples)
    absent |= dict.fromkeys(names, scored.no_judge) if scored.no_judge else {}
    columns = {} if scored.no_judge else reader.columns(samples, scored.captions)
    items = items_table(samples, pictures, columns, reader.score)
    if only:
        items["item"] = [str(only[sample["doc_id"]]) for sample in samples]  # as in a row that was asked them all
    metrics = {} if scored.no_judge else _metrics(reader, scored.values, items, reader.blind(samples), absent)
    return Evaluation(
        metrics=metrics,
        primary=tuple(name for name in reader.primary if name in metrics or name in absent),
        missing_metrics=absent,
        protocol=_protocol(task, entry, config, settings, len(samples))
        | ({} if listed else {"scales": _scales(reader)})
        | full_size_entry(len(samples), available)
        | _judged(entry, judge)
        | about,
        items=items,
    )


def _scales(reader: TaskMetrics) -> str:
    """What the metrics of a task that is not listed are shown times: rows where it differs are not compared."""
    return json.dumps({name: spec.scale for name, spec in reader.metrics.items()}, sort_keys=True)


def _task(model: Any, config: BenchmarkConfig) -> Any:
    entry = get_benchmark(config.entry)
    return load_task(entry.task, entry.folder, data_root(config.data), own=entry.own, simple=model.is_simple)


def _pictures(model: Any, task: Any, samples: Sequence[Mapping[str, Any]]) -> Mapping[int, Any]:
    """Question number → its picture: as our model kept them, otherwise (an answer was kept before) looked at again."""
    numbers = [sample["doc_id"] for sample in samples]
    kept = {number: picture for (_, number), picture in getattr(model, "pictures", {}).items()}
    return kept if kept.keys() >= set(numbers) else first_images(task, numbers)


def _judged(entry: Benchmark, judge: Judge) -> Entries:
    if not entry.judged and not judge.names:
        return {}
    return {"judge": judge.name or judge.model or "not asked"}


def data_hash(config: BenchmarkConfig) -> str:
    """SHA-256 of the files of the task's data set, of the whole root where its definition names none.

    That of a task of one's own is of its definition as well: what is kept of other questions is not taken for it.

    Raises:
        UserError: there are no such files, or one of them is not as `clips-bench download` recorded it.
    """
    root = data_root(config.data)
    dataset = root / get_benchmark(config.entry).dataset
    if not dataset.is_dir():
        raise UserError(
            f"{root}: expected the data of {config.entry} in {get_benchmark(config.entry).dataset}/ below it"
        )
    content = _checked_hash(root, dataset, (*file_stamps(dataset), *file_stamps(root / DOWNLOAD_RECORD)))
    own = get_benchmark(config.entry).own
    return hashlib.sha256(f"{content} {definition_hash(Path(own))}".encode()).hexdigest() if own else content


@functools.lru_cache(maxsize=8)
def _checked_hash(root: Path, dataset: Path, _stamp: object) -> str:
    """Once in a process, unless a file changes: a result's key, its answers and its protocol all want it."""
    check_downloaded(root, dataset)
    return directory_hash(dataset, recorded=False)


def _generation_settings(task: Any, entry: Benchmark, config: BenchmarkConfig) -> dict[str, Any]:
    """The task's own generation settings; the length is capped by the config, or by us where the task says nothing."""
    settings = dict(task.config.generation_kwargs or {})
    cap = config.max_new_tokens or settings.get("max_new_tokens") or entry.max_new_tokens
    return settings | ({"max_new_tokens": cap} if cap else {})


def _leave_out(task: Any, config: BenchmarkConfig) -> dict[str, str]:
    """Keep lmms-eval from computing what is not wanted or not possible here; metric → why."""
    absent = dict.fromkeys(config.exclude_metrics, "left out by the config")
    if not is_java_available():
        absent |= dict.fromkeys(JAVA_METRICS, "it is a Java program and there is no java here")
    unknown = set(config.exclude_metrics) - set(task.aggregation())
    if unknown:
        raise unknown_name_error(min(unknown), task.aggregation(), f"metric of '{config.name}'")
    for name in [name for name in task.aggregation() if "submission" in name]:
        task.aggregation().pop(name)  # a file for a server, which some of them cannot even write
    if not task.aggregation():
        raise UserError(f"lmms-eval's {task.config.task} gives no score, only a file to submit to its server")
    return {name: why for name, why in absent.items() if task.aggregation().pop(name, None) is not None}


def _metrics(
    reader: TaskMetrics, values: Mapping[str, float], items: pd.DataFrame, blind: ChanceLevels, absent: dict[str, str]
) -> dict[str, Metric]:
    """The metrics that lmms-eval gave; those that it did not give are added to ``absent`` with the reason."""
    metrics: dict[str, Metric] = {}
    for name, spec in reader.metrics.items():
        if name in values and math.isfinite(values[name]):
            metrics[name] = compute_metric(items, spec, values[name], blind)
        else:
            absent.setdefault(
                name, "lmms-eval gives no number" if name in values else "no question of this data enters it"
            )
    for name, spec in reader.extra.items():
        if set(spec.columns) <= set(items.columns):
            metrics[name] = compute_metric(items, spec, blind=blind)
        else:
            absent.setdefault(name, "no question of this data enters it")
    return metrics


def _protocol(
    task: Any, entry: Benchmark, config: BenchmarkConfig, settings: Mapping[str, Any], questions: int
) -> Entries:
    """What the numbers depend on besides the model and how it takes its input."""
    prompt = getattr(task, "lmms_eval_specific_kwargs", None) or {}
    shown = {name: value for name, value in prompt.items() if isinstance(value, str | int | bool)}
    protocol: Entries = {
        "task": f"a task of one's own, {entry.task}" if entry.own else f"lmms-eval's {entry.task}",
        "benchmark": config.name,
        "data_hash": data_hash(config),
        "split": str(task.config.test_split or task.config.validation_split),
        "questions": questions,
        "prompt": json.dumps(shown, ensure_ascii=False, sort_keys=True),
        "decoding": json.dumps(settings, ensure_ascii=False, sort_keys=True, default=str),
        "shots": int(task.config.num_fewshot or 0),
        "scorer": f"lmms-eval {library_versions()['lmms-eval']}",
        "task_version": str(task.VERSION),
    }
    return protocol | ({"caption_tokenizer": tokenizer_name()} if entry.task.startswith("nocaps") else {})


def input_settings(processor: Any) -> Entries:
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
        return "shortest side, center crop"
    if getattr(images, "do_pad", False):
        return "pad"
    return "squash" if "height" in dict(images.size) else "other"
