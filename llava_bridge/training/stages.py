"""The stages of a run, one after the other in the same processes; finished ones are skipped.

State of an unfinished run, in its work directory::

    run.json            the run's identity; another run is rejected, or replaces this one if it has no progress
    metrics.jsonl       one line per logged step
    <stage>/model       the model after the stage, written atomically
    <stage>/checkpoints HF Trainer's checkpoints of the current stage
"""

from __future__ import annotations

import shutil
from pathlib import Path

from clips.commandline.signals import graceful_shutdown
from clips.core.artifact import atomic_artifact_dir, atomic_write, write_manifest
from clips.core.identity import RUN, difference, read_run, reject_other_run, run_text
from clips.errors import UserError
from clips.jsontext import safe_json_loads
from llava_bridge.data import read_samples
from llava_bridge.data.sources import reject_missing
from llava_bridge.training.launch import (
    STOP_FILE,
    DistributedStopRequest,
    is_main_process,
    is_reporting_process,
    log_rank0,
)
from llava_bridge.training.run_identity import artifact_kind, data_manifest, parent_artifacts, run_identity
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.work_dir import has_progress, work_dir


def run_stages(config: LlavaTrainConfig) -> None:
    """Run the missing stages and write the output directory; called in every process."""
    from llava_bridge.training import distributed

    distributed.init_process_group()
    work = work_dir(config)
    if is_main_process():
        _prepare(work, config)
    distributed.barrier()
    _check_shared(work)
    with graceful_shutdown() as request:
        _run_missing(config, work, DistributedStopRequest(request, work))
    if is_main_process():
        _write_output(config, work)
    distributed.barrier()


def _check_shared(work: Path) -> None:
    """Raise UserError unless every process can read the work directory of rank 0."""
    from clips.parallel.distributed import all_gather_objects  # imports torch

    for rank, can_read in enumerate(all_gather_objects((work / RUN).is_file())):
        if not can_read:
            raise UserError(
                f"output: expected a directory shared by all nodes, but the process of rank {rank} does not find {work}"
            )


def _run_missing(config: LlavaTrainConfig, work: Path, stop: DistributedStopRequest) -> None:
    from llava_bridge.training import trainer

    for name in config.stages:
        if (work / name / "model").is_dir():
            log_rank0(f"{name}: done before")
        else:
            trainer.train_stage(config, name, work, stop)


def _prepare(work: Path, config: LlavaTrainConfig) -> None:
    """Keep the state of this run if it was interrupted; delete that of another run without progress.

    Raises:
        UserError: images are missing with ``missing_images: error``, or another run has progress here.
    """
    for data in (data for name in config.stages for data in config.stage(name).data):
        if data.missing_images == "error" and data.format != "text":
            log_rank0(f"checking all images of {data.path}")
            reject_missing(read_samples(data, config.seed), data.path, log_rank0)
    if is_reporting_process():  # else the command has deleted it
        (work / STOP_FILE).unlink(missing_ok=True)
    run, before = run_identity(config), read_run(work / RUN)
    if has_progress(work):
        reject_other_run(work, before or {}, run)
    if before is not None and difference(before, run) is None:
        log_rank0(f"resuming the unfinished run in {work}")
        return
    for entry in work.iterdir():
        if entry.name not in {"lock", "log.txt", "config.yaml", STOP_FILE}:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    atomic_write(work / RUN, run_text(run))


def remove_leftover(config: LlavaTrainConfig) -> None:
    """Delete the work directory of a finished run, unless another run has progress in it."""
    work = work_dir(config)
    if has_progress(work) and difference(read_run(work / RUN) or {}, run_identity(config)):
        log_rank0(f"{work} has an unfinished run with other settings; remove it if it is not needed")
        return
    shutil.rmtree(work, ignore_errors=True)


def _write_output(config: LlavaTrainConfig, work: Path) -> None:
    last = config.stages[-1]
    summaries = {name: safe_json_loads((work / name / "model" / "stage.json").read_text()) for name in config.stages}
    with atomic_artifact_dir(config.output, kind=artifact_kind(config)) as directory:
        shutil.copytree(work / last / "model", directory, dirs_exist_ok=True)
        (directory / "stage.json").unlink()
        shutil.copyfile(work / "metrics.jsonl", directory / "metrics.jsonl")
        write_manifest(
            directory,
            kind=artifact_kind(config),
            config=config,
            seed=config.seed,
            data=data_manifest(config),
            parents=parent_artifacts(config),
            identity=run_identity(config),
            stages=summaries,
            seconds=round(sum(summary["seconds"] for summary in summaries.values()), 1),
        )
    for name, summary in summaries.items():
        skipped = f", {summary['skipped']} invalid samples skipped" if summary["skipped"] else ""
        log_rank0(
            f"{name}: {summary['steps']} steps, final loss {summary['loss']:.4f}, {summary['seconds']:.0f} s{skipped}"
        )
