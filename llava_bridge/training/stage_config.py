"""The settings of one stage of training."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Literal

from clips.core.identity import RUN_ONLY
from clips.errors import UserError, check_at_least
from llava_bridge.data.sources import ConversationSourceConfig, HeldOutSourceConfig

STAGE_NAMES = ("align", "instruct")
"""In the order in which they can follow each other."""
Part = Literal["vision", "projector", "llm"]
DEFAULT_TUNABLE_PARTS: dict[str, tuple[Part, ...]] = {
    "align": ("projector",),
    "instruct": ("projector", "llm"),
}
"""The parts that each stage trains by default; all others are frozen."""
RATE_FIELDS: dict[Part, str] = {"vision": "vision_tower_lr", "projector": "projector_lr"}
"""The fields of peak learning rates other than the LLM's, ``learning_rate``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) next to the LLM's linear layers. Defaults are LLaVA-1.5's.

    As in LLaVA all linear layers have one but for the output layer; other parts are trained by ``tunable_parts``.

    Args:
        r: rank of the matrices.
        lora_alpha: the adapters' output is scaled by lora_alpha / r.
        lora_dropout: dropout probability of their inputs.
        merge_weights: merge the adapters into the weights at the end. Otherwise the last stage writes them to the
            output's ``adapter/``, next to the initial weights.
        quantization: ``nf4`` quantizes the LLM's linear layers to 4 bits during training (QLoRA, arXiv 2305.14314); the
            output has the dequantized values. Needs the extra ``qlora``.
    """

    r: int = 128
    lora_alpha: float = 256.0
    lora_dropout: float = 0.05
    merge_weights: bool = True
    quantization: Literal["nf4"] | None = None

    def __post_init__(self) -> None:
        check_at_least(1, self, "r", prefix="lora.")
        if not self.lora_alpha > 0:
            raise UserError(f"lora.lora_alpha: expected more than 0, got {self.lora_alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora.lora_dropout: expected a ratio from 0 to below 1, got {self.lora_dropout}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss and exact match on held-out conversations, and exact match on benchmarks, during the last stage.

    Of each source, and of the questions of each benchmark, 1000 are used.

    Args:
        source: the conversations, or captions, whose loss and exact match are measured.
        benchmarks: sources of questions with short answers, each by a name of one's choice; the case of the answer's
            first letter is ignored.
        eval_steps: steps between validations; the last step has one, too.
    """

    source: HeldOutSourceConfig | None = None
    benchmarks: dict[str, HeldOutSourceConfig] = dataclasses.field(default_factory=dict)
    eval_steps: int = 500

    def __post_init__(self) -> None:
        check_at_least(1, self, "eval_steps", prefix="validation.")
        for name in self.benchmarks:
            if not re.fullmatch("[a-z0-9_]+", name):
                raise UserError(f"validation.benchmarks: expected names of a-z, 0-9 and _, got '{name}'")

    def sources(self) -> Iterator[tuple[str, str, HeldOutSourceConfig]]:
        """The sources: field, name of the benchmark or "", settings."""
        if self.source is not None:
            yield "validation.source", "", self.source
        for name, source in self.benchmarks.items():
            yield f"validation.benchmarks.{name}", name, source


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training.

    Args:
        data: its sources; their samples are shuffled together.
        num_epochs: passes over the data, without ``max_steps``.
        max_steps: optimizer steps; null uses ``num_epochs``.
        global_batch_size: samples per step, over all processes.
        micro_batch_size: samples per forward pass of a process; null uses its slice of the batch.
        learning_rate: peak learning rate.
        tunable_parts: the trained parts: vision, projector, llm; null uses the stage's default. Others are frozen.
        vision_tower_lr: peak learning rate of the vision tower; null uses ``learning_rate``, the LLM's.
        projector_lr: of the projector.
        lora: adapters that are trained instead of full weights; null trains the weights.
        warmup_ratio: ratio of the steps with linear warmup to ``learning_rate``.
        weight_decay: of AdamW.
        adam_beta2: of AdamW.
        lr_scheduler_type: the learning rate after the warmup, as in transformers: cosine and linear end at 0.
        optim: the optimizer, as in transformers; adamw_8bit needs bitsandbytes. null uses transformers' default, AdamW.
        deepspeed: the DeepSpeed JSON of this stage, if it is not ``distributed.deepspeed``: LLaVA's scripts align under
            ZeRO-2 and instruct under ZeRO-3.
        max_length: maximum sequence length in tokens, images included; text beyond it is truncated, images never. null
            uses the LLM's own limit, but at most 2048 plus the largest image with tiles.
        group_by_modality_length: LLaVA's order of samples: each step has only samples with images or only samples
            without, at random; false shuffles all. LLaVA-1.5 has it in ``instruct`` only. The samples of a step do not
            depend on their lengths, ``micro_batch_size`` or the number of processes.
        packing: concatenate the samples of a micro-batch to one row, or rows of ``max_length`` tokens if the attention
            needs masks, instead of padding each. Steps have the same samples and losses either way.
        cache_vision_features: store the frozen encoder's features of each image in the user's cache, for all trainings
            with the same images and encoder: 1.2 MB per image, or tile, for CLIP L/14 at 336 pixels in bf16.
        activation_checkpointing: store only each layer's input and recompute its activations in the backward pass.
    """

    data: list[ConversationSourceConfig] = dataclasses.field(default_factory=list)
    num_epochs: float = 1.0
    max_steps: int | None = None
    global_batch_size: int = 32
    micro_batch_size: int | None = None
    learning_rate: float = 1e-3
    tunable_parts: list[Part] | None = None
    vision_tower_lr: float | None = None
    projector_lr: float | None = None
    lora: LoraConfig | None = None
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor"] | None = None
    deepspeed: str | None = None
    max_length: int | None = None
    group_by_modality_length: bool = False
    packing: bool = False
    cache_vision_features: bool = dataclasses.field(default=False, metadata=RUN_ONLY)
    activation_checkpointing: bool = dataclasses.field(default=False, metadata=RUN_ONLY)

    def trained_parts(self, name: str) -> tuple[Part, ...]:
        """The trained parts of the stage ``name``, including those with adapters."""
        parts = DEFAULT_TUNABLE_PARTS[name] if self.tunable_parts is None else tuple(self.tunable_parts)
        return parts if self.lora is None or "llm" in parts else (*parts, "llm")

    def peak_lr(self, part: Part) -> float:
        """The peak learning rate of a part."""
        own: float | None = getattr(self, RATE_FIELDS[part]) if part in RATE_FIELDS else None
        return self.learning_rate if own is None else own

    def check(self, name: str, processes: int) -> None:
        """Raise UserError, naming the field, if the stage cannot run on this number of processes."""
        if not self.data:
            raise UserError(f"{name}.data: expected at least one source for the stage {name}")
        numbers = ("num_epochs", "max_steps", "global_batch_size", "micro_batch_size", "max_length")
        for field in (*numbers, "learning_rate", *RATE_FIELDS.values()):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}.{field}: expected more than 0, got {value}")
        for field in ("warmup_ratio", "adam_beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{name}.{field}: expected a ratio from 0 to below 1, got {getattr(self, field)}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"{name}.weight_decay: expected 0 or more, got {self.weight_decay}")
        self._check_parts(name)
        micro = self.micro_batch_size or self.global_batch_size / processes
        if self.global_batch_size % (processes * micro) or micro != int(micro):
            raise UserError(
                f"{name}.global_batch_size: expected a multiple of processes ({processes}) × micro_batch_size, "
                f"got {self.global_batch_size}"
            )

    def _check_parts(self, name: str) -> None:
        if self.tunable_parts is not None and (
            not self.tunable_parts or len(set(self.tunable_parts)) != len(self.tunable_parts)
        ):
            raise UserError(
                f"{name}.tunable_parts: expected some of {', '.join(RATE_FIELDS)}, each once, got {self.tunable_parts}"
            )
        if self.cache_vision_features and "vision" in self.trained_parts(name):
            raise UserError(f"{name}.cache_vision_features: expected false in a stage without a frozen encoder")
        for part, field in RATE_FIELDS.items():
            if getattr(self, field) is not None and part not in self.trained_parts(name):
                raise UserError(f"{name}.{field}: expected none, as {part} is frozen in this stage (see tunable_parts)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig(StageConfig):
    """The stage ``align``, with LLaVA-1.5's batch and rate (its ``scripts/v1_5/pretrain.sh``).

    Args:
        chat_template: the template before ``instruct``, if it is not the LLaVA's: ``plain`` is LLaVA-1.5's, the image
            and then its caption, without roles and questions.
        image_aspect_ratio: how images become squares before ``instruct``, if it is not as in the LLaVA; one with tiles
            then reads one square for each image, as LLaVA-NeXT's.
    """

    global_batch_size: int = 256
    learning_rate: float = 1e-3
    chat_template: str | None = None
    image_aspect_ratio: Literal["squash", "pad", "crop"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructConfig(StageConfig):
    """The stage ``instruct``, with LLaVA-1.5's batch, rate and order (its ``scripts/v1_5/finetune.sh``)."""

    global_batch_size: int = 128
    learning_rate: float = 2e-5
    group_by_modality_length: bool = True
