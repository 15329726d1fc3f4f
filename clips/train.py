"""Train an image-text encoder.

    clips train --config encoder.yaml --optim.learning_rate 2e-3
    torchrun --nproc-per-node 2 -m clips.cli train --config encoder.yaml     (or the deepspeed launcher)

The training step is `clips.step.training_step`; everything here carries batches to it and results from it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clips import recipes, towers
from clips.artifact import added_files, directory_hash, say, write_file, write_manifest
from clips.checkpoint import LoopState, is_finished, record_run, remove_checkpoints, restore, save_checkpoint
from clips.commandline import plain
from clips.config import TrainConfig
from clips.data.loader import TrainingData, batches
from clips.distributed import (
    end_processes,
    gather_objects,
    mean_over_processes,
    start_processes,
    wait_for_main_process,
)
from clips.errors import UserError
from clips.export import write_encoder
from clips.model import ClipsModel, build_model
from clips.modelcard import write_model_card
from clips.optim import build_optimizer
from clips.precision import choose_precision
from clips.runlog import Clock, RunLog, open_trackers
from clips.stages import stage_configs
from clips.step import Run, to_device, training_step
from clips.stopping import exit_status, stop_requests
from clips.tokenizer import ClipsTokenizer
from clips.validate import Validation

SUMMARY = "summary.json"
_JUDGED_SAMPLES = 1000  # the share of bad samples is not judged on fewer


def train(config: TrainConfig) -> None:
    """Carry out ``config``: its output directory becomes an encoder directory."""
    stages = stage_configs(config)
    try:
        for stage in stages:
            train_stage(stage)
    finally:
        end_processes()


def train_stage(config: TrainConfig) -> None:
    """Carry out one stage, or say that it is done."""
    data = open_data(config)
    inputs = {name: directory_hash(path) for name, path in parents_of(config, data).items()}
    if is_finished(config.output, config, inputs):
        say(f"{config.output}: already trained with this config; nothing to do")
        return
    run = start_run(config, data)
    run.loop.inputs = inputs
    if run.is_main:
        record_run(config.output, config)
    metrics = run_steps(run)
    summary = summarise(run, metrics)
    if run.is_main:
        finish(run, summary)
    wait_for_main_process()


# ---------------------------------------------------------------- around it


def run_steps(run: Run) -> dict[str, Any]:
    """Train to the end; returns the last entry of the log, empty where there was no step to do."""
    config, loop = run.config, run.loop
    rank, world_size = run.accelerator.process_index, run.accelerator.num_processes
    stream = batches(
        run.data,
        first_step=loop.step,
        last_step=run.steps,
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
    )
    run.model.train()
    entry: dict[str, Any] = {}
    validation = Validation(config.validation, run) if run.is_main and config.validation.source else None
    trackers = open_trackers(config.track, config.output, plain(config)) if run.is_main else []
    log = RunLog(config.output, step=loop.step, steps=run.steps, quiet=not run.is_main, trackers=trackers)
    with log, Clock(loop) as clock, stop_requests() as stop:
        while loop.step < run.steps:
            with clock.waiting():
                batch = next(stream)
            loop.bad.update(batch.pop("bad"))
            refuse_bad_share(run, share_of_data=1 / world_size)
            _seed_step(config.seed, loop.step, rank)
            values = training_step(run, to_device(batch, run))
            loop.step += 1
            loop.samples_seen += config.batch_size
            clock.tick()
            log.advance()
            last = loop.step == run.steps
            validates = config.validation.source and (last or loop.step % config.validation.every == 0)
            if last or validates or loop.step % config.log_every == 0:
                entry = log_entry(run, values, clock)
                if validates and validation is not None:
                    entry |= validation.measure()
                log.write(entry)
            asked = 0 if last else stop.of_any_process(run.accelerator.device)
            if not last and (asked or loop.step % config.checkpoint_every == 0):
                checkpoint(run)
            if asked:
                say_stopped(run)
                raise SystemExit(exit_status(asked))
    return entry


def say_stopped(run: Run) -> None:
    """Tell the user that nothing is lost."""
    if run.is_main:
        say(f"{run.config.output}: stopped and saved after step {run.loop.step}; the same command goes on from there")


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of one step depend on (seed, step, rank) alone, so that a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def log_entry(run: Run, values: dict[str, float], clock: Clock) -> dict[str, Any]:
    """One line of metrics.jsonl; losses are means over the processes."""
    return {
        "step": run.loop.step,
        "samples_seen": run.loop.samples_seen,
        "epoch": run.loop.samples_seen / len(run.data),
        **mean_over_processes(values),
        **clock.read(),
    }


def refuse_bad_share(run: Run, *, share_of_data: float = 1.0) -> None:
    """Stop a run whose data has too many unusable samples; judged on at least 1,000 samples or all there are.

    Args:
        run: the run.
        share_of_data: the share of the batches that this process has seen.
    """
    seen = max(min(run.loop.samples_seen, len(run.data)), min(len(run.data), _JUDGED_SAMPLES)) * share_of_data
    if len(run.loop.bad) > run.config.data.max_bad_share * seen:
        name, reason = next(iter(run.loop.bad.items()))
        raise UserError(
            f"data: {len(run.loop.bad)} unusable samples, more than data.max_bad_share "
            f"({run.config.data.max_bad_share:g}) of {seen:.0f}; for instance {name}: {reason}"
        )


# ---------------------------------------------------------------- before it


def open_data(config: TrainConfig) -> TrainingData:
    """The training data, opened first: what is wrong with it is told before anything heavy is loaded."""
    cfg = towers.model_cfg(config.model)
    tokenizer = ClipsTokenizer(cfg["text_cfg"]["context_length"])
    prepare = functools.partial(recipes.build(config.recipe).prepare, tokenizer=tokenizer)
    size = int(towers.preprocess_cfg(cfg)["size"][0])
    return TrainingData(config.data, size=size, seed=config.seed, prepare=prepare)


def parents_of(config: TrainConfig, data: TrainingData) -> dict[str, str]:
    """What the encoder is made from: artifacts among the data, and the weights begun with. Name → path."""
    begun_with = {name: getattr(config.model, name) for name in ("pretrained_trunk", "pretrained")}
    local = {name: path for name, path in begun_with.items() if path is not None and Path(path).exists()}
    return data.parents() | local


def start_run(config: TrainConfig, data: TrainingData) -> Run:
    """Processes, model and optimizer, standing where the output directory says.

    Precedence: (1) the latest checkpoint in the output directory, (2) a fresh model, its trunk pretrained or not.
    """
    accelerator = start_processes()
    if config.batch_size % accelerator.num_processes:
        raise UserError(
            f"batch_size: expected a multiple of the {accelerator.num_processes} processes, got {config.batch_size}"
        )
    precision, reason = choose_precision(config.precision, accelerator.device)
    encoder = build_model(config.model, config.recipe, config.seed)
    optimizer = build_optimizer(encoder, config.optim, encoder.no_decay_names())
    model, optimizer = accelerator.prepare(encoder, optimizer)
    average = running_average(encoder, config.average)
    run = Run(
        config=config,
        data=data,
        recipe=recipes.build(config.recipe),
        encoder=encoder,
        model=model,
        average=average,
        optimizer=optimizer,
        accelerator=accelerator,
        loop=restore(config.output, encoder, optimizer, average),
        steps=count_steps(config, len(data)),
        precision=precision,
        mean=_channels(encoder.preprocess_cfg["mean"], accelerator.device),
        std=_channels(encoder.preprocess_cfg["std"], accelerator.device),
    )
    if run.is_main:
        say(
            f"{config.output}: {len(data)} samples, {run.steps} steps of {config.batch_size}, "
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {precision} ({reason})"
        )
        if run.loop.step:
            say(f"going on from step {run.loop.step}")
    return run


def running_average(encoder: ClipsModel, decay: float | None) -> AveragedModel | None:
    """The average of weights and of batch norms' statistics that training keeps, or None."""
    if decay is None:
        return None
    return AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def count_steps(config: TrainConfig, samples_in_data: int) -> int:
    """The length of the training in steps; a last part of a batch becomes a whole one."""
    if config.steps is not None:
        return config.steps
    samples = config.samples if config.samples is not None else (config.epochs or 0) * samples_in_data
    return math.ceil(samples / config.batch_size)


