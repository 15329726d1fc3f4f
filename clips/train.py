"""Train an image-text encoder.

    clips train --config encoder.yaml --optim.learning_rate 2e-3
    torchrun --nproc-per-node 2 -m clips.cli train --config encoder.yaml     (or the deepspeed launcher)

The training step is `clips.training.step.training_step`; everything here carries batches to it and results from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from clips.commandline.stopping import StopRequest, exit_status, stop_requests
from clips.core.artifact import added_files, directory_hash, say, write_file, write_manifest
from clips.core.identity import identity as identity_of
from clips.data.loader import batches, told_of_dead_workers
from clips.encoder import write_encoder
from clips.method.model import ClipsModel
from clips.modelcard import write_model_card
from clips.parallel.base import whole
from clips.parallel.processes import end_processes, mean_over_processes, wait_for_main_process
from clips.parallel.watchdog import Watchdog
from clips.plain import plain
from clips.planning.mfu import MfuMeter
from clips.training.checkpoint import Checkpointer
from clips.training.config import TrainConfig
from clips.training.rundir import changes, is_trained, record_run
from clips.training.runlog import Clock, RunLog
from clips.training.stages import stage_configs, stages_so_far
from clips.training.standing import remove_checkpoints
from clips.training.start import bare_model, check_stages, open_data, parents_of, start_run
from clips.training.step import Run, to_device, training_step
from clips.training.trackers import open_trackers
from clips.training.validate import Validation

SUMMARY = "summary.json"
_OF_ITS_STEP = ("lr", "logit_scale")  # in an entry of the log; other numbers of the training step are means
_JUDGED_SAMPLES = 1000  # the ratio of invalid samples is not judged on fewer


def train(config: TrainConfig) -> None:
    """Carry out ``config``: its output directory becomes an encoder directory."""
    with stop_requests() as stop:
        configs = stage_configs(config)
        check_stages(configs)
        for stage in configs:
            train_stage(stage, stop, last=stage is configs[-1])
    end_processes()  # not after an error: others may never come


def train_stage(config: TrainConfig, stop: StopRequest, *, last: bool = True) -> None:
    """Carry out one stage, or say that it is done.

    Args:
        config: of the stage.
        stop: heeded after each step, and after the stage if it is not the ``last``.
        last: whether the training ends with it.

    Raises:
        SystemExit: the training was asked to stop, and is saved.
    """
    data = open_data(config)
    inputs = {name: directory_hash(path) for name, path in parents_of(config, data).items()}
    identity = identity_of("clips train", config, inputs)
    if is_trained(config, identity):
        say(f"{config.output}: already trained with this config; nothing to do")
        return
    run = start_run(config, data)
    run.loop.identity, run.loop.sources = identity, data.describe()
    if run.processes.is_main:
        note_changes(run)
        record_run(config, identity)
    metrics = run_steps(run, stop)
    summary = summarise(run, metrics)
    encoder = exported(run)
    if encoder is not None:
        finish(run, encoder, summary)
    wait_for_main_process()
    if not last and (asked := stop.of_any_process(run.processes.device)):
        say_stopped(run)
        raise SystemExit(exit_status(asked))


# ---------------------------------------------------------------- around it


def note_changes(run: Run) -> None:
    """What the config has otherwise than it had when the run was interrupted is said, and kept for the manifest."""
    for change in changes(run.config, run.loop.identity) if run.loop.step else ():
        told = f"from step {run.loop.step + 1}: {change}"
        say(f"{run.config.output}: {told}")
        run.loop.changes.append(told)


def run_steps(run: Run, stop: StopRequest) -> dict[str, Any]:
    """Train to the end; returns the last entry of the log, empty where there was no step to do."""
    config, loop, is_main = run.config, run.loop, run.processes.is_main
    validation = Validation(config.validation, run) if config.validation.source else None
    trackers = open_trackers(config.track, config.output, plain(config)) if is_main else []
    log = RunLog(config.output, step=loop.step, steps=run.steps, quiet=not is_main, trackers=trackers)
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
        told_of_dead_workers(),
        log,
        Clock(loop) as clock,
        Checkpointer(config.output, run.processes, keep=config.keep_checkpoints) as checkpointer,
        Watchdog(run.processes, config.scale.patience) as watchdog,
    ):
        while loop.step < run.steps:
            batch = next_batch(run, stream, clock, watchdog)
            values = take_step(run, batch, clock)
            log.advance()
            checkpointer.poll()
            last = loop.step == run.steps
            validates = validation and (last or loop.step % config.validation.every == 0)
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
                checkpoint(run, checkpointer)
            if asked:
                checkpointer.wait()
                wait_for_main_process()  # which puts the checkpoint in its place
                say_stopped(run)
                raise SystemExit(exit_status(asked))
    return entry


def read_batches(run: Run) -> Iterator[dict[str, Any]]:
    """This process's part of the batches that are left."""
    return batches(
        run.data,
        first_step=run.loop.step,
        last_step=run.steps,
        rank=run.processes.rank,
        world_size=run.processes.count,
    )


