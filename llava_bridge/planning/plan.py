"""Time, memory and storage of a LLaVA's training, estimated from parameters and tokens; nothing is run.

Model FLOPs of a stage are those of its forward pass (two per parameter and token, and attention), twice that for
gradients of trainable weights, once for frozen weights that gradients pass through, none for a frozen encoder.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

from clips.planning import Cost
from clips.planning.hardware import GPUS
from llava_bridge.data.sources import read_samples, read_texts
from llava_bridge.planning.model_sizes import (
    LlmSize,
    VisionSize,
    llm_size,
    new_llm_size,
    projector_size,
    vision_size,
)
from llava_bridge.training.stage_config import StageConfig
from llava_bridge.training.train_config import LlavaTrainConfig

ASSUMED_MFU = 0.27
"""Assumed ratio of model FLOP/s to the GPUs' peak, from the README of github.com/haotian-liu/LLaVA.

LLaVA-1.5-7B took about 3.5 hours to align and 10 hours to tune on 8 A100: 30 % and 25 % by this count.
"""
ASSUMED_TEXT_TOKENS = {"llm_pretrain": 256, "align": 32, "instruct": 256}
"""Assumed tokens of a sample's text in LLaVA-1.5's data, on which ``ASSUMED_MFU`` is based."""
_RESERVE = 2e9  # bytes for context, libraries, NCCL, as in clips.planning.plan
_BUCKET = 5e8  # gradients, in the shipped DeepSpeed files; ZeRO-2 allocates two buckets, ZeRO-3 one
_ACTIVATIONS = 34  # bytes per token, layer and unit of width, in half precision (arXiv 2205.05198, table 2)
_MOMENTS = {"adamw_8bit": 2, "adafactor": 4}
"""Bytes of the moments per trainable weight; AdamW's two in float32 are 8, in 8 bits (arXiv 2110.02861) 2.

transformers' Adafactor has one, in float32: it factors matrices (arXiv 1804.04235), and ZeRO flattens weights.
"""
MAX_TILES = 5  # the base image and the four tiles of LLaVA-NeXT's largest pinpoint
_CHECKPOINTS = 3  # two are stored, and one is being written


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCost:
    """The cost of one stage.

    Args:
        steps: of the optimizer; None if the data is missing.
        flops: model FLOPs of a sample.
        memory: bytes of a GPU.
        checkpoints: bytes on disk while it runs.
    """

    steps: int | None
    flops: float
    memory: float
    checkpoints: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a LLaVA's parts.

    Args:
        vision: the encoder; None for an LLM alone.
        llm: the LLM.
        projector: parameters.
        tokens: LLM tokens of an image, at its own aspect ratio the maximum.
        tiles: images that the encoder sees for one image.
    """

    vision: VisionSize | None
    llm: LlmSize
    projector: int
    tokens: int
    tiles: int

    @property
    def parameters(self) -> dict[str, int]:
        """Of each part."""
        vision = self.vision.parameters if self.vision else 0
        return {"vision": vision, "projector": self.projector, "llm": self.llm.parameters}


def sizes_of(config: LlavaTrainConfig, *, vision: VisionSize | None = None, llm: LlmSize | None = None) -> Sizes:
    """The sizes of the LLaVA of ``config``; see `llava_cost`."""
    llm = llm or (new_llm_size(config.llm_from_scratch) if config.llm is None else llm_size(config.llm))
    tiles = MAX_TILES if config.image_aspect_ratio == "anyres" else 1
    if config.encoder is None or config.stages[-1] == "llm_pretrain":
        return Sizes(vision=None, llm=llm, projector=0, tokens=0, tiles=tiles)
    vision = vision or vision_size(config.encoder, config.image_size)
    projector, tokens = projector_size(config.projector, vision, llm)
    return Sizes(vision=vision, llm=llm, projector=projector, tokens=tokens * tiles, tiles=tiles)


