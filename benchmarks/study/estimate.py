"""The estimated cost of a study's steps, from their configs alone, and their sum."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results.formatting import format_duration
from benchmarks.study.resources import Resources
from benchmarks.study.steps import Share, Step, time_left
from benchmarks.tasks.encoders.zero_shot_classifier import class_prompts
from benchmarks.tasks.list_command import KNOWN_DATASETS
from benchmarks.tasks.registry import get_benchmark
from benchmarks.tasks.run_config import BenchmarkConfig
from clips.errors import UserError
from clips.typed_data import from_plain, to_plain

_GB = 1e9
_ENCODER_MFU = 0.4  # assumed: a roofline of each of dozens of encoders would take minutes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The cost of one step; unknown values are None.

    Args:
        basis: of the estimate, or the reason why it is unknown.
        seconds: wall time.
        memory: bytes of one process, or of one GPU.
        disk: bytes of its outputs.
        most: peak bytes on disk, with checkpoints.
        gpu_hours: hours × GPUs.
    """

    basis: str
    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    most: float | None = None
    gpu_hours: float | None = None

    def describe(self) -> str:
        """The estimate as one line."""
        parts = [
            f"about {format_duration(self.seconds)}" if self.seconds is not None else "time unknown",
            f"{self.gpu_hours:,.3g} GPU hours" if self.gpu_hours is not None else "",
            f"{format_bytes(self.memory)} memory" if self.memory is not None else "memory unknown",
            f"{format_bytes(self.disk)} disk" if self.disk is not None else "",
            f"up to {format_bytes(self.most)} with checkpoints" if self.most is not None else "",
        ]
        return f"{', '.join(part for part in parts if part)} ({self.basis})"


def total_cost(estimates: Mapping[str, CostEstimate], steps: Sequence[Step], shares: Mapping[str, Share]) -> str:
    """The sum of the steps that would run as one line, with the number of those whose time is unknown."""
    costs = list(estimates.values())
    seconds = {name: cost.seconds for name, cost in estimates.items() if cost.seconds is not None}
    total, in_parallel = sum(seconds.values()), time_left(steps, seconds, shares)
    memory = [cost.memory for cost in costs if cost.memory is not None]
    hours = [cost.gpu_hours for cost in costs if cost.gpu_hours is not None]
    disk = [cost.disk for cost in costs if cost.disk is not None]
    checkpoints = max([cost.most - (cost.disk or 0) for cost in costs if cost.most is not None], default=0.0)
    parts = [f"total: about {format_duration(total)} of steps" if seconds else "total: time unknown"]
    if in_parallel < 0.99 * total:  # more than a rounding error
        parts.append(f"in parallel at least {format_duration(in_parallel)}")
    parts += [f"{sum(hours):,.3g} GPU hours"] if hours else []
    parts += [f"up to {format_bytes(max(memory))} memory in a step"] if memory else []
    parts += [f"{format_bytes(sum(disk))} disk"] if disk else []
    parts += [f"and {format_bytes(checkpoints)} for checkpoints"] if checkpoints > 0 else []
    unknown = len(costs) - len(seconds)
    return ", ".join(parts) + (f"; the time of {unknown} steps is unknown" if unknown and seconds else "")


