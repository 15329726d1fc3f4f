"""What the steps of a study will take: time, memory, disk, GPU hours; and what each estimate rests on.

In this order: the step's own last run, the last runs of like steps, what can be worked out from parameters and samples.
The speed of a CPU is not guessed: without a record, and without a GPU named, a time is not known.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.resources import Resources
from benchmarks.study.state import CONFIG, StepRecord, read_record, step_directory
from benchmarks.study.steps import Share, Step, time_left
from benchmarks.wording import duration
from clips.errors import UserError

_GB = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one step takes; None where that is not known.

    Args:
        basis: what it rests on, or why nothing is known.
        seconds: wall time.
        memory: bytes of one process, or of one GPU.
        disk: bytes that it leaves.
        most: bytes on disk while it runs, where checkpoints make them more.
        gpu_hours: hours × GPUs.
    """

    basis: str
    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    most: float | None = None
    gpu_hours: float | None = None

    def words(self) -> str:
        """The estimate in a line."""
        parts = [
            f"about {duration(self.seconds)}" if self.seconds is not None else "time unknown",
            f"{self.gpu_hours:,.3g} GPU hours" if self.gpu_hours is not None else "",
            f"{size(self.memory)} memory" if self.memory is not None else "memory unknown",
            f"{size(self.disk)} disk" if self.disk is not None else "",
            f"up to {size(self.most)} with checkpoints" if self.most is not None else "",
        ]
        return f"{', '.join(part for part in parts if part)} ({self.basis})"


_NOT_RUN = Estimate(basis="has not run yet")


def estimate_steps(
    steps: Sequence[Step], output: Path, *, resources: Mapping[str, Resources], gpu: str | None
) -> dict[str, Estimate]:
    """An estimate of each step.

    Args:
        steps: all of the study.
        output: its directory, with the records of earlier runs.
        resources: what each step is given.
        gpu: kind of GPU, an entry of ``clips.planning.hardware.GPUS``; None where none is named.
    """
    ran = {
        step.name: (_as_it_ran(step, output), record)
        for step in steps
        if (record := read_record(output, step.name)) is not None and record.outcome == "done"
    }
    by_name = {step.name: step for step in steps}
    found = {}
    for step in steps:
        before, record = ran.get(step.name, (None, None))
        like = [each for each in ran.values() if likeness(each[0]) == likeness(step)]
        try:
            if before and record and samples_of(before) == samples_of(step) and likeness(before) == likeness(step):
                found[step.name] = _of_record(step, record, resources[step.name])
            elif like and gpu is None:
                found[step.name] = _in_doubt(step, by_name, _of_like(like, step))
            else:
                found[step.name] = worked_out(step, by_name, resources[step.name], gpu)
        except (TypeError, ValueError):  # of fields that the step's command will refuse, naming them
            found[step.name] = Estimate(basis="its config has values of the wrong kind")
    return found


