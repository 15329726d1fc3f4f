"""Artifacts: directories that are complete, replaced at once, and described by a manifest.

An artifact is a directory in its ecosystem's format (open_clip, transformers, WebDataset) plus ``manifest.json``.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clips.core import durable
from clips.core.durable import atomic_write, open_to_umask, reject_files, write_errors_as_user_errors
from clips.core.identity import INPUTS, Identity, content_hashes, file_hash, walk_files
from clips.errors import UserError
from clips.safe_text import redact
from clips.text_files import safe_json_loads
from clips.typed_data import to_plain

MANIFEST = "manifest.json"
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
    reject_files(path)
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
        parents: input artifacts: name → directory. Their hashes are recorded: those of the run's ``inputs.NAME`` if it
            has some, as a directory may have changed or gone since the run began.
        known: file name → size, modified_ns and hash, for files hashed while writing.
        identity: values of the run's `clips.core.identity.Identity`; `check_finished` compares them.
        details: further entries, for instance ``samples_seen`` or ``seconds``.
    """
    files = _describe_files(directory, known=known or {})
    hashes = {
        name: {"path": str(path), "hash": (identity or {}).get(f"{INPUTS}{name}") or directory_hash(path)}
        for name, path in (parents or {}).items()
    }
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


def directory_hash(directory: str | Path, *, follow_links: bool = False) -> str:
    """SHA-256 over names and contents of the files in ``directory``, except `HASH_EXCLUDED_FILES` and hidden files.

    The hashes in its manifest do not count: a file may have been replaced, and given the old modification time. Data
    may be behind symlinked directories (``follow_links``), models are not.
    """
    root = Path(directory)
    if not root.exists():
        raise UserError(f"{directory}: no such file or directory")
    return _digest(_describe_files(root, known={}, follow_links=follow_links))


def _digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256("".join(f"{name}\0{file['hash']}\0" for name, file in files.items()).encode()).hexdigest()


def _describe_files(root: Path, *, known: Mapping[str, Any], follow_links: bool = False) -> dict[str, dict[str, Any]]:
    described: dict[str, dict[str, Any]] = {}
    paths: dict[str, Path] = {}
    stated: dict[Path, str] = {}
    below = walk_files(root) if follow_links else root.rglob("*")
    for path in [root] if root.is_file() else sorted(path for path in below if path.is_file()):
        name = path.relative_to(root).as_posix() if path != root else path.name
        is_excluded = name in HASH_EXCLUDED_FILES or any(part.startswith(".") for part in Path(name).parts)
        if is_excluded and path != root:  # a file that is asked for counts, whatever its name
            continue
        status, recorded = path.stat(), known.get(name, {})
        described[name] = {"size": status.st_size, "modified_ns": status.st_mtime_ns}
        paths[name] = path
        if described[name].items() <= recorded.items():  # hashed while it was written
            stated[path] = recorded["hash"]
    hashes = content_hashes(paths.values(), known=stated)
    for name, path in paths.items():
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
