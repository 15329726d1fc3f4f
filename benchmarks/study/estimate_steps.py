"""Estimates of each step's time, memory, disk and GPU hours, with their basis.

The basis is the step's own record, else the records of similar steps, else parameters and samples. The speed of a CPU
is not estimated: without a record and without ``gpu`` a time is unknown.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results.formatting import format_duration
from benchmarks.study.estimate import UNKNOWN_ESTIMATE, CostEstimate, analytic_estimate
from benchmarks.study.resources import Resources
from benchmarks.study.step_state import CONFIG_FILE, StepRecord, read_record, step_directory
from benchmarks.study.steps import Step
from benchmarks.study.trash import size_of


def estimate_steps(
    steps: Sequence[Step], output: Path, *, resources: Mapping[str, Resources], gpu: str | None
) -> dict[str, CostEstimate]:
    """Step name → estimate.

    Args:
        output: the study's directory, with the records of finished steps.
        gpu: type of GPU, an entry of ``clips.planning.hardware.GPUS``, or None.
    """
    finished = {
        step.name: (_recorded_step(step, output), record)
        for step in steps
        if (record := read_record(output, step.name)) is not None and record.status == "done"
    }
    by_name = {step.name: step for step in steps}
    estimates = {}
    for step in steps:
        similar = [each for each in finished.values() if similarity_key(each[0]) == similarity_key(step)]
        own = [record for before, record in similar if before.name == step.name]
        try:
            if own and training_samples(finished[step.name][0]) == training_samples(step):
                estimates[step.name] = _from_own_record(step, own[0], resources[step.name])
            elif similar and gpu is None:
                estimates[step.name] = _with_lookup_error(step, by_name, _from_similar(similar, step))
            else:
                estimates[step.name] = analytic_estimate(step, by_name, resources[step.name], gpu)
        except (TypeError, ValueError):  # the command itself will name the field
            estimates[step.name] = CostEstimate(basis="its config has values of the wrong type")
    return estimates


def _recorded_step(step: Step, output: Path) -> Step:
    """The step with the config that it was executed with."""
    import yaml

    try:
        config = yaml.safe_load((step_directory(output, step.name) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return step
    return dataclasses.replace(step, config=config) if isinstance(config, dict) else step


def similarity_key(step: Step) -> tuple[str, ...]:
    """A key of steps that take a similar time per sample."""
    if step.kind == "encoder":  # a recipe with a captioner takes three times as long as one without
        part = [step.config.get(name) for name in ("model", "recipe", "stages")]
        return step.kind, *step.command, json.dumps(part, sort_keys=True, default=str)
    return step.kind, *step.command, {"evaluation": step.name.split("-")[1], "data": step.name}.get(step.kind, "")


def _from_own_record(step: Step, record: StepRecord, given: Resources) -> CostEstimate:
    on_gpus = given.gpus and record.machine.get("accelerators", "none") != "none"
    return CostEstimate(
        basis="its last run",
        seconds=record.seconds,
        memory=_memory(record),
        disk=_on_disk(step),
        gpu_hours=record.seconds / 3600 * given.gpus * given.nodes if on_gpus else None,
    )


def _from_similar(records: Sequence[tuple[Step, StepRecord]], step: Step) -> CostEstimate:
    """The mean of similar steps, per sample if the configs define the samples."""
    samples = training_samples(step)
    rates = [record.seconds / count for other, record in records if (count := training_samples(other))]
    if samples is not None and rates:
        times, scaled = [rate * samples for rate in rates], ", scaled by samples"
    else:
        times, scaled = [record.seconds for _, record in records], ""
    spread = f", {format_duration(min(times))} to {format_duration(max(times))}" if len(times) > 1 else ""
    disks = [disk for other, _ in records if (disk := _on_disk(other)) is not None]
    memories = [memory for _, record in records if (memory := _memory(record)) is not None]
    return CostEstimate(
        basis=f"the last runs of {len(times)} similar steps{scaled}{spread}",
        seconds=statistics.mean(times),
        memory=max(memories, default=None),
        disk=statistics.mean(disks) if disks else None,
    )


def training_samples(step: Step) -> float | None:
    """Samples that a training step reads; None if its config does not define them or it is no training."""
    if step.kind == "encoder":
        from clips.training.train_config import EncoderTrainConfig

        config, steps = step.config, step.config.get("max_steps")
        batch_size = config.get("global_batch_size", EncoderTrainConfig.global_batch_size)
        count = config.get("max_samples") if steps is None else steps * batch_size
        return None if count is None or config.get("stages") else float(count)
    if step.kind not in {"llm", "llava"}:
        return None
    names = step.config.get("stages", ["align", "instruct"])
    stages = [step.config.get(name, {}) for name in names]
    if not all("max_steps" in stage and "global_batch_size" in stage for stage in stages):
        return None
    return float(sum(stage["max_steps"] * stage["global_batch_size"] for stage in stages))


def _memory(record: StepRecord) -> float | None:
    return None if record.peak_memory_mb is None else record.peak_memory_mb * 2**20


def _on_disk(step: Step) -> float | None:
    """Bytes of its outputs; None if one is missing."""
    if not all(path.exists() for path in step.outputs):
        return None
    items = [path.with_name(f"{path.stem}.items.parquet") for path in step.outputs if not path.is_dir()]
    return float(sum(map(size_of, {*step.outputs, *(path for path in items if path.is_file())})))


def _with_lookup_error(step: Step, steps: Mapping[str, Step], estimate: CostEstimate) -> CostEstimate:
    """The estimate of an evaluation, with the reason if its encoder's name is unknown to all libraries."""
    lookup = analytic_estimate(step, steps, Resources(), None) if step.kind == "evaluation" else UNKNOWN_ESTIMATE
    if lookup == UNKNOWN_ESTIMATE:
        return estimate
    return dataclasses.replace(estimate, basis=f"{estimate.basis}; {lookup.basis}")
