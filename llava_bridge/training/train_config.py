"""The config of ``llava-bridge train``."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from clips.core.identity import RUN_ONLY
from clips.core.trackers import TrackerName
from clips.errors import UserError, unknown_name_error
from llava_bridge.data.sources import ConversationSourceConfig
from llava_bridge.model.anyres import ImageAspectRatio, check_pinpoints
from llava_bridge.model.small_llama import SmallLlamaConfig
from llava_bridge.projectors import ProjectorConfig

STAGE_NAMES = ("llm_pretrain", "align", "instruct")
"""In the order in which they can follow each other."""
Part = Literal["vision", "projector", "llm"]
Strategy = Literal["deepspeed", "fsdp"]
DEFAULT_TUNABLE_PARTS: dict[str, tuple[Part, ...]] = {
    "llm_pretrain": ("llm",),
    "align": ("projector",),
    "instruct": ("projector", "llm"),
}
"""The parts that each stage trains by default; all others are frozen."""
RATE_FIELDS: dict[Part, str] = {"vision": "vision_tower_lr", "projector": "projector_lr", "llm": "llm_lr"}
"""The field of each part's own peak learning rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) instead of full weights. Defaults are LLaVA-1.5's.

    Args:
        r: rank of the matrices.
        lora_alpha: the adapters' output is scaled by lora_alpha / r.
        lora_dropout: dropout probability of their inputs.
        use_dora: also learn magnitudes (DoRA, arXiv 2402.09353).
        apply_to: the parts whose linear layers are adapted; a part's other weights are frozen. Other parts are trained
            or frozen by ``tunable_parts``.
        target_modules: names of linear layers, such as q_proj; null adapts all of them.
        merge_weights: merge the adapters into the weights at the end. Otherwise the last stage writes them to the
            output's ``adapter/``, next to the initial weights.
        quantization: ``nf4`` quantizes the LLM's linear layers to 4 bits during training (QLoRA, arXiv 2305.14314); the
            output has the dequantized values. Needs the extra ``qlora``.
    """

    r: int = 128
    lora_alpha: float = 256.0
    lora_dropout: float = 0.05
    use_dora: bool = False
    apply_to: list[Literal["vision", "llm"]] = dataclasses.field(default_factory=lambda: ["llm"])
    target_modules: list[str] | None = None
    merge_weights: bool = True
    quantization: Literal["nf4"] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"lora.r: expected at least 1, got {self.r}")
        if not self.lora_alpha > 0:
            raise UserError(f"lora.lora_alpha: expected more than 0, got {self.lora_alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora.lora_dropout: expected a ratio from 0 to below 1, got {self.lora_dropout}")
        if not self.apply_to or len(set(self.apply_to)) != len(self.apply_to):
            raise UserError(f"lora.apply_to: expected some of vision, llm, each once, got {list(self.apply_to)}")
        if self.quantization and "llm" not in self.apply_to:
            raise UserError(
                f"lora.quantization: expected none without llm among lora.apply_to, got {self.quantization}"
            )


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
        vision_tower_lr: peak learning rate of the vision tower; null uses ``learning_rate``, as for the other parts.
        projector_lr: of the projector.
        llm_lr: of the LLM, or its adapters.
        lora: adapters that are trained instead of full weights; null trains the weights.
        warmup_ratio: ratio of the steps with linear warmup to ``learning_rate``.
        weight_decay: of AdamW.
        adam_beta2: of AdamW.
        lr_scheduler_type: the learning rate after the warmup, as in transformers: cosine and linear end at 0.
        optim: the optimizer, as in transformers; adamw_8bit needs bitsandbytes. FSDP has torch's AdamW
            only. null uses transformers' default, AdamW.
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
        chat_template: the template of this stage, if it is not the LLaVA's: ``plain`` is LLaVA-1.5's in align, the
            image and then its caption, without roles and questions.
        image_aspect_ratio: how images become squares in this stage, if it is not as in the LLaVA.
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
    llm_lr: float | None = None
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
    chat_template: str | None = None
    image_aspect_ratio: Literal["squash", "pad", "crop"] | None = None
    activation_checkpointing: bool = dataclasses.field(default=False, metadata=RUN_ONLY)

    def trained_parts(self, name: str) -> tuple[Part, ...]:
        """The trained parts of the stage ``name``, including those with adapters."""
        parts = DEFAULT_TUNABLE_PARTS[name] if self.tunable_parts is None else tuple(self.tunable_parts)
        adapted = () if self.lora is None else tuple(part for part in self.lora.apply_to if part not in parts)
        return (*parts, *adapted)

    def peak_lr(self, part: Part) -> float:
        """The peak learning rate of a part."""
        own: float | None = getattr(self, RATE_FIELDS[part])
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
        known = DEFAULT_TUNABLE_PARTS[name] if name == "llm_pretrain" else ("vision", "projector", "llm")
        if self.tunable_parts is not None and (
            not self.tunable_parts
            or not set(self.tunable_parts) <= set(known)
            or len(set(self.tunable_parts)) != len(self.tunable_parts)
        ):
            raise UserError(
                f"{name}.tunable_parts: expected some of {', '.join(known)}, each once, got {self.tunable_parts}"
            )
        if name == "llm_pretrain" and (self.packing or self.lora):
            field = "packing" if self.packing else "lora"
            raise UserError(f"llm_pretrain.{field}: expected none; only align and instruct have it")
        if self.cache_vision_features and (name == "llm_pretrain" or "vision" in self.trained_parts(name)):
            raise UserError(f"{name}.cache_vision_features: expected false in a stage without a frozen encoder")
        for part, field in RATE_FIELDS.items():
            if getattr(self, field) is not None and part not in self.trained_parts(name):
                raise UserError(f"{name}.{field}: expected none, as {part} is frozen in this stage (see tunable_parts)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """The training processes.

    Args:
        num_processes: number of processes: one per GPU, or CPU processes. null uses those of another launcher, else one
            for each visible GPU, or one without a GPU.
        strategy: ``deepspeed``, or PyTorch's own ``fsdp`` (FSDP2), which shards weights, gradients and optimizer state
            as ZeRO-3 does.
        deepspeed: the DeepSpeed JSON: zero2, zero2_offload, zero3, zero3_offload (shipped) or a file.
    """

    num_processes: int | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    strategy: Strategy = "deepspeed"
    deepspeed: str = "zero2"

    def __post_init__(self) -> None:
        if self.num_processes is not None and self.num_processes < 1:
            raise UserError(f"distributed.num_processes: expected at least 1, got {self.num_processes}")
        if self.strategy == "fsdp" and self.deepspeed != "zero2":
            raise UserError(f"distributed.deepspeed: expected none with strategy: fsdp, got {self.deepspeed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaTrainConfig:
    """Train a LLaVA (from encoder and LLM, or further), or first the LLM itself, under DeepSpeed or FSDP2.

    The published recipe is ``align`` (the projector, on captions) and then ``instruct`` (projector and LLM, on
    conversations), the encoder frozen throughout. ``llm_pretrain`` trains an LLM on text before.

    Args:
        output: the directory to write: an LLM directory if ``llm_pretrain`` is the last stage, else a LLaVA directory.
        stages: the stages to run, of llm_pretrain, align, instruct in this order.
        encoder: an encoder directory, or ``hf-hub:ORG/NAME``; ``timm:NAME``, ``timm:NAME@weights.safetensors``,
            ``timm:NAME@random``; or ``transformers:DIRECTORY`` (or ORG/NAME on the Hub) for CLIP, SigLIP, DINO, AIMv2.
        llm: a directory with a transformers causal LM and its tokenizer, or ``ORG/NAME`` on the Hub
            (``ORG/NAME@REVISION`` for one of its commits), or a LLaVA, whose LLM is used. ``llm_pretrain`` trains it
            further, or builds a new one if null (``llm_from_scratch``).
        llava: a LLaVA directory, or ``ORG/NAME`` on the Hub, to train further, instead of encoder and llm: of this
            suite or in the transformers format (``llava-bridge convert`` converts original LLaVAs, ``llava-bridge
            swap`` replaces the encoder).
        image_size: image size in pixels; null uses the encoder's own. For ViTs learned positions are interpolated.
        vision_feature_layer: hidden state of the encoder that the LLM sees, or several, concatenated: ``[-2, -5]``;
            null: -2 for most ViTs and CLIP's ResNets, -1 for timm's others, RADIO, InternVL and Qwen-VL. Each of
            ``several:`` uses this one, or its own default.
        vision_feature_select_strategy: ``default`` drops the class token, ``full`` keeps it, as in transformers
            (LLaVA: ``patch``, ``cls_patch``).
        image_aspect_ratio: how images become squares: ``squash``, ``pad`` with the encoder's mean color
            (LLaVA-1.5's), or a center ``crop``; or ``anyres``, LLaVA-NeXT's: a base image and tiles at full resolution.
        image_grid_pinpoints: with ``anyres``: the heights and widths in pixels that images are resized into before they
            are cut into tiles; null uses LLaVA-NeXT's, 1 × 2, 2 × 1, 2 × 2, 3 × 1 and 1 × 3 tiles.
        projector: maps the encoder's features to tokens of the LLM.
        chat_template: ``auto`` (the LLM's own if it has one, else vicuna) or a template's name: vicuna, vicuna_v1 (with
            LLaVA-1.5's preamble), llama_2, llama_3, llama_3_1 (3.2, too), chatml (Qwen, SmolLM), qwen_1_5 (the same
            with LLaVA-NeXT's system message), mistral, gemma, phi_3, tulu (OLMo), turns.
        attn_implementation: the LLM's attention, by transformers' name: sdpa, eager, flash_attention_2 …; null uses
            causal attention without masks in place of transformers' SDPA if the hardware has it, else its default.
        llm_from_scratch: the LLM that ``llm_pretrain`` builds.
        llm_pretrain: trains the LLM without images, on text (format ``text``) or on conversations.
        align: trains the projector only; LLaVA calls this stage pretraining.
        instruct: trains projector and LLM; LLaVA calls this stage finetuning.
        distributed: processes and DeepSpeed settings.
        precision: ``auto`` uses bf16 if the hardware computes it faster than fp32. A frozen encoder is bit-identical in
            the output either way.
        seed: seed of initial weights and of the order of samples.
        save_steps: steps between checkpoints, from which an interrupted run resumes; 0 saves only finished stages.
        logging_steps: steps between lines of metrics.jsonl.
        report_to: trackers in addition to metrics.jsonl: tensorboard, wandb, trackio; metrics are named STAGE/NAME.
        num_workers: DataLoader workers of each training process, by default as many as in LLaVA's scripts; 0 decodes
            images in the training process, between the steps.
        max_invalid_ratio: training stops when more than this ratio of a stage's samples is invalid.
    """

    output: str = dataclasses.field(metadata=RUN_ONLY)
    stages: list[Literal["llm_pretrain", "align", "instruct"]] = dataclasses.field(
        default_factory=lambda: ["align", "instruct"]
    )
    encoder: str | None = None
    llm: str | None = None
    llava: str | None = None
    image_size: int | None = None
    vision_feature_layer: int | list[int] | None = None
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    image_aspect_ratio: ImageAspectRatio = "squash"
    image_grid_pinpoints: list[list[int]] | None = None
    projector: ProjectorConfig = dataclasses.field(default_factory=ProjectorConfig)
    chat_template: str = dataclasses.field(
        default="auto", metadata={"known": "llava_bridge.chat_templates:CHAT_TEMPLATES"}
    )
    attn_implementation: str | None = None
    llm_from_scratch: SmallLlamaConfig = dataclasses.field(default_factory=SmallLlamaConfig)
    llm_pretrain: StageConfig = dataclasses.field(
        default_factory=lambda: StageConfig(learning_rate=2e-3, max_length=256, weight_decay=0.01, adam_beta2=0.98)
    )
    align: StageConfig = dataclasses.field(
        default_factory=lambda: StageConfig(learning_rate=1e-3, global_batch_size=256)
    )
    instruct: StageConfig = dataclasses.field(
        default_factory=lambda: StageConfig(learning_rate=2e-5, global_batch_size=128, group_by_modality_length=True)
    )
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    save_steps: int = dataclasses.field(default=500, metadata=RUN_ONLY)
    logging_steps: int = dataclasses.field(default=5, metadata=RUN_ONLY)
    report_to: tuple[TrackerName, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    num_workers: int = dataclasses.field(default=4, metadata=RUN_ONLY)
    max_invalid_ratio: float = dataclasses.field(default=0.02, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        self._check_stages()
        for stage in self.stages:
            self.stage(stage).check(stage, self.distributed.num_processes or 1)
            if self.distributed.strategy == "fsdp" and self.stage(stage).deepspeed is not None:
                raise UserError(f"{stage}.deepspeed: expected none with distributed.strategy: fsdp")
        self._check_model()
        check_pinpoints(self.image_aspect_ratio, self.image_grid_pinpoints)
        self._check_stage_overrides()
        for name in ("save_steps", "num_workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("logging_steps", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}")
        if not 0 <= self.max_invalid_ratio <= 1:
            raise UserError(f"max_invalid_ratio: expected a ratio from 0 to 1, got {self.max_invalid_ratio}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")

    def _check_stages(self) -> None:
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

    def _check_stage_overrides(self) -> None:
        """The last stage has the template and preprocessing of inference; earlier ones may differ."""
        for name in self.stages:
            if self.image_aspect_ratio == "anyres" and self.stage(name).image_aspect_ratio is not None:
                raise UserError(
                    f"{name}.image_aspect_ratio: expected null, since all stages of a LLaVA with tiles have them"
                )
            for field in ("chat_template", "image_aspect_ratio"):
                if getattr(self.stage(name), field) is not None and (name == "llm_pretrain" or name == self.stages[-1]):
                    raise UserError(f"{name}.{field}: expected null; only align has its own, before instruct")

    def _check_model(self) -> None:
        """Check for encoder and LLM, or a LLaVA that has both."""
        if self.llava is None:
            if self.stages[-1] != "llm_pretrain" and not self.encoder:
                raise UserError("encoder: expected an encoder directory or timm:NAME for the stages align and instruct")
            if self.stages[0] != "llm_pretrain" and not self.llm:
                raise UserError("llm: expected an LLM directory, or the stage llm_pretrain before the others")
            return
        if self.stages[0] == "llm_pretrain":
            raise UserError("llava: expected none with the stage llm_pretrain; `llm: LLAVA_DIRECTORY` trains its LLM")
        defaults = {
            "vision_feature_select_strategy": "default",
            "projector": ProjectorConfig(),
            "image_aspect_ratio": "squash",
        }
        parts = ("encoder", "llm", "image_size", "vision_feature_layer", "vision_feature_select_strategy", "projector")
        for name in (*parts, "image_aspect_ratio", "image_grid_pinpoints"):
            if getattr(self, name) != defaults.get(name):
                raise UserError(f"{name}: expected none with llava, which has its own; see `llava-bridge swap`")

    def with_processes(self, processes: int) -> LlavaTrainConfig:
        """The same run on the processes of a launcher.

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
        return {"llm_pretrain": self.llm_pretrain, "align": self.align, "instruct": self.instruct}[name]

    def deepspeed(self, name: str) -> str | None:
        """The DeepSpeed JSON of the stage ``name``; None under another strategy."""
        return None if self.distributed.strategy == "fsdp" else self.stage(name).deepspeed or self.distributed.deepspeed

    def deepspeed_field(self, name: str) -> str:
        """The field that names the DeepSpeed JSON of the stage ``name``."""
        return f"{name}.deepspeed" if self.stage(name).deepspeed else "distributed.deepspeed"
