"""``llava-bridge train``: from an encoder and an LLM to a LLaVA, by stages.

    llava-bridge train --config llava.yaml                                          # starts its processes itself
    deepspeed --num_accelerators 2 --module llava_bridge train --config llava.yaml  # under a launcher

:func:`run_train` runs in each process, and :func:`llava_bridge.training.stage.train_stage` trains one stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from clips.commandline.signals import StopRequest, graceful_shutdown
from clips.core.artifact import atomic_artifact_dir, check_finished, write_manifest
from clips.core.durable import atomic_write
from clips.core.identity import RUN
from clips.core.run_log import METRICS_FILE, TENSORBOARD_DIR, RunLog, check_trackers
from clips.errors import UserError
from clips.model_card import write_card
from clips.model_refs import TRAIN_CONFIG
from clips.safe_text import log_info
from clips.text_files import safe_json_loads
from clips.typed_data import checked, to_yaml
from llava_bridge.training import launch
from llava_bridge.training.inputs import Inputs, resolve_inputs
from llava_bridge.training.launch import is_main_process, log_rank0, start_ranks
from llava_bridge.training.run_dir import has_progress, lock_work_dir, prepare_work_dir, remove_leftover
from llava_bridge.training.train_config import LlavaTrainConfig


def run_train(config: LlavaTrainConfig) -> None:
    """Run the stages in the processes of a launcher, else in this one and others that it starts.

    Rank 0 resolves the inputs for all: nodes may have another commit, file or environment under the same name. After an
    interruption the same command resumes from the last checkpoint; after the end it does nothing. UserError:
    see :class:`LlavaTrainConfig`; missing or incompatible parts and data.
    """
    launched = launch.launcher_world_size()
    with launch.report_once(), contextlib.ExitStack() as stack:
        config = checked(config)
        if launched is None:
            inputs = _begin(config, stack)
            if inputs is None:
                return
            stop = stack.enter_context(graceful_shutdown())
            stack.enter_context(start_ranks(inputs.processes, inputs.work / TRAIN_CONFIG))
            _join_processes()
            launch.from_main(lambda: inputs)
        else:
            config.with_processes(launched)  # its errors need no process group
            _join_processes()
            inputs = launch.from_main(lambda: _begin(config, stack))
            if inputs is None:
                return
            stop = stack.enter_context(graceful_shutdown())
        run_stages(inputs, stop)
    log_rank0(f"wrote {config.output}; next: `llava-bridge chat {config.output} --image FILE`")


def _join_processes() -> None:
    if not sys.warnoptions:  # python -W, PYTHONWARNINGS
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
    launch.init_process_group()


def _begin(config: LlavaTrainConfig, stack: contextlib.ExitStack) -> Inputs | None:
    """Resolve the inputs, and lock and prepare the work directory; None if the run is finished. In rank 0 alone."""
    inputs = resolve_inputs(config)
    check_trackers(config.report_to)
    if check_finished(config.output, "llava", inputs.identity):
        but = "images in files of their own are not compared"
        log_info(f"{config.output}: already trained with this config; nothing to do ({but})")
        remove_leftover(inputs)
        return None
    if launch.launcher_world_size() is None:
        if 0 < inputs.gpus < inputs.processes:
            raise UserError(
                f"distributed.num_processes: expected at most {inputs.gpus}, one for each visible GPU, "
                f"got {inputs.processes}"
            )
        if config.distributed.num_processes is None and inputs.gpus > 1:
            log_info(f"distributed.num_processes: {inputs.gpus}, one for each visible GPU")
    inputs = dataclasses.replace(inputs, config=config.with_processes(inputs.processes))
    stack.enter_context(lock_work_dir(inputs))
    prepare_work_dir(inputs)
    atomic_write(inputs.work / TRAIN_CONFIG, to_yaml(config))  # with any number of processes it resumes the run
    return inputs


def run_stages(inputs: Inputs, stop: StopRequest) -> None:
    """Run the missing stages and write the output directory; called in every process."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from clips.loader.loader import worker_errors_as_user_errors
    from llava_bridge.training.stage import train_stage  # not before: libraries that it imports print warnings

    work = inputs.work
    check_is_shared(work)
    config = with_precision(inputs.config, work)
    inputs = dataclasses.replace(inputs, config=config)
    with RunLog.of(config, work, writes=is_main_process()) as run_log, worker_errors_as_user_errors("num_workers"):
        for name in config.stages:
            if launch.from_main((work / name / "model").is_dir):
                log_rank0(f"{name}: done before")
            else:
                train_stage(inputs, name, stop, run_log)
    if is_main_process():
        write_output(inputs)
    launch.barrier()


def check_is_shared(work: Path) -> None:
    """Raise a UserError in all processes if one of them does not see rank 0's work directory."""
    from clips.parallel import distributed

    for rank, can_read in enumerate(distributed.all_gather_objects((work / RUN).is_file())):
        if not can_read:
            raise UserError(
                f"output: expected a directory shared by all nodes, but the process of rank {rank} does not find {work}"
            )


def with_precision(config: LlavaTrainConfig, work: Path) -> LlavaTrainConfig:
    """The config with ``auto`` resolved: once, so that a run that resumes on other hardware keeps its precision."""
    import torch

    from clips.model.compute import resolve_precision

    def resolved() -> Any:
        file = work / "precision"
        if file.is_file() and has_progress(work):
            chosen = file.read_text(encoding="utf-8")
            log_rank0(f"precision: {chosen} (as before)")
            return chosen
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        chosen, reason = resolve_precision(config.precision, device)
        log_rank0(f"precision: {chosen} ({reason})")
        atomic_write(file, chosen)
        return chosen

    return dataclasses.replace(config, precision=launch.from_main(resolved)) if config.precision == "auto" else config


def write_output(inputs: Inputs) -> None:
    """Write the finished LLaVA: the last stage's model, logs and a manifest."""
    config, work = inputs.config, inputs.work
    summaries = {name: safe_json_loads((work / name / "model" / "stage.json").read_text()) for name in config.stages}
    with atomic_artifact_dir(config.output, kind="llava") as directory:
        shutil.copytree(work / config.stages[-1] / "model", directory, dirs_exist_ok=True)
        (directory / "stage.json").unlink()
        shutil.copyfile(work / METRICS_FILE, directory / METRICS_FILE)
        if (work / TENSORBOARD_DIR).is_dir():  # else TensorBoard was not used, or failed
            shutil.copytree(work / TENSORBOARD_DIR, directory / TENSORBOARD_DIR)
        write_manifest(
            directory,
            kind="llava",
            config=config,
            seed=config.seed,
            data={**inputs.data, **inputs.commits},
            parents=inputs.parents,
            identity=inputs.identity.values,
            stages=summaries,
            seconds=round(sum(summary["seconds"] for summary in summaries.values()), 1),
        )
        parts = {"encoder": config.encoder, "LLM": config.llm, "LLaVA before": config.llava}
        write_card(directory, "llava", parts=parts, stages=summaries, seed=config.seed)
    for name, summary in summaries.items():
        invalid = summary["invalid_samples"]["count"]
        skipped = f", {invalid} invalid samples skipped" if invalid else ""
        log_rank0(
            f"{name}: {summary['steps']} steps, final loss {summary['loss']:.4f}, {summary['seconds']:.0f} s{skipped}"
        )
