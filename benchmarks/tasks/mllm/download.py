"""Download the data of MLLM benchmarks from the Hub, for use on a machine without network.

    clips-bench download pope,gqa --output data            # with network access; then copy the directory
    clips-bench run … --benchmarks '[{name: pope, data: data}]'

It downloads the files of the configuration that the task reads, at one recorded commit. The same command resumes an
interrupted download and replaces damaged files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tasks.mllm.lmms_task import LmmsTask
from benchmarks.tasks.mllm.offline_tasks import DOWNLOAD_RECORD, changed_files, dataset_config_name, read_record
from benchmarks.tasks.registry import get_benchmark
from clips.core.durable import atomic_write, write_errors_as_user_errors
from clips.core.identity import file_hash
from clips.errors import UserError, error_reason
from clips.safe_text import log_info


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Download the data of MLLM benchmarks from the Hugging Face Hub.

    Args:
        tasks: names of benchmarks (`clips-bench list`) or of lmms-eval's tasks, comma-separated.
        output: the directory to write, later the benchmarks' ``data``.
        update: use the newest commit instead of the recorded one.
    """

    tasks: str
    output: str
    update: bool = False


def run_download(config: DownloadConfig) -> None:
    """Download the data of the tasks.

    Raises:
        UserError: an unknown task, a task whose definition names no Hub dataset, an unreachable Hub, a full disk, a
            damaged file.
    """
    datasets: dict[str, list[LmmsTask]] = {}
    for task in [name for each in config.tasks.split(",") if (name := each.strip())]:
        entry = get_benchmark(task)
        # a task of one's own may name a local directory
        if not isinstance(entry, LmmsTask) or "/" not in entry.dataset:
            raise UserError(f"tasks: '{task}' names no dataset on the Hub (expected an lmms-eval task that does)")
        datasets.setdefault(entry.dataset, []).append(entry)
    if not datasets:
        raise UserError("tasks: expected at least one")
    root = Path(config.output)
    with write_errors_as_user_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    from huggingface_hub import HfApi

    for name, entries in datasets.items():
        record = read_record(root)
        known = record.get(name, {"revision": None, "files": {}})
        try:  # the files with sizes and hashes, at a commit
            info: Any = HfApi().dataset_info(
                name, revision=None if config.update else known["revision"], files_metadata=True
            )
        except Exception as error:
            raise UserError(f"{name}: cannot be downloaded from the Hub ({error_reason(error)})") from None
        same_revision = info.sha == known["revision"]
        for path in changed_files(root, name, known["files"]) if same_revision else ():
            _forget(root / name, path)
        _download(name, info.sha, root / name, ["README.md"])
        configurations = {each for entry in entries for each in (dataset_config_name(entry.task), *entry.also)}
        patterns = _patterns(root / name / "README.md", configurations)
        files = {
            each.rfilename: each
            for each in info.siblings
            if any(fnmatchcase(each.rfilename, glob) for glob in patterns)
        }
        missing = [file for file in files if not (root / name / file).is_file()]
        size = sum(files[file].size or 0 for file in missing)
        if size > (free := shutil.disk_usage(root).free):
            raise UserError(f"{root}: {name} needs {size / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free")
        log_info(f"{name}: {len(files)} files at {info.sha[:12]}, {len(missing)} to download ({size / 1e6:,.0f} MB)")
        _download(name, info.sha, root / name, sorted(files))
        hashes = {file: _file_hash(root / name, file, files[file]) for file in sorted(files)}
        for path in known["files"].keys() - {each.rfilename for each in info.siblings}:  # of the former revision alone
            _forget(root / name, root / name / path)
        record[name] = {"revision": info.sha, "files": (known["files"] if same_revision else {}) | hashes}
        atomic_write(root / DOWNLOAD_RECORD, json.dumps({"datasets": record}, indent=1, sort_keys=True) + "\n")


def _download(name: str, revision: str, folder: Path, files: Sequence[str]) -> None:
    from huggingface_hub import snapshot_download

    # globs that match these names alone
    patterns = ["".join(f"[{each}]" if each in "*?[" else each for each in file) for file in files]
    try:
        snapshot_download(name, repo_type="dataset", revision=revision, local_dir=folder, allow_patterns=patterns)
    except Exception as error:
        raise UserError(
            f"{name}: cannot be downloaded from the Hub ({error_reason(error)}); the same command resumes"
        ) from None


def _patterns(card: Path, names: set[str | None]) -> list[str]:
    """Patterns of the files of some configurations, as the dataset's card lists them, or else of all files.

    The card has ``configs: [{config_name, data_files: [{split, path}]}]``.
    """
    from huggingface_hub import metadata_load

    try:
        content = metadata_load(card) or {}
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        content = {}
    listed = content.get("configs")
    if not isinstance(listed, list):
        return ["*"]
    by_name = {each["config_name"]: _paths(each.get("data_files")) for each in listed if "config_name" in each}
    default = "default" if "default" in by_name else next(iter(by_name), None)
    chosen = [by_name.get(name or default) for name in names]
    return ["README.md", *(path for paths in chosen for path in paths or [])] if all(chosen) else ["*"]


def _paths(data_files: Any) -> list[str]:
    """The paths in any of the Hub's formats of ``data_files``."""
    if isinstance(data_files, str):
        return [data_files]
    if isinstance(data_files, Mapping):
        return _paths(data_files["path"]) if "path" in data_files else _paths(list(data_files.values()))
    return [path for each in data_files or [] for path in _paths(each)]


def _file_hash(folder: Path, file: str, info: Any) -> str:
    """SHA-256 of a downloaded file, which must match the Hub's."""
    path = folder / file
    hashed = file_hash(path)
    if info.lfs is not None:
        matches = hashed == info.lfs.sha256
    else:
        content = path.read_bytes()  # small: large files are stored by their SHA-256
        matches = info.blob_id in (None, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
    if not matches:
        _forget(folder, path)
        raise UserError(f"{path}: damaged download (its hash is not the Hub's), removed; run the command again")
    return hashed


def _forget(folder: Path, path: Path) -> None:
    """Remove a file and huggingface_hub's record of it, so that it is downloaded again."""
    path.unlink(missing_ok=True)
    record = folder / ".cache/huggingface/download" / path.relative_to(folder)
    record.with_name(f"{record.name}.metadata").unlink(missing_ok=True)