def _as_it_ran(step: Step, output: Path) -> Step:
    """The step with the config of its last run, which the study may have changed since."""
    import yaml

    try:
        config = yaml.safe_load((step_directory(output, step.name) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return step
    return dataclasses.replace(step, config=config) if isinstance(config, dict) else step


def likeness(step: Step) -> tuple[str, ...]:
    """Steps that have this in common take similar time, for as many samples."""
    if step.kind == "encoder":  # a recipe with a captioner takes three times as long as one without
        own = json.dumps([step.config.get(name) for name in ("model", "recipe", "stages")], sort_keys=True, default=str)
    else:
        own = {"evaluation": step.name.split("-")[1], "data": step.name}.get(step.kind, "")
    return step.kind, *step.command, own


def in_all(estimates: Mapping[str, Estimate], steps: Sequence[Step], shares: Mapping[str, Share]) -> str:
    """The sum in a line; what is not known is counted.

    Args:
        estimates: of the steps that would run.
        steps: all of the study.
        shares: how much of the executor each takes.
    """
    known = list(estimates.values())
    rests = {name: one.seconds for name, one in estimates.items() if one.seconds is not None}
    seconds, least = list(rests.values()), time_left(steps, rests, shares)
    memory = [one.memory for one in known if one.memory is not None]
    hours = [one.gpu_hours for one in known if one.gpu_hours is not None]
    kept = [one.disk for one in known if one.disk is not None]
    more = max([one.most - (one.disk or 0) for one in known if one.most is not None], default=0.0)
    parts = [f"in all about {duration(sum(seconds))} of steps" if seconds else "in all: time unknown"]
    if least < sum(seconds):
        parts.append(f"side by side not less than {duration(least)}")
    parts += [f"{sum(hours):,.3g} GPU hours"] if hours else []
    parts += [f"at most {size(max(memory))} memory at once in a step"] if memory else []
    parts += [f"{size(sum(kept))} disk"] if kept else []
    parts += [f"and {size(more)} for checkpoints"] if more > 0 else []
    lacking = len(known) - len(seconds)
    return ", ".join(parts) + (f"; the time of {lacking} steps is unknown" if lacking and seconds else "")


def size(count: float) -> str:
    """Bytes in words."""
    for unit, name in ((1e12, "TB"), (_GB, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}"
    return f"{count / 1e3:,.3g} kB"


# ---------------------------------------------------------------- records


def _of_record(step: Step, record: StepRecord, given: Resources) -> Estimate:
    on_gpus = given.gpus and record.machine.get("accelerators", "none") != "none"
    return Estimate(
        basis="its last run",
        seconds=record.seconds,
        memory=_memory(record),
        disk=_on_disk(step),
        gpu_hours=record.seconds / 3600 * given.gpus * given.nodes if on_gpus else None,
    )


def _of_like(records: Sequence[tuple[Step, StepRecord]], step: Step) -> Estimate:
    """The mean of like steps, by samples where all tell how many they see."""
    mine = samples_of(step)
    rates = [record.seconds / work for other, record in records if (work := samples_of(other))]
    by_samples = mine is not None and bool(rates)
    times = [rate * mine for rate in rates] if by_samples and mine is not None else [r.seconds for _, r in records]
    spread = f", {duration(min(times))} to {duration(max(times))}" if len(times) > 1 else ""
    disks = [disk for other, _ in records if (disk := _on_disk(other)) is not None]
    memories = [memory for _, record in records if (memory := _memory(record)) is not None]
    return Estimate(
        basis=f"the last runs of {len(times)} like steps{', by samples' if by_samples else ''}{spread}",
        seconds=statistics.mean(times),
        memory=max(memories, default=None),
        disk=statistics.mean(disks) if disks else None,
    )


def samples_of(step: Step) -> float | None:
    """Samples that a training sees; None where its config does not tell or it is none."""
    if step.kind == "encoder":
        config = step.config
        count = config["steps"] * config.get("batch_size", 256) if "steps" in config else config.get("samples")
        return None if count is None or config.get("stages") else float(count)
    if step.kind not in {"llm", "llava"}:
        return None
    names = step.config.get("stages", ["align", "instruct"])
    stages = [step.config.get(name, {}) for name in names]
    if not all("steps" in stage and "batch_size" in stage for stage in stages):
        return None
    return float(sum(stage["steps"] * stage["batch_size"] for stage in stages))


def _memory(record: StepRecord) -> float | None:
    return None if record.peak_memory_mb is None else record.peak_memory_mb * 2**20


def _on_disk(step: Step) -> float | None:
    """Bytes of its outputs, where they are all there."""
    if not all(path.exists() for path in step.outputs):
        return None
    whole = [path if path.is_dir() else path.with_name(f"{path.stem}.items.parquet") for path in step.outputs]
    files = [file for path in (*step.outputs, *whole) for file in (path.rglob("*") if path.is_dir() else [path])]
    return float(sum(file.stat().st_size for file in set(files) if file.is_file()))


# ---------------------------------------------------------------- worked out


def worked_out(step: Step, steps: Mapping[str, Step], given: Resources, gpu: str | None) -> Estimate:
    """What follows from parameters and samples; an estimate that knows nothing where nothing does.

    Args:
        step: of the study.
        steps: all of them by name: an encoder or LLM that is not there yet is as large as its config says.
        given: what it runs on.
        gpu: kind of GPU; without one there are no times.
    """
    from llava_bridge.planning.sizes import UnknownSizeError

    ways = {"encoder": _encoder, "llm": _llava, "llava": _llava, "evaluation": _evaluation}
    if step.kind not in ways:
        return _NOT_RUN
    try:
        return ways[step.kind](step, steps, max(1, given.gpus or given.processes) * given.nodes, gpu)
    except UnknownSizeError as error:
        return Estimate(basis=f"nobody knows the size of {error}")
    except UserError as error:
        return Estimate(basis=str(error))


def _encoder(step: Step, _steps: Mapping[str, Step], count: int, gpu: str | None) -> Estimate:
    return _encoder_estimate(json.dumps({**step.config, "output": "output", "seed": 0}), count, gpu)


@functools.cache  # encoders that differ in their seed are alike
def _encoder_estimate(config: str, count: int, gpu: str | None) -> Estimate:
    from clips.planning.plan import PlanConfig, StagePlan
    from clips.training.config import TrainConfig
    from clips.training.stages import stage_configs

    asked = PlanConfig(training="", gpu=gpu or "h200", count=count)
    stages = [StagePlan(asked, stage) for stage in stage_configs(_parsed(TrainConfig, json.loads(config)))]
    storage = [stage.storage() for stage in stages]
    kept = storage[-1]["encoder"]
    disk = {"disk": kept, "most": kept + max(each["checkpoints"] for each in storage)}
    if gpu is None:
        return Estimate(basis="disk worked out; no GPU is named, and no like step has run", **disk)
    speeds = [stage.speed(stage.spread(count)) for stage in stages]
    if any(speed is None for speed in speeds):
        return Estimate(basis=f"worked out: not one sample fits on {gpu}", **disk)
    memory = [
        sum(stage.memory(own, local=stage.local(count), at_once=stage.at_once(own)).values())
        for stage in stages
        for own in [stage.spread(count)]
    ]
    hours = sum(speed["hours"] for speed in speeds if speed)
    parts = [stage.at_once(stage.spread(count)) for stage in stages]
    whole = [stage.local(count) for stage in stages]
    needed = any(part < local for part, local in zip(parts, whole, strict=True) if part)
    hint = f", with micro_batch {', '.join(map(str, parts))} in its stages" if needed else ""
    return Estimate(
        basis=f"worked out for {count} × {gpu} at {asked.mfu:.0%} of its peak{hint}, see clips plan",
        seconds=hours * 3600,
        gpu_hours=hours * count,
        memory=max(memory),
        **disk,
    )


def _llava(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> Estimate:
    from llava_bridge.planning.plan import MFU, plan_llava
    from llava_bridge.training.config import TrainConfig

    config = _parsed(TrainConfig, step.config)
    sizes = {"vision": _made_vision(step, steps), "llm": _made_llm(step, steps)}
    cost = plan_llava(config, gpu=gpu, count=count, **sizes)
    basis = f"disk worked out; {cost.lacking}"
    if gpu is not None and cost.gpu_hours is not None:
        basis = f"worked out for {count} × {gpu} at {MFU:.0%} of its peak, {cost.tokens} tokens a picture"
    return Estimate(
        basis=basis,
        seconds=None if cost.gpu_hours is None else cost.gpu_hours / count * 3600,
        gpu_hours=cost.gpu_hours,
        memory=cost.memory if gpu else None,
        disk=cost.kept,
        most=cost.most,
    )


def _evaluation(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> Estimate:
    """Of a LLaVA the least: that it reads pictures and questions. Generating, decoding and scoring come on top."""
    if step.config.get("encoder") is not None:
        return _encoder_evaluation(step, steps, count, gpu)
    from benchmarks.catalogue import find
    from clips.planning.hardware import GPUS
    from llava_bridge.planning.plan import MFU, MOST_TILES, TEXT_TOKENS
    from llava_bridge.planning.sizes import projector_size
    from llava_bridge.training.config import TrainConfig

    trained = next((steps[name] for name in step.parents if steps[name].kind == "llava"), None)
    if trained is None or gpu is None:
        return _NOT_RUN
    config = _parsed(TrainConfig, trained.config)
    vision, llm = _vision(trained, steps, config), _llm(trained, steps, config)
    pictures = MOST_TILES if config.image_fit == "anyres" else 1
    tokens = pictures * projector_size(config.projector, vision, llm)[1]
    asked = [(find(each.get("uses") or each["name"]).items, each.get("limit")) for each in step.config["benchmarks"]]
    items = sum(min(limit or total, total) for total, limit in asked if total)
    flops = pictures * vision.flops + llm.forward_flops(tokens + TEXT_TOKENS["align"])
    seconds = items * flops / (GPUS[gpu].peak("bf16") * MFU * count)
    left_out = [each["name"] for each, (total, _) in zip(step.config["benchmarks"], asked, strict=True) if not total]
    more = f"; length unknown, left out: {', '.join(left_out)}" if left_out else ""
    return Estimate(
        basis=f"worked out for {count} × {gpu}, the least: {items:,} questions read, generating comes on top{more}",
        seconds=seconds,
        gpu_hours=seconds / 3600 * count,
        memory=2.0 * (vision.parameters + llm.parameters),
    )


def _encoder_evaluation(step: Step, steps: Mapping[str, Step], count: int, gpu: str | None) -> Estimate:
    """Of an encoder the least: that its towers read pictures and texts. Decoding pictures and scoring come on top."""
    from benchmarks.study.lengths import read_by_encoder
    from clips.planning.hardware import GPUS
    from llava_bridge.planning.plan import MFU
    from llava_bridge.planning.sizes import pair_of_config, pair_size

    made = _made_cfg(step, steps)
    pair = pair_size(step.config["encoder"]) if made is None else pair_of_config(made)  # a name is looked up
    if gpu is None:
        return _NOT_RUN
    read = {each["name"]: read_by_encoder(each) for each in step.config["benchmarks"]}
    left_out = [name for name, numbers in read.items() if numbers is None]
    more = f"length unknown, left out: {', '.join(left_out)}"
    if len(left_out) == len(read):
        return Estimate(basis=more, memory=2.0 * pair.parameters)
    pictures, texts = (sum(column) for column in zip(*filter(None, read.values()), strict=True))
    flops = pictures * pair.picture + texts * pair.text
    seconds = flops / (GPUS[gpu].peak("bf16") * MFU * count)
    words = f"{pictures:,} pictures and {texts:,} texts read, as published; decoding comes on top"
    words += f"; {more}" if left_out else ""
    return Estimate(
        basis=f"worked out for {count} × {gpu} at {MFU:.0%} of its peak, the least: {words}",
        seconds=seconds,
        gpu_hours=seconds / 3600 * count,
        memory=2.0 * pair.parameters,
    )


def _in_doubt(step: Step, steps: Mapping[str, Step], found: Estimate) -> Estimate:
    """An estimate that also tells of an evaluation whose encoder no library here knows by its name."""
    if step.kind != "evaluation" or (looked_up := worked_out(step, steps, Resources(), None)) == _NOT_RUN:
        return found
    return dataclasses.replace(found, basis=f"{found.basis}; {looked_up.basis}")


def _vision(step: Step, steps: Mapping[str, Step], config: Any) -> Any:
    from llava_bridge.planning.sizes import vision_size

    return _made_vision(step, steps) or vision_size(config.encoder, config.image_size)


def _llm(step: Step, steps: Mapping[str, Step], config: Any) -> Any:
    from llava_bridge.planning.sizes import llm_size

    return _made_llm(step, steps) or llm_size(config.llm)


def _maker(step: Step, field: str, steps: Mapping[str, Step]) -> Step | None:
    """The step that makes what a field of a config names."""
    named = step.config.get(field)
    makers = (steps[name] for name in step.parents)
    return next((maker for maker in makers if named is not None and str(maker.outputs[0]) == str(named)), None)


def _made_vision(step: Step, steps: Mapping[str, Step]) -> Any:
    """The size of an encoder that the study trains; None of another."""
    from llava_bridge.planning.sizes import tower_of_config

    made = _made_cfg(step, steps)
    return None if made is None else tower_of_config(made)


def _made_cfg(step: Step, steps: Mapping[str, Step]) -> dict[str, Any] | None:
    """The ``model_cfg`` of an encoder that the study trains, after its last stage; None of another."""
    from clips.model.architectures import model_cfg
    from clips.training.config import TrainConfig
    from clips.training.stages import stage_configs

    maker = _maker(step, "encoder", steps)
    if maker is None:
        return None
    return model_cfg(stage_configs(_parsed(TrainConfig, maker.config))[-1].model)


def _made_llm(step: Step, steps: Mapping[str, Step]) -> Any:
    from llava_bridge.planning.sizes import llm_size, new_llm_size
    from llava_bridge.training.config import TrainConfig

    maker = _maker(step, "llm", steps)
    if maker is None:
        return None
    config = _parsed(TrainConfig, maker.config)
    return new_llm_size(config.new_llm) if config.llm is None else llm_size(config.llm)


def _parsed(kind: type, config: Mapping[str, Any]) -> Any:
    from clips.commandline.commands import parse_config, plain, to_yaml

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(plain(config)), encoding="utf-8")
        return parse_config(kind, ["--config", str(file)], prog="config")
