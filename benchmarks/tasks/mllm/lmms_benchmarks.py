"""The benchmarks of lmms-eval: the listed tasks, any other one and the user's own, on the model of a run."""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.results.protocol import FULL_SIZE, Entries
from benchmarks.tasks.blind import blind_settings, blind_views
from benchmarks.tasks.evaluation import Evaluation
from benchmarks.tasks.mllm import offline_tasks
from benchmarks.tasks.mllm.evaluate_task import (
    evaluate_task,
    exclude_metrics,
    generation_settings,
    leave_out_unsupported,
    load,
    run_without_scoring,
)
from benchmarks.tasks.mllm.items import question_images
from benchmarks.tasks.mllm.llava_input import input_settings
from benchmarks.tasks.mllm.lmms_task import LmmsTask, TaskConfig, UnlistedTaskConfig
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS
from benchmarks.tasks.registry import all_benchmarks, register
from clips.data.formats import FORMATS
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel


def data_hash(config: TaskConfig) -> str:
    """SHA-256 of the files of the task's dataset, or of the root directory if its definition names none.

    For a custom task it includes the definition, so that cached answers to other questions are not reused.

    Raises:
        UserError: there are no such files, or one of them differs from the download record.
    """
    root = offline_tasks.data_root(config.data)
    entry = config.benchmark
    content = offline_tasks.dataset_hash(root, entry.dataset, config.entry)
    if not entry.own:
        return content
    return hashlib.sha256(f"{content} {offline_tasks.definition_hash(Path(entry.own))}".encode()).hexdigest()


def evaluate(model: EvalModel, config: TaskConfig) -> Evaluation | None:
    """Answers, metrics and items of a model's LLaVA, or of its lmms-eval model, on one task.

    All processes answer; rank 0 scores, and the others return None.
    """
    offline_tasks.go_offline()
    if model.config.lmms is not None:
        if model.processes.count > 1:
            raise UserError("lmms: lmms-eval's models run in one process here; their arguments may use several GPUs")
        # the model's class determines its preprocessing
        dtype = getattr(getattr(model.lmms, "_model", None), "dtype", "as its class decides")
        settings: Entries = {
            "input_model": f"lmms-eval's {model.config.lmms.model}",
            "precision": str(dtype).removeprefix("torch."),
        }
        return evaluate_task(model.lmms, config, model.config.output, settings)
    if model.config.endpoint:
        return _evaluate_served(model, config)
    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel

    llava = LlavaBridgeModel(
        loaded=model.llava,
        batch_size=model.config.batch_size,
        record_images=True,
        cache=model.answer_cache(config.benchmark.task, data_hash(config)),
        processes=model.processes,
    )
    about = {"precision": str(model.llava[0].dtype).removeprefix("torch.")} | input_settings(llava.processor)
    about |= blind_settings(config, llava.processor)
    # answers that are scored several times (after those of a blind run, or again without a judge) are scored by rank 0
    # alone, when all are cached
    answered_first = model.processes.count > 1 and bool(config.blind or config.benchmark.judged)
    if not model.processes.is_main or answered_first:
        _answer_without_scoring(llava, config)
    if not model.processes.is_main:
        return None
    # lmms-eval's evaluator would wait for the other processes
    alone = mock.patch("torch.distributed.is_initialized", return_value=False)
    with alone if answered_first else contextlib.nullcontext():
        return evaluate_task(llava, config, model.config.output, about)


def _evaluate_served(model: EvalModel, config: TaskConfig) -> Evaluation:
    from benchmarks.tasks.mllm.llava_model import ServedLlava

    if model.processes.count > 1:
        raise UserError("endpoint: expected one process, which sends its requests concurrently")
    name, cache = str(model.config.llava), model.answer_cache(config.benchmark.task, data_hash(config))
    cached = bool(cache.known)
    llava = ServedLlava(model.chat_client(), name, batch_size=model.config.batch_size, record_images=True, cache=cache)
    about: Entries = {
        "input_model": f"{name}, by a server with OpenAI's chat API",
        "precision": "as the server decides",
    }
    evaluation = evaluate_task(llava, config, model.config.output, about | blind_settings(config, None))
    if config.limit and not cached:
        part = int(evaluation.protocol["questions"])
        llava.print_estimate(part, int(evaluation.protocol.get(FULL_SIZE, part)), model.config.token_prices)
    return evaluation


