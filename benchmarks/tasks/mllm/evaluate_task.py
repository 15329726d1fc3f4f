"""One lmms-eval task: the answers of a model, their scores by lmms-eval itself, and metrics with intervals."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from PIL.Image import Image

from benchmarks.results.baselines import add_blind_columns
from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.result_types import RAW_ANSWER
from benchmarks.results.results import MAX_UNREAD, UNREAD, Metric
from benchmarks.tasks.blind import BlindView, blind_views
from benchmarks.tasks.evaluation import Evaluation, blind_metrics, compute_metric
from benchmarks.tasks.mllm.caption_metrics import (
    JAVA_METRICS,
    ONE_IMAGE,
    ImageCaptionScores,
    is_java_available,
    patched_caption_scorers,
    tokenizer_name,
)
from benchmarks.tasks.mllm.items import (
    HIT,
    Sample,
    accept_some_groups,
    circular_hits,
    in_whole_groups,
    items_table,
    question_images,
)
from benchmarks.tasks.mllm.judge import NO_JUDGE, Judge, JudgeUnavailable, patched_judge
from benchmarks.tasks.mllm.lmms_task import LmmsTask, TaskConfig, make_judge
from benchmarks.tasks.mllm.matching import ID_COLUMNS
from benchmarks.tasks.mllm.offline_tasks import (
    data_root,
    error_reason,
    load_task,
    manager,
    select_questions,
    suppress_output,
)
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS, TaskMetrics, default_task_metrics
from benchmarks.tasks.mllm.unread import add_unread
from clips.core.artifact import library_versions
from clips.core.chat_client import REASONING_TAGS
from clips.core.identity import digest
from clips.data.images import InvalidImageError, to_rgb
from clips.errors import UserError, unknown_name_error
from clips.safe_text import log_info

if TYPE_CHECKING:
    import pandas as pd


LMMS_EVALS, CUSTOM = "lmms-eval's ", "custom task "
"""What a protocol's ``task`` begins with, before the name of one of lmms-eval's tasks, or of a user's."""
EXCLUDED = "excluded by the config"
"""Why a metric is missing."""


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
        only: indices of the questions; by default all with images that the loader supports.
        check: called with lmms-eval's samples, in the order of the questions.
    """
    entry, task = config.benchmark, load(model, config)
    available = len(task.eval_docs_no_media)
    if only:
        select_questions(task, only)
    else:
        only = leave_out_unsupported(model, task, config)
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
    images = question_images(model, task, [sample["doc_id"] for sample in samples])
    listed = None if entry.own else TASK_METRICS.get(entry.task)
    reader = listed or default_task_metrics(
        samples, dict(scored.values) or dict.fromkeys(names), directions, getattr(config, "scale", None)
    )
    columns = {} if scored.no_judge else reader.columns(samples, scored.captions)
    items = items_table(samples, images, columns, reader.score)

    metrics: dict[str, Metric] = {}
    if scored.no_judge:
        absent |= dict.fromkeys(names, scored.no_judge)
    else:
        docs = list(task.eval_docs_no_media) if config.limit else []  # before blind runs restrict them
        if config.blind:
            views = blind_views(model.processor, task, config, images, entry.data_hash(config))
            if reason := _add_blind_runs(items, model, task, entry, settings, views, judge):
                absent["blind"] = reason
        totals = scored.values
        asked = range(len(samples))
        if config.limit and len(in_whole_groups(dict.fromkeys(asked), docs, entry.folder)) < len(asked):
            absent |= dict.fromkeys(names, f"the first {len(asked)} questions lack some of their orders or pairs")
            totals = {}
        metrics = _metrics(reader, totals, items, samples, absent)
        metrics |= blind_metrics(items, metrics)
    items["item"] = [str(only[sample["doc_id"]]) for sample in samples]  # the index among all questions
    if metrics and "generate_until" in str(task.config.output_type):
        with_unread = add_unread(items, samples, {**reader.metrics, **reader.extra}, reader.primary)
        metrics |= {name: compute_metric(items, spec) for name, spec in with_unread.items()}
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


def leave_out_unsupported(model: Any, task: Any, config: TaskConfig) -> Sequence[int]:
    """Restrict a task to the questions with images that the loader supports; returns their indices among all.

    An image with one channel of 16 bits has no known range: the question is left out, with those that are scored with
    it, and counted. Of the first questions of a limited run, usually none is.
    """
    from benchmarks.tasks.mllm.task_images import unsupported_questions

    count = len(task.eval_docs_no_media)
    if not unsupported_questions(task.eval_docs, range(min(config.limit or count, count))):
        return range(count)
    left_out = set(unsupported_questions(task.eval_docs, range(count)))
    supported = dict.fromkeys(number for number in range(count) if number not in left_out)
    numbers = list(in_whole_groups(supported, list(task.eval_docs_no_media), config.benchmark.folder))
    if not numbers:
        raise UserError(f"{task.config.task}: expected 8-bit images, got 16 bits in one channel for every question")
    first = _name(task.eval_docs_no_media[min(left_out)])
    log_info(
        f"{task.config.task}: {count - len(numbers)} of {count:,} questions are left out, because an image has 16 bits "
        f"or more in one channel, whose range is unknown; the first is {first}"
    )
    select_questions(task, numbers)
    model.selection = digest(numbers)  # the indices of questions, by which answers are cached, have changed
    return numbers


def generation_settings(task: Any, entry: LmmsTask, config: TaskConfig) -> dict[str, Any]:
    """The task's generation settings, overridden by the config's; if neither caps the length, this suite's cap."""
    if config.num_beams and "generate_until" not in str(task.config.output_type):
        raise UserError(f"benchmarks.{config.name}.num_beams: expected a task with generated answers")
    settings = dict(task.config.generation_kwargs or {})
    cap = config.max_new_tokens or settings.get("max_new_tokens") or entry.max_new_tokens
    own = {"max_new_tokens": cap, "num_beams": config.num_beams}
    return settings | {name: value for name, value in own.items() if value}


