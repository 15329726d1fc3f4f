"""Train an image-text encoder.

    clips train --config encoder.yaml --optimizer.learning_rate 2e-3
    torchrun --nproc-per-node 2 -m clips.cli train --config encoder.yaml     (or the deepspeed launcher)

The training step is `clips.training.train_step.train_step`; this module is the loop around it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from clips.commandline.signals import StopRequest, exit_status_for_signal, graceful_shutdown
from clips.core.artifact import atomic_update_dir, atomic_write, directory_hash, log_info, write_manifest
from clips.core.identity import identity as identity_of
from clips.core.locks import lock_output
from clips.core.trackers import Trackers, open_trackers
from clips.data.device_copies import copy_ahead
from clips.data.loader import iterate_batches, worker_death_as_user_error
from clips.encoder import write_encoder
from clips.errors import UserError
from clips.method.clips_model import ClipsModel
from clips.model_card import write_model_card
from clips.parallel.distributed import all_reduce_mean, end_processes, exit_if_others_hang, wait_for_main_process
from clips.parallel.parallel_model import full_tensor
from clips.training.checkpoint import Checkpointer
from clips.training.mfu import MfuMeter
from clips.training.run_dir import check_trained, create_run_dir, resume_changes
from clips.training.run_logger import RunLogger, ThroughputTimer
from clips.training.setup import (
    build_model_without_pretrained,
    check_stages,
    open_train_dataset,
    parent_artifacts,
    setup_run,
)
from clips.training.stages import completed_stages, stage_configs
from clips.training.train_config import EncoderTrainConfig
from clips.training.train_state import remove_checkpoints
from clips.training.train_step import StepMetrics, TrainRun, prepare_batch, read_metrics, train_step
from clips.training.validation import RetrievalValidation
from clips.typed_data import to_plain

SUMMARY_FILE = "summary.json"
_LAST_VALUES = ("lr", "logit_scale")  # logged as of the last step; other values are logged as means
_MIN_CHECKED_SAMPLES = 1000  # for the ratio of invalid samples


def train(config: EncoderTrainConfig) -> None:
    """Run `clips train`: the output directory becomes an encoder directory."""
    with graceful_shutdown() as stop, exit_if_others_hang():
        configs = stage_configs(config)
        check_stages(configs)
        for stage in configs:
            train_stage(stage, stop, last=stage is configs[-1])
    end_processes()  # not after an error: it would wait for other processes forever


def train_stage(config: EncoderTrainConfig, stop: StopRequest, *, last: bool = True) -> None:
    """Train one stage, unless it is finished.

    Args:
        config: config of the stage.
        stop: checked after each step, and after the stage if it is not the ``last``.
        last: whether it is the last stage.

    Raises:
        SystemExit: the training was stopped by a signal, and is saved.
    """
    data = open_train_dataset(config)
    inputs = {name: directory_hash(path) for name, path in parent_artifacts(config, data).items()}
    identity = identity_of("clips train", config, inputs)
    if check_trained(config, identity):
        log_info(f"{config.output}: already trained with this config; nothing to do")
        return
    output = Path(config.output)
    is_writing = os.environ.get("RANK", "0") == "0"
    with _lock(output) if is_writing else contextlib.nullcontext():
        if is_writing and check_trained(config, identity):
            raise UserError(f"output: another run has just written {output}")
        run = setup_run(config, data)
        run.state.identity, run.state.sources = identity, data.describe()
        if run.processes.is_main:
            log_config_changes(run)
            create_run_dir(config, identity)
        metrics = train_loop(run, stop)
        summary = summarize(run, metrics)
        encoder = export_model(run)
        if encoder is not None:
            finalize_run(run, encoder, summary)
    wait_for_main_process()
    if not last and (signal := stop.of_any_process(torch.device("cpu"))):
        log_stopped(run)
        raise SystemExit(exit_status_for_signal(signal))


# ---------------------------------------------------------------- the loop


def _lock(output: Path) -> contextlib.AbstractContextManager[object]:
    """The lock of an output, which lies next to it; none for a directory that is the only writable one."""
    if output.is_dir() and not os.access(output.parent, os.W_OK):
        log_info(f"{output.parent}: no lock, as it cannot be written; ensure that no other run writes {output}")
        return contextlib.nullcontext()
    return lock_output(output.with_name(f".{output.name}.lock"), output)


def log_config_changes(run: TrainRun) -> None:
    """Log the config's changes since the interruption, and record them for the manifest."""
    for change in resume_changes(run.config, run.state.identity) if run.state.step else ():
        message = f"from step {run.state.step + 1}: {change}"
        log_info(f"{run.config.output}: {message}")
        run.state.changes.append(message)


