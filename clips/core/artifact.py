"""What makes an output complete and believed: atomic writes, one run at a time, and the manifest of an artifact.

An artifact is a directory in its ecosystem's format (open_clip, transformers, WebDataset) plus ``manifest.json``.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
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

from clips.core import durable
from clips.core.identity import Identity, content_hashes, file_hash
from clips.errors import UserError
from clips.safe_text import redact, strip_control_chars
from clips.text_files import safe_json_loads
from clips.typed_data import to_plain

MANIFEST = "manifest.json"
UUID_PATTERN = "[0-9a-f]{32}"
"""Pattern of the unique part in the names of `temp_path_for`."""
STAGES_DIR = ".stages"
"""Suffix of an encoder's name: the directory with the outputs of its earlier training stages."""
HASH_EXCLUDED_FILES = frozenset({MANIFEST, "README.md", "config.yaml", "metrics.jsonl", "summary.json"})
"""Files about the history of an artifact, which are not part of its content."""
_LIBRARIES = (
    *("torch", "torchvision", "pillow", "transformers", "tokenizers", "ftfy", "deepspeed", "open_clip_torch", "timm"),
    *("lmms-eval", "datasets", "peft"),
)


@contextlib.contextmanager
def atomic_artifact_dir(path: str | Path, *, kind: str | None = None) -> Iterator[Path]:
    """A fresh directory next to ``path`` that replaces it when the block succeeds, and is removed when it fails.

    The earlier artifact is deleted only when the new one is on the disk.

    Args:
        path: the directory to write; it may only contain an earlier untrained artifact.
        kind: the type that the earlier artifact must have; by default the new one's, checked at the end.
    """
    with write_errors_as_user_errors(path):
        check_overwritable(path, kind)
        target = Path(path).resolve()
        partial, replaced = (target.with_name(f".{target.name}.{end}") for end in ("partial", "replaced"))
        _end_replacement(target, replaced)
        shutil.rmtree(partial, ignore_errors=True)
        durable.make_directory(partial)
    try:
        yield partial
        with write_errors_as_user_errors(path):
            check_overwritable(path, kind or _kind(partial))
            open_to_umask(partial)
            durable.sync_tree(partial)
            if target.is_dir():
                target.replace(replaced)
            partial.replace(target)
            durable.sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        _end_replacement(target, replaced)


def open_to_umask(root: Path) -> None:
    """Set the umask's permissions on a file, or all files below a directory, if their mode is 0600.

    safetensors and `tempfile` write with that mode.
    """
    files = [root] if root.is_file() else [path for path in root.rglob("*") if not path.is_symlink() and path.is_file()]
    for path in files:
        if stat.S_IMODE(path.stat().st_mode) == 0o600:
            path.chmod(_default_mode(path.parent))


@functools.cache
def _default_mode(directory: Path) -> int:
    # Of a file, because the umask cannot be read without setting it for all threads.
    probe = temp_path_for(directory / "umask")
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def _end_replacement(target: Path, replaced: Path) -> None:
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.is_dir():  # nothing replaced it
        replaced.replace(target)


def check_overwritable(path: str | Path, kind: str | None = None, *, trained: bool = False) -> None:
    """Raise UserError for a path where an artifact would overwrite anything except an earlier one of this ``kind``.

    ``trained`` says whether that one may contain trained weights, which may have taken weeks.
    """
    target = Path(path).resolve()
    if target in {Path.cwd(), *Path.cwd().parents} or target.is_mount():
        raise UserError(
            f"'{path}': expected a directory to write, not the current one, a parent of it or a mount point"
        )
    _reject_files(path)
    if target.is_dir() and any(target.iterdir()) and (_kind(target) is None or kind not in (None, _kind(target))):
        what = f"of kind '{kind}'" if kind else "with a manifest of this suite"
        reason = ""
        if (target / MANIFEST).is_file():  # which may have lost its content in a power cut
            try:
                read_manifest(target)
            except UserError as error:
                reason = f" ({str(error).removeprefix(f'{target}/')})"
        raise UserError(f"{path}: not empty, and not an artifact {what}{reason}; choose another directory")
    if not trained and (target / MANIFEST).is_file() and read_manifest(target).get("stages"):
        raise UserError(f"{path}: holds trained weights; choose another directory or remove it")


def check_free(path: str | Path) -> None:
    """Raise UserError for a path that exists, other than an empty directory: a command that resumes nothing."""
    check_overwritable(path, trained=True)
    if Path(path).is_dir() and any(Path(path).iterdir()):
        raise UserError(f"{path}: exists already; choose another output or remove it")


