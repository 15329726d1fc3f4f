"""The training step: losses, gradients and weight update for one batch."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from clips.data.images import normalize
from clips.data.loader import TrainDataset
from clips.errors import UserError
from clips.method.clips_model import ClipsModel
from clips.method.objectives import compute_losses, total_loss
from clips.method.optimizer import cosine_lr
from clips.method.recipes import Recipe
from clips.model.precision import fast_sdpa_backend
from clips.parallel.distributed import DistributedContext
from clips.parallel.parallel_model import ParallelModel
from clips.training.ema import ModelEma
from clips.training.train_config import EncoderTrainConfig
from clips.training.train_state import TrainState

Batch = dict[str, Tensor]
_SUMMED = {"caption_loss_sum", "caption_tokens"}  # outputs that are sums over samples


@dataclasses.dataclass(kw_only=True)
class TrainRun:
    """The objects of one process of a training run.

    Args:
        config: the run's.
        data: the training data.
        recipe: of ``config``.
        processes: the processes of the training.
        parallel: the distributed model and its optimizer.
        average: the EMA of the model's weights, or None.
        state: the run's progress.
        steps: number of steps of the whole run.
        precision: of activations.
        mean: mean of an image's channels, (3, 1, 1).
        std: standard deviation of an image's channels, (3, 1, 1).
    """

    config: EncoderTrainConfig
    data: TrainDataset
    recipe: Recipe
    processes: DistributedContext
    parallel: ParallelModel
    average: ModelEma | None
    state: TrainState
    steps: int
    precision: Literal["fp32", "bf16"]
    mean: Tensor
    std: Tensor

    @property
    def encoder(self) -> ClipsModel:
        """The model, of which this process may hold shards."""
        return self.parallel.encoder

    @property
    def model(self) -> torch.nn.Module:
        """The wrapped model, which is called with a batch."""
        return self.parallel.model

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images as the model's input; a cached trunk normalizes those that it has to compute."""
        return images if self.config.model.cache_trunk_features else normalize(images, self.mean, self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Losses and other metrics of a step, on the device: reading them waits for the step.

    Args:
        step: index of the step, from 0.
        names: of the metrics.
        values: (number of metrics,) float32.
        learning_rate: of the step.
    """

    step: int
    names: tuple[str, ...]
    values: Tensor
    learning_rate: float


def read_metrics(metrics: list[StepMetrics]) -> list[dict[str, float]]:
    """Return the metrics of steps in one transfer from the device.

    Raises:
        UserError: a loss or the gradient of a step is not finite. The weights are as before that step.
    """
    rows = torch.stack([step.values for step in metrics]).tolist()
    values = [dict(zip(step.names, row, strict=True)) for step, row in zip(metrics, rows, strict=True)]
    for step, named in zip(metrics, values, strict=True):
        check_finite(named, step.step)
    return [{**named, "lr": step.learning_rate} for step, named in zip(metrics, values, strict=True)]


def train_step(run: TrainRun, batch: Batch) -> StepMetrics:
    """Train on one batch, without reading a value from the device.

    From a loss or gradient on that is not finite, the weights stay unchanged; `read_metrics` raises then.
    """
    step, learning_rate = (
        run.state.step,
        cosine_lr(run.state.step, run.steps, run.config.optimizer, run.config.global_batch_size),
    )
    with fast_sdpa_backend(run.processes.device, run.precision):
        losses, outputs = compute_gradients(run, batch)
    norm = run.parallel.clip_grad_norm(run.config.optimizer.max_grad_norm)
    scale = {name: outputs[name] for name in ("logit_scale",) if name in outputs}  # a contrast's
    named = {**losses, **scale, "grad_norm": norm}
    values = torch.stack([value.detach().float().reshape(()) for value in named.values()])
    run.parallel.optimizer_step(learning_rate, is_finite=values.isfinite().all())
    if run.average is not None:
        run.average.update(run.encoder.state_dict())
    return StepMetrics(step=step, names=tuple(named), values=values, learning_rate=learning_rate)


def prepare_batch(batch: Batch, run: TrainRun) -> Batch:
    """Return the batch, "image" on the model's device as `TrainRun.normalize` returns it, channels last in memory.

    Convolutions are fastest in this format, which they take over from their input. Tokens stay on the CPU: the model
    groups them by length, which would wait for the device.
    """
    image = run.normalize(batch["image"].to(run.processes.device, non_blocking=True))
    return {**batch, "image": image}


def check_finite(values: dict[str, float], step: int) -> None:
    """Raise a UserError if a loss or the gradient norm is not finite."""
    broken = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
    if broken:
        raise UserError(
            f"step {step + 1}: {broken}; stopped before the weights changed. A lower optimizer.learning_rate, "
            "optimizer.max_grad_norm or precision: fp32 may help (see allow_changes_on_resume)"
        )


# ---------------------------------------------------------------- gradients, in one pass or by micro-batches


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
    """Compute all features without activations, the loss's gradients at them, then each micro-batch with activations.

    The captioner is computed in the second pass only: the loss is linear in its sum, so that the gradient at the sum
    does not depend on it. Without a contrast there is no first pass.
    """
    states, found = [], []
    with torch.no_grad():
        for micro_batch in micro_batches if run.recipe.encoded else ():
            states.append(_rng_state(run))
            found.append(forward(run, micro_batch, captions=False))
    outputs = {name: _merge_outputs([part[name] for part in found]) for name in (found[0] if found else ())}
    if run.recipe.captioning is not None:
        outputs["caption_loss_sum"] = torch.ones((), device=batch["image"].device, requires_grad=True)
        outputs["caption_tokens"] = batch["target_mask"].sum().to(batch["image"].device, non_blocking=True)
    losses = compute_losses(run.recipe, outputs)
    losses["loss"].backward()
    caption_sums, start = [], 0
    for number, micro_batch in enumerate(micro_batches):
        if states:
            _restore_rng_state(run, states[number])  # the same dropped patches in both passes
        rows, last = slice(start, start + len(micro_batch["image"])), number == len(micro_batches) - 1
        with run.parallel.micro_batch(last=last):
            found_again = forward(run, micro_batch)
            caption_sums += [value.detach() for name, value in found_again.items() if name == "caption_loss_sum"]
            _surrogate_loss(found_again, outputs, rows, with_shared=last).backward()
        start = rows.stop
    if run.recipe.captioning is not None:
        outputs["caption_loss_sum"] = torch.stack(caption_sums).sum()
        losses["caption_loss"] = losses["caption_loss"] * outputs["caption_loss_sum"]  # it was that of a sum of 1
        losses["loss"] = total_loss(run.recipe, losses)
    return losses, {name: value.detach() for name, value in outputs.items()}


def _merge_outputs(parts: list[Tensor]) -> Tensor:
    """Return an output of the full batch as a leaf: concatenated rows, or a shared scalar."""
    value = torch.cat(parts) if parts[0].ndim else parts[0]
    return value.detach().requires_grad_(value.is_floating_point())


def _surrogate_loss(part: Batch, outputs: Batch, rows: slice, *, with_shared: bool) -> Tensor:
    """Return a scalar whose gradients at the outputs are the loss's; at shared scalars only ``with_shared``."""
    products = []
    for name, value in part.items():
        gradient = outputs[name].grad
        if gradient is not None and (value.ndim or name in _SUMMED or with_shared):
            products.append((value * (gradient[rows] if value.ndim else gradient)).sum())
    return torch.stack(products).sum()


def _rng_state(run: TrainRun) -> list[Tensor]:
    device = run.processes.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore_rng_state(run: TrainRun, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for value in state[1:]:
        torch.cuda.set_rng_state(value, run.processes.device)
