"""The directory of an unfinished run: its identity, its lock, and what of it a repeated command continues.

The identity of a run is its config with the hashes of encoder, LLM and data.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.core.artifact import atomic_write, directory_hash, lock_output
from clips.core.identity import RUN, Identity, difference, digest, identity, read_run, reject_other_run, run_text
from clips.data.remote_files import local_files
from clips.data.tar_index import read_byte_range
from clips.errors import UserError
from clips.model_refs import is_on_hub, resolve_model_dir
from clips.typed_data import to_plain
from llava_bridge.data import read_samples
from llava_bridge.data.sources import ConversationSourceConfig, reject_missing
from llava_bridge.encoders.spec import encoder_commits, local_paths
from llava_bridge.training.checks import deepspeed_config
from llava_bridge.training.launch import log_rank0
from llava_bridge.training.train_config import LlavaTrainConfig

CONFIG_FILE = "config.yaml"
"""The file in a work directory from which the processes other than rank 0 read their config."""
CHECKPOINTS_DIR = "checkpoints"
COMPLETE_MARKER = "complete"
"""The file in a checkpoint that is written last."""
_IMAGE_CONTAINERS = {".parquet", ".arrow", ".tar"}
_END_BYTES = 1 << 20  # includes parquet's footer with all row groups


def work_dir(config: LlavaTrainConfig) -> Path:
    """The hidden directory next to the output with the state of an unfinished run."""
    output = Path(config.output)
    return output.with_name(f".{output.name}.work")


@contextlib.contextmanager
def lock_work_dir(config: LlavaTrainConfig) -> Iterator[None]:
    """Lock the work directory for this run.

    The directory is deleted when the block succeeds, or fails with a UserError before there is progress.

    Raises:
        UserError: another run has locked it, or it cannot be written.
    """
    work = work_dir(config)
    with lock_output(work / "lock", config.output):
        try:
            yield
        except UserError:
            if not has_progress(work):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def has_progress(work: Path) -> bool:
    """Whether a work directory has a finished stage or a complete checkpoint."""
    return any(work.glob("*/model")) or any(work.glob(f"*/{CHECKPOINTS_DIR}/*/{COMPLETE_MARKER}"))


def stage_start_dir(config: LlavaTrainConfig, name: str, work: Path) -> Path | None:
    """The model of the stage before ``name``; None if it is the first."""
    stages: list[str] = list(config.stages)
    before = stages[: stages.index(name)]
    return work / before[-1] / "model" if before else None


def prepare_work_dir(work: Path, config: LlavaTrainConfig) -> None:
    """Keep the state of this run if it was interrupted; delete that of another run without progress.

    Raises:
        UserError: images are missing with ``missing_images: error``, or another run has progress here.
    """
    for data in (data for name in config.stages for data in config.stage(name).data):
        if data.missing_images == "error":
            log_rank0(f"checking all images of {data.path}")
            reject_missing(read_samples(data, config.seed), data.path, log_rank0)
        elif Path(data.path).suffix in {".json", ".jsonl"}:
            # Converted once, and its errors reported, before all processes start.
            read_samples(data, config.seed)
    run, before = run_identity(config), read_run(work / RUN)
    if has_progress(work):
        reject_other_run(work, before or {}, run)
    if before is not None and difference(before, run) is None:
        log_rank0(f"resuming the unfinished run in {work}")
        return
    for entry in work.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    atomic_write(work / RUN, run_text(run))


def remove_leftover(config: LlavaTrainConfig) -> None:
    """Delete the work directory of a finished run, unless another run has progress in it."""
    work = work_dir(config)
    if has_progress(work) and difference(read_run(work / RUN) or {}, run_identity(config)):
        log_rank0(f"{work} has an unfinished run with other settings; remove it if it is not needed")
        return
    shutil.rmtree(work, ignore_errors=True)


# ---------------------------------------------------------------- the identity


def run_identity(config: LlavaTrainConfig) -> Identity:
    """The identity of a run, with the hashes of the encoder, the LLM, each stage's data and its DeepSpeed file."""
    inputs = {name: directory_hash(path) for name, path in parent_artifacts(config).items()} | hub_commits(config)
    for stage, sources in sources_of(config).items():
        for index, source in enumerate(sources):
            hashes = {name: source[name] for name in ("hash", "directory_hash") if name in source}
            inputs |= {f"{stage}.data[{index}].{name}": content for name, content in hashes.items()}
    for stage in config.stages:
        chosen = config.deepspeed(stage)
        if Path(chosen).is_file():  # a shipped one is part of the code
            inputs[f"{stage}.deepspeed"] = digest(deepspeed_config(chosen, config.deepspeed_field(stage)))
    return identity("llava-bridge train", config, inputs)


def parent_artifacts(config: LlavaTrainConfig) -> dict[str, str]:
    """The local directories and files of encoder, LLM and LLaVA."""
    found: dict[str, str] = {}
    if config.encoder:
        found |= local_paths(config.encoder)
    for name in ("llm", "llava"):
        path = getattr(config, name)
        if path and Path(path).is_dir():
            found[name] = path
    return found


def data_manifest(config: LlavaTrainConfig) -> dict[str, Any]:
    """Each stage's data sources with their hashes, and the commits of Hub repositories."""
    return sources_of(config) | hub_commits(config)


def sources_of(config: LlavaTrainConfig) -> dict[str, list[dict[str, Any]]]:
    """Each stage's data sources with their hashes."""
    return {name: [describe_data(data) for data in config.stage(name).data] for name in config.stages}


def hub_commits(config: LlavaTrainConfig) -> dict[str, str]:
    """The commit of each Hub repository, by which the Hub's cache names its directory."""
    commits: dict[str, str] = {}
    if config.encoder:
        commits |= encoder_commits(config.encoder)
    for field in ("llm", "llava"):
        name = getattr(config, field)
        if name and is_on_hub(name):
            commits[field] = resolve_model_dir(name, field).name
    return commits


def describe_data(data: ConversationSourceConfig) -> dict[str, Any]:
    """A source with the hash of its files (without separate images), and that of its manifest if it has one."""
    path = Path(data.path)
    files = [file for listed in local_files(data.path) for file in _conversation_files(listed, data.format)]
    description = {**to_plain(data), "hash": hashlib.sha256("".join(map(_file_hash, files)).encode()).hexdigest()}
    if path.is_file() and path.with_name("manifest.json").is_file():
        description["directory_hash"] = directory_hash(path.parent)
    return description


def _conversation_files(path: Path, format: str) -> list[Path]:
    """``path`` itself, or the files in this directory from which a format may read conversations."""
    if path.is_file():
        return [path]
    texts = sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
    tables = path.rglob("*") if format in {"conversations", "vqa", "webdataset"} else []
    return texts + sorted(file for file in tables if file.suffix in _IMAGE_CONTAINERS)


def _file_hash(path: Path) -> str:
    """A file's hash; for one with images, which may be large, the hash of its size and its ends."""
    if path.suffix not in _IMAGE_CONTAINERS:
        return directory_hash(path)
    size = path.stat().st_size
    ends = [read_byte_range(path, start, _END_BYTES) for start in (0, max(0, size - _END_BYTES))]
    return hashlib.sha256(b"".join([f"{path.name} {size} ".encode(), *ends])).hexdigest()
