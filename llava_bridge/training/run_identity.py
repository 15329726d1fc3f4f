"""The identity of a run: its config with the hashes of encoder, LLM and data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from clips.core.artifact import directory_hash
from clips.core.identity import Identity, digest, identity
from clips.data.formats.conversation_rows import local_files
from clips.data.tar_index import read_byte_range
from clips.model_refs import is_on_hub, resolve_model_dir
from clips.typed_data import to_plain
from llava_bridge.data.sources import ConversationSourceConfig
from llava_bridge.encoders.spec import encoder_commits, local_paths
from llava_bridge.training.launch import deepspeed_config
from llava_bridge.training.train_config import LlavaTrainConfig

_IMAGE_CONTAINERS = {".parquet", ".arrow", ".tar"}
_END_BYTES = 1 << 20  # includes parquet's footer with all row groups


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