def format_bytes(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit, name in ((1e12, "TB"), (_GB, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}"
    return f"{count / 1e3:,.3g} kB"


def benchmark_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Images and texts of a benchmark; None if the counts of this dataset or split are not published.

    A benchmark is identified with a dataset by its name: ``imagenet1k`` is ImageNet-1k, ``coco_mini`` is not COCO.
    Compositional benchmarks have no count, because their items share images.

    Args:
        settings: of the benchmark, as in the config of ``clips-bench run``.
    """
    task, name = settings.get("task") or settings["name"], _normalized(settings["name"])
    data = next((each for each in KNOWN_DATASETS.get(task, ()) if _normalized(each.name) == name), None)
    if data is None or data.texts is None or settings.get("split", BenchmarkConfig.split) != BenchmarkConfig.split:
        return None
    images = min(settings.get("limit") or data.items, data.items)
    if get_benchmark(task).benchmark_type == "retrieval":
        captions_per_image = settings.get("captions_per_image", BenchmarkConfig.captions_per_image)
        return images, min(data.texts, images * captions_per_image)
    templates = settings.get("templates")
    if templates is None:  # they are in a file next to the data
        return None
    return images, data.texts * len(class_prompts(templates, ""))


def _normalized(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


UNKNOWN_ESTIMATE = CostEstimate(basis="has not run yet")


def analytic_estimate(step: Step, steps: Mapping[str, Step], given: Resources, gpu: str | None) -> CostEstimate:
    """The cost derived from parameters and samples; its values are None if they cannot be derived.

    Args:
        steps: all steps by name; the size of an encoder or LLM that is not trained yet comes from its config.
        given: resources of the step.
        gpu: type of GPU; without one there are no times.
    """
    from llava_bridge.planning.model_sizes import UnknownSizeError

    estimators = {"encoder": _encoder, "llm": _llava, "llava": _llava, "evaluation": _evaluation}
    if step.kind not in estimators:
        return UNKNOWN_ESTIMATE
    try:
        return estimators[step.kind](step, steps, max(1, given.gpus or given.processes) * given.nodes, gpu)
    except UnknownSizeError as error:
        return CostEstimate(basis=f"unknown size of {error}")
    except UserError as error:
        return CostEstimate(basis=str(error))


def _encoder(step: Step, _steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    return _encoder_estimate(json.dumps({**step.config, "output": "output", "seed": 0}), count, gpu)


@functools.cache  # encoders that differ in their seed only have the same estimate
def _encoder_estimate(config: str, count: int, gpu: str | None) -> CostEstimate:
    from clips.planning.plan import TrainPlanConfig, training_cost
    from clips.training.train_config import EncoderTrainConfig

    plan = TrainPlanConfig(train_config="", gpu=gpu or "h200", num_gpus=count, mfu=_ENCODER_MFU)
    cost = training_cost(plan, _parsed(EncoderTrainConfig, json.loads(config)), timed=gpu is not None)
    return CostEstimate(**vars(cost))


def _llava(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    from llava_bridge.planning.plan import llava_cost
    from llava_bridge.training.train_config import LlavaTrainConfig

    sizes = {"vision": _trained_vision(step, steps), "llm": _trained_llm(step, steps)}
    return CostEstimate(**vars(llava_cost(_parsed(LlavaTrainConfig, step.config), gpu=gpu, count=count, **sizes)))


def _evaluation(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    """A lower bound: the forward pass over images and questions, without generation, image decoding and scoring."""
    if step.config.get("encoder") is not None:
        return _encoder_evaluation(step, steps, count, gpu)
    from clips.planning.hardware import GPUS
    from llava_bridge.planning.plan import ASSUMED_MFU, ASSUMED_TEXT_TOKENS, sizes_of
    from llava_bridge.training.train_config import LlavaTrainConfig

    trained = next((steps[name] for name in step.parents if steps[name].kind == "llava"), None)
    if trained is None or gpu is None:
        return UNKNOWN_ESTIMATE
    config = _parsed(LlavaTrainConfig, trained.config)
    sizes = sizes_of(config, vision=_trained_vision(trained, steps), llm=_trained_llm(trained, steps))
    if sizes.vision is None:
        return UNKNOWN_ESTIMATE
    totals = [(each, get_benchmark(each.get("task") or each["name"]).items) for each in step.config["benchmarks"]]
    squares = config.image_aspect_ratio not in {"anyres", "native"}
    items = sum(_questions(settings, total, squares=squares) for settings, total in totals if total)
    flops = sizes.tiles * sizes.vision.flops + sizes.llm.forward_flops(sizes.tokens + ASSUMED_TEXT_TOKENS["align"])
    seconds = items * flops / (GPUS[gpu].peak("bf16") * ASSUMED_MFU * count)
    excluded = _excluded([settings["name"] for settings, total in totals if not total])
    return CostEstimate(
        basis=f"lower bound for {count} × {gpu}: {items:,} questions read, without generation{excluded}",
        seconds=seconds,
        gpu_hours=seconds / 3600 * count,
        memory=2.0 * (sizes.vision.parameters + sizes.llm.parameters),
    )


def _questions(settings: Mapping[str, Any], total: int, *, squares: bool) -> int:
    """The questions that an MLLM benchmark reads, without those about a blank square, which is encoded once.

    Other blank images have the size of the question's own.
    """
    asked: int = min(settings.get("limit") or total, total)
    ratio: float = settings.get("blind_items", BenchmarkConfig.blind_items)
    kinds = [kind for kind in settings.get("blind") or () if kind != "blank" or not squares]
    return asked + len(kinds) * round(asked * ratio)


def _excluded(names: list[str]) -> str:
    return f"; excluded, since their length is unknown: {', '.join(names)}" if names else ""


def _encoder_evaluation(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> CostEstimate:
    """A lower bound: the forward pass of both towers, without image decoding and scoring."""
    from clips.planning.hardware import GPUS
    from llava_bridge.planning.model_sizes import dual_tower_size
    from llava_bridge.planning.plan import ASSUMED_MFU

    towers = dual_tower_size(_trained_cfg(step, steps) or step.config["encoder"])
    if gpu is None:
        return UNKNOWN_ESTIMATE
    sizes = {each["name"]: benchmark_size(each) for each in step.config["benchmarks"]}
    excluded = _excluded([name for name, size in sizes.items() if size is None])
    known = [size for size in sizes.values() if size is not None]
    if not known:
        return CostEstimate(basis=excluded.removeprefix("; "), memory=2.0 * towers.parameters)
    images, texts = (sum(counts) for counts in zip(*known, strict=True))
    flops = images * towers.image_flops + texts * towers.text_flops
    seconds = flops / (GPUS[gpu].peak("bf16") * ASSUMED_MFU * count)
    return CostEstimate(
        basis=f"lower bound for {count} × {gpu} at {ASSUMED_MFU:.0%} of its peak: {images:,} images and {texts:,} "
        f"texts read, by published counts, without decoding{excluded}",
        seconds=seconds,
        gpu_hours=seconds / 3600 * count,
        memory=2.0 * towers.parameters,
    )


def _producer(step: Step, field: str, steps: Mapping[str, Step]) -> Step | None:
    """The parent whose output a field of the config names."""
    path = step.config.get(field)
    parents = (steps[name] for name in step.parents)
    return next((parent for parent in parents if path is not None and str(parent.outputs[0]) == str(path)), None)


def _trained_vision(step: Step, steps: Mapping[str, Step]) -> Any:
    """The size of an encoder that the study trains, else None."""
    from llava_bridge.planning.model_sizes import vision_size_of

    cfg = _trained_cfg(step, steps)
    return None if cfg is None else vision_size_of(cfg)


def _trained_cfg(step: Step, steps: Mapping[str, Step]) -> dict[str, Any] | None:
    """The ``model_cfg`` after the last stage of an encoder that the study trains, else None."""
    from clips.model.architectures import model_cfg
    from clips.training.stages import stage_configs
    from clips.training.train_config import EncoderTrainConfig

    producer = _producer(step, "encoder", steps)
    if producer is None:
        return None
    return model_cfg(stage_configs(_parsed(EncoderTrainConfig, producer.config))[-1].model)


def _trained_llm(step: Step, steps: Mapping[str, Step]) -> Any:
    """The size of an LLM that the study trains, else None."""
    from llava_bridge.planning.model_sizes import llm_size, new_llm_size
    from llava_bridge.training.train_config import LlavaTrainConfig

    producer = _producer(step, "llm", steps)
    if producer is None:
        return None
    config = _parsed(LlavaTrainConfig, producer.config)
    return new_llm_size(config.llm_from_scratch) if config.llm is None else llm_size(config.llm)


def _parsed(kind: type, config: Mapping[str, Any]) -> Any:
    return from_plain(kind, to_plain(config), what="config")
