"""Train an image-text encoder: the loop, the training step, and what is written at the end.

clips train --config encoder.yaml --optimizer.learning_rate 2e-3
torchrun --nproc-per-node 2 -m clips.cli train --config encoder.yaml     (or the deepspeed launcher)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from clips.commandline.progress import ProgressLine
from clips.commandline.signals import StopRequest, exit_status_for_signal, graceful_shutdown
from clips.core.artifact import atomic_update_dir, directory_hash, read_manifest, write_manifest
from clips.core.durable import atomic_write
from clips.core.identity import identity as identity_of
from clips.core.identity import is_below
from clips.core.locks import lock_output
from clips.core.run_log import RunLog
from clips.encoder import write_encoder
from clips.errors import UserError
from clips.loader.loader import copy_ahead, iterate_batches, worker_errors_as_user_errors
from clips.method.clips_model import ClipsModel, build_model, compute_losses, total_loss
from clips.method.optimizer import scheduled_lr
from clips.model.compute import fast_sdpa_backend
from clips.model.tokenizer import unknown_tokens
from clips.model_card import write_model_card
from clips.parallel.distributed import (
    all_reduce_mean,
    end_processes,
    exit_if_others_hang,
    from_main,
    start_processes,
    wait_for_main_process,
)
from clips.parallel.parallel_model import full_tensor
from clips.safe_text import log_info
from clips.training.checkpoint import Checkpointer
from clips.training.mfu import MfuMeter
from clips.training.run_dir import CHECKPOINTS_DIR, ThroughputTimer, check_trained, create_run_dir, remove_checkpoints
from clips.training.setup import (
    TrainRun,
    check_stages,
    hub_commits,
    open_train_dataset,
    parent_artifacts,
    setup_run,
)
from clips.training.train_config import EncoderTrainConfig, completed_stages, stage_configs
from clips.training.validation import RetrievalValidation
from clips.typed_data import checked, to_plain

Batch = dict[str, Tensor]
SUMMARY_FILE = "summary.json"
_PROCESSES_ASKED_EACH_STEP = 32  # whether they have received a signal to stop; 512 processes in each 16th step,
_SECONDS_UNASKED = 10.0  # but after so many seconds


def train(config: EncoderTrainConfig) -> None:
    """Run `clips train`: the output directory becomes an encoder directory."""
    config = checked(config)
    with graceful_shutdown() as stop, exit_if_others_hang():
        configs = stage_configs(config)
        start_processes(timeout=config.distributed.hang_timeout)
        from_main(lambda: check_stages(configs))
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
    output, is_writing = Path(config.output), os.environ.get("RANK", "0") == "0"
    data = open_train_dataset(config)
    inputs = from_main(  # once: hashing reads them, and may take hours
        lambda: {
            **{name: directory_hash(path) for name, path in parent_artifacts(config, data).items()},
            **hub_commits(config),
            **data.hashes(),
        }
    )
    identity = identity_of("clips train", config, inputs)
    if from_main(lambda: check_trained(config, identity)):
        apart = any(source.format not in {"webdataset", "datasets"} for source in config.data.sources)
        but = " (images in files of their own are not compared)" if apart else ""
        log_info(f"{output}: already trained with this config; nothing to do{but}")
        # A kill between the manifest and their removal leaves checkpoints.
        kept = read_manifest(output).get("config", {}).get("keep_checkpoints_after_training", False)
        kept = kept or config.keep_checkpoints_after_training
        if is_writing and not kept and any(output.glob(f"{CHECKPOINTS_DIR}*")):
            with contextlib.suppress(UserError, OSError), _lock(output):  # read-only, or that run removes them now
                remove_checkpoints(output)
        return
    with _lock(output) if is_writing else contextlib.nullcontext():
        if is_writing and check_trained(config, identity):
            raise UserError(f"output: another run has just written {output}")
        run = setup_run(config, data)
        state = run.state
        for name, (before, now) in identity.differing(state.identity).items() if state.step else ():
            if is_below(name, config.allow_changes_on_resume):
                state.changes.append(f"from step {state.step + 1}: {name} {before} → {now}")
                if run.processes.is_main:
                    log_info(f"{output}: {state.changes[-1]}")
        state.identity, state.sources = identity.values, from_main(data.describe)
        if run.processes.is_main:
            create_run_dir(config, identity)
            log_info(f"data: {unknown_tokens(*config.architecture.tokenizer.count_unknown(data.some_captions()))}")
        write_output(run, train_loop(run, stop))
    wait_for_main_process()
    if not last and (signal := stop.of_any_process(torch.device("cpu"))):
        _exit_stopped(run, signal)


def _lock(output: Path) -> contextlib.AbstractContextManager[object]:
    # The lock's file lies next to the output, which may be the only directory that can be written.
    if output.is_dir() and not os.access(output.parent, os.W_OK):
        log_info(f"{output.parent}: no lock, as it cannot be written; ensure that no other run writes {output}")
        return contextlib.nullcontext()
    return lock_output(output.with_name(f".{output.name}.lock"), output)


def _exit_stopped(run: TrainRun, signal: int) -> None:
    if run.processes.is_main:
        log_info(
            f"{run.config.output}: stopped and saved after step {run.state.step}; the same command resumes from there"
        )
    raise SystemExit(exit_status_for_signal(signal))


def train_loop(run: TrainRun, stop: StopRequest) -> dict[str, Any]:
    """Train to the end; returns the last log entry, empty if there was no step left."""
    config, state, is_main, device = run.config, run.state, run.processes.is_main, run.processes.device
    validation = RetrievalValidation(config.validation, run) if config.validation.source else None
    meter = MfuMeter(config, device=device, precision=run.precision, processes=run.processes.count, counted=state.flops)
    entry: dict[str, Any] = {}
    unread: list[StepMetrics] = []
    asking_steps = 1
    run.model.train()
    with (
        worker_errors_as_user_errors("data.num_workers"),
        contextlib.closing(read_batches(run)) as stream,
        RunLog.of(config, config.output, writes=is_main) as log,
        ProgressLine(state.step, run.steps, quiet=not is_main) as progress,
        ThroughputTimer(state) as clock,
        Checkpointer(config.output, run.processes) as checkpointer,
        exit_if_others_hang(),  # before the checkpointer waits for them
    ):
        log.resume(lambda row: row["step"] <= state.step)
        while state.step < run.steps:
            with clock.waiting():
                batch = next(stream)
            state.invalid_samples.add(batch.pop("invalid_samples"))
            seed_step(config.seed, state.step, run.processes.rank)
            unread.append(train_step(run, prepare_batch(batch, run)))
            state.step += 1
            state.samples_seen += config.global_batch_size
            clock.tick()
            progress.advance()
            checkpointer.poll()

            last = state.step == run.steps
            validates = validation and (last or state.step % config.validation.eval_steps == 0)
            logs = last or validates or state.step % config.logging_steps == 0
            # of many processes not in each step, as the call waits for all of them
            asks = not last and state.step % asking_steps == 0
            signal = stop.of_any_process(torch.device("cpu")) if asks else 0
            saves = not last and (signal or state.step % config.save_steps == 0)

            # once in a while, and on a CPU always: read the losses, which waits for a GPU
            if logs or saves or device.type == "cpu":
                for values in read_metrics(unread):
                    state.add(values)
                unread.clear()
                clock.tick()

            # once in a while: an entry of the log, with the means since the last one, and a validation
            if logs:
                check_invalid_samples(run)
                newest = {name: values[name] for name in ("lr", "logit_scale") if name in values}  # no means of these
                means = all_reduce_mean(state.take_means() | newest | {"pace": state.seconds / state.step})
                steps_within = int(_SECONDS_UNASKED / max(means.pop("pace"), 1e-9))
                asking_steps = max(1, min(run.processes.count // _PROCESSES_ASKED_EACH_STEP, steps_within))
                seen = {"samples_seen": state.samples_seen, "epoch": state.samples_seen / len(run.data)}
                entry = {"step": state.step, **seen, **means, **clock.read()}
                with clock.stopped():  # counting FLOPs takes longer than the steps of a small model
                    entry |= meter.read(batch, entry["samples_per_second"]) if is_main else {}
                if validation and validates:
                    encoder = export_model(run, everywhere=True)
                    assert encoder is not None
                    entry |= validation.measure(encoder)
                log.write(entry, state.step)
                progress.show(entry)

            # once in a while, and before a stop: a checkpoint, written in the background
            if saves:
                state.invalid_samples.gather()
                state.sums = all_reduce_mean(state.sums)  # the main process saves them
                checkpointer.save(run.parallel.select_own(run.checkpoint_tensors()), state, config)
            if signal:
                checkpointer.wait()
                wait_for_main_process()  # which renames the checkpoint
                _exit_stopped(run, signal)
    return entry


def read_batches(run: TrainRun) -> Generator[dict[str, Any]]:
    """This process's part of the remaining batches, its images on the device if that is a GPU."""
    rank, world_size = run.processes.rank, run.processes.count
    steps = {"first_step": run.state.step, "last_step": run.steps}
    return copy_ahead(iterate_batches(run.data, **steps, rank=rank, world_size=world_size), run.processes.device)


