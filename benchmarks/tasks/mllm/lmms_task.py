"""A task of lmms-eval as a benchmark: its settings, and what is known of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tasks.blind import BlindConfig
from benchmarks.tasks.mllm.judge import OPENAI_URL, REPLY_FORMATS, Judge, ReplyFormat
from benchmarks.tasks.mllm.scorer_code import scorer_hash
from benchmarks.tasks.registry import Benchmark, get_benchmark
from clips.core.cache import json_cache
from clips.core.identity import RUN_ONLY
from clips.ranges import Positive, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class TaskConfig(BlindConfig):
    """A task of lmms-eval.

    Args:
        data: a directory in the Hub's structure (it contains ``lmms-lab-encoder/...``).
        max_new_tokens: cap of an answer's length; by default the task's own.
        num_beams: beams of the search for an answer; by default the task's own number, mostly 1 (greedy decoding).
        exclude_metrics: lmms-eval's metrics to skip (METEOR takes seconds).
        judge_model: the model that grades answers if the scorer needs one (MM-Vet); by default $MODEL_VERSION, or the
            task's.
        judge_url: its OpenAI-compatible URL, ``http://host:port/v1``; by default $OPENAI_API_URL, or OpenAI's.
        judge_key_env: the environment variable with its API key, if the server needs one.
    """

    max_new_tokens: Positive | None = None
    num_beams: Positive | None = None
    exclude_metrics: tuple[str, ...] = ()
    judge_model: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)  # the resolved name counts
    judge_url: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    judge_key_env: str = dataclasses.field(default="OPENAI_API_KEY", metadata=RUN_ONLY)

    @property
    def benchmark(self) -> LmmsTask:
        """The benchmark that these are the settings of."""
        benchmark = get_benchmark(self.entry)
        assert isinstance(benchmark, LmmsTask)
        return benchmark


@dataclass(frozen=True, kw_only=True)
class UnlistedTaskConfig(TaskConfig):
    """A task of lmms-eval that `clips-bench list` has not, or one of the user's, whose metrics have no known scale.

    Args:
        scale: display factor of its metrics; by default 100 if all per-question numbers are from 0 to 1 and higher is
            better, otherwise 1.
    """

    scale: PositiveFloat | None = None


@dataclass(frozen=True, kw_only=True)
class LmmsTask(Benchmark):
    """A benchmark that is a task of lmms-eval, or one of the user's in its format."""

    task: str  # its name
    folder: str  # directory of its definition, below lmms-eval's ``tasks`` or the user's own
    dataset: str  # the Hub name of its data, a path below the data root
    own: str = ""  # the YAML file of a user's task
    also: tuple[str, ...] = ()  # configurations of the dataset that the task's functions read in addition to its own
    max_new_tokens: int | None = None  # default cap of an answer if the task has none
    judged: bool = False  # its scorer sends requests to a judge model (``benchmarks.tasks.mllm.judge``)

    @property
    def may_ask(self) -> bool:
        """Whether its scorer may ask a judge; of the listed tasks it is known."""
        return self.judged or self.config is UnlistedTaskConfig

    def scorer_hash(self) -> str:
        """See `Benchmark`: of lmms-eval's code, or of the user's."""
        return scorer_hash(self.task, self.own)

    def further_inputs(self, config: TaskConfig, results: str) -> Mapping[str, str | None]:
        """See `Benchmark`: the model that judges, if the scorer asks one."""
        judge = make_judge(config, self.task, results).model if self.may_ask else None
        return {"judge_model": judge} if self.judged or judge else {}


def make_judge(config: TaskConfig, task: str, results: str | Path) -> Judge:
    """The judge of a benchmark's settings, or else of lmms-eval's environment variables.

    All models share the cached replies in ``<results>/.judge``.
    """
    return Judge(
        url=config.judge_url or os.environ.get("OPENAI_API_URL") or OPENAI_URL,
        model=config.judge_model or os.environ.get("MODEL_VERSION") or None,
        key=os.environ.get(config.judge_key_env, ""),
        cache=json_cache(Path(results).absolute() / ".judge"),
        reply_format=REPLY_FORMATS.get(task) or ReplyFormat(expected="a string", readable=bool),
    )
