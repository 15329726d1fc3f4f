"""Time, memory and storage of a LLaVA's training: reckoned from parameters and tokens, nothing is run.

Model FLOPs of a stage are those of its forward pass (two for each parameter and token, and attention), twice that for
gradients of weights that learn, once where gradients only pass through; a frozen encoder runs forward alone.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from clips.planning.hardware import GPUS
from llava_bridge.data.sources import read_samples, read_texts
from llava_bridge.planning.sizes import LlmSize, VisionSize, llm_size, new_llm_size, projector_size, vision_size
from llava_bridge.training.config import StageConfig, TrainConfig

MFU = 0.27
"""Share of the GPUs' peak that goes into model FLOPs, by what the README of github.com/haotian-liu/LLaVA states.

LLaVA-1.5-7B took about 3.5 hours to align and 10 hours to tune on 8 A100: counted as here, 30 % and 25 %.
"""
TEXT_TOKENS = {"align": 32, "instruct": 256}
"""Tokens of a sample's text in LLaVA-1.5's data: assumed, and part of what ``MFU`` rests on."""
_RESERVE = 2e9  # bytes for context, libraries, NCCL: as clips.planning.plan allows
_ACTIVATIONS = (
    34  # bytes of activations a token, layer and unit of width, in half precision (arXiv 2205.05198, table 2)
)
MOST_TILES = 5  # with tiles: an overview and the four of LLaVA-NeXT's largest
_CHECKPOINTS = 3  # two are kept, and one is being written


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage takes.

    Args:
        name: of the stage.
        steps: of the optimizer; None where they depend on data that are not here.
        flops: model FLOPs of a sample.
        memory: bytes of a GPU.
        checkpoints: bytes on disk while it runs.
    """

    name: str
    steps: int | None
    flops: float
    memory: float
    checkpoints: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaCost:
    """What a training takes.

    Args:
        gpu_hours: of all stages; None where no GPU was named or some stage's length is not known.
        memory: bytes of a GPU, of the stage that needs most.
        kept: bytes of the directory that it leaves.
        most: bytes on disk while it runs, checkpoints included.
        stages: one by one.
        tokens: that the LLM reads for a picture; 0 without pictures.
        lacking: why there are no hours; empty where there are.
    """

    gpu_hours: float | None
    memory: float
    kept: float
    most: float
    stages: tuple[StageCost, ...]
    tokens: int = 0
    lacking: str = ""


def plan_llava(
    config: TrainConfig,
    *,
    gpu: str | None,
    count: int = 1,
    mfu: float = MFU,
    vision: VisionSize | None = None,
    llm: LlmSize | None = None,
) -> LlavaCost:
    """What the training of ``config`` takes on ``count`` GPUs.

    Args:
        config: of ``llava-bridge train``.
        gpu: an entry of ``clips.planning.hardware.GPUS``; None for no hours.
        count: how many of them.
        mfu: see ``MFU``.
        vision: the encoder's size, where it is not there yet.
        llm: the LLM's, likewise.

    Raises:
        UnknownSizeError: nothing here says how large encoder or LLM are.
        UserError: the projector does not fit the encoder; no such name.
    """
    language = llm or (new_llm_size(config.new_llm) if config.llm is None else llm_size(config.llm))
    seen = None
    if config.encoder is not None and config.stages[-1] != "pretrain":
        seen = vision or vision_size(config.encoder, config.image_size)
    projector, tokens = (0, 0) if seen is None else projector_size(config.projector, seen, language)
    tokens *= MOST_TILES if config.image_fit == "anyres" else 1
    parts = {"vision": seen.parameters if seen else 0, "projector": projector, "llm": language.parameters}
    stages = tuple(_stage(config, name, parts, seen, language, tokens, count) for name in config.stages)
    weight = 4 if config.precision == "fp32" else 2
    kept = weight * sum(parts.values())
    hours, lacking = None, "" if gpu else "no GPU is named"
    if gpu is not None:
        short = [stage.name for stage in stages if stage.steps is None]
        lacking = f"the data of {', '.join(short)} are not here; steps would tell" if short else ""
        rate = GPUS[gpu].peak("fp32" if config.precision == "fp32" else "bf16") * mfu
        work = [(stage.steps or 0) * config.stage(stage.name).batch_size * stage.flops for stage in stages]
        hours = None if short else sum(work) / rate / 3600
    return LlavaCost(
        gpu_hours=hours,
        memory=max(stage.memory for stage in stages),
        kept=kept,
        most=2 * kept + max(stage.checkpoints for stage in stages),
        stages=stages,
        tokens=tokens,
        lacking=lacking,
    )


def _stage(
    config: TrainConfig,
    name: str,
    parts: dict[str, int],
    vision: VisionSize | None,
    llm: LlmSize,
    tokens: int,
    count: int,
) -> StageCost:
    stage = config.stage(name)
    learning = stage.trained(name)
    length = (stage.max_length or 0) if name == "pretrain" else tokens + TEXT_TOKENS[name]
    length = min(length, stage.max_length or length)
    pictures = MOST_TILES if config.image_fit == "anyres" else 1
    flops = llm.forward_flops(length) * (3 if "llm" in learning and stage.lora is None else 2)
    if vision is not None and name != "pretrain":
        flops += pictures * vision.flops * (3 if "vision" in learning else 1)
    learnt = sum(parts[part] for part in learning if stage.lora is None or part not in stage.lora.parts)
    weights = sum(parts.values()) if name != "pretrain" else parts["llm"]
    alone = name != "pretrain" and "vision" not in learning and config.launch.parallel == "deepspeed"
    apart = parts["vision"] if alone else 0  # float32 and whole in every process
    half = config.precision != "fp32"
    micro = stage.micro_batch or math.ceil(stage.batch_size / count)
    return StageCost(
        name=name,
        steps=_steps(stage, name),
        flops=flops,
        memory=4 * apart
        + _states(config, weights - apart, learnt, count, half=half)
        + micro * _activations(stage, llm, length)
        + _RESERVE,
        checkpoints=_CHECKPOINTS * ((2 if half else 4) * weights + (12 if half else 8) * learnt)
        if config.checkpoint_every
        else 0.0,
    )


def _states(config: TrainConfig, weights: int, learnt: int, count: int, *, half: bool) -> float:
    """Bytes of weights, gradients and optimizer state on one GPU, cut up as ZeRO does (arXiv 1910.02054).

    In bf16 the optimizer keeps float32 weights and two numbers of each that learns, 12 bytes.
    """
    deepspeed, fsdp = config.launch.deepspeed, config.launch.parallel == "fsdp"
    each = 2 if half else 4
    states = (12 if half else 8) * learnt / count
    gradients = each * learnt / count
    if fsdp or "zero3" in deepspeed:
        return each * weights / count + gradients + (0 if "offload" in deepspeed else states)
    return each * weights + gradients + (0 if "offload" in deepspeed else states)


def _activations(stage: StageConfig, llm: LlmSize, length: int) -> float:
    """Bytes of a sample's activations in the LLM: of all layers, or the inputs of all and the whole of one."""
    layer = _ACTIVATIONS * llm.width * length
    return layer + 2 * llm.layers * llm.width * length if stage.gradient_checkpointing else llm.layers * layer


def _steps(stage: StageConfig, name: str) -> int | None:
    if stage.steps is not None:
        return stage.steps
    if not all(Path(source.path).exists() for source in stage.data):
        return None
    read = [
        (read_texts if name == "pretrain" and source.format == "text" else read_samples)(source)
        for source in stage.data
    ]
    return math.ceil(stage.epochs * sum(map(len, read)) / stage.batch_size)