def _channels(values: list[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)[:, None, None]


# ---------------------------------------------------------------- after it


def checkpoint(run: Run) -> None:
    """Save where the run stands."""
    loop = dataclasses.replace(run.loop, bad=_all_bad(run.loop))
    if run.is_main:
        save_checkpoint(
            run.config.output,
            run.encoder,
            run.optimizer,
            loop,
            run.config,
            keep=run.config.keep_checkpoints,
            average=run.average,
        )
    wait_for_main_process()


def _all_bad(loop: LoopState) -> dict[str, str]:
    return {name: reason for bad in gather_objects(loop.bad) for name, reason in bad.items()}


def summarise(run: Run, metrics: dict[str, Any]) -> dict[str, Any]:
    """What summary.json tells of the finished run."""
    loop = run.loop = dataclasses.replace(run.loop, bad=_all_bad(run.loop))
    refuse_bad_share(run)
    return {
        "steps": loop.step,
        "samples_seen": loop.samples_seen,
        "epochs": loop.samples_seen / len(run.data),
        "seconds": round(loop.seconds, 3),
        "samples_per_second": loop.samples_seen / loop.seconds if loop.seconds else None,
        "processes": run.accelerator.num_processes,
        "device": run.accelerator.device.type,
        "precision": run.precision,
        "parameters": {name: _count(part) for name, part in run.encoder.named_children() if _count(part)},
        "bad_samples": {"count": len(loop.bad), "by_reason": dict(Counter(loop.bad.values())), "samples": loop.bad},
        "last": metrics,
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def finish(run: Run, summary: dict[str, Any]) -> None:
    """Turn the output directory into an encoder directory."""
    config = run.config
    output = Path(config.output)
    with added_files(output) as partial:
        write_encoder(run.exported, partial)
        write_file(partial / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=config,
            seed=config.seed,
            data={"sources": run.data.describe()},
            parents=parents_of(config, run.data),
            **summary,
        )
        write_model_card(partial, manifest)
    if not config.keep_after_training:
        remove_checkpoints(output)
    bad = summary["bad_samples"]
    reasons = ", ".join(f"{count} × {reason}" for reason, count in bad["by_reason"].items())
    say(
        f"{output}: trained on {summary['samples_seen']} samples in {summary['seconds']:.0f} s; "
        + (f"{bad['count']} unusable samples skipped ({reasons})" if bad["count"] else "no unusable samples")
    )
