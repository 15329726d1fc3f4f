"""What a run reads: encoder, LLM and data, with the hashes of their content, which are part of its identity."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from clips.core.artifact import directory_hash
from clips.core.identity import Identity, identity
from clips.data.formats.conversations import local_files
from clips.data.tar_index import read_byte_range
from clips.model_refs import is_on_hub, resolve_model_dir
from clips.serialization import to_plain
from llava_bridge.data.samples import ConversationSourceConfig
from llava_bridge.encoders.encoder_checks import encoder_commits
from llava_bridge.encoders.spec import local_paths
from llava_bridge.training.train_config import LlavaTrainConfig

_WITH_PICTURES = {".parquet", ".arrow", ".tar"}
_END_BYTES = 1 << 20  # parquet's footer, which knows all row groups, lies at its end


def artifact_kind(config: LlavaTrainConfig) -> str:
    """What the manifest calls the output."""
    return "llm" if config.stages[-1] == "llm_pretrain" else "llava"


def run_identity(config: LlavaTrainConfig) -> Identity:
    """The identity of a run, with the hashes of the encoder, the LLM and each stage's data."""
    inputs = {name: directory_hash(path) for name, path in parent_artifacts(config).items()} | hub_commits(config)
    for stage, sources in sources_of(config).items():
        for index, source in enumerate(sources):
            hashes = {name: source[name] for name in ("hash", "directory_hash") if name in source}
            inputs |= {f"{stage}.data[{index}].{name}": content for name, content in hashes.items()}
    return identity("llava-bridge train", config, inputs)


def parent_artifacts(config: LlavaTrainConfig) -> dict[str, str]:
    """The artifacts on disk that the model is made from."""
    found: dict[str, str] = {}
    if config.encoder and config.stages[-1] != "llm_pretrain":
        found |= local_paths(config.encoder)
    for name in ("llm", "llava"):
        path = getattr(config, name)
        if path and Path(path).is_dir():
            found[name] = path
    return found


def data_manifest(config: LlavaTrainConfig) -> dict[str, Any]:
    """Each stage's data sources with their hashes, and the commits of what comes from the Hub."""
    return sources_of(config) | hub_commits(config)


def sources_of(config: LlavaTrainConfig) -> dict[str, list[dict[str, Any]]]:
    """Each stage's data sources with their hashes."""
    return {name: [describe_data(data) for data in config.stage(name).data] for name in config.stages}


def hub_commits(config: LlavaTrainConfig) -> dict[str, str]:
    """The commit that each name on the Hub means: so the hub's cache calls its directory."""
    found: dict[str, str] = {}
    if config.encoder and config.stages[-1] != "llm_pretrain":
        found |= encoder_commits(config.encoder)
    for field in ("llm", "llava"):
        name = getattr(config, field)
        if name and is_on_hub(name):
            found[field] = resolve_model_dir(name, field).name
    return found


def describe_data(data: ConversationSourceConfig) -> dict[str, Any]:
    """A source with the hash of its files (pictures are not read), and that of its manifest if it has one."""
    path = Path(data.path)
    files = [file for named in local_files(data.path) for file in _conversation_files(named, data.format)]
    digest = hashlib.sha256("".join(map(_file_hash, files)).encode()).hexdigest()
    manifest = path.parent / "manifest.json"
    whole = {"directory_hash": directory_hash(path.parent)} if path.is_file() and manifest.is_file() else {}
    return {**to_plain(data), "hash": digest, **whole}


def _conversation_files(path: Path, format: str) -> list[Path]:
    """A file itself, or those in a directory that a format may read what is said from."""
    if path.is_file():
        return [path]
    texts = sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
    tables = path.rglob("*") if format in {"conversations", "webdataset"} else []
    return texts + sorted(file for file in tables if file.suffix in _WITH_PICTURES)


def _file_hash(path: Path) -> str:
    """A file's hash; of one that holds pictures, and may be large, that of its size and its ends."""
    if path.suffix not in _WITH_PICTURES:
        return directory_hash(path)
    size = path.stat().st_size
    ends = [read_byte_range(path, start, _END_BYTES) for start in (0, max(0, size - _END_BYTES))]
    return hashlib.sha256(b"".join([f"{path.name} {size} ".encode(), *ends])).hexdigest()
