"""What is known on disk about a study's steps: their keys, how they ended, and whether they are up to date.

A step's *key* is a hash of everything that it depends on: command, the command's version number, config,
the files outside that it reads, and the keys of its parents. Source code does not count: whoever changes
the results of a command raises its version (``clips.core.identity.VERSIONS``). A step is done when its last run
succeeded under the key that the study gives it now. The outputs of another key go to the study's trash before
the step runs again, so old and new results never mix.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.study.path_refs import PATH_PREFIX, map_strings, split_refs
from benchmarks.study.steps import OutputSpec, Step, topological_order
from clips.core.artifact import STAGES_DIR, atomic_write, lexical_abspath
from clips.data.remote_files import expand_brace_ranges
from clips.serialization import to_plain

RECORD = "step.json"
LOG_FILE = "log.txt"
CONFIG_FILE = "config.yaml"
_SHORT = 12  # digits of a part's hash

LOG_TAIL_LINES = 20
StepStatus = Literal["running", "done", "failed", "interrupted"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """``steps/<step>/step.json``: the last run of one step.

    Args:
        name: the step.
        kind: what it makes.
        command: the line that was run, as a user would type it.
        key: what the run depended on.
        parts: of the key, see ``StepKey``.
        status: how it ended.
        started: when it began, seconds since the epoch.
        seconds: wall time over all runs that went on from what an interrupted, killed or failed one left, theirs
            included, and with it what was lost and done again. Noted every half minute while it runs.
        previous_seconds: of ``seconds`` those before ``started``.
        peak_memory_mb: largest resident memory of one of its processes, MiB; None where unknown.
        exit_status: of the command; None while running or when it was killed by the runner.
        log_tail: the last lines of its log, where it failed.
        outputs: file name → key, of outputs whose dependencies are known by themselves.
        output_paths: its outputs, relative to the study's directory.
        run_id: names the run of the study that ran it.
        job: id of the SLURM job, or name of the pod, that ran it; empty on the runner's machine.
        machine: where it ran, see ``machine.describe_machine``.
        git: commit of the code, and whether there were changes besides.
        versions: of the libraries.
        accepted: each time that ``study accept`` took the outputs as they are: when, the former key, the parts of the
            key that had changed, and the settings that differ from those that they were made with.
    """

    name: str
    kind: str
    command: str
    key: str
    status: StepStatus
    started: float
    seconds: float = 0.0
    previous_seconds: float = 0.0
    peak_memory_mb: float | None = None
    exit_status: int | None = None
    log_tail: tuple[str, ...] = ()
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output_paths: tuple[str, ...] = ()
    run_id: str = ""
    job: str = ""
    machine: Mapping[str, str] = dataclasses.field(default_factory=dict)
    git: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    accepted: tuple[Mapping[str, Any], ...] = ()


def step_directory(output: Path, name: str) -> Path:
    """Where a step keeps its config, log and record."""
    return output / "steps" / name


def read_record(output: Path, name: str) -> StepRecord | None:
    """The record of a step; None where it never ran or the record cannot be read."""
    try:
        data = json.loads((step_directory(output, name) / RECORD).read_text(encoding="utf-8"))
        lists = {name: tuple(data.get(name, ())) for name in ("log_tail", "output_paths", "accepted")}
        known = {field.name for field in dataclasses.fields(StepRecord)}  # another version may know others
        return StepRecord(**{name: value for name, value in data.items() if name in known} | lists)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def find_producer(made: Path) -> tuple[Path, StepRecord] | None:
    """The study's directory and the record of its step that made a file or directory; None where no study did, or none
    is recorded."""
    made = lexical_abspath(made)
    for root in list(made.parents)[:3]:
        for path in (root / "steps").glob(f"*/{RECORD}") if (root / "steps").is_dir() else ():
            record = read_record(root, path.parent.name)
            if record is not None and made.relative_to(root).as_posix() in record.output_paths:
                return root, record
    return None


def write_record(output: Path, record: StepRecord) -> None:
    """Write a step's record whole."""
    text = json.dumps(to_plain(record), indent=2, ensure_ascii=False) + "\n"
    atomic_write(step_directory(output, record.name) / RECORD, text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepKey:
    """The key of a step, and what it was made from.

    Args:
        key: a hash of everything that the step depends on.
        outputs: file name → key, of outputs whose dependencies are known by themselves.
        parts: command, version, config, parents and files → a short hash of each, which tell what has changed.
    """

    key: str
    outputs: Mapping[str, str]
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def changes(self, record: StepRecord) -> list[str]:
        """The parts that were others when a step last ran; none where its record does not have them."""
        return [name for name, part in self.parts.items() if record.parts.get(name, part) != part]


def step_keys(
    steps: Sequence[Step], directory: Path, *, version: Callable[[tuple[str, ...]], int | str]
) -> dict[str, StepKey]:
    """Name → key of every step. Where the study's directory lies does not count: it may be moved.

    Args:
        steps: all steps of the study.
        directory: the study's.
        version: command words → the command's version.
    """
    keys: dict[str, StepKey] = {}

    def depends_on(step: Step, part: Step | OutputSpec) -> dict[str, Any]:
        return {
            "command": step.command,
            "config": relative_config(to_plain(part.config), directory),
            "version": version(step.command),
            "parents": {name: keys[name].key for name in part.parents},
            "files": {str(path): external_files_state(path) for path in part.needs},
        }

    for step in topological_order(steps):
        whole = depends_on(step, step)
        keys[step.name] = StepKey(
            key=_hash(whole),
            outputs={part.output.name: _hash(depends_on(step, part)) for part in step.parts},
            parts={name: _hash(value)[:_SHORT] for name, value in whole.items()},
        )
    return keys


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def relative_config(config: Any, directory: Path) -> Any:
    """A config with the paths inside a study's directory written as ``$PATH``, so that moving it changes none."""

    def relative(reference: str) -> str:
        path = Path(reference)
        return f"{PATH_PREFIX}{path.relative_to(directory).as_posix()}" if path.is_relative_to(directory) else reference

    def replace(field: str, text: str) -> str:
        return "".join(piece.before + relative(piece.reference) for piece in split_refs(text, field))

    return map_strings(config, replace)


def external_files_state(path: Path) -> str:
    """A quick fingerprint of what the study reads but does not make: names, sizes and times of its files.

    Times count even where a manifest has hashes: whoever replaces a file beside it seldom writes it anew.

    Args:
        path: a file, a directory, or files with ranges in their name (``{00..11}.tar``).
    """
    return hashlib.sha256("\n".join(map(_stamp, _files(path))).encode()).hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """All files that ``path`` stands for, in order, those behind links to directories as well."""
    seen: set[str] = set()
    for root in map(Path, expand_brace_ranges(str(path))):
        if not root.is_dir():
            yield root
        for folder, below, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            below[:] = sorted(below) if real not in seen else []
            yield from (Path(folder, name) for name in sorted(names) if real not in seen)
            seen.add(real)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{path} missing"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def stage_directories(output: Path) -> Path:
    """Where a training in stages keeps the earlier ones, which belong to its output; there or not."""
    return output.with_name(f"{output.name}{STAGES_DIR}")


def is_done(step: Step, key: StepKey, output: Path) -> bool:
    """Whether the step's last run succeeded under this key and its outputs are still there."""
    record = read_record(output, step.name)
    return record is not None and record.status == "done" and record.key == key.key and not step.problems()


def log_tail(output: Path, name: str) -> tuple[str, ...]:
    """The last lines of a step's log that say something."""
    try:
        with (step_directory(output, name) / LOG_FILE).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 20_000))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    lines = [line.split("\r")[-1].rstrip()[:400] for line in text.splitlines()]
    return tuple([line for line in lines if line][-LOG_TAIL_LINES:])
