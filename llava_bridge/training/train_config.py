"""The config of ``llava-bridge train``: each stage, validation, processes, and the run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, Literal

from clips.core.identity import RUN_ONLY
from clips.core.run_log import TrackerName
from clips.errors import UserError, unknown_name_error
from clips.ranges import Fraction, FractionBelowOne, NonNegative, NonNegativeFloat, Positive, PositiveFloat
from llava_bridge.data.sources import ConversationSourceConfig, HeldOutSourceConfig
from llava_bridge.model.assembly_config import AssemblyConfig
from llava_bridge.projectors import ProjectorConfig

STAGE_NAMES = ("align", "instruct")
"""In the order in which they can follow each other."""
Part = Literal["vision", "projector", "llm"]
DEFAULT_TUNABLE_PARTS: dict[str, tuple[Part, ...]] = {"align": ("projector",), "instruct": ("projector", "llm")}
"""The parts that each stage trains by default; all others are frozen."""
RATE_FIELDS: dict[Part, str] = {"vision": "vision_tower_lr", "projector": "projector_lr"}
"""The fields of peak learning rates other than the LLM's, ``learning_rate``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) next to the LLM's linear layers. Defaults are LLaVA-1.5's.

    As in LLaVA all linear layers have one but for the output layer; other parts are trained by ``tunable_parts``. The
    experts of a mixture, whose matrices are one weight, have one only with ``lora_dropout: 0``.

    Args:
        r: rank of the matrices.
        lora_alpha: the adapters' output is scaled by lora_alpha / r.
        lora_dropout: dropout probability of their inputs.
        merge_weights: merge the adapters into the weights at the end. Otherwise the last stage writes them to the
            output's ``adapter/``, next to the initial weights.
        quantization: ``nf4`` quantizes the LLM's linear layers to 4 bits during training (QLoRA, arXiv 2305.14314); the
            output has the dequantized values. Needs the extra ``qlora``.
    """

    r: Positive = 128
    lora_alpha: PositiveFloat = 256.0
    lora_dropout: FractionBelowOne = 0.05
    merge_weights: bool = True
    quantization: Literal["nf4"] | None = None


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
    eval_steps: Positive = 500

    def __post_init__(self) -> None:
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
        optim: the optimizer, by transformers' name; adamw_8bit needs bitsandbytes and rounds its moments, for another
            number of processes otherwise. null uses transformers' default, AdamW.
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
            with the same images and encoder. With CLIP L/14 at 336 pixels in bf16 that is 1.2 MB per image or tile.
        activation_checkpointing: store only each layer's input and recompute its activations in the backward pass.
    """

    data: list[ConversationSourceConfig] = dataclasses.field(default_factory=list)
    num_epochs: PositiveFloat = 1.0
    max_steps: Positive | None = None
    global_batch_size: Positive = 32
    micro_batch_size: Positive | None = None
    learning_rate: PositiveFloat = 1e-3
    tunable_parts: list[Part] | None = None
    vision_tower_lr: PositiveFloat | None = None
    projector_lr: PositiveFloat | None = None
    lora: LoraConfig | None = None
    warmup_ratio: FractionBelowOne = 0.03
    weight_decay: NonNegativeFloat = 0.0
    adam_beta2: FractionBelowOne = 0.999
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit"] | None = None
    deepspeed: str | None = None
    max_length: Positive | None = None
    group_by_modality_length: bool = False
    packing: bool = False
    cache_vision_features: bool = dataclasses.field(default=False, metadata=RUN_ONLY)
    activation_checkpointing: bool = dataclasses.field(default=False, metadata=RUN_ONLY)

    def trained_parts(self, name: str) -> tuple[Part, ...]:
        """The trained parts of the stage ``name``, including those with adapters."""
        parts = DEFAULT_TUNABLE_PARTS[name] if self.tunable_parts is None else tuple(self.tunable_parts)
        return parts if self.lora is None or "llm" in parts else (*parts, "llm")

    def num_steps(self, samples: int) -> int:
        """Optimizer steps over this number of samples; a step may have samples of two epochs."""
        return self.max_steps or max(1, math.ceil(self.num_epochs * samples / self.global_batch_size))

    def micro_batches(self, processes: int) -> tuple[int, int]:
        """The samples of a process in a forward pass, and the number of these passes in a step."""
        size = self.micro_batch_size or max(1, self.global_batch_size // processes)
        return size, self.global_batch_size // (size * processes)

    def check(self, name: str, processes: int) -> None:
        """Raise UserError, naming the field, if the stage cannot run on this number of processes."""
        if not self.data:
            raise UserError(f"{name}.data: expected at least one source for the stage {name}")
        if self.tunable_parts is not None and not 0 < len(set(self.tunable_parts)) == len(self.tunable_parts):
            raise UserError(
                f"{name}.tunable_parts: expected some of {', '.join(RATE_FIELDS)}, each once, got {self.tunable_parts}"
            )
        trained = self.trained_parts(name)
        if self.cache_vision_features and "vision" in trained:
            raise UserError(f"{name}.cache_vision_features: expected false in a stage without a frozen encoder")
        for part, field in RATE_FIELDS.items():
            if getattr(self, field) is not None and part not in trained:
                raise UserError(f"{name}.{field}: expected none, as {part} is frozen in this stage (see tunable_parts)")
        size, count = self.micro_batches(processes)
        if size * count * processes != self.global_batch_size:
            raise UserError(
                f"{name}.global_batch_size: expected a multiple of processes ({processes}) × micro_batch_size, "
                f"got {self.global_batch_size}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig(StageConfig):
    """The stage ``align``, with LLaVA-1.5's batch and rate (its ``scripts/v1_5/pretrain.sh``).

    Args:
        chat_template: the template before ``instruct``, if it is not the LLaVA's: ``plain`` is LLaVA-1.5's, the image
            and then its caption, without roles and questions.
        image_aspect_ratio: how images become squares before ``instruct``, if it is not as in the LLaVA; one with tiles
            then reads one square for each image, as LLaVA-NeXT's.
    """

    global_batch_size: Positive = 256
    learning_rate: PositiveFloat = 1e-3
    chat_template: str | None = None
    image_aspect_ratio: Literal["squash", "pad", "crop"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructConfig(StageConfig):
    """The stage ``instruct``, with LLaVA-1.5's batch, rate and order (its ``scripts/v1_5/finetune.sh``)."""

    global_batch_size: Positive = 128
    learning_rate: PositiveFloat = 2e-5
    group_by_modality_length: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """The training processes.

    Args:
        num_processes: number of processes: one per GPU, or CPU processes. null uses those of a launcher, else one
            for each visible GPU, or one without a GPU.
        deepspeed: the DeepSpeed JSON: zero2, zero2_offload, zero3, zero3_offload (shipped) or a file.
        torch_compile: compile the layers of the LLM and the encoder, and the projector, with torch.compile.
    """

    num_processes: Positive | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    deepspeed: str = "zero2"
    torch_compile: bool = dataclasses.field(default=False, metadata=RUN_ONLY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaTrainConfig(AssemblyConfig):
    """Train a LLaVA, from encoder and LLM or further, under DeepSpeed.

    The published recipe is ``align`` (the projector, on captions) and then ``instruct`` (projector and LLM, on
    conversations), the encoder frozen throughout.

    Args:
        output: the LLaVA directory to write.
        stages: the stages to run, of align, instruct in this order.
        encoder: an encoder directory, or ``hf-hub:ORG/NAME``; ``timm:NAME``, ``timm:NAME@weights.safetensors``,
            ``timm:NAME@random``; or ``transformers:DIRECTORY`` (or ORG/NAME on the Hub) for CLIP, SigLIP, DINO, AIMv2.
        llm: a directory with a transformers causal LM and its tokenizer, or ``ORG/NAME`` on the Hub
            (``ORG/NAME@REVISION`` for one of its commits), or a LLaVA, whose LLM is used.
        llava: a LLaVA directory, or ``ORG/NAME`` on the Hub, to train further, instead of encoder and llm: of this
            suite or in the transformers format (``llava-bridge convert`` converts original LLaVAs, ``llava-bridge
            swap`` replaces the encoder).
        attn_implementation: the LLM's attention, by transformers' name: sdpa, eager, flash_attention_2 …; null uses
            flash_attention_2 on a GPU in bf16 if the package flash-attn is installed, else transformers' default.
        align: trains the projector only; LLaVA calls this stage pretraining.
        instruct: trains projector and LLM; LLaVA calls this stage finetuning.
        validation: loss and exact match on held-out samples and benchmarks during the last stage.
        distributed: processes and DeepSpeed settings.
        precision: ``auto`` uses bf16 if the hardware computes it faster than fp32; a run keeps it when it resumes on
            other hardware. A frozen encoder is bit-identical in the output either way.
        seed: seed of initial weights and of the order of samples.
        save_steps: steps between checkpoints, from which an interrupted run resumes; 0 saves only finished stages.
        logging_steps: steps between lines of metrics.jsonl.
        report_to: trackers in addition to metrics.jsonl: tensorboard, wandb, trackio; metrics are named STAGE/NAME.
        num_workers: DataLoader workers of each training process; 0 decodes images in the training process, between the
            steps. null means 4, as in LLaVA's scripts, or fewer, so that each has a core besides the training's own.
        max_invalid_ratio: training stops when more than this ratio of a stage's samples is invalid.
    """

    output: str = dataclasses.field(metadata=RUN_ONLY)
    stages: list[Literal["align", "instruct"]] = dataclasses.field(default_factory=lambda: ["align", "instruct"])
    encoder: str | None = None
    llm: str | None = None
    llava: str | None = None
    attn_implementation: str | None = None
    align: AlignConfig = dataclasses.field(default_factory=AlignConfig)
    instruct: InstructConfig = dataclasses.field(default_factory=InstructConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig, metadata=RUN_ONLY)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    save_steps: NonNegative = dataclasses.field(default=500, metadata=RUN_ONLY)
    logging_steps: Positive = dataclasses.field(default=5, metadata=RUN_ONLY)
    report_to: tuple[TrackerName, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    num_workers: NonNegative | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    max_invalid_ratio: Fraction = dataclasses.field(default=0.02, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError(f"stages: expected some of {', '.join(STAGE_NAMES)}")
        for name in self.stages:
            if name not in STAGE_NAMES:
                raise unknown_name_error(name, STAGE_NAMES, "stage")
        order = [STAGE_NAMES.index(name) for name in self.stages]
        if order != sorted(set(order)):
            raise UserError(
                f"stages: expected each once and in the order {', '.join(STAGE_NAMES)}, got {list(self.stages)}"
            )
        for name in self.stages:
            self.stage(name).check(name, self.distributed.num_processes or 1)
        if self.llava is None:
            if not self.encoder:
                raise UserError("encoder: expected an encoder directory or timm:NAME")
            if not self.llm:
                raise UserError("llm: expected an LLM directory")
        else:  # a LLaVA has all of these
            unset: dict[str, Any] = dict.fromkeys(("encoder", "llm", "image_size", "vision_feature_layer"))
            unset |= {"vision_feature_select_strategy": "default", "projector": ProjectorConfig()}
            unset |= {"image_aspect_ratio": "squash", "image_grid_pinpoints": None}
            for field, default in unset.items():
                if getattr(self, field) != default:
                    raise UserError(f"{field}: expected none with llava, which has its own; see `llava-bridge swap`")
        super().__post_init__()
        for field in ("chat_template", "image_aspect_ratio"):  # the last stage has those of inference
            if self.stages[-1] == "align" and getattr(self.align, field) is not None:
                raise UserError(f"align.{field}: expected null without the stage instruct")

    def with_processes(self, processes: int) -> LlavaTrainConfig:
        """The same run on a known number of processes.

        Raises:
            UserError: ``distributed.num_processes`` is another number, or does not divide the batches.
        """
        if self.distributed.num_processes not in {None, processes}:
            raise UserError(
                f"distributed.num_processes: expected {processes}, the number of the launcher's processes, or null, "
                f"got {self.distributed.num_processes}"
            )
        return dataclasses.replace(self, distributed=dataclasses.replace(self.distributed, num_processes=processes))

    def stage(self, name: str) -> StageConfig:
        """The settings of the stage ``name``."""
        return {"align": self.align, "instruct": self.instruct}[name]
