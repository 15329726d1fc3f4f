"""Directories that stages hand to each other: written whole or not at all, with a manifest.

An artifact is a directory in the format of its ecosystem (open_clip hub layout, transformers layout,
WebDataset shards) plus ``manifest.json``, which says what it is and what it was made from.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clips.commandline import plain
from clips.errors import UserError

MANIFEST = "manifest.json"
# How an artifact came to be, told for people and reports: not part of what it is, so not of its hash.
RECORDS = frozenset({MANIFEST, "README.md", "config.yaml", "metrics.jsonl", "summary.json"})
_LIBRARIES = ("torch", "transformers", "deepspeed", "open_clip_torch", "timm", "lmms-eval", "datasets", "peft")


@contextlib.contextmanager
def artifact_directory(path: str | Path) -> Iterator[Path]:
    """A fresh directory beside ``path`` that replaces it when the block ends well, and vanishes when it fails."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    if target.exists() and not target.is_dir():
        raise UserError(f"{path}: a file is in the way; expected a directory to write")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise UserError(f"{path}: cannot write a directory here ({error.strerror})") from None
    try:
        yield partial
        if target.is_dir():
            shutil.rmtree(target)
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def added_files(directory: str | Path) -> Iterator[Path]:
    """A fresh directory whose files move into ``directory`` when the block ends well, the manifest last."""
    target = Path(directory)
    with artifact_directory(target / ".added") as partial:
        yield partial
    for path in sorted((target / ".added").iterdir(), key=lambda path: path.name == MANIFEST):
        path.replace(target / path.name)
    (target / ".added").rmdir()


def write_file(path: str | Path, text: str) -> None:
    """Write ``text`` so that a crash leaves either the old file or the new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_manifest(
    directory: Path,
    *,
    kind: str,
    config: Any,
    seed: int | None = None,
    data: Mapping[str, Any] | None = None,
    parents: Mapping[str, str | Path] | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Describe the artifact in ``directory`` and return the manifest.

    Args:
        directory: the artifact, all its other files already written.
        kind: ``"scenes"``, ``"encoder"``, ``"llm"`` or ``"llava"``.
        config: the resolved config of the run.
        seed: the seed of the run.
        data: what was read that is not an artifact of ours: name → description (path, hash, counts).
        parents: artifacts that this one was made from: name → directory. Their hashes are recorded.
        details: anything else worth keeping, for instance ``samples_seen`` or ``seconds``.
    """
    manifest = {
        "kind": kind,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": plain(config),
        "seed": seed,
        "data": plain(data or {}),
        "parents": {name: {"path": str(path), "hash": directory_hash(path)} for name, path in (parents or {}).items()},
        **plain(details),
        "versions": versions(),
        "git": git_state(),
        "hash": directory_hash(directory, recorded=False),
    }
    write_file(directory / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
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
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the directory was not written by this suite, or not completely") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: expected an object")
    return manifest


def directory_hash(directory: str | Path, *, recorded: bool = True) -> str:
    """SHA-256 over the names and contents of the files in ``directory``, RECORDS and hidden files left out.

    Args:
        directory: any directory; a single file is hashed alone.
        recorded: take the hash that the manifest records, if there is a manifest, instead of reading all files.
    """
    root = Path(directory)
    if not root.exists():
        raise UserError(f"{directory}: no such file or directory")
    if recorded and (root / MANIFEST).is_file():
        known = read_manifest(root).get("hash")
        if known:
            return str(known)
    digest = hashlib.sha256()
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        name = path.relative_to(root).as_posix() if path != root else path.name
        if name in RECORDS or any(part.startswith(".") for part in Path(name).parts):
            continue
        digest.update(f"{name}\0{file_hash(path)}\0".encode())
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of one file's content."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def versions() -> dict[str, str]:
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


def say(message: str) -> None:
    """One plain line to standard error: what a command is doing, for people and log files alike."""
    print(message, file=sys.stderr, flush=True)
