"""A step, the record of its last job, and the one decision what is to be done about it: ``state_of``.

A step is done if its last job succeeded under its current key (a hash of its dependencies, see ``steps.with_keys``) and
its outputs are whole. Otherwise its next job resumes, or makes its outputs from scratch.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from benchmarks.results.results import lexical_abspath
from benchmarks.study.launch import Resources
from benchmarks.study.locks import LOCK, is_locked
from clips.core.artifact import MANIFEST, find_damage, read_manifest
from clips.core.durable import atomic_write
from clips.core.identity import file_hash
from clips.core.parent_death import usable_cores
from clips.errors import UserError
from clips.typed_data import to_plain

RECORD, LOG_FILE, CONFIG_FILE = "step.json", "log.txt", "config.yaml"
LOG_TAIL_LINES = 20
MODULES, PARENT_MODULES = "modules", "modules of parents"
# Parts that are compared in addition to the key, so that records from before they counted stay valid.
MODULE_PARTS = {MODULES, PARENT_MODULES}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A config with what its strings refer to: the dependencies of a step, or of one of its outputs."""

    config: Mapping[str, Any]
    parents: tuple[str, ...] = ()  # the steps whose outputs it refers to
    needs: tuple[Path, ...] = ()  # the files outside the study that it refers to
    hub: tuple[str, ...] = ()  # the names on the Hub that it refers to


@dataclass(frozen=True, kw_only=True)
class StepKey:
    """The key of a step and the hashes of its parts, see ``steps.with_keys``."""

    key: str = ""  # of all dependencies but modules
    outputs: Mapping[str, str] = field(default_factory=dict)  # file name → key, of outputs with own dependencies
    parts: Mapping[str, str] = field(default_factory=dict)  # such as config, files → a short hash, to name changes

    def matches(self, record: StepRecord) -> bool:
        """Whether a step's record was written under this key, and no module has changed since."""
        return record.key == self.key and MODULE_PARTS.isdisjoint(self.changes(record))

    def changes(self, record: StepRecord) -> list[str]:
        """The parts that differ from those of a step's record; a part that the record lacks does not."""
        return [name for name, part in self.parts.items() if record.parts.get(name, part) != part]


@dataclass(frozen=True, kw_only=True)
class Step(Inputs):
    """One command that a user could type alone."""

    name: str  # unique in the study, such as ``encoder-clips``; also the directory under ``steps/``
    kind: str  # a key of ``STEP_KINDS``
    command: tuple[str, ...]  # the words before ``--config``, such as ``("clips", "train")``
    outputs: tuple[Path, ...]  # directories or result files that no other step writes
    study: Path  # directory of the study
    # File name → dependencies, of outputs that are replaced one by one: one that did not change stays in place.
    parts: Mapping[str, Inputs] = field(default_factory=dict)
    key: StepKey = field(default_factory=StepKey)
    resources: Resources = field(default_factory=Resources)

    @property
    def directory(self) -> Path:
        """The directory of its config, log and record."""
        return step_directory(self.study, self.name)

    def output_paths(self) -> tuple[str, ...]:
        """The outputs inside the study's directory, relative to it."""
        inside = (path for path in self.outputs if path.is_relative_to(self.study))
        return tuple(path.relative_to(self.study).as_posix() for path in inside)

    def problems(self) -> list[str]:
        """A line for each output that is missing or hollow, and each result file that records a failure."""
        return list(filter(None, map(_problem, self.outputs)))


def step_directory(study: Path, name: str) -> Path:
    """The directory of a step's config, log and record."""
    return study / "steps" / name


def _problem(output: Path) -> str | None:
    if not output.exists():
        return f"{output}: not written"
    if output.suffix == ".json":
        try:
            result = json.loads(output.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{output}: not readable ({error})"
        if isinstance(result, dict) and result.get("status") == "failed":
            return f"{result.get('benchmark')} failed: {result.get('failure_reason')}"
        return _problem_of_items(output, result) if isinstance(result, dict) else None
    if (output / MANIFEST).is_file():
        try:
            return find_damage(output, read_manifest(output), contents=False)
        except UserError as error:
            return str(error)
    files = (path for path in output.rglob("*") if path.is_file())
    return None if any(path.stat().st_size for path in files) else f"{output}: has no content"


def _problem_of_items(output: Path, result: Mapping[str, Any]) -> str | None:
    if not isinstance(name := result.get("items"), str):
        return None
    items = output.with_name(Path(name).name)
    if not items.is_file():
        return f"{items}: missing, but {output.name} names it"
    recorded, stat = result.get("items_hash"), items.stat()
    if recorded and _hash_of(items, stat.st_size, stat.st_mtime_ns) != recorded:
        return f"{items}: has another content than {output.name} states (SHA-256)"
    return None if stat.st_size else f"{items}: has no content"


@functools.lru_cache(maxsize=4096)
def _hash_of(file: Path, _size: int, _mtime_ns: int) -> str:
    return file_hash(file)  # read once by a command that asks again every few seconds


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """``steps/<step>/step.json``: the last job of one step."""

    name: str
    kind: str
    command: str  # the command line, as a user would type it
    key: str  # the step's when the job started; empty after ``study rerun``, so that it matches no key
    status: Literal["running", "done", "failed", "interrupted"]
    started: float  # seconds since the epoch
    seconds: float = 0.0  # wall time of this job and of those that it resumed, lost work included
    peak_memory_mb: float | None = None  # largest resident memory of one process, MiB
    exit_status: int | None = None  # None while running or if it was interrupted
    log_tail: tuple[str, ...] = ()  # of a failed job
    parts: Mapping[str, str] = field(default_factory=dict)  # of the key, as in ``StepKey``
    outputs: Mapping[str, str] = field(default_factory=dict)
    output_paths: tuple[str, ...] = ()  # and those of former jobs that exist, relative to the study's directory
    machine: Mapping[str, str] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)  # commit and whether it had uncommitted changes
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries
    # For each ``study accept``: time, former key, changed parts of the key, and the settings that differ from those
    # that made the outputs.
    accepted: tuple[Mapping[str, Any], ...] = ()