def exclude_metrics(task: Any, config: TaskConfig) -> dict[str, str]:
    """Remove metrics that are excluded or impossible here from the task; metric → reason."""
    absent = {} if is_java_available() else dict.fromkeys(JAVA_METRICS, "it needs Java, which is not installed")
    absent |= dict.fromkeys(config.exclude_metrics, EXCLUDED)
    unknown = set(config.exclude_metrics) - set(task.aggregation())
    if unknown:
        raise unknown_name_error(min(unknown), task.aggregation(), f"metric of '{config.name}'")
    for name in [name for name in task.aggregation() if "submission" in name]:
        task.aggregation().pop(name)  # files for a submission server
    if not task.aggregation():
        raise UserError(f"lmms-eval's {task.config.task} has no score, only a file to submit to its server")
    return {name: why for name, why in absent.items() if task.aggregation().pop(name, None) is not None}


def _add_blind_runs(
    items: pd.DataFrame,
    model: Any,
    task: Any,
    entry: LmmsTask,
    settings: Mapping[str, Any],
    views: Iterator[BlindView],
    judge: Judge,
) -> str:
    """Answer and score the blind runs, and add their columns to the items, unless the judge returns no grades: then its
    reason is returned.
    """
    runs: dict[str, Mapping[str, Any]] = {}
    numbers: Sequence[int] = ()
    for view in views:
        with model.seeing(view):
            scored = run_and_score(model, task, entry, settings, judge=judge, allow_empty=True)
        if scored.no_judge:
            return scored.no_judge
        reader = None if entry.own else TASK_METRICS.get(entry.task)
        reader = reader or default_task_metrics(scored.samples, dict(scored.values), task.higher_is_better())
        answers = [str(sample["filtered_resps"][0]).strip() for sample in scored.samples]
        runs[view.kind] = {
            **reader.columns(scored.samples, scored.captions),
            "prediction": np.array(answers, object),
        }
        numbers = view.numbers
    places = {int(item): row for row, item in enumerate(items["item"])}
    add_blind_columns(items, [places[number] for number in numbers], runs)
    return ""


def _metrics(
    reader: TaskMetrics,
    values: Mapping[str, float],
    items: pd.DataFrame,
    samples: Sequence[Sample],
    absent: dict[str, str],
) -> dict[str, Metric]:
    """The metrics that lmms-eval computed; missing ones are added to ``absent`` with the reason."""
    baselines = reader.baselines(samples)
    unused = "no question of this data enters it"
    metrics: dict[str, Metric] = {}
    for name, spec in reader.metrics.items():
        if name.endswith("CIDEr") and len(items) == 1:
            absent.setdefault(name, ONE_IMAGE)
        elif name in values and math.isfinite(values[name]):
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
        "task": (CUSTOM if entry.own else LMMS_EVALS) + entry.task,
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


# lmms-eval's evaluation, with errors as one-line messages


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """lmms-eval's output for one model and task."""

    samples: Sequence[Sample]  # its log of each question, in the data's order
    values: Mapping[str, float]  # metric → its value
    captions: ImageCaptionScores  # per-image values of the caption metrics
    no_judge: str = ""  # why the judge returned no grades (then there are no values); empty otherwise


