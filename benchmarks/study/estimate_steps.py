"""What the steps of a study will take: time, memory, disk, GPU hours; and what each estimate rests on.

In this order: the step's own last run, the last runs of like steps, what can be worked out from parameters and samples.
The speed of a CPU is not guessed: without a record, and without a GPU named, a time is not known.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results.formatting import format_duration
from benchmarks.study.analytic_estimates import UNKNOWN_ESTIMATE, analytic_estimate
from benchmarks.study.estimate import CostEstimate
from benchmarks.study.resources import Resources
from benchmarks.study.step_state import CONFIG_FILE, StepRecord, read_record, step_directory
from benchmarks.study.steps import Step


def estimate_steps(
    steps: Sequence[Step], output: Path, *, resources: Mapping[str, Resources], gpu: str | None
) -> dict[str, CostEstimate]:
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
        if (record := read_record(output, step.name)) is not None and record.status == "done"
    }
    by_name = {step.name: step for step in steps}
    found = {}
    for step in steps:
        before, record = ran.get(step.name, (None, None))
        like = [each for each in ran.values() if similarity_key(each[0]) == similarity_key(step)]
        try:
            if (
                before
                and record
                and training_samples(before) == training_samples(step)
                and similarity_key(before) == similarity_key(step)
            ):
                found[step.name] = _of_record(step, record, resources[step.name])
            elif like and gpu is None:
                found[step.name] = _in_doubt(step, by_name, _of_like(like, step))
            else:
                found[step.name] = analytic_estimate(step, by_name, resources[step.name], gpu)
        except (TypeError, ValueError):  # of fields that the step's command will refuse, naming them
            found[step.name] = CostEstimate(basis="its config has values of the wrong kind")
    return found


def _as_it_ran(step: Step, output: Path) -> Step:
    """The step with the config of its last run, which the study may have changed since."""
    import yaml

    try:
        config = yaml.safe_load((step_directory(output, step.name) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return step
    return dataclasses.replace(step, config=config) if isinstance(config, dict) else step


def similarity_key(step: Step) -> tuple[str, ...]:
    """Steps that have this in common take similar time, for as many samples."""
    if step.kind == "encoder":  # a recipe with a captioner takes three times as long as one without
        own = json.dumps([step.config.get(name) for name in ("model", "recipe", "stages")], sort_keys=True, default=str)
    else:
        own = {"evaluation": step.name.split("-")[1], "data": step.name}.get(step.kind, "")
    return step.kind, *step.command, own


def _of_record(step: Step, record: StepRecord, given: Resources) -> CostEstimate:
    on_gpus = given.gpus and record.machine.get("accelerators", "none") != "none"
    return CostEstimate(
        basis="its last run",
        seconds=record.seconds,
        memory=_memory(record),
        disk=_on_disk(step),
        gpu_hours=record.seconds / 3600 * given.gpus * given.nodes if on_gpus else None,
    )


def _of_like(records: Sequence[tuple[Step, StepRecord]], step: Step) -> CostEstimate:
    """The mean of like steps, by samples where all tell how many they see."""
    mine = training_samples(step)
    rates = [record.seconds / work for other, record in records if (work := training_samples(other))]
    by_samples = mine is not None and bool(rates)
    times = [rate * mine for rate in rates] if by_samples and mine is not None else [r.seconds for _, r in records]
    spread = f", {format_duration(min(times))} to {format_duration(max(times))}" if len(times) > 1 else ""
    disks = [disk for other, _ in records if (disk := _on_disk(other)) is not None]
    memories = [memory for _, record in records if (memory := _memory(record)) is not None]
    return CostEstimate(
        basis=f"the last runs of {len(times)} like steps{', by samples' if by_samples else ''}{spread}",
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
    """Bytes of its outputs, where they are all there."""
    if not all(path.exists() for path in step.outputs):
        return None
    whole = [path if path.is_dir() else path.with_name(f"{path.stem}.items.parquet") for path in step.outputs]
    files = [file for path in (*step.outputs, *whole) for file in (path.rglob("*") if path.is_dir() else [path])]
    return float(sum(file.stat().st_size for file in set(files) if file.is_file()))


def _in_doubt(step: Step, steps: Mapping[str, Step], found: CostEstimate) -> CostEstimate:
    """An estimate that also tells of an evaluation whose encoder no library here knows by its name."""
    if (
        step.kind != "evaluation"
        or (looked_up := analytic_estimate(step, steps, Resources(), None)) == UNKNOWN_ESTIMATE
    ):
        return found
    return dataclasses.replace(found, basis=f"{found.basis}; {looked_up.basis}")
