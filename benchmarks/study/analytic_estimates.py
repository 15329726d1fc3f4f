"""What a step will take, from its config alone: parameters, samples and the GPU that is named."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from benchmarks.study.estimate import CostEstimate
from benchmarks.study.resources import Resources
from benchmarks.study.steps import Step
from clips.errors import UserError
from clips.serialization import to_plain
from clips.typed_data import from_plain

UNKNOWN_ESTIMATE = CostEstimate(basis="has not run yet")


def analytic_estimate(step: Step, steps: Mapping[str, Step], given: Resources, gpu: str | None) -> CostEstimate:
    """What follows from parameters and samples; an estimate that knows nothing where nothing does.

    Args:
        step: of the study.
        steps: all of them by name: an encoder or LLM that is not there yet is as large as its config says.
        given: what it runs on.
        gpu: kind of GPU; without one there are no times.
    """
    from llava_bridge.planning.model_sizes import UnknownSizeError

    ways = {"encoder": _encoder, "llm": _llava, "llava": _llava, "evaluation": _evaluation}
    if step.kind not in ways:
        return UNKNOWN_ESTIMATE
    try:
        return ways[step.kind](step, steps, max(1, given.gpus or given.processes) * given.nodes, gpu)
    except UnknownSizeError as error:
        return CostEstimate(basis=f"nobody knows the size of {error}")
    except UserError as error:
        return CostEstimate(basis=str(error))


def _encoder(step: Step, _steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    return _encoder_estimate(json.dumps({**step.config, "output": "output", "seed": 0}), count, gpu)


@functools.cache  # encoders that differ in their seed are alike
def _encoder_estimate(config: str, count: int, gpu: str | None) -> CostEstimate:
    from clips.planning.plan import TrainPlanConfig, training_cost
    from clips.training.train_config import EncoderTrainConfig

    asked = TrainPlanConfig(train_config="", gpu=gpu or "h200", num_gpus=count)
    cost = training_cost(asked, _parsed(EncoderTrainConfig, json.loads(config)), timed=gpu is not None)
    return CostEstimate(**vars(cost))


def _llava(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    from llava_bridge.planning.plan import llava_cost
    from llava_bridge.training.train_config import LlavaTrainConfig

    sizes = {"vision": _made_vision(step, steps), "llm": _made_llm(step, steps)}
    return CostEstimate(**vars(llava_cost(_parsed(LlavaTrainConfig, step.config), gpu=gpu, count=count, **sizes)))


def _evaluation(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    """Of a LLaVA the least: that it reads pictures and questions. Generating, decoding and scoring come on top."""
    if step.config.get("encoder") is not None:
        return _encoder_evaluation(step, steps, count, gpu)
    from benchmarks.tasks.registry import get_benchmark
    from clips.planning.hardware import GPUS
    from llava_bridge.planning.plan import ASSUMED_MFU, ASSUMED_TEXT_TOKENS, sizes_of
    from llava_bridge.training.train_config import LlavaTrainConfig

    trained = next((steps[name] for name in step.parents if steps[name].kind == "llava"), None)
    if trained is None or gpu is None:
        return UNKNOWN_ESTIMATE
    config = _parsed(LlavaTrainConfig, trained.config)
    sizes = sizes_of(config, vision=_made_vision(trained, steps), llm=_made_llm(trained, steps))
    if sizes.vision is None:
        return UNKNOWN_ESTIMATE
    asked = [
        (get_benchmark(each.get("task") or each["name"]).items, each.get("limit")) for each in step.config["benchmarks"]
    ]
    items = sum(min(limit or total, total) for total, limit in asked if total)
    flops = sizes.tiles * sizes.vision.flops + sizes.llm.forward_flops(sizes.tokens + ASSUMED_TEXT_TOKENS["align"])
    seconds = items * flops / (GPUS[gpu].peak("bf16") * ASSUMED_MFU * count)
    left_out = [each["name"] for each, (total, _) in zip(step.config["benchmarks"], asked, strict=True) if not total]
    more = f"; length unknown, left out: {', '.join(left_out)}" if left_out else ""
    return CostEstimate(
        basis=f"worked out for {count} × {gpu}, the least: {items:,} questions read, generating comes on top{more}",
        seconds=seconds,
        gpu_hours=seconds / 3600 * count,
        memory=2.0 * (sizes.vision.parameters + sizes.llm.parameters),
    )


def _encoder_evaluation(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    """Of an encoder the least: that its towers read pictures and texts. Decoding pictures and scoring come on top."""
    from benchmarks.study.benchmark_sizes import benchmark_size
    from clips.planning.hardware import GPUS
    from llava_bridge.planning.model_sizes import dual_tower_size
    from llava_bridge.planning.plan import ASSUMED_MFU

    pair = dual_tower_size(_made_cfg(step, steps) or step.config["encoder"])  # a name is looked up
    if gpu is None:
        return UNKNOWN_ESTIMATE
    read = {each["name"]: benchmark_size(each) for each in step.config["benchmarks"]}
    left_out = [name for name, numbers in read.items() if numbers is None]
    more = f"length unknown, left out: {', '.join(left_out)}"
    if len(left_out) == len(read):
        return CostEstimate(basis=more, memory=2.0 * pair.parameters)
    pictures, texts = (sum(column) for column in zip(*filter(None, read.values()), strict=True))
    flops = pictures * pair.image_flops + texts * pair.text_flops
    seconds = flops / (GPUS[gpu].peak("bf16") * ASSUMED_MFU * count)
    words = f"{pictures:,} pictures and {texts:,} texts read, as published; decoding comes on top"
    words += f"; {more}" if left_out else ""
    return CostEstimate(
        basis=f"worked out for {count} × {gpu} at {ASSUMED_MFU:.0%} of its peak, the least: {words}",
        seconds=seconds,
        gpu_hours=seconds / 3600 * count,
        memory=2.0 * pair.parameters,
    )


def _maker(step: Step, field: str, steps: Mapping[str, Step]) -> Step | None:
    """The step that makes what a field of a config names."""
    named = step.config.get(field)
    makers = (steps[name] for name in step.parents)
    return next((maker for maker in makers if named is not None and str(maker.outputs[0]) == str(named)), None)


def _made_vision(step: Step, steps: Mapping[str, Step]) -> Any:
    """The size of an encoder that the study trains; None of another."""
    from llava_bridge.planning.model_sizes import vision_size_of

    made = _made_cfg(step, steps)
    return None if made is None else vision_size_of(made)


def _made_cfg(step: Step, steps: Mapping[str, Step]) -> dict[str, Any] | None:
    """The ``model_cfg`` of an encoder that the study trains, after its last stage; None of another."""
    from clips.model.architectures import model_cfg
    from clips.training.stages import stage_configs
    from clips.training.train_config import EncoderTrainConfig

    maker = _maker(step, "encoder", steps)
    if maker is None:
        return None
    return model_cfg(stage_configs(_parsed(EncoderTrainConfig, maker.config))[-1].model)


def _made_llm(step: Step, steps: Mapping[str, Step]) -> Any:
    from llava_bridge.planning.model_sizes import llm_size, new_llm_size
    from llava_bridge.training.train_config import LlavaTrainConfig

    maker = _maker(step, "llm", steps)
    if maker is None:
        return None
    config = _parsed(LlavaTrainConfig, maker.config)
    return new_llm_size(config.llm_from_scratch) if config.llm is None else llm_size(config.llm)


def _parsed(kind: type, config: Mapping[str, Any]) -> Any:
    return from_plain(kind, to_plain(config), what="config")
