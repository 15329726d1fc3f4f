"""The config of ``clips train``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from clips.core.identity import RUN_ONLY
from clips.data.data_config import DataConfig
from clips.data.sources import SourceConfig
from clips.errors import UserError
from clips.method.optimizer import OptimizerConfig
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model.captioner_config import Precision
from clips.parallel.distributed_config import DistributedConfig

LENGTHS = ("max_steps", "max_samples", "num_epochs")
"""The fields that give a training's length, one of them."""
_MAY_CHANGE = ("optimizer.", "precision")  # what else a run is cannot change without it being another run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Retrieval on held-out images during training.

    Args:
        source: the images and their captions; null for none.
        eval_steps: steps from one validation to the next.
        num_samples: how many images, spread evenly over the source.
        batch_size: images encoded at once.
    """

    source: SourceConfig | None = None
    eval_steps: int = 1000
    num_samples: int = 1000
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("eval_steps", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"validation.{name}: expected 1 or more, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderTrainConfig:
    """Train an encoder on images with captions, or resume with an interrupted training.

    Args:
        output: the directory that becomes the encoder directory; progress and checkpoints live there meanwhile.
        data: what is trained on.
        model: the towers.
        recipe: what they learn from web and synthetic captions.
        optimizer: AdamW's settings.
        validation: zero-shot retrieval on held-out images during training.
        max_steps: length of the training in steps; 0 writes the untrained encoder. Give one of max_steps, max_samples,
            num_epochs.
        max_samples: length of the training in samples, over the whole run.
        num_epochs: length of the training in passes over the data.
        global_batch_size: samples a step, over all processes.
        micro_batch_size: samples that one process holds activations of at a time; null means its slice of the batch.
            The gradient is the same: features are computed twice, and contrasted over the global batch (GradCache,
            arXiv 2101.06983). This is how gradients are accumulated: a contrastive loss cannot be summed over parts.
        distributed: how the work is spread over processes, and what is traded for memory.
        ema_decay: decay of a running average of the weights (EMA), such as 0.9999, which is what is exported then; null
            exports the weights themselves.
        seed: of the weights, the order of the data, crops and caption draws.
        precision: of activations; auto takes bf16 where the hardware multiplies it faster.
        report_to: where metrics go besides metrics.jsonl: tensorboard, wandb.
        logging_steps: steps between entries of metrics.jsonl, whose losses and gradient norms are means over them.
        save_steps: steps between checkpoints.
        save_total_limit: how many checkpoints are kept.
        keep_checkpoints_after_training: leave the checkpoints in place when the training is done.
        license: of the weights, for the model card, such as apache-2.0.
        allow_changes_on_resume: fields in which an unfinished run may resume with other values than it had, such as
            optimizer.learning_rate after it diverged; what changed, and at which step, stands in the manifest.
        stages: trainings one after the other, each a mapping of the fields in which it differs from the above
            (``model.image_size: 224``); each begins with the weights of the one before, and the last one's encoder is
            the output.
    """

    output: str = dataclasses.field(metadata=RUN_ONLY)
    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    recipe: RecipeConfig = dataclasses.field(default_factory=RecipeConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig, metadata=RUN_ONLY)
    max_steps: int | None = None
    max_samples: int | None = None
    num_epochs: float | None = None
    global_batch_size: int = 128
    micro_batch_size: int | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig, metadata=RUN_ONLY)
    ema_decay: float | None = None
    seed: int = 0
    precision: Precision = "auto"
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    logging_steps: int = dataclasses.field(default=10, metadata=RUN_ONLY)
    save_steps: int = dataclasses.field(default=500, metadata=RUN_ONLY)
    save_total_limit: int = dataclasses.field(default=2, metadata=RUN_ONLY)
    keep_checkpoints_after_training: bool = dataclasses.field(default=False, metadata=RUN_ONLY)
    license: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    allow_changes_on_resume: tuple[str, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    stages: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in LENGTHS}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1 and not (self.stages and not given):
            raise UserError(f"{', '.join(LENGTHS)}: expected exactly one of them, got {', '.join(given) or 'none'}")
        for name, value in given.items():
            if value < 0:
                raise UserError(f"{name}: expected 0 or more, got {value}")
        for name in ("global_batch_size", "logging_steps", "save_steps", "save_total_limit"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        object.__setattr__(self, "optimizer", self.optimizer.resolved())
        if not self.stages and self.num_epochs is None:
            self.steps_for(0)
        if self.model.cache_trunk_features and self.data.augment.varies:
            raise UserError(
                "model.cache_trunk_features: expected pictures that never change "
                "(data.augment.crop_scale_min: 1.0, no flips)"
            )
        if self.model.cache_trunk_features and self.distributed.strategy in {"fsdp", "zero3"}:
            raise UserError(
                "model.cache_trunk_features: expected false where parameters are in shards (distributed.strategy)"
            )
        if fixed := next((name for name in self.allow_changes_on_resume if not name.startswith(_MAY_CHANGE)), None):
            raise UserError(
                f"allow_changes_on_resume: expected fields that begin with {', '.join(_MAY_CHANGE)}; got {fixed}"
            )
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"micro_batch_size: expected 1 or more, got {self.micro_batch_size}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay: expected a decay from 0 to below 1, got {self.ema_decay}")
        zero = self.distributed.strategy.startswith("zero")
        if zero and self.optimizer.grad_spike_factor is not None:
            raise UserError(
                "optimizer.grad_spike_factor: expected null under ZeRO, which tells a gradient's norm after the step"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed: expected 0 or more, below 2**63, got {self.seed}")

    def steps_for(self, samples_in_data: int) -> int:
        """The length of the training in steps; a last part of a batch becomes a whole one.

        Raises:
            UserError: its warm-up is longer.
        """
        samples = self.max_samples if self.max_samples is not None else (self.num_epochs or 0) * samples_in_data
        steps = self.max_steps if self.max_steps is not None else math.ceil(samples / self.global_batch_size)
        if steps:
            self.optimizer.warmup_steps(steps, self.global_batch_size)
        return steps
