"""Artifacts: directories that stages pass to each other, written atomically, with a manifest.

An artifact is a directory in the format of its ecosystem (open_clip hub layout, transformers layout, WebDataset shards)
plus ``manifest.json``, which records its type and inputs.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clips.core.identity import Identity, reject_other_run
from clips.errors import UserError
from clips.jsontext import safe_json_loads
from clips.redaction import redact
from clips.sanitize import strip_control_chars
from clips.serialization import to_plain

MANIFEST = "manifest.json"
UUID_PATTERN = "[0-9a-f]{32}"
"""Pattern of the names that `partial_beside` makes."""
STAGES_DIR = ".stages"
"""Suffix of an encoder's name: the directory with the outputs of its earlier training stages."""
# The history of an artifact, for readers and reports: not part of its content, so not of its hash.
HASH_EXCLUDED_FILES = frozenset({MANIFEST, "README.md", "config.yaml", "metrics.jsonl", "summary.json"})
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_LIBRARIES = ("torch", "transformers", "deepspeed", "open_clip_torch", "timm", "lmms-eval", "datasets", "peft")


@contextlib.contextmanager
def atomic_artifact_dir(path: str | Path, *, kind: str | None = None) -> Iterator[Path]:
    """A fresh directory next to ``path`` that replaces it when the block succeeds, and is removed when it fails.

    Args:
        path: the directory to write; only an earlier untrained artifact is replaced.
        kind: the allowed type of the earlier artifact, so that others are rejected before the work; by default the new
            type.
    """
    with write_errors_as_user_errors(path):
        check_overwritable(path, kind)
        target = Path(path).resolve()
        partial, replaced = (target.with_name(f".{target.name}.{end}") for end in ("partial", "replaced"))
        _settle(target, replaced)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
        with write_errors_as_user_errors(path):
            check_overwritable(path, kind or _kind(partial))
            open_to_umask(partial)
            if target.is_dir():
                target.replace(replaced)
            partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        _settle(target, replaced)


def open_to_umask(root: Path) -> None:
    """Give files that a library created for their owner alone the permissions that the umask gives new files.

    safetensors and `tempfile` write with mode 0600.

    Args:
        root: a file, or a directory tree.
    """
    files = [root] if root.is_file() else [path for path in root.rglob("*") if not path.is_symlink() and path.is_file()]
    for path in files:
        if stat.S_IMODE(path.stat().st_mode) == 0o600:
            path.chmod(_usual_mode(path.parent))


@functools.cache
def _usual_mode(directory: Path) -> int:
    """The permissions of a new file; the umask itself cannot be read without setting it for all threads."""
    probe = temp_path_for(directory / "umask")
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def _settle(target: Path, replaced: Path) -> None:
    """End a replacement: remove the old artifact, or restore it if nothing replaced it."""
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.is_dir():
        replaced.replace(target)


def check_overwritable(path: str | Path, kind: str | None = None, *, trained: bool = False) -> None:
    """Reject a path where an artifact would destroy anything but an earlier one.

    Args:
        path: path of the artifact.
        kind: required type of an earlier artifact; any type if not given.
        trained: whether it may be the output of a training, or of an export from one, which may have taken weeks.

    Raises:
        UserError: the current directory or one above it, a file, or a directory with other content.
    """
    target = Path(path).resolve()
    if target in {Path.cwd(), *Path.cwd().parents} or target.is_mount():
        raise UserError(f"'{path}': expected a directory to write, not the current one, one above it or a mount point")
    if target.exists() and not target.is_dir():
        raise UserError(f"{path}: a file is in the way; expected a directory to write")
    if target.is_dir() and any(target.iterdir()) and (_kind(target) is None or kind not in (None, _kind(target))):
        what = f"of kind '{kind}'" if kind else "with a manifest of this suite"
        raise UserError(f"{path}: not empty, and not an artifact {what}; choose another directory or remove it")
    if not trained and (target / MANIFEST).is_file() and read_manifest(target).get("stages"):
        raise UserError(f"{path}: holds trained weights; choose another directory or remove it")


def _kind(directory: Path) -> str | None:
    """The type in the manifest of ``directory``; None without a manifest of this suite."""
    try:
        manifest = read_manifest(directory)
    except UserError:
        return None
    return manifest.get("kind") if "hash" in manifest else None


def is_finished(output: str | Path, kind: str, run: Identity, *, work: Path | None = None) -> bool:
    """Whether the run of this identity is already finished in ``output``.

    Args:
        output: the run's directory, existing or not.
        kind: type of the run's artifact.
        run: the identity of the run.
        work: a path within ``output`` that exists while it holds unfinished work of this command.

    Raises:
        UserError: the directory holds something else, or the work of another run; the message names the difference.
    """
    with write_errors_as_user_errors(output):
        finished = (Path(output) / MANIFEST).is_file()
        try:
            check_overwritable(output, kind, trained=True)
        except UserError:
            if finished or work is None or not work.exists():  # another process may have started just now
                raise
    if finished:
        recorded = read_manifest(output).get("identity")
        reject_other_run(output, recorded if isinstance(recorded, Mapping) else {}, run)
    return finished