def read_record(study: Path, name: str) -> StepRecord | None:
    """The record of a step; None if it is missing or cannot be read."""
    try:
        data = json.loads((step_directory(study, name) / RECORD).read_text(encoding="utf-8"))
        lists = {name: tuple(data.get(name, ())) for name in ("log_tail", "output_paths", "accepted")}
        known = {each.name for each in fields(StepRecord)}  # another version may have more
        return StepRecord(**{name: value for name, value in data.items() if name in known} | lists)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_record(study: Path, record: StepRecord) -> None:
    """Write a step's record atomically."""
    text = json.dumps(to_plain(record), indent=2, ensure_ascii=False) + "\n"
    atomic_write(step_directory(study, record.name) / RECORD, text)


@dataclass(frozen=True, kw_only=True)
class StepState:
    """Where a step stands: what its next job would do, and why."""

    # new, no record (but outputs), changed: …, missing (outputs gone or hollow), stopped (killed), or its status
    name: str
    record: StepRecord | None = None
    is_current: bool = False  # the record was written under the step's key
    rerun_reason: str = ""  # why its outputs would be made again; empty if it is done, or its next job resumes
    damage: str = ""  # the file that is missing or not readable, and what follows

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.name == "done"


def state_of(step: Step) -> StepState:
    """Where a step with its current key stands, by its record, its lock and its outputs."""
    record = read_record(step.study, step.name)
    if record is None:
        file, written = step.directory / RECORD, [path for path in step.outputs if path.exists()]
        if not file.exists() and not written:
            return StepState(name="new", rerun_reason="no record")
        problem = f"{file}: {'not readable' if file.exists() else f'missing, but {written[0]} exists'}"
        damage = f"{problem}; the step runs again unless `clips-bench study accept` keeps its outputs"
        return StepState(name="no record", rerun_reason="no record", damage=damage)
    is_current, reason, damage = step.key.matches(record), "", ""
    if not is_current:
        changes = step.key.changes(record)
        name = f"changed: {', '.join(changes)}" if changes else "changed"
        reason = name if changes or record.key else "rerun"
    elif record.status == "running":  # without a process that holds its lock it was killed
        name = "stopped"
    elif record.status == "done" and (problems := step.problems()):
        name, reason, damage = "missing", "outputs missing or incomplete", f"{problems[0]}; the step runs again"
    else:
        name = record.status
    if record.status == "running" and is_at_work(step.directory):
        name = "running"
    return StepState(name=name, record=record, is_current=is_current, rerun_reason=reason, damage=damage)


def is_at_work(directory: Path) -> bool:
    """Whether a job is at work on the step of this directory."""
    return is_locked(directory / LOCK)


def log_tail(directory: Path) -> tuple[str, ...]:
    """The last lines of a step's log that are not empty."""
    try:
        with (directory / LOG_FILE).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 20_000))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    lines = [line.split("\r")[-1].rstrip()[:400] for line in text.splitlines()]
    return tuple([line for line in lines if line][-LOG_TAIL_LINES:])


def describe_acceptance(entry: Mapping[str, Any]) -> str:
    """An entry of ``StepRecord.accepted`` as one line."""
    settings = [f"{name} {then!r:.60} → {now!r:.60}" for name, (then, now) in entry["settings"].items()]
    others = [name for name in entry["changed"] if name != "config" or not settings]
    return f"accepted {entry['when']}; changed since creation: {', '.join([*settings, *others]) or 'nothing'}"


def find_producer(output: Path) -> tuple[Path, StepRecord] | None:
    """The study's directory and the record of the step that made a file or directory, or None."""
    output = lexical_abspath(output)
    for root in list(output.parents)[:3]:
        for path in (root / "steps").glob(f"*/{RECORD}") if (root / "steps").is_dir() else ():
            record = read_record(root, path.parent.name)
            if record is not None and output.relative_to(root).as_posix() in record.output_paths:
                return root, record
    return None


def describe_machine() -> dict[str, str]:
    """Property → value for this machine, without unknown ones and without the names of host and user."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        processor = platform.processor()
    try:
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        memory = ""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        listed = ""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": str(usable_cores()),
        "memory": memory,
        "accelerators": "; ".join(line.strip() for line in listed.splitlines() if line.strip()) or "none",
    }
    return {name: value for name, value in machine.items() if value}
