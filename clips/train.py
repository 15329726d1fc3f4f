"""Train an image-text encoder.

    clips train --config encoder.yaml --optimizer.learning_rate 2e-3
    torchrun --nproc-per-node 2 -m clips.cli train --config encoder.yaml     (or the deepspeed launcher)

The training step is `clips.training.train_step.train_step`; everything here carries batches to it and results from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from clips.commandline.signals import StopRequest, exit_status_for_signal, graceful_shutdown
from clips.core.artifact import atomic_update_dir, atomic_write, directory_hash, log_info, write_manifest
from clips.core.identity import identity as identity_of
from clips.data.loader import iterate_batches, worker_death_as_user_error
from clips.encoder import write_encoder
from clips.method.clips_model import ClipsModel
from clips.model_card import write_model_card
from clips.parallel.ddp import full_tensor
from clips.parallel.distributed import all_reduce_mean, end_processes, wait_for_main_process
from clips.parallel.watchdog import Watchdog
from clips.planning.mfu import MfuMeter
from clips.serialization import to_plain
from clips.training.checkpoint import Checkpointer
from clips.training.run_dir import create_run_dir, is_trained, resume_changes
from clips.training.run_logger import RunLogger, ThroughputTimer
from clips.training.setup import (
    build_model_without_pretrained,
    check_stages,
    open_train_dataset,
    parent_artifacts,
    setup_run,
)
from clips.training.stages import completed_stages, stage_configs
from clips.training.trackers import open_trackers
from clips.training.train_config import EncoderTrainConfig
from clips.training.train_state import remove_checkpoints
from clips.training.train_step import TrainRun, prepare_batch, train_step
from clips.training.validation import RetrievalValidation

SUMMARY_FILE = "summary.json"
_OF_ITS_STEP = ("lr", "logit_scale")  # in an entry of the log; other numbers of the training step are means
_JUDGED_SAMPLES = 1000  # the ratio of invalid samples is not judged on fewer


def train(config: EncoderTrainConfig) -> None:
    """Carry out ``config``: its output directory becomes an encoder directory."""
    with graceful_shutdown() as stop:
        configs = stage_configs(config)
        check_stages(configs)
        for stage in configs:
            train_stage(stage, stop, last=stage is configs[-1])
    end_processes()  # not after an error: others may never come


def train_stage(config: EncoderTrainConfig, stop: StopRequest, *, last: bool = True) -> None:
    """Carry out one stage, or say that it is done.

    Args:
        config: of the stage.
        stop: heeded after each step, and after the stage if it is not the ``last``.
        last: whether the training ends with it.

    Raises:
        SystemExit: the training was asked to stop, and is saved.
    """
    data = open_train_dataset(config)
    inputs = {name: directory_hash(path) for name, path in parent_artifacts(config, data).items()}
    identity = identity_of("clips train", config, inputs)
    if is_trained(config, identity):
        log_info(f"{config.output}: already trained with this config; nothing to do")
        return
    run = setup_run(config, data)
    run.loop.identity, run.loop.sources = identity, data.describe()
    if run.processes.is_main:
        log_config_changes(run)
        create_run_dir(config, identity)
    metrics = train_loop(run, stop)
    summary = summarize(run, metrics)
    encoder = export_model(run)
    if encoder is not None:
        finalize_run(run, encoder, summary)
    wait_for_main_process()
    if not last and (asked := stop.of_any_process(run.processes.device)):
        log_stopped(run)
        raise SystemExit(exit_status_for_signal(asked))


# ---------------------------------------------------------------- around it


def log_config_changes(run: TrainRun) -> None:
    """What the config has otherwise than it had when the run was interrupted is said, and kept for the manifest."""
    for change in resume_changes(run.config, run.loop.identity) if run.loop.step else ():
        told = f"from step {run.loop.step + 1}: {change}"
        log_info(f"{run.config.output}: {told}")
        run.loop.changes.append(told)


def train_loop(run: TrainRun, stop: StopRequest) -> dict[str, Any]:
    """Train to the end; returns the last entry of the log, empty where there was no step to do."""
    config, loop, is_main = run.config, run.loop, run.processes.is_main
    validation = RetrievalValidation(config.validation, run) if config.validation.source else None
    trackers = open_trackers(config.report_to, config.output, to_plain(config)) if is_main else []
    log = RunLogger(config.output, step=loop.step, steps=run.steps, quiet=not is_main, trackers=trackers)
    meter = MfuMeter(
        config,
        device=run.processes.device,
        precision=run.precision,
        processes=run.processes.count,
        counted=loop.flops,
    )
    stream = read_batches(run)
    run.model.train()
    entry: dict[str, Any] = {}
    with (
        worker_death_as_user_error(),
        log,
        ThroughputTimer(loop) as clock,
        Checkpointer(config.output, run.processes, keep=config.save_total_limit) as checkpointer,
        Watchdog(run.processes, config.distributed.hang_timeout) as watchdog,
    ):
        while loop.step < run.steps:
            batch = next_batch(run, stream, clock, watchdog)
            values = train_one_batch(run, batch, clock)
            log.advance()
            checkpointer.poll()
            last = loop.step == run.steps
            validates = validation and (last or loop.step % config.validation.eval_steps == 0)
            if last or validates or loop.step % config.logging_steps == 0:
                check_invalid_samples(run)
                entry = log_entry(run, values, clock)
                with clock.stopped():  # counting takes longer than a small training's steps
                    entry |= meter.read(batch, entry["samples_per_second"]) if is_main else {}
                if validation and validates:
                    entry |= validate(run, validation, watchdog)
                log.write(entry)
            asked = 0 if last else stop.of_any_process(run.processes.device)
            if not last and (asked or loop.step % config.save_steps == 0):
                watchdog.at(loop.step, "saving")
                save_checkpoint(run, checkpointer)
            if asked:
                checkpointer.wait()
                wait_for_main_process()  # which puts the checkpoint in its place
                log_stopped(run)
                raise SystemExit(exit_status_for_signal(asked))
    return entry


def read_batches(run: TrainRun) -> Iterator[dict[str, Any]]:
    """This process's part of the batches that are left."""
    return iterate_batches(
        run.data,
        first_step=run.loop.step,
        last_step=run.steps,
        rank=run.processes.rank,
        world_size=run.processes.count,
    )