def prepare_batch(batch: Batch, run: TrainRun) -> Batch:
    """Return the batch, "image" on the model's device as `TrainRun.normalize` returns it: channels last in memory."""
    # Tokens stay on the CPU: the model groups them by length, which would wait for the device.
    return {**batch, "image": run.normalize(batch["image"].to(run.processes.device, non_blocking=True))}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch by (seed, step, rank) alone, so that a resumed run has the same random numbers."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def check_invalid_samples(run: TrainRun) -> None:
    """Raise UserError if the data has too many invalid samples. A collective call."""
    run.state.invalid_samples.gather()
    seen = min(max(run.state.samples_seen, 1000), len(run.data))  # a ratio of fewer says little
    run.state.invalid_samples.check("data", "data.max_invalid_ratio", run.config.data.max_invalid_ratio, seen)


# ---------------------------------------------------------------- the training step


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Losses and other metrics of a step, on the device: reading them waits for the step."""

    step: int  # from 0
    names: tuple[str, ...]
    values: Tensor  # (len(names),) float32
    learning_rate: float


def train_step(run: TrainRun, batch: Batch) -> StepMetrics:
    """Train on one batch, without reading a value from the device.

    From a loss or gradient on that is not finite, the weights stay unchanged; `read_metrics` raises then.
    """
    step, optimizer = run.state.step, run.config.optimizer
    learning_rate = scheduled_lr(step, run.steps, optimizer, run.config.global_batch_size)
    with fast_sdpa_backend(run.processes.device, run.precision):
        losses, outputs = compute_gradients(run, batch)
    scale = {name: outputs[name] for name in ("logit_scale",) if name in outputs}  # a contrast's
    named = {**losses, **scale, "grad_norm": run.parallel.clip_grad_norm(optimizer.max_grad_norm)}
    values = torch.stack([value.detach().float().reshape(()) for value in named.values()])
    run.parallel.optimizer_step(learning_rate, is_finite=values.isfinite().all())
    if run.average is not None:
        run.average.update(run.encoder.state_dict())
    return StepMetrics(step=step, names=tuple(named), values=values, learning_rate=learning_rate)


def compute_gradients(run: TrainRun, batch: Batch) -> tuple[Batch, Batch]:
    """Add the loss's gradient to the parameters'; returns the losses and the model's outputs for the full batch."""
    size = run.config.micro_batch_size
    if size is None or size >= len(batch["image"]):
        with run.parallel.micro_batch(last=True):
            outputs = forward(run, batch)
            losses = compute_losses(run.recipe, outputs)
            losses["loss"].backward()
        return losses, outputs
    pieces = zip(*(value.split(size) for value in batch.values()), strict=True)
    return _compute_gradients_cached(run, batch, [dict(zip(batch, piece, strict=True)) for piece in pieces])


