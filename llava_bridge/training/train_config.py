"""The config of ``llava-bridge train``."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clips.core.identity import RUN_ONLY
from clips.core.trackers import TrackerName
from clips.errors import UserError, check_at_least, unknown_name_error
from llava_bridge.model.assembly_config import AssemblyConfig
from llava_bridge.projectors import ProjectorConfig
from llava_bridge.training.stage_config import (
    STAGE_NAMES,
    AlignConfig,
    InstructConfig,
    StageConfig,
    ValidationConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """The training processes.

    Args:
        num_processes: number of processes: one per GPU, or CPU processes. null uses those of a launcher, else one
            for each visible GPU, or one without a GPU.
        deepspeed: the DeepSpeed JSON: zero2, zero2_offload, zero3, zero3_offload (shipped) or a file.
        torch_compile: compile the layers of the LLM and the encoder, and the projector, with torch.compile.
    """

    num_processes: int | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    deepspeed: str = "zero2"
    torch_compile: bool = dataclasses.field(default=False, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        check_at_least(1, self, "num_processes", prefix="distributed.")


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
    save_steps: int = dataclasses.field(default=500, metadata=RUN_ONLY)
    logging_steps: int = dataclasses.field(default=5, metadata=RUN_ONLY)
    report_to: tuple[TrackerName, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    num_workers: int = dataclasses.field(default=4, metadata=RUN_ONLY)
    max_invalid_ratio: float = dataclasses.field(default=0.02, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        self._check_stages()
        for stage in self.stages:
            self.stage(stage).check(stage, self.distributed.num_processes or 1)
        self._check_model()
        super().__post_init__()
        for field in ("chat_template", "image_aspect_ratio"):  # the last stage has those of inference
            if self.stages[-1] == "align" and getattr(self.align, field) is not None:
                raise UserError(f"align.{field}: expected null without the stage instruct")
        check_at_least(0, self, "save_steps", "num_workers")
        check_at_least(1, self, "logging_steps")
        if not 0 <= self.max_invalid_ratio <= 1:
            raise UserError(f"max_invalid_ratio: expected a ratio from 0 to 1, got {self.max_invalid_ratio}")

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

    def _check_model(self) -> None:
        """Check for encoder and LLM, or a LLaVA that has both."""
        if self.llava is None:
            if not self.encoder:
                raise UserError("encoder: expected an encoder directory or timm:NAME")
            if not self.llm:
                raise UserError("llm: expected an LLM directory")
            return
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
        return {"align": self.align, "instruct": self.instruct}[name]

    def deepspeed(self, name: str) -> str:
        """The DeepSpeed JSON of the stage ``name``."""
        return self.stage(name).deepspeed or self.distributed.deepspeed

    def deepspeed_field(self, name: str) -> str:
        """The field that names the DeepSpeed JSON of the stage ``name``."""
        return f"{name}.deepspeed" if self.stage(name).deepspeed else "distributed.deepspeed"
