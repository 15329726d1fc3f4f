"""Blind runs of an lmms-eval task: some of its questions again, about a blank image or about another item's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.blind import SIGHTED, add_blind_columns
from benchmarks.tasks.benchmark import Benchmark
from benchmarks.tasks.blind_images import draw_sample
from benchmarks.tasks.mllm.blind_view import BlindView
from benchmarks.tasks.mllm.items import QuestionImage
from benchmarks.tasks.mllm.judge import Judge
from benchmarks.tasks.mllm.llava_input import input_settings
from benchmarks.tasks.mllm.offline_tasks import select_questions
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS, default_task_metrics

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel
    from benchmarks.tasks.run_config import BenchmarkConfig


def blind_views(
    model: LlavaBridgeModel, task: Any, config: BenchmarkConfig, images: Mapping[int, QuestionImage], data_hash: str
) -> Iterator[BlindView]:
    """Restrict a task to the questions of its blind runs; yields the view of the sighted run, then of each blind one.

    ``images`` are the first images of all evaluated questions, and ``data_hash`` determines which are asked again.
    """
    names = {number: images[number].name for number in sorted(images)}
    sample = draw_sample([*names.values()], data_hash, config.blind_items)
    asked = [*names]
    numbers = [asked[row] for row in sample.rows([*names.values()])]
    documents = task.eval_docs
    select_questions(task, numbers)
    for kind in (SIGHTED, *config.blind):
        yield BlindView(
            kind=kind,
            numbers=numbers,
            sample=sample,
            names=names,
            documents=documents,
            processor=model.processor,
            resize="" if model.processor is None else str(input_settings(model.processor)["input_resize"]),
        )


@contextlib.contextmanager
def seen_by(model: LlavaBridgeModel, view: BlindView) -> Iterator[None]:
    """Let a model answer with the images of a view."""
    model.view = view
    try:
        yield
    finally:
        model.view = None


def add_blind_runs(
    items: pd.DataFrame,
    model: LlavaBridgeModel,
    task: Any,
    entry: Benchmark,
    settings: Mapping[str, Any],
    views: Iterator[BlindView],
    judge: Judge,
) -> str:
    """Answer and score the blind runs, and add their columns to the items.

    Returns:
        Why there are no such columns: the judge returned no grades; empty otherwise.
    """
    from benchmarks.tasks.mllm.lmms_scoring import run_and_score

    found: dict[str, Mapping[str, Any]] = {}
    numbers: Sequence[int] = ()
    for view in views:
        with seen_by(model, view):
            scored = run_and_score(model, task, entry, settings, judge=judge, allow_empty=True)
        if scored.no_judge:
            return scored.no_judge
        listed = None if entry.own else TASK_METRICS.get(entry.task)
        reader = listed or default_task_metrics(scored.samples, dict(scored.values), task.higher_is_better())
        answers = [str(sample["filtered_resps"][0]).strip() for sample in scored.samples]
        columns = {**reader.columns(scored.samples, scored.captions), "prediction": np.array(answers, object)}
        found[view.kind], numbers = columns, view.numbers
    places = {int(item): row for row, item in enumerate(items["item"])}
    add_blind_columns(items, [places[number] for number in numbers], found)
    return ""