def _reject_files(path: str | Path) -> None:
    for place in (Path(path), *Path(path).parents):
        if place.is_file():
            raise UserError(f"{place}: is a file; expected a directory to write")


def _kind(directory: Path) -> str | None:
    try:
        manifest = read_manifest(directory)
    except UserError:
        return None
    return manifest.get("kind") if "hash" in manifest else None  # without one it is another program's


def check_finished(
    output: str | Path, kind: str, run: Identity, *, work: Path | None = None, contents: bool = True
) -> bool:
    """Check that ``output`` is free or has the run of this identity, and return whether the run is finished.

    Args:
        output: the run's directory, which may not exist.
        kind: type of its artifact.
        run: its identity.
        work: a path in ``output`` that exists while it contains unfinished work of this command.
        contents: whether the files of a finished run are read, and not only their sizes compared.

    Raises:
        UserError: with the difference to another run there, or the file of a finished run that is missing or damaged.
    """
    finished = (Path(output) / MANIFEST).is_file()
    with write_errors_as_user_errors(output):
        try:
            check_overwritable(output, kind, trained=True)
        except UserError:
            if finished or work is None or not work.exists():  # if it exists, another process has just started
                raise
    if finished:
        manifest = read_manifest(output)
        recorded = manifest.get("identity")
        run.reject_other(output, recorded if isinstance(recorded, Mapping) else {})
        if damage := find_damage(output, manifest, contents=contents):
            raise UserError(f"{damage}; restore the file from a copy, or choose another output")
    return finished


def find_damage(directory: str | Path, manifest: Mapping[str, Any], *, contents: bool = True) -> str | None:
    """The first file of an artifact that is missing or not as the manifest describes it, and how; None if all are.

    Without ``contents`` only sizes are compared.
    """
    files = manifest.get("files")
    for name, recorded in files.items() if isinstance(files, Mapping) else ():
        path, known = Path(directory) / name, recorded if isinstance(recorded, Mapping) else {}
        if not path.is_file():
            return f"{path}: missing, but {MANIFEST} lists it"
        if (size := path.stat().st_size) != known.get("size", size):
            return f"{path}: has {size:,} bytes, but {known['size']:,} according to {MANIFEST}"
        # read, not remembered by its stamp: a power cut changes contents without one
        if contents and "hash" in known and file_hash(path) != known["hash"]:
            return f"{path}: has another content than {MANIFEST} states (SHA-256)"
    return None


@contextlib.contextmanager
def atomic_update_dir(directory: str | Path) -> Iterator[Path]:
    """A fresh directory whose files move into ``directory`` when the block succeeds, the manifest last.

    What is in ``directory`` is then on the disk: the manifest when all other files are.
    """
    target = Path(directory)
    with atomic_artifact_dir(target / ".added") as partial:
        yield partial
    with write_errors_as_user_errors(directory):
        for path in sorted((target / ".added").iterdir(), key=lambda path: path.name == MANIFEST):
            if path.name == MANIFEST:
                durable.sync_tree(target)
            path.replace(target / path.name)
        (target / ".added").rmdir()
        for folder in (target, target.absolute().parent):
            durable.sync(folder)


def lexical_abspath(path: Path) -> Path:
    """An absolute path without ``..``; symlinks are not followed."""
    return Path(os.path.normpath(path.absolute()))