def forward(run: TrainRun, batch: Batch, *, captions: bool = True) -> Batch:
    """Return the model's outputs in the run's precision; see `ClipsModel.forward`."""
    return run.model(batch, bf16=run.precision == "bf16", captions=captions)


def _compute_gradients_cached(run: TrainRun, batch: Batch, micro_batches: list[Batch]) -> tuple[Batch, Batch]:
    # GradCache (arXiv 2101.06983): all features without activations, the loss's gradients at them, then each
    # micro-batch with activations. The captioner is computed in the second pass only: the loss is linear in its sum, so
    # that the gradient at the sum does not depend on it. Without a contrast there is no first pass.
    device = run.processes.device
    gpus = [device] if device.type == "cuda" else []
    random_states, parts = [], []
    with torch.no_grad():
        for micro_batch in micro_batches if run.recipe.encoded else ():
            random_states.append((torch.get_rng_state(), [torch.cuda.get_rng_state(gpu) for gpu in gpus]))
            parts.append(forward(run, micro_batch, captions=False))
    outputs = {}  # of the full batch, as leaves: concatenated rows, or a scalar that all micro-batches share
    for name in parts[0] if parts else ():
        value = torch.cat([part[name] for part in parts]) if parts[0][name].ndim else parts[0][name]
        outputs[name] = value.detach().requires_grad_(value.is_floating_point())
    if run.recipe.captioning is not None:
        outputs["caption_loss_sum"] = torch.ones((), device=batch["image"].device, requires_grad=True)
        outputs["caption_tokens"] = batch["target_mask"].sum().to(batch["image"].device, non_blocking=True)
    losses = compute_losses(run.recipe, outputs)
    losses["loss"].backward()

    caption_sums, start = [], 0
    for number, micro_batch in enumerate(micro_batches):
        if random_states:  # the same dropped patches in both passes
            on_cpu, on_gpus = random_states[number]
            torch.set_rng_state(on_cpu)
            for gpu, state in zip(gpus, on_gpus, strict=True):
                torch.cuda.set_rng_state(state, gpu)
        rows, last = slice(start, start + len(micro_batch["image"])), number == len(micro_batches) - 1
        with run.parallel.micro_batch(last=last):
            part = forward(run, micro_batch)
            products = []  # a scalar whose gradients at the outputs are the loss's
            for name, value in part.items():
                if name == "caption_loss_sum":
                    caption_sums.append(value.detach())
                gradient = outputs[name].grad
                is_sum = name in {"caption_loss_sum", "caption_tokens"}  # over samples; other scalars count once
                if gradient is not None and (value.ndim or is_sum or last):
                    products.append((value * (gradient[rows] if value.ndim else gradient)).sum())
            torch.stack(products).sum().backward()
        start = rows.stop
    if run.recipe.captioning is not None:
        outputs["caption_loss_sum"] = torch.stack(caption_sums).sum()
        losses["caption_loss"] = losses["caption_loss"] * outputs["caption_loss_sum"]  # it was that of a sum of 1
        losses["loss"] = total_loss(run.recipe, losses)
    return losses, {name: value.detach() for name, value in outputs.items()}


