"""The record of each step of a study: what made its outputs, under which key, and whether they are done.

A step's *key* is a hash of its dependencies: command, the command's version number, config, external files, and the
keys of its parents. Settings of a training that do not change its result (``clips.core.identity.RUN_ONLY``) do not
count. Of source code it includes a user's script only: a change of a command's results requires a higher version
(``clips.core.identity.VERSIONS``). A step is done if its last job succeeded under its current key and its outputs are
whole. The outputs of another key move to the study's trash before the step runs again, so old and new never mix.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from benchmarks.study.launchers import command_settings, command_version, script_modules
from benchmarks.study.locks import LOCK, is_locked
from benchmarks.study.path_refs import PATH_PREFIX, map_strings, split_refs
from benchmarks.study.steps import MODULES, PARENT_MODULES, OutputSpec, Step, StepKey, step_directory
from clips.core.artifact import atomic_write, lexical_abspath
from clips.core.identity import content_hashes
from clips.data.remote_files import expand_brace_ranges
from clips.typed_data import to_plain

RECORD = "step.json"
LOG_FILE = "log.txt"
CONFIG_FILE = "config.yaml"
LOG_TAIL_LINES = 20
_HASH_DIGITS = 12  # of a part's hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """``steps/<step>/step.json``: the last job of one step.

    Args:
        name: of the step.
        kind: type of its outputs.
        command: the command line, as a user would type it.
        key: the step's key when the job started; empty, which no key matches, after ``study rerun`` of the step.
        parts: of the key, see ``StepKey``.
        status: of the job; ``running`` without a process that holds the step's lock means that it was killed.
        started: seconds since the epoch.
        seconds: wall time of this job and of those that it resumed, lost work included.
        peak_memory_mb: largest resident memory of one process, MiB; None if unknown.
        exit_status: of the command; None while running or if it was interrupted.
        log_tail: the last lines of the log of a failed job.
        outputs: file name → key, of outputs that have their own dependencies.
        output_paths: its outputs, and those of former jobs that exist, relative to the study's directory.
        machine: see `study_record.describe_machine`.
        git: commit of the code and whether it had uncommitted changes.
        versions: of the libraries.
        accepted: for each ``study accept`` of the outputs: time, former key, changed parts of the key, and the settings
            that differ from those that made the outputs.
    """

    name: str
    kind: str
    command: str
    key: str
    status: Literal["running", "done", "failed", "interrupted"]
    started: float
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    exit_status: int | None = None
    log_tail: tuple[str, ...] = ()
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output_paths: tuple[str, ...] = ()
    machine: Mapping[str, str] = dataclasses.field(default_factory=dict)
    git: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    accepted: tuple[Mapping[str, Any], ...] = ()


def read_record(study: Path, name: str) -> StepRecord | None:
    """The record of a step; None if it is missing or cannot be read."""
    try:
        data = json.loads((step_directory(study, name) / RECORD).read_text(encoding="utf-8"))
        lists = {name: tuple(data.get(name, ())) for name in ("log_tail", "output_paths", "accepted")}
        known = {field.name for field in dataclasses.fields(StepRecord)}  # another version may have more
        return StepRecord(**{name: value for name, value in data.items() if name in known} | lists)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_record(study: Path, record: StepRecord) -> None:
    """Write a step's record atomically."""
    text = json.dumps(to_plain(record), indent=2, ensure_ascii=False) + "\n"
    atomic_write(step_directory(study, record.name) / RECORD, text)


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


def with_keys(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps, parents before children, with their current keys.

    The study's directory may be moved: its place is no part of a key. Modules that a user's script imports from its
    directory are compared in addition to the key, so that records from before they counted stay valid.
    """
    keys: dict[str, StepKey] = {}
    files_state = functools.cache(external_files_state)  # many steps read the same data

    def depends_on(step: Step, part: Step | OutputSpec) -> dict[str, Any]:
        return {
            "command": step.command,
            "config": command_settings(step.command, relative_config(to_plain(part.config), step.study)),
            "version": command_version(step.command),
            "parents": {name: keys[name].key for name in part.parents},
            "files": {str(path): files_state(path) for path in part.needs},
        }

    found = []
    for step in steps:
        whole = depends_on(step, step)
        inherited = [[keys[name].parts[part] for part in (MODULES, PARENT_MODULES)] for name in step.parents]
        parts = {**whole, MODULES: script_modules(step.command), PARENT_MODULES: inherited}
        keys[step.name] = StepKey(
            key=_hash(whole),
            outputs={part.output.name: _hash(depends_on(step, part)) for part in step.parts},
            parts={name: _hash(value)[:_HASH_DIGITS] for name, value in parts.items()},
        )
        found.append(dataclasses.replace(step, key=keys[step.name]))
    return tuple(found)


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
    """A fingerprint of external files: names and contents, which are read once (`content_hashes`).

    A file that was touched or copied with the same content is no change; the hashes in a manifest do not count, since a
    file may be replaced without an update of its manifest.

    Args:
        path: a file, a directory, or files with ranges in their name (``{00..11}.tar``).
    """
    files = [*_files(path)]
    hashes = content_hashes(file for file in files if file.is_file())
    return hashlib.sha256("\n".join(f"{file} {hashes.get(file, 'missing')}" for file in files).encode()).hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """All files of ``path`` in order; symlinks are followed."""
    seen: set[str] = set()
    for root in map(Path, expand_brace_ranges(str(path))):
        if not root.is_dir():
            yield root
        for folder, below, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            below[:] = sorted(below) if real not in seen else []
            yield from (Path(folder, name) for name in sorted(names) if real not in seen)
            seen.add(real)


def is_done(step: Step) -> bool:
    """Whether the step's last job succeeded under this key and its outputs are still complete."""
    record = read_record(step.study, step.name)
    return record is not None and record.status == "done" and step.key.matches(record) and not step.problems()


def step_state(step: Step) -> str:
    """``new``, ``changed: …``, ``missing`` (outputs gone or hollow), ``stopped`` (killed), or the record's status."""
    record = read_record(step.study, step.name)
    if is_at_work(step.directory) and (record is None or record.status == "running"):
        return "running" if record is not None else "new"
    if record is None:
        return "new"
    if not step.key.matches(record):
        changes = ", ".join(step.key.changes(record))
        return f"changed: {changes}" if changes else "changed"
    if record.status == "running":
        return "stopped"
    return "missing" if record.status == "done" and step.problems() else record.status


def is_at_work(directory: Path) -> bool:
    """Whether a process holds the lock of a step, on this machine or on another one with the same file system."""
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
