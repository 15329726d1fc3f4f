"""What the result of a run depends on: its settings, the hashes of its inputs, its command's version.

Runs of the same identity have the same result: by it `clips.core.artifact.check_finished` knows a finished output,
``benchmarks.study.state`` a step that is out of date, ``benchmarks.tasks`` a stored result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import time
import typing
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clips.errors import UserError
from clips.safe_text import redact
from clips.text_files import safe_json_loads
from clips.typed_data import flatten, from_plain, nest, to_plain, with_defaults

RUN_ONLY: Mapping[str, Any] = MappingProxyType({"run_only": True})
"""The metadata of a field that affects the execution but not the result, with which an interrupted run may resume:
``logging_steps: int = field(default=10, metadata=RUN_ONLY)``."""
VERSIONS = {"clips-bench run": 7, "llava-bridge train": 3}
"""Command → version of its results, 1 for other commands.

Raise it in the commit that changes the command's result for the same config, as by another default: study steps,
results and cached answers are then recomputed, and outputs of the earlier version are rejected.
"""
RUN = "run.json"
"""Name of the file with the identity of an unfinished run."""
INPUTS = "inputs."
"""Before the name of an input, in the names of an identity."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of a run, to compare with that of an output, a checkpoint or unfinished work.

    Args:
        values: dotted names of settings → values, ``inputs.NAME`` → hash, ``version`` → number; plain, without
            passwords in URLs. These are recorded.
        config: the run's config; a field that recorded values lack, because it is newer, has its default there.
    """

    values: Mapping[str, Any]
    config: Any

    def differing(self, recorded: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The names in which recorded values differ from these → both values; None stands for a missing one."""
        there, here = self._completed(recorded), self.values
        return {
            name: (there.get(name), here.get(name))
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
            # an input missing on one side is no difference: the initial files of a run may have been removed
            and not (name.startswith(INPUTS) and (name in there) != (name in here))
        }

    def difference(self, recorded: Mapping[str, Any], *, may_change: Sequence[str] = ()) -> str | None:
        """The difference in one line: the first name with both values, and the number of others; None if equal.

        ``may_change`` lists names that may differ, with all names below them.
        """
        changes = {name: values for name, values in self.differing(recorded).items() if not is_below(name, may_change)}
        if not changes:
            return None
        name, (there, here) = next(iter(changes.items()))
        return f"{name} is {there!r} there and {here!r} now" + (
            f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        )

    def reject_other(
        self, directory: str | Path, recorded: Mapping[str, Any], *, may_change: Sequence[str] = ()
    ) -> None:
        """Raise UserError unless the work in ``directory`` with these recorded values belongs to this run."""
        if difference := self.difference(recorded, may_change=may_change):
            raise UserError(f"output: {directory} holds another run: {difference}; choose another output or remove it")

    def _completed(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        kind: type = type(self.config)
        others = {name: value for name, value in recorded.items() if name.startswith(INPUTS) or name == "version"}
        settings = with_defaults(nest({name: recorded[name] for name in recorded.keys() - others.keys()}), kind)
        for name in run_only_fields(kind) & {field.name for field in dataclasses.fields(kind)}:
            settings[name] = to_plain(getattr(self.config, name))
        with contextlib.suppress(UserError):  # of values that are no longer valid, which differ from the run's
            settings = to_plain(from_plain(kind, settings))  # the class derives defaults from other fields
        return redact(result_settings(settings, kind) | others)


def identity(command: str, config: Any, inputs: Mapping[str, Any] | None = None) -> Identity:
    """The identity of a run.

    Args:
        command: for example ``"clips train"``; its version is included.
        config: the run's config, a dataclass whose run-only fields are marked.
        inputs: the run's inputs: name → hash of the content.
    """
    settings = result_settings(to_plain(config), type(config))
    hashes = {f"{INPUTS}{name}": content for name, content in (inputs or {}).items()}
    return Identity(values=redact(settings | hashes) | {"version": version_of(command)}, config=config)


def version_of(command: str) -> int:
    """The version of a command's results (`VERSIONS`)."""
    return VERSIONS.get(command, 1)


def digest(value: Any) -> str:
    """SHA-256 of plain data, in hexadecimal; independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_run(path: Path) -> dict[str, Any] | None:
    """The values in a file with the content `run_text`; None if it does not exist, UserError if it is invalid."""
    try:
        recorded = safe_json_loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove {path.parent} to start from scratch") from None
    if not isinstance(recorded, dict):
        raise UserError(f"{path}: expected an object; remove {path.parent} to start from scratch")
    return recorded


def run_text(run: Identity) -> str:
    """An identity as `read_run` reads it."""
    return json.dumps(run.values, indent=1, ensure_ascii=False) + "\n"


def is_below(name: str, fields: Iterable[str]) -> bool:
    """Whether a dotted name is one of the fields, or below one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


@functools.cache
def run_only_fields(config_class: type) -> frozenset[str]:
    """Dotted names of the marked fields; those of list items are like ``data.sources[].cache_dir``."""

    def configs_in(hint: Any, mark: str = "") -> Iterator[tuple[type, str]]:
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield hint, mark
        for part in typing.get_args(hint):
            yield from configs_in(part, "[]" if typing.get_origin(hint) in {list, tuple} else mark)

    hints, names = typing.get_type_hints(config_class), set()
    for field in dataclasses.fields(config_class):
        if field.metadata.get("run_only"):
            names.add(field.name)
            continue
        for nested, mark in configs_in(hints[field.name]):
            names |= {f"{field.name}{mark}.{name}" for name in run_only_fields(nested)}
    return frozenset(names)


def result_settings(values: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """Dotted names and values of the settings that the result depends on.

    Args:
        values: a config as plain data (`clips.typed_data.to_plain`), current or recorded.
        config_class: class with the marked fields.
    """
    run_only = run_only_fields(config_class)

    def drop_from_items(value: Any, prefix: str) -> Any:
        if isinstance(value, list | tuple):
            return [drop_from_items(item, prefix) for item in value]
        if isinstance(value, Mapping):
            return {key: item for key, item in value.items() if f"{prefix}{key}" not in run_only}
        return value

    settings = {name: value for name, value in flatten(values) if not is_below(name, run_only)}
    return {name: drop_from_items(value, f"{name}[].") for name, value in settings.items()}


# ---------------------------------------------------------------- contents of files

FileStamp = tuple[int, int, int, int]
"""Size, modification time, inode, change time (ns)."""
_SETTLED_NS = 2_000_000_000
"""A file changed more recently is not remembered: with a file system's coarse clock, another change may be unseen."""
_WHOLE_BYTES, _MANY_FILES, _END_BYTES = 1e9, 2048, 1 << 16  # see `sampled_hash`
_MANY_BYTES = 10e9  # reading them takes so long that the user is told


def cache_directory(kind: str) -> Path:
    """``clips/KIND`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clips" / kind


def file_stamp(path: str | Path) -> FileStamp:
    """What changes with a file's content; equal stamps mean equal contents.

    Size and modification time are not enough: ``rsync --times`` and ``cp -p`` set the time of the file that they copy.
    No program can set the change time.
    """
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def file_stamps(path: Path) -> tuple[tuple[str, FileStamp], ...]:
    """Name and stamp of all files there, to detect changes."""
    files = walk_files(path) if path.is_dir() else [path] if path.exists() else []
    return tuple(sorted((str(file), file_stamp(file)) for file in files if file.is_file()))


def walk_files(root: Path) -> list[Path]:
    """All files below a directory, those behind symlinked directories included; a circle of these ends."""
    files: list[Path] = []
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(below) if real not in seen else []
        files += [Path(folder, name) for name in sorted(names) if real not in seen]
        seen.add(real)
    return files


def file_hash(path: str | Path) -> str:
    """SHA-256 of one file's content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def sampled_hash(files: Iterable[str | Path]) -> str:
    """A hash of files' contents: of more than 1 GB, of their sizes and of 64 KB at both ends; empty for very many.

    Members of a tar are padded, so that a shard with other captions often has the same size.
    """
    paths = [Path(file) for file in files]
    if not paths or len(paths) > _MANY_FILES:
        return ""
    sizes = [path.stat().st_size for path in paths]
    if sum(sizes) <= _WHOLE_BYTES:
        return digest([*content_hashes(paths).values()])
    hashes = []
    for path, size in zip(paths, sizes, strict=True):
        with path.open("rb") as stream:
            start = stream.read(_END_BYTES)
            stream.seek(max(0, size - _END_BYTES))
            hashes.append([size, hashlib.sha256(start + stream.read(_END_BYTES)).hexdigest()])
    return digest(hashes)


def content_hashes(files: Iterable[str | Path], known: Mapping[Path, str] | None = None) -> dict[Path, str]:
    """SHA-256 of each file's content, in the given order; files with a stamp in the user's cache are not read.

    Those ``known``, of files hashed while they were written, enter the cache.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    paths = [Path(file) for file in files]
    memories: dict[Path, dict[str, list[int | str]]] = {}  # directory → file name → its stamp and hash
    for parent in {path.parent for path in paths}:
        memories[parent] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # missing or damaged
            stored = json.loads(_memory_path(parent).read_bytes())
            memories[parent] = {name: list(known) for name, known in stored.items()}
    stamps = dict[Path, FileStamp]()
    for path in paths:
        try:
            stamps[path] = file_stamp(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    known = known or {}
    unread = [
        path
        for path in stamps
        if path not in known and memories[path.parent].get(path.name, [])[:-1] != [*stamps[path]]
    ]
    size = sum(stamps[path][0] for path in unread)
    if size > _MANY_BYTES:
        print(f"hashing {size / 1e9:,.0f} GB in {len(unread):,} files, once for each content", file=sys.stderr)
    hashes, changed = dict[Path, str](), set[Path]()
    for path, stamp in stamps.items():
        remembered = memories[path.parent].get(path.name, [])
        if remembered[:-1] == [*stamp]:
            hashes[path] = str(remembered[-1])
            continue
        started = time.time_ns()
        hashes[path] = known[path] if path in known else file_hash(path)
        if started - stamp[-1] > _SETTLED_NS:
            memories[path.parent][path.name] = [*stamp, hashes[path]]
            changed.add(path.parent)
    for parent in changed:
        with contextlib.suppress(OSError):  # without a writable cache, files are read each time
            memory = _memory_path(parent)
            memory.parent.mkdir(parents=True, exist_ok=True)
            partial = memory.with_name(f".{memory.name}.{uuid.uuid4().hex}.partial")
            partial.write_text(json.dumps(memories[parent]), encoding="utf-8")
            partial.replace(memory)
    return hashes


def _memory_path(directory: Path) -> Path:
    status = directory.stat()  # its inode, because artifacts are hashed in a temporary directory, which is renamed
    key = hashlib.sha256(f"{status.st_dev} {status.st_ino}".encode()).hexdigest()
    return cache_directory("hashes") / key[:2] / f"{key}.json"
