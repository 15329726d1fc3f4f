"""One lmms-eval task: the answers of a model, their scores by lmms-eval itself, and confidence intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.results import MAX_UNREAD, UNREAD, Metric
from benchmarks.tasks.evaluation import ChanceLevels, Evaluation, compute_metric
from benchmarks.tasks.mllm.blind_runs import add_blind_runs, blind_views
from benchmarks.tasks.mllm.caption_metrics import JAVA_METRICS, is_java_available, tokenizer_name
from benchmarks.tasks.mllm.items import Sample, first_images, items_table
from benchmarks.tasks.mllm.judge import make_judge
from benchmarks.tasks.mllm.lmms_tasks import LmmsTask, TaskConfig, UnlistedTaskConfig
from benchmarks.tasks.mllm.offline_tasks import data_root, load_task, select_questions
from benchmarks.tasks.mllm.question_groups import accept_some_groups, in_whole_groups
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS, TaskMetrics, default_task_metrics
from benchmarks.tasks.mllm.unread import add_unread
from clips.core.artifact import library_versions, log_info
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd


def evaluate_task(
    model: Any,
    config: TaskConfig,
    results: str,
    about: Entries,
    only: Sequence[int] = (),
    check: Callable[[Sequence[Sample]], None] | None = None,
) -> Evaluation:
    """Evaluate a model on one task of lmms-eval.

    Args:
        model: this suite's, one of lmms-eval's own, or precomputed answers.
        results: directory of the results and of the cached judge replies.
        about: protocol entries on the model's input and generation.
        only: indices of the questions; by default all.
        check: called with lmms-eval's samples, in the order of the questions.
    """
    from benchmarks.tasks.mllm.lmms_scoring import run_and_score

    entry, task = config.benchmark, load(model, config)
    available = len(task.eval_docs_no_media)
    if only:
        select_questions(task, only)
    if entry.folder == "naturalbench":
        accept_some_groups(task)
    settings = generation_settings(task, entry, config)
    absent = exclude_metrics(task, config)
    judge = make_judge(config, entry.task, results)
    names, directions = list(task.aggregation()), task.higher_is_better()
    scored = run_and_score(model, task, entry, settings, judge=judge, limit=config.limit)
    samples = scored.samples
    if check is not None:
        check(samples)
    listed = None if entry.own else TASK_METRICS.get(entry.task)
    values = dict(scored.values) or dict.fromkeys(names)
    scale = config.scale if isinstance(config, UnlistedTaskConfig) else None
    reader = listed or default_task_metrics(samples, values, directions, scale)
    images = question_images(model, task, [sample["doc_id"] for sample in samples])
    absent |= dict.fromkeys(names, scored.no_judge) if scored.no_judge else {}
    columns = {} if scored.no_judge else reader.columns(samples, scored.captions)
    items = items_table(samples, images, columns, reader.score)
    if only:
        items["item"] = [str(only[sample["doc_id"]]) for sample in samples]  # the index among all questions
    if config.blind and not scored.no_judge:
        views = blind_views(model, task, config, images, entry.data_hash(config))
        if reason := add_blind_runs(items, model, task, entry, settings, views, judge):
            absent["blind"] = reason
    totals = scored.values
    if config.limit and not scored.no_judge:
        asked = range(len(samples))
        if len(in_whole_groups(dict.fromkeys(asked), list(task.eval_docs_no_media), entry.folder)) < len(asked):
            absent |= dict.fromkeys(names, f"the first {len(asked)} questions lack some of their orders or pairs")
            totals = {}
    metrics = {} if scored.no_judge else _metrics(reader, totals, items, reader.baselines(samples), absent)
    if metrics and "generate_until" in str(task.config.output_type):
        found = add_unread(items, samples, {**reader.metrics, **reader.extra}, reader.primary)
        metrics |= {name: compute_metric(items, spec) for name, spec in found.items()}
        if metrics[UNREAD].value > MAX_UNREAD:
            first = items[items[UNREAD] > 0].iloc[0]
            log_info(
                f"{config.name}: {100 * metrics[UNREAD].value:.1f} % of the answers were not read (empty, declined, "
                "without an option, yes or no, or in another form than the scorer compares), first item "
                f"{first['item']}: {first['prediction']!r:.80}, expected {first['target']!r:.40}"
            )
    return Evaluation(
        metrics=metrics,
        primary=tuple(name for name in reader.primary if name in metrics or name in absent),
        missing_metrics=absent,
        protocol=_protocol(task, entry, config, settings, len(samples))
        # results with different display factors are not compared
        | ({} if listed else {"scales": json.dumps({n: s.scale for n, s in reader.metrics.items()}, sort_keys=True)})
        | full_size_entry(len(samples), available)
        | ({"judge": judge.name or judge.model or "no request"} if entry.judged or judge.names else {})
        | about,
        items=items,
    )


def load(model: Any, config: TaskConfig) -> Any:
    """lmms-eval's task of a benchmark, with its data."""
    entry = config.benchmark
    return load_task(entry.task, entry.folder, data_root(config.data), entry.dataset, simple=model.is_simple)