def train_loop(run: TrainRun, stop: StopRequest) -> dict[str, Any]:
    """Train to the end; returns the last log entry, empty if there was no step left."""
    config, state, is_main, device = run.config, run.state, run.processes.is_main, run.processes.device
    validation = RetrievalValidation(config.validation, run) if config.validation.source else None
    name = Path(config.output).name
    trackers = open_trackers(config.report_to, config.output, name, to_plain(config)) if is_main else Trackers()
    log = RunLogger(config.output, step=state.step, steps=run.steps, quiet=not is_main, trackers=trackers)
    meter = MfuMeter(config, device=device, precision=run.precision, processes=run.processes.count, counted=state.flops)
    run.model.train()
    entry: dict[str, Any] = {}
    values: dict[str, float] = {}
    unread: list[StepMetrics] = []
    with (
        worker_death_as_user_error(),
        contextlib.closing(read_batches(run)) as stream,
        log,
        ThroughputTimer(state) as clock,
        Checkpointer(config.output, run.processes) as checkpointer,
        exit_if_others_hang(),  # before the checkpointer waits for them
    ):
        while state.step < run.steps:
            batch = next_batch(run, stream, clock)
            unread.append(train_one_batch(run, batch, clock))
            log.advance()
            checkpointer.poll()
            last = state.step == run.steps
            validates = validation and (last or state.step % config.validation.eval_steps == 0)
            logs = last or validates or state.step % config.logging_steps == 0
            signal = 0 if last else stop.of_any_process(torch.device("cpu"))
            saves = not last and (signal or state.step % config.save_steps == 0)
            if logs or saves or device.type == "cpu":
                values = read_losses(run, unread)
                clock.tick()
            if logs:
                check_invalid_samples(run)
                entry = log_entry(run, values, clock)
                with clock.stopped():  # counting FLOPs takes longer than the steps of a small model
                    entry |= meter.read(batch, entry["samples_per_second"]) if is_main else {}
                if validation and validates:
                    encoder = export_model(run, everywhere=True)
                    assert encoder is not None
                    entry |= validation.measure(encoder)
                log.write(entry)
            if saves:
                save_checkpoint(run, checkpointer)
            if signal:
                checkpointer.wait()
                wait_for_main_process()  # which renames the checkpoint
                log_stopped(run)
                raise SystemExit(exit_status_for_signal(signal))
    return entry


def read_batches(run: TrainRun) -> Generator[dict[str, Any]]:
    """This process's part of the remaining batches, its images on the device if that is a GPU."""
    rank, world_size = run.processes.rank, run.processes.count
    steps = {"first_step": run.state.step, "last_step": run.steps}
    return copy_ahead(iterate_batches(run.data, **steps, rank=rank, world_size=world_size), run.processes.device)


def next_batch(run: TrainRun, stream: Iterator[dict[str, Any]], clock: ThroughputTimer) -> dict[str, Any]:
    """Wait for a batch, and count its invalid samples."""
    with clock.waiting():
        batch = next(stream)
    run.state.invalid_samples.add(batch.pop("invalid_samples"))
    return batch


def train_one_batch(run: TrainRun, batch: dict[str, Any], clock: ThroughputTimer) -> StepMetrics:
    """Train on a batch; returns the step's metrics."""
    state = run.state
    _seed_step(run.config.seed, state.step, run.processes.rank)
    metrics = train_step(run, prepare_batch(batch, run))
    state.step += 1
    state.samples_seen += run.config.global_batch_size
    clock.tick()
    return metrics


def read_losses(run: TrainRun, unread: list[StepMetrics]) -> dict[str, float]:
    """Read the metrics of the latest steps, which waits for the device; returns the last step's.

    Raises:
        UserError: a loss or gradient is not finite.
    """
    for values in (found := read_metrics(unread)):
        run.state.add(values)
    unread.clear()
    return found[-1]


