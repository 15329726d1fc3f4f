"""What a benchmark is. Which there are, `catalogue` knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.tasks.run_config import RequiredModel
from clips.lazy_import import import_from_string

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.evaluation import Evaluation
    from benchmarks.tasks.run_config import BenchmarkConfig

Kind = Literal["retrieval", "classification", "captions", "pointing", "choice", "mllm"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args:
        benchmark_type: what sort of result it gives.
        about: one line: what is measured.
        needs: ``"encoder"`` (with a text tower), ``"tower"`` (an encoder with or without one) or ``"llava"``.
        evaluate: ``module:function`` of (row, config) → Outcome.
        data_hash: ``module:function`` of config → SHA-256 of the data that it reads.
        takes: which fields of ``BenchmarkConfig`` it reads, besides name, data, task and limit.
        task: MLLM: lmms-eval's task name.
        folder: MLLM: folder below lmms-eval's ``tasks`` that defines it (spares reading all 2,000 definitions), or the
            user's own.
        own: MLLM: the YAML file that defines a task of the user's own.
        dataset: MLLM: the hub name of its data, a path below the data root.
        format: compositional: how its data come, a name in ``clips.data.formats.FORMATS``.
        also: MLLM: configurations of the data set that the task's functions read beside its own.
        max_new_tokens: MLLM: cap of an answer where the task itself states none.
        judged: MLLM: its scorer asks a judge, another model (``benchmarks.tasks.mllm.judge``).
        trivial_baseline_note: one sentence for below the table: what a model gets that does not look at the picture.
        items: how many questions, or pictures, the published set has; None where it is whatever the user brings.
        license: of the published set, as its source states it.
        size: of the published set on disk, roughly; empty where it is not known.
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

    def run(self, row: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
        """Evaluate a row on this benchmark; None in a process that leaves the scoring to the first one."""
        return import_from_string(self.evaluate)(row, config)

    def hash_of_data(self, config: BenchmarkConfig) -> str:
        """SHA-256 of the data named by ``config``."""
        return import_from_string(self.data_hash)(config)