def next_batch(
    run: TrainRun, stream: Iterator[dict[str, Any]], clock: ThroughputTimer, watchdog: Watchdog
) -> dict[str, Any]:
    """Wait for a batch; its invalid samples are counted."""
    watchdog.at(run.loop.step, "waiting for data")
    with clock.waiting():
        batch = next(stream)
    watchdog.at(run.loop.step, "computing")
    run.loop.bad.add(batch.pop("bad"))
    return batch


def train_one_batch(run: TrainRun, batch: dict[str, Any], clock: ThroughputTimer) -> dict[str, float]:
    """Train on a batch; returns the step's numbers."""
    loop = run.loop
    _seed_step(run.config.seed, loop.step, run.processes.rank)
    values = train_step(run, prepare_batch(batch, run))
    loop.step += 1
    loop.samples_seen += run.config.global_batch_size
    loop.add(values)
    clock.tick()
    return values


def validate(run: TrainRun, validation: RetrievalValidation, watchdog: Watchdog) -> dict[str, float]:
    """Retrieval on held-out images, of which each process encodes its share."""

    def moved() -> None:
        watchdog.at(run.loop.step, "validating")

    moved()
    encoder = export_model(run, everywhere=True)
    assert encoder is not None
    return validation.measure(encoder, moved)