def log_stopped(run: TrainRun) -> None:
    """Log that the training is saved and how to resume it."""
    if run.processes.is_main:
        log_info(
            f"{run.config.output}: stopped and saved after step {run.state.step}; the same command resumes from there"
        )


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed a step by (seed, step, rank) alone, so that a resumed run has the same random numbers."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def log_entry(run: TrainRun, values: dict[str, float], clock: ThroughputTimer) -> dict[str, Any]:
    """One line of metrics.jsonl; losses are means over the steps since the previous line, and over the processes."""
    means = run.state.take_means() | {name: values[name] for name in _LAST_VALUES if name in values}
    seen = run.state.samples_seen
    progress = {"step": run.state.step, "samples_seen": seen, "epoch": seen / len(run.data)}
    return {**progress, **all_reduce_mean(means), **clock.read()}


def check_invalid_samples(run: TrainRun) -> None:
    """Raise UserError if the data has too many invalid samples, of at least 1,000 samples or the full dataset.

    All processes must call it together.
    """
    run.state.invalid_samples.gather()
    seen = min(max(run.state.samples_seen, _MIN_CHECKED_SAMPLES), len(run.data))
    run.state.invalid_samples.check("data", "data.max_invalid_ratio", run.config.data.max_invalid_ratio, seen)


# ---------------------------------------------------------------- outputs


def save_checkpoint(run: TrainRun, checkpointer: Checkpointer) -> None:
    """Start saving the state of the run."""
    parts = {"model": run.encoder.state_dict(), "optimizer": run.parallel.optimizer_state_dict()}
    if run.average is not None:
        parts["average"] = run.average.state
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    run.state.invalid_samples.gather()
    run.state.sums = all_reduce_mean(run.state.sums)  # the main process saves them
    checkpointer.save(run.parallel.select_own(tensors), run.state, run.config)


def export_model(run: TrainRun, *, everywhere: bool = False) -> ClipsModel | None:
    """The model with the full weights to export, on the main process or ``everywhere``; None on other processes.

    All processes must call it together.
    """
    returns_model = run.processes.is_main or everywhere
    if run.average is None and not run.parallel.shards_weights:
        return run.encoder if returns_model else None
    weights = {}
    state = run.encoder.state_dict() if run.average is None else run.average.state
    for name, value in state.items():
        tensor = full_tensor(value)  # one at a time, to save memory of the device
        if run.processes.is_main:
            weights[name] = tensor.cpu()
    if not returns_model:
        return None
    encoder = build_model_without_pretrained(run.config)
    if run.processes.is_main:
        encoder.load_state_dict(weights)
    encoder.to(run.processes.device)
    if everywhere and run.processes.count > 1:
        for tensor in encoder.state_dict().values():
            dist.broadcast(tensor, 0)
    return encoder


def summarize(run: TrainRun, metrics: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json, on the main process."""
    check_invalid_samples(run)
    state = run.state
    return {
        "steps": state.step,
        "samples_seen": state.samples_seen,
        "epochs": state.samples_seen / len(run.data),
        "seconds": round(state.seconds, 3),
        "samples_per_second": state.samples_seen / state.seconds if state.seconds else None,
        "changes": state.changes,
        "processes": run.processes.count,
        "device": run.processes.device.type,
        "precision": run.precision,
        "parameters": {name: _count(part) for name, part in run.encoder.named_children() if _count(part)},
        "invalid_samples": state.invalid_samples.report(),
        "last": metrics,
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def finalize_run(run: TrainRun, encoder: ClipsModel, summary: dict[str, Any]) -> None:
    """Turn the output directory into an encoder directory."""
    config, output = run.config, Path(run.config.output)
    with atomic_update_dir(output) as partial:
        write_encoder(encoder, partial)
        atomic_write(partial / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=config,
            seed=config.seed,
            data={"sources": run.state.sources},
            parents=parent_artifacts(config, run.data),
            license=config.license,
            identity=run.state.identity,
            stages=completed_stages(to_plain(config), summary, encoder.image_size),
            **summary,
        )
        write_model_card(partial, manifest)
    if not config.keep_checkpoints_after_training:
        remove_checkpoints(output)
    invalid = run.state.invalid_samples
    skipped = (
        f"{invalid.count} invalid samples skipped ({invalid.reasons()})" if invalid.count else "no invalid samples"
    )
    log_info(f"{output}: trained on {summary['samples_seen']} samples in {summary['seconds']:.0f} s; {skipped}")