def read_metrics(metrics: list[StepMetrics]) -> list[dict[str, float]]:
    """Return the metrics of steps in one transfer from the device.

    Raises:
        UserError: a loss or the gradient of a step is not finite. The weights are as before that step.
    """
    rows = []
    for step, row in zip(metrics, torch.stack([step.values for step in metrics]).tolist(), strict=True):
        values = dict(zip(step.names, row, strict=True))
        if broken := ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)):
            raise UserError(
                f"step {step.step + 1}: {broken}; stopped before the weights changed. A lower optimizer.learning_rate, "
                "optimizer.max_grad_norm or precision: fp32 may help (see allow_changes_on_resume)"
            )
        rows.append({**values, "lr": step.learning_rate})
    return rows


# ---------------------------------------------------------------- outputs


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
    of = run.config
    encoder = build_model(
        of.model.without_initial_weights(), of.recipe, of.seed, of.architecture, run.encoder.preprocess_cfg
    )
    if run.processes.is_main:
        encoder.load_state_dict(weights)
    encoder.to(run.processes.device)
    if everywhere and run.processes.count > 1:
        for tensor in encoder.state_dict().values():
            dist.broadcast(tensor, 0)
    return encoder


def write_output(run: TrainRun, last_entry: dict[str, Any]) -> None:
    """Turn the output directory into an encoder directory. All processes must call it together."""
    check_invalid_samples(run)
    encoder = export_model(run)
    if encoder is None:  # not the main process
        return
    config, output, state, invalid = run.config, Path(run.config.output), run.state, run.state.invalid_samples
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in run.encoder.named_children()}
    summary: dict[str, Any] = {
        "steps": state.step,
        "samples_seen": state.samples_seen,
        "epochs": state.samples_seen / len(run.data),
        "seconds": round(state.seconds, 3),
        "samples_per_second": state.samples_seen / state.seconds if state.seconds else None,
        "changes": state.changes,
        "processes": run.processes.count,
        "threads": torch.get_num_threads(),  # another number adds in another order
        "device": run.processes.device.type,
        "precision": run.precision,
        "parameters": {name: size for name, size in sizes.items() if size},
        "invalid_samples": invalid.report(),
        "last": last_entry,
    }
    with atomic_update_dir(output) as partial:
        write_encoder(encoder, partial)
        atomic_write(partial / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=config,
            seed=config.seed,
            data={"sources": state.sources},
            parents=parent_artifacts(config, run.data),
            license=config.license,
            identity=state.identity,
            stages=completed_stages(to_plain(config), summary, encoder.image_size),
            **summary,
        )
        write_model_card(partial, manifest)
    if not config.keep_checkpoints_after_training:
        remove_checkpoints(output)
    skipped = (
        f"{invalid.count} invalid samples skipped ({invalid.reasons()})" if invalid.count else "no invalid samples"
    )
    log_info(f"{output}: trained on {state.samples_seen} samples in {summary['seconds']:.0f} s; {skipped}")