def next_batch(run: Run, stream: Iterator[dict[str, Any]], clock: Clock, watchdog: Watchdog) -> dict[str, Any]:
    """Wait for a batch; its invalid samples are counted."""
    watchdog.at(run.loop.step, "waiting for data")
    with clock.waiting():
        batch = next(stream)
    watchdog.at(run.loop.step, "computing")
    run.loop.bad.add(batch.pop("bad"))
    return batch


def take_step(run: Run, batch: dict[str, Any], clock: Clock) -> dict[str, float]:
    """Train on a batch; returns the step's numbers."""
    loop = run.loop
    _seed_step(run.config.seed, loop.step, run.processes.rank)
    values = training_step(run, to_device(batch, run))
    loop.step += 1
    loop.samples_seen += run.config.global_batch_size
    loop.add(values)
    clock.tick()
    return values


def validate(run: Run, validation: Validation, watchdog: Watchdog) -> dict[str, float]:
    """Retrieval on held-out pictures, of which each process encodes its share."""

    def moved() -> None:
        watchdog.at(run.loop.step, "validating")

    moved()
    encoder = exported(run, everywhere=True)
    assert encoder is not None
    return validation.measure(encoder, moved)


def say_stopped(run: Run) -> None:
    """Tell the user that nothing is lost."""
    if run.processes.is_main:
        say(f"{run.config.output}: stopped and saved after step {run.loop.step}; the same command goes on from there")


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of one step depend on (seed, step, rank) alone, so that a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def log_entry(run: Run, values: dict[str, float], clock: Clock) -> dict[str, Any]:
    """One line of metrics.jsonl; losses are means over the steps since the line before, and over the processes."""
    means = run.loop.take_means() | {name: values[name] for name in _OF_ITS_STEP}
    return {
        "step": run.loop.step,
        "samples_seen": run.loop.samples_seen,
        "epoch": run.loop.samples_seen / len(run.data),
        **mean_over_processes(means),
        **clock.read(),
    }


def check_invalid_samples(run: Run) -> None:
    """Stop a run whose data has too many invalid samples; judged on at least 1,000 samples or all there are.

    All processes call it together.
    """
    run.loop.bad.gather()
    seen = max(min(run.loop.samples_seen, len(run.data)), min(len(run.data), _JUDGED_SAMPLES))
    run.loop.bad.check("data", "data.max_invalid_ratio", run.config.data.max_invalid_ratio, seen)


# ---------------------------------------------------------------- after it


def checkpoint(run: Run, checkpointer: Checkpointer) -> None:
    """Begin to save where the run stands."""
    parallel = run.parallel
    parts = {"model": parallel.own(parallel.weights()), "optimizer": parallel.moments()}
    if run.average is not None:
        parts["average"] = parallel.own(parallel.gathered(run.average.state))
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    run.loop.bad.gather()
    run.loop.sums = mean_over_processes(run.loop.sums)  # the main process's are kept
    checkpointer.save(tensors, run.loop, run.config)


def exported(run: Run, *, everywhere: bool = False) -> ClipsModel | None:
    """The model whose weights are the result, whole, on the main process or everywhere; else None. All ask together."""
    wanted = run.processes.is_main or everywhere
    if run.average is None and not run.parallel.shards_weights:
        return run.encoder if wanted else None
    parallel, average = run.parallel, run.average
    weights = {}
    for name, value in (parallel.weights() if average is None else parallel.gathered(average.state)).items():
        tensor = whole(value)  # of many tensors, one at a time is whole on the device
        if run.processes.is_main:
            weights[name] = tensor.cpu()
    if not wanted:
        return None
    encoder = bare_model(run.config)
    if run.processes.is_main:
        encoder.load_state_dict(weights)
    encoder.to(run.processes.device)
    if everywhere and run.processes.count > 1:
        for tensor in encoder.state_dict().values():
            dist.broadcast(tensor, 0)
    return encoder


def summarise(run: Run, metrics: dict[str, Any]) -> dict[str, Any]:
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


def finish(run: Run, encoder: ClipsModel, summary: dict[str, Any]) -> None:
    """Turn the output directory into an encoder directory."""
    config = run.config
    output = Path(config.output)
    with added_files(output) as partial:
        write_encoder(encoder, partial)
        write_file(partial / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=config,
            seed=config.seed,
            data={"sources": run.loop.sources},
            parents=parents_of(config, run.data),
            licence=config.licence,
            identity=run.loop.identity,
            stages=stages_so_far(plain(config), summary, encoder.image_size),
            **summary,
        )
        write_model_card(partial, manifest)
    if not config.keep_after_training:
        remove_checkpoints(output)
    bad = run.loop.bad
    say(
        f"{output}: trained on {summary['samples_seen']} samples in {summary['seconds']:.0f} s; "
        + (f"{bad.count} invalid samples skipped ({bad.reasons()})" if bad.count else "no invalid samples")
    )