def run_and_score(
    model: Any,
    task: Any,
    entry: LmmsTask,
    settings: Mapping[str, Any],
    *,
    judge: Judge,
    limit: int | None = None,
    allow_empty: bool = False,
) -> _Scores:
    """Generate the answers and score them.

    If the judge fails, the grades are missing, but all answers are in ``samples``.

    Args:
        task: lmms-eval's task with its data; its functions are wrapped so that their errors name the question.
        settings: generation settings that override the task's.
        judge: replaces the judge that the scorer calls.
        allow_empty: whether all answers may be empty.

    Raises:
        UserError: an image is missing, all answers are empty, or the scorer fails.
    """
    from benchmarks.tasks.mllm.llava_model import RecordedAnswersModel

    _name_failures(task)
    no_judge = ""
    try:
        results, captions = _lmms_eval(model, task, entry, settings, judge, limit)
    except JudgeUnavailable as error:
        no_judge = f"{NO_JUDGE}: {error}"
        answers = {instance.doc_id: instance.resps[0] for instance in task.instances}
        task.process_results = _unscored
        results, captions = _lmms_eval(RecordedAnswersModel(answers), task, entry, settings, judge, limit)
    first: dict[int, Sample] = {}
    for sample in results["samples"][entry.task]:  # a task may filter answers in several ways: the first one counts
        first.setdefault(sample["doc_id"], sample)
    # lmms-eval's log has the answers after the task's filters only
    raw = {instance.doc_id: {RAW_ANSWER: instance.resps[0]} for instance in task.instances
           if isinstance(instance.resps[0], str)}  # fmt: skip
    samples = [{**first[number], **raw.get(number, {})} for number in sorted(first)]
    if samples and not allow_empty and not any(map(_answer, samples)):
        raise UserError(f"all {len(samples)} answers of the model are empty")
    values: dict[str, float] = {}
    for key, value in {} if no_judge else results["results"][entry.task].items():
        name = key.partition(",")[0]
        if name in task.aggregation() and isinstance(value, int | float):
            values.setdefault(name, float(value))
    return _Scores(samples=samples, values=values, captions=captions, no_judge=no_judge)


def run_without_scoring(
    model: Any, task: Any, entry: LmmsTask, settings: Mapping[str, Any], *, limit: int | None
) -> None:
    """Generate the answers as :func:`run_and_score`, for another process to score."""
    _name_failures(task)
    task.process_results = _unscored
    _lmms_eval(model, task, entry, settings, None, limit)


def _unscored(doc: Mapping[str, Any], results: Any, full_docs: Any = None) -> dict[str, Any]:
    return {}


def _answer(sample: Sample) -> str:
    """The raw model output, before any extraction."""
    response = sample["resps"][0]
    return str(response if isinstance(response, str) or not response else response[0]).strip()


def _lmms_eval(
    model: Any, task: Any, entry: LmmsTask, settings: Mapping[str, Any], judge: Judge | None, limit: int | None
) -> tuple[dict[str, Any], ImageCaptionScores]:
    """lmms-eval's own evaluation of one task, and the per-image values of the caption metrics."""
    from lmms_eval.evaluator import simple_evaluate

    reasoning_tags = json.dumps(REASONING_TAGS)  # its own command's default
    own = ",".join(f"{name}={settings[name]}" for name in ("max_new_tokens", "num_beams") if settings.get(name))
    with (
        tempfile.TemporaryDirectory() as folder,
        _name_broken_image(task),
        contextlib.chdir(folder),  # some scorers write files into the working directory
        suppress_output(),
        patched_judge(judge, openai_client=entry.may_ask) if judge else contextlib.nullcontext(),
        mock.patch.dict(os.environ),
        patched_caption_scorers() as scores,
        circular_hits(entry.task) as hits,
    ):
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):  # this suite's model shards the questions, not lmms-eval
            os.environ.pop(name, None)
        results = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager(entry.folder),
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            gen_kwargs=own or None,
            process_docs_parallel=1,
            cli_args=argparse.Namespace(output_path=folder, process_with_media=False, reasoning_tags=reasoning_tags),
        )
    for sample in results["samples"][entry.task] if hits else ():
        verdict = sample["gpt_eval_score"]
        verdict[HIT] = hits.get(int(verdict["index"]))  # None but at the question's first order
    return results, scores


@contextlib.contextmanager
def _name_broken_image(task: Any) -> Iterator[None]:
    """Raise errors of image files as one-line messages that name the question."""
    try:
        yield
    except (OSError, InvalidImageError):
        for number, doc in enumerate(task.eval_docs_no_media):
            with _convert_errors(f"{task.config.task}: the image of {_name(doc)} is missing or broken"):
                task.eval_docs[number]
        raise


def _name_failures(task: Any) -> None:
    """Wrap the task's functions: their errors name the question, and all images are RGB."""
    visuals, process = task.doc_to_visual, task.process_results

    def doc_to_visual(doc: Mapping[str, Any], *args: Any) -> Any:
        with _convert_errors(f"{task.config.task}: the image of {_name(doc)} is missing or broken"):
            # tasks that decode text or open a file themselves
            return [to_rgb(each) if isinstance(each, Image) else each for each in visuals(doc, *args) or []]

    def process_results(doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        with _convert_errors(f"lmms-eval's scorer of {task.config.task} rejects {_name(doc)}"):
            return process(doc, *args, **kwargs)

    task.doc_to_visual, task.process_results = doc_to_visual, process_results
    for name, function in list(task.aggregation().items()):
        wrapper = _convert_errors(f"lmms-eval's scorer of {task.config.task} rejects the data")
        task.aggregation()[name] = wrapper(function)  # functools.wraps inside: lmms-eval inspects its signature


@contextlib.contextmanager
def _convert_errors(message: str) -> Iterator[None]:
    """Raise any error as a UserError; also a decorator."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{message} ({error_reason(error)})") from None


def _name(doc: Mapping[str, Any]) -> str:
    """A question's id, or else its text."""
    for column in ID_COLUMNS:
        if doc.get(column) not in (None, ""):
            return f"the question with {column} {doc[column]}"
    return f"the question {str(doc.get('question'))[:80]!r}"