def temp_path_for(path: Path) -> Path:
    """A hidden, globally unique temporary name for ``path``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write ``content``, a string as UTF-8, so that a crash or power cut leaves either the old or the new file."""
    with atomic_output_path(Path(path)) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_output_path(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path``, which replaces ``path`` when the block succeeds, and is then on the disk."""
    partial = temp_path_for(path)
    with write_errors_as_user_errors(path):
        durable.make_directory(path.parent)
        try:
            yield partial
            open_to_umask(partial)
            durable.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def writable_directory(path: str | Path) -> Path:
    """``path``, created if missing. Raises UserError if it is not writable, before any work is lost."""
    directory = Path(path)
    with write_errors_as_user_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()  # permissions are no reliable test, for example in /proc
    return directory


@contextlib.contextmanager
def write_errors_as_user_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError into a UserError, except that of a full disk, which `clips.commandline.commands` reports."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        if error.errno in {errno.EEXIST, errno.ENOTDIR}:
            _reject_files(path)
        raise UserError(f"{path}: cannot write here ({error.strerror or error})") from None


_held_locks: set[int] = set()


@contextlib.contextmanager
def lock_output(path: Path, output: str | Path) -> Iterator[None]:
    """Hold the lock of ``output``, which the kernel frees when the process dies; ``path`` is deleted at the end.

    Raises:
        UserError: another run holds the lock, or its file cannot be written.
    """
    while True:
        with write_errors_as_user_errors(output):
            durable.make_directory(path.parent)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"output: another run is writing {output}") from None
        except OSError as error:  # network file systems may be mounted without locks
            log_info(f"{path}: no locks here ({error.strerror}); ensure that no other run writes {output}")
            break
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
        os.close(lock)  # its owner has just ended and deleted it
    _held_locks.add(lock)
    try:
        yield
    finally:
        _held_locks.discard(lock)
        path.unlink(missing_ok=True)
        os.close(lock)


def _close_locks() -> None:
    for lock in _held_locks:
        os.close(lock)
    _held_locks.clear()


# Forked workers outlive a killed process for seconds, in which they would hold its lock.
os.register_at_fork(after_in_child=_close_locks)


def write_manifest(
    directory: Path,
    *,
    kind: str,
    config: Any,
    seed: int | None = None,
    data: Mapping[str, Any] | None = None,
    parents: Mapping[str, str | Path] | None = None,
    known: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Describe the artifact in ``directory``, whose other files are written, and return the manifest.

    Args:
        directory: the artifact.
        kind: ``"scenes"``, ``"captions"``, ``"encoder"``, ``"llm"``, ``"llava"``, or the format of an encoder for
            another library.
        config: the resolved config of the run.
        seed: the seed of the run.
        data: inputs that are not artifacts: name → description (path, hash, counts).
        parents: input artifacts: name → directory. Their hashes are recorded.
        known: file name → size, modified_ns and hash, for files hashed while writing.
        identity: values of the run's `clips.core.identity.Identity`; `check_finished` compares them.
        details: further entries, for instance ``samples_seen`` or ``seconds``.
    """
    files = _describe_files(directory, known=known or {})
    hashes = {name: {"path": str(path), "hash": directory_hash(path)} for name, path in (parents or {}).items()}
    manifest: dict[str, Any] = {
        "kind": kind,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": to_plain(config),
        "seed": seed,
        "data": to_plain(data or {}),
        "parents": hashes,
        **to_plain(details),
        **({} if identity is None else {"identity": identity}),
        "versions": library_versions(),
        "git": git_state(),
        "hash": _digest(files),
        "files": files,
    }
    manifest = redact(manifest)
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of an artifact. Raises UserError if the directory or its manifest is missing or unreadable."""
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


def directory_hash(directory: str | Path) -> str:
    """SHA-256 over names and contents of the files in ``directory``, except `HASH_EXCLUDED_FILES` and hidden files.

    The hashes in its manifest do not count: a file may have been replaced, and given the old modification time.
    """
    root = Path(directory)
    if not root.exists():
        raise UserError(f"{directory}: no such file or directory")
    return _digest(_describe_files(root, known={}))


def _digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256("".join(f"{name}\0{file['hash']}\0" for name, file in files.items()).encode()).hexdigest()


def _describe_files(root: Path, *, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    described: dict[str, dict[str, Any]] = {}
    unknown: dict[str, Path] = {}
    for path in [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix() if path != root else path.name
        if name in HASH_EXCLUDED_FILES or any(part.startswith(".") for part in Path(name).parts):
            continue
        status, recorded = path.stat(), known.get(name, {})
        described[name] = {"size": status.st_size, "modified_ns": status.st_mtime_ns}
        if described[name].items() <= recorded.items():  # hashed while it was written
            described[name]["hash"] = recorded["hash"]
        else:
            unknown[name] = path
    hashes = content_hashes(unknown.values())
    for name, path in unknown.items():
        described[name]["hash"] = hashes[path]
    return described


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for name in ("clips-suite", *_LIBRARIES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has uncommitted changes; empty outside a git checkout."""
    here: dict[str, Any] = {"cwd": Path(__file__).parent, "text": True, "stderr": subprocess.PIPE, "timeout": 20}
    try:
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], **here).strip()
        return {"commit": commit, "dirty": bool(subprocess.check_output(["git", "status", "--porcelain"], **here))}
    except (OSError, subprocess.SubprocessError):
        return {}


def log_info(message: str) -> None:
    """Print one log line to standard error, without control characters and secrets."""
    print(strip_control_chars(redact(message)), file=sys.stderr, flush=True)
