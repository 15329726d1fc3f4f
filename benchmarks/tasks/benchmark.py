"""The description of a benchmark. `registry` lists the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.tasks.run_config import BenchmarkConfig, RequiredModel
from clips.lazy_import import import_from_string

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.evaluation import Evaluation

Kind = Literal["retrieval", "classification", "captions", "choice", "mllm"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args:
        benchmark_type: the type of its results.
        about: one line: the measured quantity.
        needs: ``"encoder"`` (with a text tower), ``"tower"`` (an encoder with or without one) or ``"llava"``.
        evaluate: ``module:function`` of (model, config) → Evaluation.
        data_hash: ``module:function`` of config → SHA-256 of the data that it reads.
        takes: the fields of ``BenchmarkConfig`` that it reads, in addition to name, data, task and limit.
        task: MLLM: lmms-eval's task name.
        folder: MLLM: directory of its definition, below lmms-eval's ``tasks`` or the user's own.
        own: MLLM: the YAML file of a user's task.
        dataset: MLLM: the Hub name of its data, a path below the data root.
        format: compositional: the format of its data, a name in ``clips.data.formats.FORMATS``.
        also: MLLM: configurations of the dataset that the task's functions read in addition to its own.
        max_new_tokens: MLLM: default cap of an answer if the task has none.
        judged: MLLM: its scorer sends requests to a judge model (``benchmarks.tasks.mllm.judge``).
        trivial_baseline_note: one sentence below the table: the score of a model that ignores the image.
        items: number of questions or images of the published set; None for the user's data.
        license: of the published set, as its source states it.
        size: approximate size of the published set on disk; empty if unknown.
    """

    benchmark_type: Kind
    about: str
    needs: RequiredModel
    evaluate: str
    data_hash: str
    takes: tuple[str, ...] = ()
    task: str = ""
    folder: str = ""
    own: str = ""
    dataset: str = ""
    format: str = ""
    also: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    judged: bool = False
    trivial_baseline_note: str = ""
    items: int | None = None
    license: str = ""
    size: str = ""

    def run(self, model: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
        """Evaluate a model on this benchmark; None in processes other than rank 0 that do not score."""
        return import_from_string(self.evaluate)(model, config)

    def hash_of_data(self, config: BenchmarkConfig) -> str:
        """SHA-256 of the data named by ``config``."""
        return import_from_string(self.data_hash)(config)
