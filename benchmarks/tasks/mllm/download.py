"""Bring the data of MLLM benchmarks from the hub, for a machine that cannot reach it.

    clips-bench download pope,gqa --output data            # where there is a network; then copy the directory
    clips-bench run … --benchmarks '[{name: pope, data: data}]'

Of each data set come the files of the configuration that the task reads, at one commit, which is kept: the same command
goes on where it was interrupted, and brings damaged files anew, from that commit.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tasks.benchmark import Benchmark
from benchmarks.tasks.mllm.download_record import changed_files, read_record, write_record
from benchmarks.tasks.mllm.offline_tasks import dataset_config_name
from benchmarks.tasks.registry import get_benchmark
from clips.core.artifact import file_hash, log_info, write_errors_as_user_errors
from clips.errors import UserError, error_reason


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Bring the data of MLLM benchmarks from the Hugging Face hub.

    Args:
        tasks: names of benchmarks (`clips-bench list`) or of lmms-eval's tasks, several joined by commas.
        output: the directory to fill, later the benchmarks' ``data``.
        update: take the newest commit where an earlier fetch recorded one.
    """

    tasks: str
    output: str
    update: bool = False


def run_download(config: DownloadConfig) -> None:
    """Fetch what the tasks need.

    Raises:
        UserError: an unknown task, one whose data are not on the hub by its definition, a hub that cannot be reached,
            too little room, a file that arrives damaged.
    """
    wanted: dict[str, list[Benchmark]] = {}
    for task in filter(None, (name.strip() for name in config.tasks.split(","))):
        entry = get_benchmark(task)
        if not entry.dataset:
            raise UserError(f"tasks: '{task}' names no data set on the hub (expected a task of lmms-eval's that does)")
        wanted.setdefault(entry.dataset, []).append(entry)
    if not wanted:
        raise UserError("tasks: expected at least one")
    root = Path(config.output)
    with write_errors_as_user_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    for name, entries in wanted.items():
        _fetch(root, name, entries, update=config.update)


def _fetch(root: Path, name: str, entries: Sequence[Benchmark], *, update: bool) -> None:
    record = read_record(root)
    known = record.get(name, {"revision": None, "files": {}})
    info = _described(name, None if update else known["revision"])
    same = info.sha == known["revision"]
    if same:
        for path in changed_files(root, name, known["files"]):
            _forget(root / name, path)
    card = _download(name, info.sha, root / name, ["README.md"]) / "README.md"
    configurations = {each for entry in entries for each in (dataset_config_name(entry.task), *entry.also)}
    patterns = _patterns(card, configurations)
    files = {each.rfilename: each for each in info.siblings if _matches(each.rfilename, patterns)}
    missing = [file for file in files if not (root / name / file).is_file()]
    size = sum(files[file].size or 0 for file in missing)
    if size > (free := shutil.disk_usage(root).free):
        raise UserError(f"{root}: {name} needs {size / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free")
    log_info(f"{name}: {len(files)} files at {info.sha[:12]}, {len(missing)} to fetch ({size / 1e6:,.0f} MB)")
    _download(name, info.sha, root / name, sorted(files))
    hashes = {file: _checked(root / name, file, files[file]) for file in sorted(files)}
    write_record(root, record | {name: {"revision": info.sha, "files": (known["files"] if same else {}) | hashes}})


def _described(name: str, revision: str | None) -> Any:
    """The hub's description of a data set at a commit: its files with their sizes and hashes."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision, files_metadata=True)
    except Exception as error:
        raise UserError(f"{name}: cannot be had from the hub ({error_reason(error)})") from None


def _download(name: str, revision: str, folder: Path, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            name, repo_type="dataset", revision=revision, local_dir=folder, allow_patterns=list(map(_literal, files))
        )
    except Exception as error:
        raise UserError(
            f"{name}: cannot be had from the hub ({error_reason(error)}); the same command goes on"
        ) from None
    return folder


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _patterns(card: Path, names: set[str | None]) -> list[str]:
    """Patterns of the files of some configurations, as the data set's card lists them; of all files where it does not.

    The card is YAML between two lines of dashes, ``configs: [{config_name, data_files: [{split, path}]}]``.
    """
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    parts = text.split("---\n", 2)
    try:
        content = yaml.safe_load(parts[1]) if text.startswith("---\n") and len(parts) == 3 else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        content = {}
    listed = content.get("configs") if isinstance(content, Mapping) else None
    if not isinstance(listed, list):
        return ["*"]
    by_name = {each["config_name"]: _paths(each.get("data_files")) for each in listed if "config_name" in each}
    default = "default" if "default" in by_name else next(iter(by_name), None)
    chosen = [by_name.get(name or default) for name in names]
    return ["README.md", *(path for paths in chosen for path in paths or [])] if all(chosen) else ["*"]


def _paths(data_files: Any) -> list[str]:
    """The paths in any of the forms that the hub allows for ``data_files``."""
    if isinstance(data_files, str):
        return [data_files]
    if isinstance(data_files, Mapping):
        return _paths(data_files["path"]) if "path" in data_files else _paths(list(data_files.values()))
    return [path for each in data_files or [] for path in _paths(each)]


def _matches(file: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)


def _checked(folder: Path, file: str, described: Any) -> str:
    """SHA-256 of a fetched file, which must be the one that the hub describes."""
    path = folder / file
    found = file_hash(path)
    if described.lfs is not None:
        whole = found == described.lfs.sha256
    else:
        content = path.read_bytes()  # small: whatever is large is stored by its SHA-256
        whole = described.blob_id in (None, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
    if not whole:
        _forget(folder, path)
        raise UserError(f"{path}: arrived damaged and was removed (its hash is not the hub's); fetch again")
    return found


def _forget(folder: Path, path: Path) -> None:
    """Remove a file and what huggingface_hub remembers of it, so that it is fetched anew."""
    path.unlink(missing_ok=True)
    remembered = folder / ".cache/huggingface/download" / path.relative_to(folder)
    remembered.with_name(f"{remembered.name}.metadata").unlink(missing_ok=True)
