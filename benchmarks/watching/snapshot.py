"""How far a study or a training is, from its files as they are at one moment."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.source import read_metrics
from benchmarks.study.lock import runner_lives
from benchmarks.study.progress import Estimates
from benchmarks.study.reading import read_study
from benchmarks.study.record import RECORD_FILE, StepPlan, read_study_record
from benchmarks.study.runner import log_tail
from benchmarks.study.state import CONFIG, StepRecord, read_record, step_directory
from benchmarks.study.steps import Step, time_left
from clips.core.artifact import MANIFEST
from clips.errors import UserError
from clips.training.runlog import METRICS

_COUNTED = re.compile(r"(?:step |: )([\d,]+)(?:/| of )([\d,]+)")
_LOSSES = 60  # so many points make a curve in the terminal


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training's metrics.jsonl says.

    Args:
        stage: the stage it is in; empty where it has none.
        step: the last that was logged.
        losses: of this stage, at most the last sixty, oldest first.
        rate: samples a second.
        samples_per_step: mean so far.
    """

    stage: str
    step: int
    losses: tuple[float, ...]
    rate: float | None
    samples_per_step: float


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One step of a study, or a training by itself.

    Args:
        name: of the step.
        state: ``waiting``, ``queued``, ``running``, ``stopped`` (it says that it runs, and no runner is there), or how
            it ended.
        seconds: since it began, or that it took.
        done: what is done of ``total``, steps or items; None where nothing tells.
        total: how much there is.
        left: seconds, guessed; None where nothing tells.
        memory: bytes: resident now, or the largest while it ran; None where unknown.
        training: its numbers, where it trains.
        last: the last line of its log.
    """

    name: str
    state: str
    seconds: float = 0.0
    done: int | None = None
    total: int | None = None
    left: float | None = None
    memory: int | None = None
    training: Training | None = None
    last: str = ""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All of it at one moment.

    Args:
        title: of the study, or the directory.
        steps: in the study's order.
        left: seconds until all is done, guessed; None where a step's time is not known.
        goes_on: whether there is more to come.
    """

    title: str
    steps: tuple[Watched, ...]
    left: float | None
    goes_on: bool


def watched_directory(path: str) -> Path:
    """The directory to look at: a study's output, given as such or by the study's file, or a training's.

    Raises:
        UserError: neither, or a study of which nothing has run yet.
    """
    given = Path(path)
    directory = read_study(path).directory if given.is_file() else given
    if not directory.is_dir():
        raise UserError(f"{path}: nothing has run yet ({directory} is not there)")
    if not (directory / RECORD_FILE).is_file() and metrics_directory(directory) is None:
        raise UserError(f"{path}: expected a study, its output, or a training's output ({METRICS})")
    return directory


def snapshot(directory: Path) -> Snapshot:
    """How far it is now."""
    return _study(directory) if (directory / RECORD_FILE).is_file() else _single(directory)


def trainings(directory: Path) -> dict[str, Path]:
    """Name → the directory that holds metrics.jsonl, of every training that has begun."""
    if not (directory / RECORD_FILE).is_file():
        found = metrics_directory(directory)
        return {directory.resolve().name: found} if found else {}
    steps = read_study_record(directory).steps
    places = {name: metrics_directory(output) for name in steps if (output := _output(directory, name))}
    return {name: place for name, place in places.items() if place}


def metrics_directory(output: Path) -> Path | None:
    """Where a training of ``output`` keeps its metrics: beside it while the bridge trains; None where nowhere."""
    work = output.with_name(f".{output.resolve().name}.work")
    return next((place for place in (work, output) if (place / METRICS).is_file()), None)


