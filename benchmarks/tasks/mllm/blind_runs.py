"""Blind runs of an lmms-eval task: some of its questions again, about a blank image or about another item's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.blind import SIGHTED, add_blind_columns
from benchmarks.tasks.blind_images import BlindSample, blank_images, draw_sample, other_images
from benchmarks.tasks.mllm.items import QuestionImage
from benchmarks.tasks.mllm.judge import Judge
from benchmarks.tasks.mllm.llava_input import input_settings
from benchmarks.tasks.mllm.lmms_tasks import LmmsTask, TaskConfig
from benchmarks.tasks.mllm.offline_tasks import select_questions
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS, default_task_metrics

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel


@dataclass(frozen=True, kw_only=True)
class BlindView:
    """What a model sees while it answers the questions of a blind run.

    Args:
        kind: of the run, or `SIGHTED` for the own images, whose answers are cached.
        numbers: index among the selected questions → among all.
        sample: the images of the questions in their random order.
        names: index among all evaluated questions → its image.
        documents: all questions of the data.
        processor: the LLaVA's; None for that of a server.
        resize: how its preprocessing resizes images; empty if unknown.
    """

    kind: str
    numbers: Sequence[int]
    sample: BlindSample
    names: Mapping[int, str]
    documents: Any
    processor: Any
    resize: str

    def condition(self, number: int) -> list[Any]:
        """The part of an answer's cache key that depends on the image."""
        shuffled = self.kind == "shuffled"
        return [] if self.kind == SIGHTED else [self.kind, next(self._donors(number)) if shuffled else None]

    def visuals(self, number: int, own: Sequence[Image], to_visual: Any) -> list[Image]:
        """The images in place of a question's own."""
        if self.kind == "blank":
            return blank_images(self.processor, own, self.resize)
        if self.kind == "shuffled":
            others = (to_visual(self.documents[donor]) or [] for donor in self._donors(number))
            return next(others)[:1] if len(own) == 1 else other_images(own, others)  # one is not compared again
        return list(own)

    def _donors(self, number: int) -> Iterator[int]:
        """One question for each image that may replace that of a question, the preferred one first."""
        return (self._first[image] for image in self.sample.others(self.names[self.numbers[number]]))

    @functools.cached_property
    def _first(self) -> dict[str, int]:
        """Image → the first question about it."""
        return {name: number for number, name in sorted(self.names.items(), reverse=True)}


def blind_views(
    model: LlavaBridgeModel, task: Any, config: TaskConfig, images: Mapping[int, QuestionImage], data_hash: str
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
    entry: LmmsTask,
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
