"""One of lmms-eval's tasks on a row's LLaVA: its answers, its scores by lmms-eval itself, and their intervals."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import find
from benchmarks.data.caption_sets import stamp
from benchmarks.mllm.captioning import NEED_JAVA, java_works, tokenizer_name
from benchmarks.mllm.fetched import RECORD, check_fetched
from benchmarks.mllm.items import items_table
from benchmarks.mllm.judge import Judge, judge_of
from benchmarks.mllm.metrics import READERS, Reader, generic_reader
from benchmarks.mllm.other_models import described
from benchmarks.mllm.own_tasks import definition_hash
from benchmarks.mllm.pictures import pictures_of
from benchmarks.mllm.tasks import data_root, go_offline, keep_questions, load_task
from benchmarks.outcome import Blind, Outcome, measure
from benchmarks.protocol import Entries, full_size_entry
from benchmarks.registry import Benchmark
from benchmarks.results import Metric
from clips.core.artifact import directory_hash, versions
from clips.errors import UserError, suggest

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.config import BenchmarkConfig
    from benchmarks.models import Row


def evaluate(row: Row, config: BenchmarkConfig) -> Outcome | None:
    """Answers, metrics and items of a row's LLaVA, or of its model of lmms-eval's, on one task.

    Of several processes all answer and the first scores; the others give None.
    """
    go_offline()
    if row.config.lmms is not None:
        if row.processes.count > 1:
            raise UserError("lmms: one of lmms-eval's models runs in one process here; its arguments may spread it")
        return outcome_of(row.lmms, config, row.config.results, described(row.lmms, row.config.lmms.model))
    from benchmarks.mllm.answering import LlavaBridge
    from benchmarks.mllm.scoring import only_answer

    model = LlavaBridge(
        loaded=row.llava,
        batch_size=row.config.batch_size,
        keep_pictures=True,
        kept=row.kept_answers(find(config.entry).task, data_hash(config)),
        processes=row.processes,
    )
    about = {"precision": str(row.llava[0].dtype).removeprefix("torch.")} | input_of(model.processor)
    if not row.processes.is_main:
        entry, task = find(config.entry), _task(model, config)
        _leave_out(task, config)  # so that what the first process refuses is refused here, where nobody waits yet
        only_answer(model, task, entry, _generation_settings(task, entry, config), limit=config.limit)
        return None
    return outcome_of(model, config, row.config.results, about)


def outcome_of(model: Any, config: BenchmarkConfig, results: str, about: Entries, only: Sequence[int] = ()) -> Outcome:
    """What a model of lmms-eval's gets on one task.

    Args:
        model: ours, one of lmms-eval's own, or answers that were made elsewhere.
        config: the benchmark.
        results: directory of the results, where the judge's replies are kept too.
        about: what the protocol says of the model's input and of how its answers were made.
        only: numbers of the questions to ask; by default all.
    """
    from benchmarks.mllm.scoring import score

    entry, task = find(config.entry), _task(model, config)
    available = len(task.eval_docs_no_media)
    if only:
        keep_questions(task, only)
    settings = _generation_settings(task, entry, config)
    absent = _leave_out(task, config)
    judge = judge_of(config, entry.task, results)
    names, directions = list(task.aggregation()), task.higher_is_better()
    scored = score(model, task, entry, settings, judge=judge, limit=config.limit)
    samples = scored.samples
    listed = None if entry.own else READERS.get(entry.task)
    values = dict(scored.values) or dict.fromkeys(names)
    reader = listed or generic_reader(samples, values, directions, config.scale)
    pictures = _pictures(model, task, samples)
    absent |= dict.fromkeys(names, scored.no_judge) if scored.no_judge else {}
    columns = {} if scored.no_judge else reader.columns(samples, scored.captions)
    items = items_table(samples, pictures, columns, reader.score)
    if only:
        items["item"] = [str(only[sample["doc_id"]]) for sample in samples]  # as in a row that was asked them all
    metrics = {} if scored.no_judge else _metrics(reader, scored.values, items, reader.blind(samples), absent)
    return Outcome(
        metrics=metrics,
        primary=tuple(name for name in reader.primary if name in metrics or name in absent),
        absent=absent,
        protocol=_protocol(task, entry, config, settings, len(samples))
        | ({} if listed else {"scales": _scales(reader)})
        | full_size_entry(len(samples), available)
        | _judged(entry, judge)
        | about,
        items=items,
    )


def _scales(reader: Reader) -> str:
    """What the metrics of a task that is not listed are shown times: rows where it differs are not compared."""
    return json.dumps({name: spec.scale for name, spec in reader.metrics.items()}, sort_keys=True)


def _task(model: Any, config: BenchmarkConfig) -> Any:
    entry = find(config.entry)
    return load_task(entry.task, entry.folder, data_root(config.data), own=entry.own, simple=model.is_simple)


def _pictures(model: Any, task: Any, samples: Sequence[Mapping[str, Any]]) -> Mapping[int, Any]:
    """Question number → its picture: as our model kept them, otherwise (an answer was kept before) looked at again."""
    numbers = [sample["doc_id"] for sample in samples]
    kept = {number: picture for (_, number), picture in getattr(model, "pictures", {}).items()}
    return kept if kept.keys() >= set(numbers) else pictures_of(task, numbers)


def _judged(entry: Benchmark, judge: Judge) -> Entries:
    if not entry.judged and not judge.names:
        return {}
    return {"judge": judge.name or judge.model or "not asked"}


def data_hash(config: BenchmarkConfig) -> str:
    """SHA-256 of the files of the task's data set, of the whole root where its definition names none.

    That of a task of one's own is of its definition as well: what is kept of other questions is not taken for it.

    Raises:
        UserError: there are no such files, or one of them is not as `clips-bench fetch` recorded it.
    """
    root = data_root(config.data)
    dataset = root / find(config.entry).dataset
    if not dataset.is_dir():
        raise UserError(f"{root}: expected the data of {config.entry} in {find(config.entry).dataset}/ below it")
    content = _checked_hash(root, dataset, (*stamp(dataset), *stamp(root / RECORD)))
    own = find(config.entry).own
    return hashlib.sha256(f"{content} {definition_hash(Path(own))}".encode()).hexdigest() if own else content


@functools.lru_cache(maxsize=8)
def _checked_hash(root: Path, dataset: Path, _stamp: object) -> str:
    """Once in a process, unless a file changes: a result's key, its answers and its protocol all want it."""
    check_fetched(root, dataset)
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
    for name in [name for name in task.aggregation() if "submission" in name]:
        task.aggregation().pop(name)  # a file for a server, which some of them cannot even write
    if not task.aggregation():
        raise UserError(f"lmms-eval's {task.config.task} gives no score, only a file to submit to its server")
    return {name: why for name, why in absent.items() if task.aggregation().pop(name, None) is not None}


def _metrics(
    reader: Reader, values: Mapping[str, float], items: pd.DataFrame, blind: Blind, absent: dict[str, str]
) -> dict[str, Metric]:
    """The metrics that lmms-eval gave; those that it did not give are added to ``absent`` with the reason."""
    metrics: dict[str, Metric] = {}
    for name, spec in reader.metrics.items():
        if name in values and math.isfinite(values[name]):
            metrics[name] = measure(items, spec, values[name], blind)
        else:
            absent.setdefault(
                name, "lmms-eval gives no number" if name in values else "no question of this data enters it"
            )
    for name, spec in reader.extra.items():
        if set(spec.columns) <= set(items.columns):
            metrics[name] = measure(items, spec, blind=blind)
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
