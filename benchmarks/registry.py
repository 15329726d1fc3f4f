"""The benchmarks that are known by name: one entry each. Any other name is taken for a task of lmms-eval."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.config import BenchmarkConfig
    from benchmarks.models import Row
    from benchmarks.outcome import Outcome

Kind = Literal["retrieval", "choice", "mllm"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args:
        kind: what sort of result it gives.
        about: one line: what is measured.
        needs: ``"encoder"`` (with a text tower) or ``"llava"``.
        evaluate: ``module:function`` of (row, config) → Outcome.
        data_hash: ``module:function`` of config → SHA-256 of the data that it reads.
        task: MLLM: lmms-eval's task name.
        folder: MLLM: folder below lmms-eval's ``tasks`` that defines it (spares reading all 2,000 definitions).
        dataset: MLLM: the hub name of its data, a path below the data root.
        max_new_tokens: MLLM: cap of an answer where the task itself states none.
        without_skill: one sentence for below the table: what a model gets that does not look at the picture.
    """

    kind: Kind
    about: str
    needs: Literal["encoder", "llava"]
    evaluate: str
    data_hash: str
    task: str = ""
    folder: str = ""
    dataset: str = ""
    max_new_tokens: int | None = None
    without_skill: str = ""

    def run(self, row: Row, config: BenchmarkConfig) -> Outcome:
        """Evaluate a row on this benchmark."""
        return _load(self.evaluate)(row, config)

    def hash_of_data(self, config: BenchmarkConfig) -> str:
        """SHA-256 of the data named by ``config``."""
        return _load(self.data_hash)(config)


def _load(target: str) -> Callable:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _mllm(about: str, task: str, folder: str, dataset: str, **more: Any) -> Benchmark:
    return Benchmark(
        kind="mllm",
        about=about,
        needs="llava",
        evaluate="benchmarks.mllm.evaluate:evaluate",
        data_hash="benchmarks.mllm.evaluate:data_hash",
        task=task,
        folder=folder,
        dataset=dataset,
        **more,
    )


BENCHMARKS: dict[str, Benchmark] = {
    "retrieval": Benchmark(
        kind="retrieval",
        about="zero-shot retrieval between pictures and their captions, both ways (COCO and Flickr30K protocol)",
        needs="encoder",
        evaluate="benchmarks.retrieval:evaluate",
        data_hash="benchmarks.retrieval:data_hash",
    ),
    "choice": Benchmark(
        kind="choice",
        about="which of two captions fits the picture, the other differing in one detail (SugarCrepe)",
        needs="encoder",
        evaluate="benchmarks.choice:evaluate",
        data_hash="benchmarks.choice:data_hash",
        without_skill=(
            "Guessing gives an accuracy of 50; a model that ignores the picture may prefer one kind of caption, and "
            "end above or below that."
        ),
    ),
    "pope": _mllm(
        "is an object in the picture: yes or no",
        "pope",
        "pope",
        "lmms-lab-encoder/POPE",
        without_skill=(
            "Where half of the questions are to be answered yes, always saying yes gives an accuracy of 50 and an F1 "
            "of 66.7."
        ),
    ),
    "mme": _mllm(
        "yes-no questions in pairs, fourteen abilities",
        "mme",
        "mme",
        "lmms-lab-encoder/MME",
        without_skill="Of the 200 points of each ability, always saying yes gives 50 and a coin 75.",
    ),
    "gqa": _mllm("one-word answers about objects, attributes, relations", "gqa", "gqa", "lmms-lab-encoder/GQA"),
    "textvqa_val": _mllm(
        "reading text in pictures", "textvqa_val", "textvqa", "lmms-lab-encoder/textvqa", max_new_tokens=32
    ),
    "nocaps_val": _mllm("captions against ten human ones", "nocaps_val", "nocaps", "lmms-lab-encoder/NoCaps"),
}


def find(name: str) -> Benchmark:
    """The entry called ``name``; any other name is one of lmms-eval's tasks.

    Raises:
        UserError: neither knows it; near misses are named.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    from benchmarks.mllm.tasks import task_folders

    tasks = task_folders()
    if name not in tasks:
        near = difflib.get_close_matches(name, {**BENCHMARKS, **tasks}, n=3, cutoff=0.6)
        hint = f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
        raise UserError(f"benchmarks: unknown benchmark '{name}'{hint} (`clips-bench list` names them)")
    return _mllm(f"lmms-eval's task {name}", name, tasks[name], "")