def llava_cost(
    config: LlavaTrainConfig,
    *,
    gpu: str | None,
    count: int = 1,
    vision: VisionSize | None = None,
    llm: LlmSize | None = None,
) -> Cost:
    """The cost of the training of ``config`` on ``count`` GPUs.

    Args:
        config: of ``llava-bridge train``.
        gpu: an entry of ``clips.planning.hardware.GPUS``; None leaves time and memory out.
        count: number of GPUs.
        vision: size of an encoder that does not exist yet.
        llm: size of an LLM that does not exist yet.

    Raises:
        UnknownSizeError: the size of the encoder or the LLM is unknown.
        UserError: the projector does not fit the encoder; no such name.
    """
    sizes = sizes_of(config, vision=vision, llm=llm)
    stages = {name: stage_cost(config, name, sizes, count) for name in config.stages}
    disk = float((4 if config.precision == "fp32" else 2) * sum(sizes.parameters.values()))
    cost = Cost(
        basis="disk computed; no GPU is named",
        disk=disk,
        most=2 * disk + max(stage.checkpoints for stage in stages.values()),
    )
    if gpu is None:
        return cost
    cost = dataclasses.replace(cost, memory=max(stage.memory for stage in stages.values()))
    if unknown := [name for name, stage in stages.items() if stage.steps is None]:
        return dataclasses.replace(
            cost, basis=f"disk computed; steps unknown: the data of {', '.join(unknown)} are missing"
        )
    rate = GPUS[gpu].peak("fp32" if config.precision == "fp32" else "bf16") * ASSUMED_MFU
    work = sum(
        (stage.steps or 0) * config.stage(name).global_batch_size * stage.flops for name, stage in stages.items()
    )
    return dataclasses.replace(
        cost,
        basis=f"computed for {count} × {gpu} at {ASSUMED_MFU:.0%} of its peak, {sizes.tokens} tokens an image",
        seconds=work / rate / count,
        gpu_hours=work / rate / 3600,
    )


def stage_cost(config: LlavaTrainConfig, name: str, sizes: Sizes, count: int) -> StageCost:
    """The cost of the stage ``name`` on ``count`` GPUs."""
    stage, llm, parameters = config.stage(name), sizes.llm, sizes.parameters
    trained = stage.trained_parts(name)
    if stage.image_aspect_ratio is not None:  # one square for each image
        sizes = dataclasses.replace(sizes, tokens=sizes.tokens // sizes.tiles, tiles=1)
    if name == "llm_pretrain":
        length = stage.max_length or ASSUMED_TEXT_TOKENS[name]
    else:
        length = min(sizes.tokens + ASSUMED_TEXT_TOKENS[name], stage.max_length or sys.maxsize)
    flops = llm.forward_flops(length) * (3 if "llm" in trained and stage.lora is None else 2)
    if sizes.vision is not None and name != "llm_pretrain":
        flops += sizes.tiles * sizes.vision.flops * (3 if "vision" in trained else 1)
    trainable = sum(parameters[part] for part in trained if stage.lora is None or part not in stage.lora.apply_to)
    weights = sum(parameters.values()) if name != "llm_pretrain" else parameters["llm"]
    frozen = name != "llm_pretrain" and "vision" not in trained and config.distributed.strategy == "deepspeed"
    unsharded = parameters["vision"] if frozen else 0  # float32 in every process
    bf16 = config.precision != "fp32"
    micro = stage.micro_batch_size or math.ceil(stage.global_batch_size / count)
    optimizer = _MOMENTS.get(stage.optim or "", 8) + (4 if bf16 else 0)  # float32 weights, too, with bf16
    states = _state_bytes(config.deepspeed(name), weights - unsharded, trainable, count, optimizer, bf16=bf16)
    checkpoint = (2 if bf16 else 4) * weights + optimizer * trainable
    return StageCost(
        steps=_steps(stage, name),
        flops=flops,
        memory=4 * unsharded + states + micro * _activation_bytes(stage, llm, length) + _RESERVE,
        checkpoints=_CHECKPOINTS * checkpoint if config.save_steps else 0.0,
    )


def _state_bytes(
    deepspeed: str | None, weights: int, trainable: int, count: int, optimizer: int, *, bf16: bool
) -> float:
    """Bytes of weights, gradients and optimizer state on one GPU, sharded as ZeRO does (arXiv 1910.02054).

    ``deepspeed`` is the stage's DeepSpeed JSON; without one FSDP shards all as ZeRO-3. ``optimizer`` is the bytes of
    its state per trainable weight.
    """
    weight_size = 2 if bf16 else 4
    state = 0 if deepspeed is not None and "offload" in deepspeed else optimizer * trainable / count
    gradients = weight_size * trainable / count
    bucket = 0.0 if deepspeed is None else weight_size * _BUCKET
    if deepspeed is None or "zero3" in deepspeed:
        return weight_size * weights / count + gradients + state + bucket
    return weight_size * weights + gradients + state + 2 * bucket


def _activation_bytes(stage: StageConfig, llm: LlmSize, length: int) -> float:
    """Bytes of a sample's activations in the LLM: of all layers, or with checkpointing of one and of all inputs."""
    layer = _ACTIVATIONS * llm.width * length
    return layer + 2 * llm.layers * llm.width * length if stage.activation_checkpointing else llm.layers * layer


def _steps(stage: StageConfig, name: str) -> int | None:
    if stage.max_steps is not None:
        return stage.max_steps
    if not all(Path(source.path).exists() for source in stage.data):
        return None
    samples = 0
    for source in stage.data:
        read = read_texts if name == "llm_pretrain" and source.format == "text" else read_samples
        samples += len(read(source))
    return math.ceil(stage.num_epochs * samples / stage.global_batch_size)