def _output(directory: Path, step: str) -> Path | None:
    """The output that a step's config names."""
    import yaml

    try:
        config = yaml.safe_load((step_directory(directory, step) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    output = config.get("output") if isinstance(config, dict) else None
    if not isinstance(output, str):
        return None
    kept = directory / Path(output).parent.name / Path(output).name  # the study may have been moved since
    return kept if not Path(output).exists() and kept.exists() else Path(output)


def _study(directory: Path) -> Snapshot:
    study = read_study_record(directory)
    steps = [_as_step(name, plan) for name, plan in study.steps.items()]
    estimates = Estimates(steps, directory)
    alive = runner_lives(directory)
    watched = [_step(directory, step, study.steps[step.name], estimates, alive) for step in steps]
    open_steps = [(step, seen) for step, seen in zip(steps, watched, strict=True) if seen.state in _OPEN]
    guesses = {step.name: seen.left if seen.left is not None else estimates.seconds(step) for step, seen in open_steps}
    known = {name: guess for name, guess in guesses.items() if guess is not None}
    shares = {name: plan.share for name, plan in study.steps.items()}
    return Snapshot(
        title=study.title,
        steps=tuple(watched),
        left=time_left(steps, known, shares) if len(known) == len(guesses) else None,
        goes_on=any(seen.state in (_OPEN if alive else _OPEN - {"waiting"}) for seen in watched),
    )


_OPEN = {"waiting", "queued", "running"}


def _as_step(name: str, plan: StepPlan) -> Step:
    return Step(name=name, kind=plan.kind, command=(), config={}, outputs=(), parents=plan.parents)  # type: ignore[arg-type]


def _step(directory: Path, step: Step, plan: StepPlan, estimates: Estimates, alive: bool) -> Watched:
    record = read_record(directory, step.name)
    if record is None or (record.key != plan.key and record.outcome != "running"):
        return Watched(name=step.name, state="waiting")
    if record.outcome != "running":
        return Watched(
            name=step.name,
            state=record.outcome,
            seconds=record.seconds,
            memory=round(record.peak_memory_mb * 2**20) if record.peak_memory_mb else None,
            training=_training(_output(directory, step.name)),
            last=record.log_tail[-1] if record.log_tail else "",
        )
    going = alive or record.at_work  # a job outlives its runner
    return _running(directory, step, record, estimates) if going else _stopped(directory, step, record)


def _stopped(directory: Path, step: Step, record: StepRecord) -> Watched:
    last = next(reversed(log_tail(directory, step.name)), "")
    training = _training(_output(directory, step.name))
    return Watched(name=step.name, state="stopped", seconds=record.seconds, training=training, last=last)


def _running(directory: Path, step: Step, record: StepRecord, estimates: Estimates) -> Watched:
    tail = log_tail(directory, step.name)
    done, total = _counted(tail)
    training = _training(_output(directory, step.name))
    if training is not None and done is not None:
        done = max(done, training.step)
    elapsed = record.earlier + time.time() - record.started
    guess = estimates.seconds(step)
    left = _left(training, done, total)
    return Watched(
        name=step.name,
        state="running",
        seconds=elapsed,
        done=done,
        total=total,
        left=left if left is not None or guess is None else max(guess - elapsed, 0.0),
        memory=_memory(str(step_directory(directory, step.name) / CONFIG)),
        training=training,
        last=next(reversed(tail), ""),
    )


def _counted(lines: tuple[str, ...]) -> tuple[int | None, int | None]:
    """``step 40/150`` or ``1,000 of 9,000`` in the last line that has it."""
    for line in reversed(lines):
        if found := _COUNTED.search(line):
            done, total = (int(text.replace(",", "")) for text in found.groups())
            return done, total
    return None, None


def _left(training: Training | None, done: int | None, total: int | None) -> float | None:
    if training is None or not training.rate or done is None or total is None:
        return None
    return max(total - done, 0) * training.samples_per_step / training.rate


def _training(output: Path | None) -> Training | None:
    place = metrics_directory(output) if output else None
    entries = [entry for entry in read_metrics(place) if _number(entry.get("step")) is not None] if place else []
    if not entries:
        return None
    last = entries[-1]
    stage = last.get("stage", "")
    losses = [_number(entry.get("loss")) for entry in entries if entry.get("stage", "") == stage]
    step = int(last["step"])
    return Training(
        stage=str(stage),
        step=step,
        losses=tuple([loss for loss in losses if loss is not None][-_LOSSES:]),
        rate=_number(last.get("samples_per_second")),
        samples_per_step=(_number(last.get("samples_seen")) or 0.0) / max(step, 1),
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _single(directory: Path) -> Snapshot:
    """A training that no study runs: it is done where it has a manifest and keeps no work."""
    training = _training(directory)
    finished = (directory / MANIFEST).is_file() and metrics_directory(directory) == directory
    done = training.step if training else None
    state = "done" if finished else "running"
    name = directory.resolve().name
    total = _total(directory)
    watched = Watched(
        name=name, state=state, done=done, total=total, left=_left(training, done, total), training=training
    )
    return Snapshot(title=name, steps=(watched,), left=watched.left, goes_on=not finished)


def _total(directory: Path) -> int | None:
    """The steps of a `clips train` that its config states outright."""
    import yaml

    try:
        config: Mapping[str, Any] = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        steps, samples, batch = (config.get(name) for name in ("steps", "samples", "batch_size"))
    except (OSError, ValueError, yaml.YAMLError, AttributeError):
        return None
    if isinstance(steps, int):
        return steps
    return samples // batch if isinstance(samples, int) and isinstance(batch, int) and batch else None


def _memory(config: str) -> int | None:
    """Resident memory of the processes on this machine that were started with a step's config."""
    import psutil

    found = 0
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        words, memory = process.info["cmdline"], process.info["memory_info"]
        if words and memory and config in words:
            found += memory.rss
    return found or None
