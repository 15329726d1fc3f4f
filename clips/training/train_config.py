"""The config of ``clips train``, and of each of its stages of growing resolution.

stages:
  - {model.image_size: 84, max_samples: 12800000000, global_batch_size: 32768, optimizer.base_learning_rate: 8.0e-6}
  - {model.image_size: 224, max_samples: 512000000, global_batch_size: 16384, optimizer.base_learning_rate: 4.0e-7}
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from clips.core.artifact import MANIFEST, STAGES_DIR, read_manifest
from clips.core.identity import RUN_ONLY
from clips.core.run_log import TrackerName
from clips.data.sources import SourceConfig
from clips.errors import UserError
from clips.loader.data_config import DataConfig
from clips.method.optimizer import EITHER, OptimizerConfig
from clips.method.recipes import Recipe, RecipeConfig
from clips.model.architectures import Architecture, ModelConfig, resolve_architecture
from clips.ranges import FractionBelowOne, NonNegative, NonNegativeFloat, Positive, PositiveFloat
from clips.typed_data import from_plain, to_plain

LENGTHS = ("max_steps", "max_samples", "num_epochs")
"""The alternative fields for the length of a training."""
_MAY_CHANGE = ("optimizer.", "precision")  # a change of any other field makes another run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Retrieval on held-out images during training.

    Args:
        source: the images and their captions; null disables validation.
        eval_steps: steps between validations.
        num_samples: number of images, evenly spaced in the source.
        batch_size: images per forward pass.
    """

    source: SourceConfig | None = None
    eval_steps: Positive = 1000
    num_samples: Positive = 1000
    batch_size: Positive = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Settings of distributed training and memory saving. The result is the same except for rounding.

    Args:
        strategy: ddp (every process holds the full model) or fsdp (shards of parameters, gradients and optimizer state,
            torch's FSDP2). A run may resume with another strategy or number of processes.
        shard_group_size: under fsdp, number of processes that share one set of shards, such as the GPUs of a node; the
            other groups hold copies (HSDP), so that weights are gathered within a node and only gradients are averaged
            between nodes. null is all processes, for the least memory.
        activation_checkpointing: store only each layer's input and recompute its activations in the backward pass.
        torch_compile: compile the layers with torch.compile; faster on GPUs.
        hang_timeout: seconds that processes wait for another, which hangs, before the training ends.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    shard_group_size: Positive | None = None
    activation_checkpointing: bool = False
    torch_compile: bool = False
    hang_timeout: PositiveFloat = 1800.0  # hashing a large checkpoint takes less

    def __post_init__(self) -> None:
        if self.shard_group_size is not None and self.strategy != "fsdp":
            raise UserError(
                "distributed.shard_group_size: expected null, or a number of processes with strategy: fsdp; "
                f"got {self.shard_group_size} with {self.strategy}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderTrainConfig:
    """Train an encoder on images with captions, or resume an interrupted training.

    Args:
        output: the encoder directory to write; during training it contains metrics and checkpoints.
        data: the training data.
        model: the towers.
        recipe: the texts and losses of the training.
        optimizer: the settings of AdamW.
        validation: zero-shot retrieval on held-out images during training.
        max_steps: length of the training in steps; 0 writes the untrained encoder. Give one of max_steps, max_samples,
            num_epochs.
        max_samples: length of the training in samples, over the whole run.
        num_epochs: length of the training in passes over the data.
        global_batch_size: samples per step, over all processes.
        micro_batch_size: samples whose activations a process holds at a time; null is its slice of the batch. The
            gradient is the same: features are computed twice, and contrasted over the global batch (GradCache, arXiv
            2101.06983). It replaces gradient accumulation, because a contrastive loss is no sum over micro-batches.
        distributed: the strategy of several processes, and settings that save memory.
        ema_decay: decay of the exponential moving average (EMA) of the weights, such as 0.9999, which is exported
            then; null exports the weights themselves.
        seed: of the initial weights, the sample order, crops and sampled captions.
        precision: of activations; auto is bf16 if the hardware multiplies it faster, and stays when a run resumes on
            other hardware.
        report_to: trackers in addition to metrics.jsonl: tensorboard, wandb, trackio.
        logging_steps: steps between entries of metrics.jsonl, whose losses and gradient norms are means over them.
        save_steps: steps between checkpoints, of which the latest two are kept.
        keep_checkpoints_after_training: do not delete these two at the end of the training.
        license: of the weights, for the model card, such as apache-2.0.
        allow_changes_on_resume: fields whose values may change when an unfinished run is resumed, such as
            optimizer.learning_rate after it diverged; the manifest records each change and its step.
        stages: consecutive trainings, each a mapping of the fields that differ from the above
            (``model.image_size: 224``); each is initialized from the previous one, and the output is the last encoder.
    """

    output: str = dataclasses.field(metadata=RUN_ONLY)
    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    recipe: RecipeConfig = dataclasses.field(default_factory=RecipeConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig, metadata=RUN_ONLY)
    max_steps: NonNegative | None = None
    max_samples: NonNegative | None = None
    num_epochs: NonNegativeFloat | None = None
    global_batch_size: Positive = 128
    micro_batch_size: Positive | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig, metadata=RUN_ONLY)
    ema_decay: FractionBelowOne | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    report_to: tuple[TrackerName, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    logging_steps: Positive = dataclasses.field(default=10, metadata=RUN_ONLY)
    save_steps: Positive = dataclasses.field(default=500, metadata=RUN_ONLY)
    keep_checkpoints_after_training: bool = dataclasses.field(default=False, metadata=RUN_ONLY)
    license: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    allow_changes_on_resume: tuple[str, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    stages: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in LENGTHS}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1 and not (self.stages and not given):
            raise UserError(f"{', '.join(LENGTHS)}: expected exactly one of them, got {', '.join(given) or 'none'}")
        object.__setattr__(self, "optimizer", self.optimizer.resolved())
        if not self.stages and self.num_epochs is None:
            self.steps_for(0)
        if self.model.cache_trunk_features and self.data.augment.varies:
            raise UserError(
                "model.cache_trunk_features: expected images without random augmentation "
                "(data.augment.crop_scale_min: 1.0, no flips)"
            )
        if self.model.cache_trunk_features and self.distributed.strategy == "fsdp":
            raise UserError("model.cache_trunk_features: expected false with sharded parameters (distributed.strategy)")
        if fixed := next((name for name in self.allow_changes_on_resume if not name.startswith(_MAY_CHANGE)), None):
            raise UserError(
                f"allow_changes_on_resume: expected fields that begin with {', '.join(_MAY_CHANGE)}; got {fixed}"
            )
        if self.validation.source is not None and not Recipe(self.recipe).encoded:
            raise UserError(
                f"validation.source: expected null: it is retrieval, and recipe {self.recipe.name} has no text tower"
            )

    @functools.cached_property
    def architecture(self) -> Architecture:
        """What ``model`` resolves to; see `resolve_architecture` for the errors."""
        return resolve_architecture(self.model)

    def steps_for(self, samples_in_data: int) -> int:
        """Return the length of the training in steps, the last of which has a full batch.

        Raises:
            UserError: the warm-up is longer.
        """
        samples = self.max_samples if self.max_samples is not None else (self.num_epochs or 0) * samples_in_data
        steps = self.max_steps if self.max_steps is not None else math.ceil(samples / self.global_batch_size)
        if steps:
            self.optimizer.warmup_steps(steps, self.global_batch_size)
        return steps

    def check_processes(self, count: int) -> None:
        """Raise UserError unless ``count`` processes can share a batch, and form groups of shards."""
        if self.global_batch_size % count:
            raise UserError(
                f"global_batch_size: expected a multiple of the {count} processes, got {self.global_batch_size}"
            )
        if (size := self.distributed.shard_group_size) is not None and count % size:
            raise UserError(f"distributed.shard_group_size: expected a divisor of the {count} processes, got {size}")


# ---------------------------------------------------------------- stages


def stage_configs(config: EncoderTrainConfig) -> list[EncoderTrainConfig]:
    """Return the config of each stage, in order: ``config`` itself if it has no stages.

    A stage's fields override the config's. All stages except the last write into ``OUTPUT.stages/N``. Each stage has
    its own sample order.

    Raises:
        UserError: a stage has an unknown or invalid field.
    """
    if not config.stages:
        return [config]
    configs: list[EncoderTrainConfig] = []
    for number, fields in enumerate(config.stages, 1):
        values = to_plain(config) | {"stages": []}
        if any(name in fields for name in LENGTHS):
            values |= dict.fromkeys(LENGTHS)
        nested = fields.get("optimizer")
        of_optimizer = {name.removeprefix("optimizer.") for name in fields if name.startswith("optimizer.")}
        of_optimizer |= set(nested) if isinstance(nested, Mapping) else set()
        for pair in EITHER:
            if of_optimizer.intersection(pair):
                values["optimizer"] |= dict.fromkeys(pair)
        _override(values, fields, f"stages[{number}]")
        last = number == len(config.stages)
        values["output"] = config.output if last else f"{config.output}{STAGES_DIR}/{number}"
        values["seed"] = config.seed + number - 1
        if configs:
            values["model"] |= {"pretrained": configs[-1].output, "pretrained_trunk": None}
        configs.append(from_plain(EncoderTrainConfig, values, what=f"stages[{number}]"))
    return configs


def completed_stages(config: Mapping[str, Any], state: Mapping[str, Any], image_size: int) -> list[dict[str, Any]]:
    """Return the record of each stage up to the one of ``config``, for its manifest.

    Args:
        config: of the stage, as plain data.
        state: its steps, samples_seen and seconds.
        image_size: in pixels.
    """
    model, output = config["model"], Path(config["output"])
    # The output of a stage is in the directory of stages, except the last one's, which is next to it.
    stages_dir = output.parent if output.parent.name.endswith(STAGES_DIR) else Path(f"{output}{STAGES_DIR}")
    begun_from = model["pretrained"] or model["pretrained_trunk"]
    before: list[dict[str, Any]] = []
    if begun_from is not None and Path(begun_from).parent == stages_dir and (Path(begun_from) / MANIFEST).is_file():
        before = read_manifest(Path(begun_from)).get("stages", [])
    progress = {name: state[name] for name in ("steps", "samples_seen", "seconds")}
    this = {"begun_from": begun_from, "image_size": image_size, "global_batch_size": config["global_batch_size"]}
    return [*before, this | progress]


def _override(values: dict[str, Any], fields: Mapping[str, Any], what: str) -> None:
    for name, value in fields.items():  # names may be dotted, ``values`` are nested
        parent, (*sections, field) = values, name.split(".")
        for section in sections:
            if not isinstance(parent.get(section), dict):
                raise UserError(f"{what}: unknown field '{name}'")
            parent = parent[section]
        if isinstance(value, Mapping) and isinstance(parent.get(field), dict):
            _override(parent[field], value, f"{what}.{name}")
        else:
            parent[field] = value