@contextlib.contextmanager
def atomic_update_dir(directory: str | Path) -> Iterator[Path]:
    """A fresh directory whose files move into ``directory`` when the block ends well, the manifest last."""
    target = Path(directory)
    with atomic_artifact_dir(target / ".added") as partial:
        yield partial
    with write_errors_as_user_errors(directory):
        for path in sorted((target / ".added").iterdir(), key=lambda path: path.name == MANIFEST):
            path.replace(target / path.name)
        (target / ".added").rmdir()


def lexical_abspath(path: Path) -> Path:
    """A path from the root, without ``..``, by its words alone: links are not followed."""
    return Path(os.path.normpath(path.absolute()))


def temp_path_for(path: Path) -> Path:
    """A hidden, globally unique temporary name for ``path``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write ``content``, a text as UTF-8, so that a crash leaves either the old file or the new one, never a part."""
    with atomic_output_path(Path(path)) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_output_path(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path``, which replaces ``path`` when the block succeeds."""
    partial = temp_path_for(path)
    with write_errors_as_user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            open_to_umask(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def writable_directory(path: str | Path) -> Path:
    """``path``, created if missing, before any work whose result could not be stored there.

    Raises:
        UserError: it cannot be created or written.
    """
    directory = Path(path)
    with write_errors_as_user_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()  # the only reliable test: permissions are meaningless in /proc
    return directory


@contextlib.contextmanager
def write_errors_as_user_errors(path: str | Path) -> Iterator[None]:
    """Report in one line why the system does not let this block write at ``path``.

    A full disk is not reported here: the command itself reports that error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise UserError(f"{path}: cannot write here ({error.strerror or error})") from None


def write_manifest(
    directory: Path,
    *,
    kind: str,
    config: Any,
    seed: int | None = None,
    data: Mapping[str, Any] | None = None,
    parents: Mapping[str, str | Path] | None = None,
    known: Mapping[str, Any] | None = None,
    identity: Identity | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Describe the artifact in ``directory`` and return the manifest.

    Args:
        directory: the artifact, all its other files already written.
        kind: ``"scenes"``, ``"captions"``, ``"encoder"``, ``"llm"``, ``"llava"``, or the format of an encoder for
            another library.
        config: the resolved config of the run.
        seed: the seed of the run.
        data: inputs that are not artifacts: name → description (path, hash, counts).
        parents: input artifacts: name → directory. Their hashes are recorded.
        known: file name → size, modified_ns and hash, for files hashed while writing.
        identity: of the run that produced it (`clips.core.identity`); `is_finished` compares it.
        details: further facts, for instance ``samples_seen`` or ``seconds``.
    """
    files = _describe_files(directory, known=known or {})
    told = redact({"config": to_plain(config), "data": to_plain(data or {}), **to_plain(details)})
    manifest = {
        "kind": kind,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": told.pop("config"),
        "seed": seed,
        "data": told.pop("data"),
        "parents": {
            name: {"path": redact(str(path)), "hash": directory_hash(path)} for name, path in (parents or {}).items()
        },
        **told,
        **({} if identity is None else {"identity": identity}),
        "versions": library_versions(),
        "git": git_state(),
        "hash": _digest(files),
        "files": files,
    }
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        UserError: the directory or its manifest is missing or unreadable.
    """
    path = Path(directory) / MANIFEST
    if not Path(directory).is_dir():
        raise UserError(f"{directory}: no such directory")
    try:
        manifest = safe_json_loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the directory was not written by this suite, or not completely") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: expected an object")
    return manifest


def directory_hash(directory: str | Path, *, recorded: bool = True) -> str:
    """SHA-256 over the names and contents of the files in ``directory``, RECORDS and hidden files omitted.

    Args:
        directory: any directory; a single file is hashed alone.
        recorded: read only the files whose size or time of change is not the one that the manifest records.
    """
    root = Path(directory)
    if not root.exists():
        raise UserError(f"{directory}: no such file or directory")
    known = read_manifest(root).get("files") if recorded and (root / MANIFEST).is_file() else None
    return _digest(_describe_files(root, known=known if isinstance(known, dict) else {}))


def _digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256("".join(f"{name}\0{file['hash']}\0" for name, file in files.items()).encode()).hexdigest()


def _describe_files(root: Path, *, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Size, time of change and hash of each file by its name; a hash is ``known`` where size and time are the same."""
    described = {}
    for path in [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix() if path != root else path.name
        if name in HASH_EXCLUDED_FILES or any(part.startswith(".") for part in Path(name).parts):
            continue
        status, before = path.stat(), known.get(name)
        stamp: dict[str, Any] = {"size": status.st_size, "modified_ns": status.st_mtime_ns}
        if isinstance(before, dict) and stamp.items() <= before.items() and "hash" in before:
            described[name] = stamp | {"hash": before["hash"]}
        else:
            described[name] = stamp | {"hash": file_hash(path)}
    return described


def file_hash(path: str | Path) -> str:
    """SHA-256 of one file's content; UserError where it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version(), "clips-suite": _version("clips-suite")}
    return found | {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has uncommitted changes; empty outside a git checkout."""
    try:
        run = functools.partial(
            subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20
        )
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        return {"commit": commit, "dirty": bool(run(["git", "status", "--porcelain"]).stdout.strip())}
    except (OSError, subprocess.SubprocessError):
        return {}


def log_info(message: str) -> None:
    """One plain log line to standard error, for terminals and log files alike."""
    print(strip_control_chars(redact(message)), file=sys.stderr, flush=True)
