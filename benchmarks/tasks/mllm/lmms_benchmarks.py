"""The benchmarks of lmms-eval: the listed tasks, any other one and the user's own, on the model of a run."""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import FULL_SIZE
from benchmarks.tasks.blind_images import blind_settings
from benchmarks.tasks.distributed import as_single_process
from benchmarks.tasks.evaluation import Evaluation
from benchmarks.tasks.mllm.blind_runs import blind_views, seen_by
from benchmarks.tasks.mllm.download import dataset_hash
from benchmarks.tasks.mllm.evaluate_task import (
    evaluate_task,
    exclude_metrics,
    generation_settings,
    load,
    question_images,
)
from benchmarks.tasks.mllm.llava_input import input_settings
from benchmarks.tasks.mllm.lmms_models import model_settings
from benchmarks.tasks.mllm.lmms_tasks import LmmsTask, TaskConfig, UnlistedTaskConfig
from benchmarks.tasks.mllm.offline_tasks import (
    data_root,
    dataset_name,
    definition_hash,
    go_offline,
    own_task,
    task_folders,
    task_groups,
)
from benchmarks.tasks.registry import all_benchmarks, register
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel


def data_hash(config: TaskConfig) -> str:
    """SHA-256 of the files of the task's dataset, or of the root directory if its definition names none.

    For a custom task it includes the definition, so that cached answers to other questions are not reused.

    Raises:
        UserError: there are no such files, or one of them differs from the download record.
    """
    root = data_root(config.data)
    entry = config.benchmark
    content = dataset_hash(root, entry.dataset, config.entry)
    if not entry.own:
        return content
    return hashlib.sha256(f"{content} {definition_hash(Path(entry.own))}".encode()).hexdigest()


def evaluate(model: EvalModel, config: TaskConfig) -> Evaluation | None:
    """Answers, metrics and items of a model's LLaVA, or of its lmms-eval model, on one task.

    All processes answer; rank 0 scores, and the others return None.
    """
    go_offline()
    if model.config.lmms is not None:
        if model.processes.count > 1:
            raise UserError("lmms: lmms-eval's models run in one process here; their arguments may use several GPUs")
        return evaluate_task(
            model.lmms, config, model.config.output, model_settings(model.lmms, model.config.lmms.model)
        )
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
    answered_first = model.processes.count > 1 and bool(config.blind or config.benchmark.judged)
    if not model.processes.is_main or answered_first:
        _answer_without_scoring(llava, config)
    if not model.processes.is_main:
        return None
    with as_single_process() if answered_first else contextlib.nullcontext():
        return evaluate_task(llava, config, model.config.output, about)


def _evaluate_served(model: EvalModel, config: TaskConfig) -> Evaluation:
    from benchmarks.tasks.mllm.served_llava import ServedLlava, chat_client, served_settings

    if model.processes.count > 1:
        raise UserError("endpoint: expected one process, which sends its requests concurrently")
    name, cache = str(model.config.llava), model.answer_cache(config.benchmark.task, data_hash(config))
    cached = bool(cache.known)
    llava = ServedLlava(
        chat_client(model.config),
        name,
        batch_size=model.config.batch_size,
        record_images=True,
        cache=cache,
    )
    about = served_settings(name) | blind_settings(config, None)
    evaluation = evaluate_task(llava, config, model.config.output, about)
    if config.limit and not cached:
        part = int(evaluation.protocol["questions"])
        llava.print_estimate(part, int(evaluation.protocol.get(FULL_SIZE, part)), model.config.token_prices)
    return evaluation


def _answer_without_scoring(llava: Any, config: TaskConfig) -> None:
    """Answer all questions, those of the blind runs included, together with the other processes.

    If answers are scored several times (after those of a blind run, or again without a judge), rank 0 does so alone,
    when all are cached.
    """
    from benchmarks.tasks.mllm.lmms_scoring import run_without_scoring

    entry, task = config.benchmark, load(llava, config)
    exclude_metrics(task, config)  # raises what rank 0 raises, before other processes wait for it
    settings = generation_settings(task, entry, config)
    run_without_scoring(llava, task, entry, settings, limit=config.limit)
    if config.blind:
        asked = range(min(config.limit or len(task.eval_docs_no_media), len(task.eval_docs_no_media)))
        images = question_images(llava, task, asked)
        for view in blind_views(llava, task, config, images, data_hash(config)):
            with seen_by(llava, view):
                run_without_scoring(llava, task, entry, settings, limit=None)


def _lmms_task(**fields: Any) -> LmmsTask:
    common: dict[str, Any] = {"config": TaskConfig, "benchmark_type": "mllm", "needs": "llava"}
    return LmmsTask(evaluate=evaluate, data_hash=data_hash, **common | fields)


def _listed_tasks() -> Iterator[LmmsTask]:
    """The benchmarks of ``lmms_tasks.csv``.

    ``size`` is that of the files that the task reads, as stated on the Hub, ``items`` the number in the evaluated
    split, ``license`` that of the questions, as the sources state it (docs/protocols.md); empty if unknown.
    """
    with Path(__file__).parents[1].joinpath("lmms_tasks.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield _lmms_task(
                task=row["name"],
                about=row["about"],
                folder=row["folder"],
                dataset=row["dataset"],
                size=row["size"],
                items=int(row["items"]),
                license=row["license"],
                also=(row["also"],) if row["also"] else (),
                max_new_tokens=int(row["max_new_tokens"]) if row["max_new_tokens"] else None,
                judged=row["judged"] == "true",
                trivial_baseline_note=row["trivial_baseline_note"],
            )


for _task in _listed_tasks():
    register(_task.task, _task)


def find_task(name: str) -> LmmsTask:
    """The benchmark of a task that is not listed: any other one of lmms-eval's, or the path of one of the user's.

    Raises:
        UserError: unknown name (the message lists close matches), or a group of tasks (it lists the members).
    """
    tasks = task_folders()
    if name in tasks:
        # NaturalBench's metrics are known, as those of listed tasks
        kind = TaskConfig if name == "naturalbench" else UnlistedTaskConfig
        about = f"lmms-eval's task {name}"
        return _lmms_task(task=name, about=about, folder=tasks[name], dataset=dataset_name(name), config=kind)
    if members := task_groups().get(name):
        raise UserError(f"benchmarks: '{name}' is a group of lmms-eval tasks; use its members: {', '.join(members)}")
    if own := own_task(name):
        task, path = own
        return _lmms_task(
            task=task,
            about=f"the task {task} of {path}",
            folder=str(path.parent.resolve()),
            dataset=dataset_name(task, path),
            own=str(path.resolve()),
            config=UnlistedTaskConfig,
        )
    near = difflib.get_close_matches(name, {**all_benchmarks(), **tasks}, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
    raise UserError(f"benchmarks: unknown benchmark '{name}'{hint} (see `clips-bench list`)")
