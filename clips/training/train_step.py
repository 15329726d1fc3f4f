"""The training step: images and captions in, a slightly better model."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from clips.data.loader import TrainDataset
from clips.errors import UserError
from clips.method.clips_model import ClipsModel
from clips.method.optimizer import cosine_lr
from clips.method.recipes import Recipe
from clips.model.precision import fast_sdpa_backend
from clips.parallel.ddp import DDPStrategy
from clips.parallel.distributed import DistributedContext
from clips.training.ema import ModelEma
from clips.training.grad_spikes import is_grad_spike
from clips.training.train_config import EncoderTrainConfig
from clips.training.train_state import TrainState

Batch = dict[str, Tensor]
_SUMMED = {"caption_loss_sum", "caption_tokens"}  # outputs that add up over samples


@dataclasses.dataclass(kw_only=True)
class TrainRun:
    """What one process of a training run holds.

    Args:
        parallel: the model and its optimizer, spread over the processes.
        average: a running average of the model's weights, or None.
        loop: where the run stands.
        steps: where it ends.
        precision: what it computes in.
        mean: channel means of normalized pictures, (3, 1, 1); ``std`` likewise.
    """

    config: EncoderTrainConfig
    data: TrainDataset
    recipe: Recipe
    processes: DistributedContext
    parallel: DDPStrategy
    average: ModelEma | None
    loop: TrainState
    steps: int
    precision: Literal["fp32", "bf16"]
    mean: torch.Tensor
    std: torch.Tensor

    @property
    def encoder(self) -> ClipsModel:
        """The model itself, of which this process may hold shards; ``model`` is what is called with a batch."""
        return self.parallel.encoder

    @property
    def model(self) -> torch.nn.Module:
        """See ``encoder``."""
        return self.parallel.model


def train_step(run: TrainRun, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Images and captions in, a slightly better model; returns the losses and what else is worth a curve.

    Raises:
        UserError: a loss or the gradient is not finite, or the gradient's norm stood out too often; the model has not
            moved (under ZeRO, which tells the norm too late, it has).
    """
    rate = cosine_lr(run.loop.step, run.steps, run.config.optimizer, run.config.global_batch_size)
    with fast_sdpa_backend(run.processes.device, run.precision):
        losses, outputs = compute_gradients(run, batch)
    norm = run.parallel.clip(run.config.optimizer.max_grad_norm)

    told = {**losses, "logit_scale": outputs["logit_scale"]} | ({} if norm is None else {"grad_norm": norm})
    values = _to_numbers(told)
    check_finite(values, run.loop.step)  # before the optimizer moves
    if run.config.optimizer.grad_spike_factor is not None and is_grad_spike(
        run.loop, values["grad_norm"], run.config.optimizer.grad_spike_factor
    ):
        run.parallel.forget_gradient()
        run.parallel.share_buffers()
        return {**values, "lr": 0.0}

    late_norm = run.parallel.update(rate)
    if late_norm is not None:
        values["grad_norm"] = late_norm
        check_finite(values, run.loop.step)
    if run.average is not None:
        run.average.update(run.parallel.held())
    return {**values, "lr": rate}


def prepare_batch(batch: dict[str, torch.Tensor], run: TrainRun) -> dict[str, torch.Tensor]:
    """The batch where the model is, its pictures normalized: "image" uint8 becomes float, its channels last in memory.

    Convolutions take the layout of their input, and are quickest in this one; ViTs do not mind.
    """
    batch = {name: value.to(run.processes.device, non_blocking=True) for name, value in batch.items()}
    pixels = batch["image"].contiguous(memory_format=torch.channels_last).float()
    return {**batch, "image": (pixels / 255 - run.mean) / run.std}


def check_finite(values: dict[str, float], step: int) -> None:
    """Raise UserError where a loss or the gradient is not a finite number."""
    broken = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
    if broken:
        raise UserError(
            f"step {step + 1}: {broken}; stopped before the weights moved. "
            "A lower optimizer.learning_rate, optimizer.max_grad_norm or precision: fp32 may help "
            "(see allow_changes_on_resume)"
        )


def _to_numbers(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalar tensors as floats, fetched from the device at one go."""
    numbers = torch.stack([value.detach().float().reshape(()) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


# ---------------------------------------------------------------- the gradient, of a batch at once or in parts


def compute_gradients(run: TrainRun, batch: Batch) -> tuple[Batch, Batch]:
    """Add the loss's gradient to the parameters; returns the losses and the model's outputs for the whole batch."""
    size = run.config.micro_batch_size
    if size is None or size >= len(batch["image"]):
        with run.parallel.part(last=True):
            outputs = forward(run, batch)
            losses = run.recipe.losses(outputs, batch)
            run.parallel.backward(losses["loss"])
        return losses, outputs
    pieces = zip(*(value.split(size) for value in batch.values()), strict=True)
    return _gradients_in_parts(run, batch, [dict(zip(batch, piece, strict=True)) for piece in pieces])


def forward(run: TrainRun, batch: Batch) -> Batch:
    """The model's outputs in the run's precision."""
    return run.model(batch, bf16=run.precision == "bf16")


def _gradients_in_parts(run: TrainRun, batch: Batch, parts: list[Batch]) -> tuple[Batch, Batch]:
    """First all outputs without activations, then the loss's gradient by them, then each part again, with activations.

    A part draws the same random numbers both times. Processes exchange gradients in the last part only.
    """
    states, found = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(run))
            found.append(forward(run, part))
    outputs = {name: _joined(name, [part[name] for part in found]) for name in found[0]}
    losses = run.recipe.losses(outputs, batch)
    losses["loss"].backward()
    start = 0
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        _restore_random_state(run, state)
        rows, last = slice(start, start + len(part["image"])), number == len(parts) - 1
        with run.parallel.part(last=last):
            run.parallel.backward(_surrogate(forward(run, part), outputs, rows, with_shared=last))
        start = rows.stop
    return losses, {name: value.detach() for name, value in outputs.items()}


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    """An output of the whole batch from those of its parts, as a leaf: rows, a sum over samples, or a shared number."""
    value = torch.cat(parts) if parts[0].ndim else torch.stack(parts).sum() if name in _SUMMED else parts[0]
    return value.detach().requires_grad_(value.is_floating_point())


def _surrogate(part: Batch, outputs: Batch, rows: slice, *, with_shared: bool) -> Tensor:
    """A number () whose gradient sends those by the outputs on to the parameters; by shared numbers once in a batch.

    Every parameter gets a gradient in every part, a zero if need be: ZeRO-3 begins a new one at the first.
    """
    share = []
    for name, value in part.items():
        gradient = outputs[name].grad
        if gradient is not None:
            counts = bool(value.ndim) or name in _SUMMED or with_shared
            share.append((value * (gradient[rows] if value.ndim else gradient * float(counts))).sum())
    return torch.stack(share).sum()


def _random_state(run: TrainRun) -> list[Tensor]:
    device = run.processes.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore_random_state(run: TrainRun, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for value in state[1:]:
        torch.cuda.set_rng_state(value, run.processes.device)