def _answer_without_scoring(llava: Any, config: TaskConfig) -> None:
    """Answer all questions, those of the blind runs included, together with the other processes."""
    entry, task = config.benchmark, load(llava, config)
    leave_out_unsupported(llava, task, config)
    exclude_metrics(task, config)  # raises what rank 0 raises, before other processes wait for it
    settings = generation_settings(task, entry, config)
    run_without_scoring(llava, task, entry, settings, limit=config.limit)
    if config.blind:
        count = len(task.eval_docs_no_media)
        images = question_images(llava, task, range(min(config.limit or count, count)))
        for view in blind_views(llava.processor, task, config, images, data_hash(config)):
            with llava.seeing(view):
                run_without_scoring(llava, task, entry, settings, limit=None)


def _lmms_task(**fields: Any) -> LmmsTask:
    common: dict[str, Any] = {"config": TaskConfig, "benchmark_type": "mllm", "needs": "llava"}
    return LmmsTask(evaluate=evaluate, data_hash=data_hash, **common | fields)


with Path(__file__).parents[1].joinpath("lmms_tasks.csv").open(encoding="utf-8", newline="") as _stream:
    # size is that of the files that the task reads, as stated on the Hub, items the number in the evaluated split,
    # license that of the questions, as the sources state it; empty if unknown
    for _row in csv.DictReader(_stream):
        register(
            _row["name"],
            _lmms_task(
                task=_row["name"],
                about=_row["about"],
                folder=_row["folder"],
                dataset=_row["dataset"],
                size=_row["size"],
                items=int(_row["items"]),
                license=_row["license"],
                also=(_row["also"],) if _row["also"] else (),
                max_new_tokens=int(_row["max_new_tokens"]) if _row["max_new_tokens"] else None,
                judged=_row["judged"] == "true",
                trivial_baseline_note=_row["trivial_baseline_note"],
                details={
                    heading: _row[heading]
                    for heading in ("questions", "prompt", "scorer", "source", "pitfalls")
                    if _row[heading]
                },
            ),
        )


def find_task(name: str) -> LmmsTask:
    """The benchmark of a task that is not listed: any other one of lmms-eval's, or the path of one of the user's.

    Raises:
        UserError: unknown name (the message lists close matches), or a group of tasks (it lists the members).
    """
    tasks = offline_tasks.task_folders()
    if name in tasks:
        return _lmms_task(
            task=name,
            about=f"lmms-eval's task {name}",
            folder=tasks[name],
            dataset=offline_tasks.dataset_name(name),
            # the metrics of some are known, as those of listed tasks
            config=TaskConfig if name in TASK_METRICS else UnlistedTaskConfig,
        )
    if members := offline_tasks.task_groups().get(name):
        raise UserError(
            f"benchmarks: '{name}' is a group of lmms-eval tasks; use its members: {', '.join(members)}; "
            f"for an encoder's benchmark under this name, write {{name: {name}, task: retrieval, data: DATA}}"
        )
    if own := offline_tasks.own_task(name):
        task, path = own
        return _lmms_task(
            task=task,
            about=f"the task {task} of {path}",
            folder=str(path.parent.resolve()),
            dataset=offline_tasks.dataset_name(task, path),
            own=str(path.resolve()),
            config=UnlistedTaskConfig,
        )
    if name in FORMATS:
        raise UserError(f"benchmarks: '{name}' is a format of data, not a benchmark; see docs/how-to/own-benchmark.md")
    near = difflib.get_close_matches(name, {**all_benchmarks(), **tasks}, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
    raise UserError(f"benchmarks: unknown benchmark '{name}'{hint} (see `clips-bench list`)")