def log_stopped(run: TrainRun) -> None:
    """Tell the user that nothing is lost."""
    if run.processes.is_main:
        log_info(
            f"{run.config.output}: stopped and saved after step {run.loop.step}; the same command resumes from there"
        )


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of one step depend on (seed, step, rank) alone, so that a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def log_entry(run: TrainRun, values: dict[str, float], clock: ThroughputTimer) -> dict[str, Any]:
    """One line of metrics.jsonl; losses are means over the steps since the line before, and over the processes."""
    means = run.loop.take_means() | {name: values[name] for name in _OF_ITS_STEP}
    return {
        "step": run.loop.step,
        "samples_seen": run.loop.samples_seen,
        "epoch": run.loop.samples_seen / len(run.data),
        **all_reduce_mean(means),
        **clock.read(),
    }


def check_invalid_samples(run: TrainRun) -> None:
    """Stop a run whose data has too many invalid samples; judged on at least 1,000 samples or all there are.

    All processes call it together.
    """
    run.loop.bad.gather()
    seen = max(min(run.loop.samples_seen, len(run.data)), min(len(run.data), _JUDGED_SAMPLES))
    run.loop.bad.check("data", "data.max_invalid_ratio", run.config.data.max_invalid_ratio, seen)


# ---------------------------------------------------------------- after it


def save_checkpoint(run: TrainRun, checkpointer: Checkpointer) -> None:
    """Begin to save where the run stands."""
    parallel = run.parallel
    parts = {"model": parallel.select_own(parallel.state_dict()), "optimizer": parallel.optimizer_state_dict()}
    if run.average is not None:
        parts["average"] = parallel.select_own(parallel.gather_state_dict(run.average.state))
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    run.loop.bad.gather()
    run.loop.sums = all_reduce_mean(run.loop.sums)  # the main process's are kept
    checkpointer.save(tensors, run.loop, run.config)


def export_model(run: TrainRun, *, everywhere: bool = False) -> ClipsModel | None:
    """The model whose weights are the result, whole, on the main process or everywhere; else None. All ask together."""
    wanted = run.processes.is_main or everywhere
    if run.average is None and not run.parallel.shards_weights:
        return run.encoder if wanted else None
    parallel, average = run.parallel, run.average
    weights = {}
    state = parallel.state_dict() if average is None else parallel.gather_state_dict(average.state)
    for name, value in state.items():
        tensor = full_tensor(value)  # one at a time, to save memory of the device
        if run.processes.is_main:
            weights[name] = tensor.cpu()
    if not wanted:
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
    """What summary.json tells of the finished run, on the main process."""
    check_invalid_samples(run)
    loop = run.loop
    return {
        "steps": loop.step,
        "samples_seen": loop.samples_seen,
        "epochs": loop.samples_seen / len(run.data),
        "seconds": round(loop.seconds, 3),
        "samples_per_second": loop.samples_seen / loop.seconds if loop.seconds else None,
        "changes": loop.changes,
        "processes": run.processes.count,
        "device": run.processes.device.type,
        "precision": run.precision,
        "parameters": {name: _count(part) for name, part in run.encoder.named_children() if _count(part)},
        "bad_samples": loop.bad.report(),
        "last": metrics,
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def finalize_run(run: TrainRun, encoder: ClipsModel, summary: dict[str, Any]) -> None:
    """Turn the output directory into an encoder directory."""
    config = run.config
    output = Path(config.output)
    with atomic_update_dir(output) as partial:
        write_encoder(encoder, partial)
        atomic_write(partial / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=config,
            seed=config.seed,
            data={"sources": run.loop.sources},
            parents=parent_artifacts(config, run.data),
            license=config.license,
            identity=run.loop.identity,
            stages=completed_stages(to_plain(config), summary, encoder.image_size),
            **summary,
        )
        write_model_card(partial, manifest)
    if not config.keep_checkpoints_after_training:
        remove_checkpoints(output)
    bad = run.loop.bad
    log_info(
        f"{output}: trained on {summary['samples_seen']} samples in {summary['seconds']:.0f} s; "
        + (f"{bad.count} invalid samples skipped ({bad.reasons()})" if bad.count else "no invalid samples")
    )
