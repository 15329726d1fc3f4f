"""lmms-eval's evaluation of a model on a task, with errors as one-line messages."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from lmms_eval.api.model import lmms

from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores, patched_caption_scorers
from benchmarks.tasks.mllm.judge import NO_JUDGE, Judge, JudgeUnavailable, patched_judge
from benchmarks.tasks.mllm.lmms_tasks import LmmsTask, UnlistedTaskConfig
from benchmarks.tasks.mllm.matching import ID_COLUMNS
from benchmarks.tasks.mllm.offline_tasks import error_reason, manager, suppress_output
from benchmarks.tasks.mllm.question_groups import add_circular_hits, circular_hits
from clips.errors import UserError

_OWN_SETTINGS = ("max_new_tokens", "num_beams")  # that a benchmark's config may set
REASONING_TAGS = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
"""Default of lmms-eval's ``--reasoning_tags``: what these tags enclose is no part of the answer that is scored."""
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """lmms-eval's output for one model and task.

    Args:
        samples: its log of each question, in the data's order.
        values: metric → its value.
        captions: per-image values of the caption metrics.
        no_judge: why the judge returned no grades (then there are no values); empty otherwise.
    """

    samples: Sequence[Mapping[str, Any]]
    values: Mapping[str, float]
    captions: ImageCaptionScores
    no_judge: str = ""


class RecordedAnswersModel(lmms):
    """A model with recorded answers: question index → answer."""

    is_simple = True

    def __init__(self, answers: Mapping[int, str]) -> None:
        super().__init__()
        self.answers = answers

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The recorded answer to each request."""
        return [self.answers[request.args[3]] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not available."""
        raise UserError("this task scores likelihoods, which answers do not contain")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not available."""
        raise UserError("this task has several rounds, but the file has one answer per question")


def run_and_score(
    model: Any,
    task: Any,
    entry: LmmsTask,
    settings: Mapping[str, Any],
    *,
    judge: Judge,
    limit: int | None = None,
    allow_empty: bool = False,
) -> TaskScores:
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
    _name_failures(task)
    no_judge = ""
    try:
        results, captions = _lmms_eval(model, task, entry, settings, judge, limit)
    except JudgeUnavailable as error:
        no_judge = f"{NO_JUDGE}: {error}"
        answers = {instance.doc_id: instance.resps[0] for instance in task.instances}
        task.process_results = _unscored
        results, captions = _lmms_eval(RecordedAnswersModel(answers), task, entry, settings, judge, limit)
    first: dict[int, Mapping[str, Any]] = {}
    for sample in results["samples"][entry.task]:  # a task may filter answers in several ways: the first one counts
        first.setdefault(sample["doc_id"], sample)
    samples = [first[number] for number in sorted(first)]
    if samples and not allow_empty and not any(map(_answer, samples)):
        raise UserError(f"all {len(samples)} answers of the model are empty")
    values = {} if no_judge else _values(results["results"][entry.task], task)
    return TaskScores(samples=samples, values=values, captions=captions, no_judge=no_judge)


def run_without_scoring(
    model: Any, task: Any, entry: LmmsTask, settings: Mapping[str, Any], *, limit: int | None
) -> None:
    """Generate the answers as :func:`run_and_score`, for another process to score."""
    _name_failures(task)
    task.process_results = _unscored
    _lmms_eval(model, task, entry, settings, None, limit)


def _unscored(doc: Mapping[str, Any], results: Any, full_docs: Any = None) -> dict[str, Any]:
    return {}


def _lmms_eval(
    model: Any, task: Any, entry: LmmsTask, settings: Mapping[str, Any], judge: Judge | None, limit: int | None
) -> tuple[dict[str, Any], ImageCaptionScores]:
    """lmms-eval's own evaluation of one task, and the per-image values of the caption metrics."""
    from lmms_eval.evaluator import simple_evaluate

    may_ask = entry.judged or entry.config is UnlistedTaskConfig  # of the listed tasks it is known
    with (
        tempfile.TemporaryDirectory() as folder,
        _name_broken_image(task),
        contextlib.chdir(folder),  # some scorers write files into the working directory
        suppress_output(),
        patched_judge(judge, openai_client=may_ask) if judge else contextlib.nullcontext(),
        _hide_launcher(),
        patched_caption_scorers() as scores,
        circular_hits(entry.task) as hits,
    ):
        results = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager(entry.folder),
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            gen_kwargs=",".join(f"{name}={settings[name]}" for name in _OWN_SETTINGS if settings.get(name)) or None,
            process_docs_parallel=1,
            cli_args=argparse.Namespace(output_path=folder, process_with_media=False, reasoning_tags=REASONING_TAGS),
        )
    add_circular_hits(results["samples"][entry.task], hits)
    return results, scores


@contextlib.contextmanager
def _hide_launcher() -> Iterator[None]:
    """Make lmms-eval see one process, because ``llava_model.local_questions`` shards the questions."""
    with mock.patch.dict(os.environ):
        for name in _LAUNCHER_VARIABLES:
            os.environ.pop(name, None)
        yield


@contextlib.contextmanager
def _name_broken_image(task: Any) -> Iterator[None]:
    """Raise errors of image files as one-line messages that name the question."""
    try:
        yield
    except OSError:
        for number, doc in enumerate(task.eval_docs_no_media):
            with _convert_errors(f"{task.config.task}: the image of {_name(doc)} is missing or broken"):
                task.eval_docs[number]
        raise


def _name_failures(task: Any) -> None:
    """Wrap the task's functions so that their errors name the question."""
    visuals, process = task.doc_to_visual, task.process_results

    def doc_to_visual(doc: Mapping[str, Any], *args: Any) -> Any:
        with _convert_errors(f"{task.config.task}: the image of {_name(doc)} is missing or broken"):
            return visuals(doc, *args)

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


def _answer(sample: Mapping[str, Any]) -> str:
    """The raw model output, before any extraction."""
    response = sample["resps"][0]
    return str(response if isinstance(response, str) or not response else response[0]).strip()


def _values(results: Mapping[str, Any], task: Any) -> dict[str, float]:
    values: dict[str, float] = {}
    for key, value in results.items():
        name = key.partition(",")[0]
        if name in task.aggregation() and isinstance(value, int | float):
            values.setdefault(name, float(value))
    return values