def question_images(model: Any, task: Any, numbers: Sequence[int]) -> Mapping[int, Any]:
    """Question index → its image, as recorded by this suite's model, or read again if answers were cached."""
    recorded = {number: image for (_, number), image in getattr(model, "images", {}).items()}
    return recorded if recorded.keys() >= set(numbers) else first_images(task, numbers)


def generation_settings(task: Any, entry: LmmsTask, config: TaskConfig) -> dict[str, Any]:
    """The task's generation settings, overridden by the config's; if neither caps the length, this suite's cap."""
    if config.num_beams and "generate_until" not in str(task.config.output_type):
        raise UserError(f"benchmarks.num_beams: expected a task with generated answers, got '{config.name}'")
    settings = dict(task.config.generation_kwargs or {})
    cap = config.max_new_tokens or settings.get("max_new_tokens") or entry.max_new_tokens
    own = {"max_new_tokens": cap, "num_beams": config.num_beams}
    return settings | {name: value for name, value in own.items() if value}


def exclude_metrics(task: Any, config: TaskConfig) -> dict[str, str]:
    """Remove metrics that are excluded or impossible here from the task; metric → reason."""
    absent = {} if is_java_available() else dict.fromkeys(JAVA_METRICS, "it needs Java, which is not installed")
    absent |= dict.fromkeys(config.exclude_metrics, "excluded by the config")
    unknown = set(config.exclude_metrics) - set(task.aggregation())
    if unknown:
        raise unknown_name_error(min(unknown), task.aggregation(), f"metric of '{config.name}'")
    for name in [name for name in task.aggregation() if "submission" in name]:
        task.aggregation().pop(name)  # files for a submission server
    if not task.aggregation():
        raise UserError(f"lmms-eval's {task.config.task} has no score, only a file to submit to its server")
    return {name: why for name, why in absent.items() if task.aggregation().pop(name, None) is not None}


def _metrics(
    reader: TaskMetrics,
    values: Mapping[str, float],
    items: pd.DataFrame,
    baselines: ChanceLevels,
    absent: dict[str, str],
) -> dict[str, Metric]:
    """The metrics that lmms-eval computed; missing ones are added to ``absent`` with the reason."""
    unused = "no question of this data enters it"
    metrics: dict[str, Metric] = {}
    for name, spec in reader.metrics.items():
        if name in values and math.isfinite(values[name]):
            metrics[name] = compute_metric(items, spec, values[name], baselines)
        else:
            absent.setdefault(name, "lmms-eval returns no number" if name in values else unused)
    for name, spec in reader.extra.items():
        if set(spec.columns) <= set(items.columns):
            metrics[name] = compute_metric(items, spec, baselines=baselines)
        else:
            absent.setdefault(name, unused)
    return metrics


def _protocol(task: Any, entry: LmmsTask, config: TaskConfig, settings: Mapping[str, Any], questions: int) -> Entries:
    """The settings that the numbers depend on, besides the model and its input."""
    prompt = getattr(task, "lmms_eval_specific_kwargs", None) or {}
    plain = {name: value for name, value in prompt.items() if isinstance(value, str | int | bool)}
    protocol: Entries = {
        "task": f"custom task {entry.task}" if entry.own else f"lmms-eval's {entry.task}",
        "benchmark": config.name,
        "data_hash": entry.data_hash(config),
        "split": str(task.config.test_split or task.config.validation_split),
        "questions": questions,
        "prompt": json.dumps(plain, ensure_ascii=False, sort_keys=True),
        "decoding": json.dumps(settings, ensure_ascii=False, sort_keys=True, default=str),
        "shots": int(task.config.num_fewshot or 0),
        "scorer": f"lmms-eval {library_versions()['lmms-eval']}",
        "task_version": str(task.VERSION),
    }
    return protocol | ({"caption_tokenizer": tokenizer_name()} if entry.task.startswith("nocaps") else {})
