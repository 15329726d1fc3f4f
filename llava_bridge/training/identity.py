"""What a run is: the settings that its result depends on, and what it reads.

The unfinished run in a work directory goes on, and a finished output is left as it is, only if it is the same run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clips.artifact import MANIFEST, check_replaceable, directory_hash, read_manifest
from clips.data.formats.conversations import local_files
from clips.data.tars import read_span
from clips.errors import UserError
from clips.identity import result_settings
from clips.plain import difference, leaves, plain
from clips.references import is_on_hub, model_directory
from clips.secrets import without_secrets
from llava_bridge.data.samples import DataConfig
from llava_bridge.encoders.files import encoder_commits
from llava_bridge.encoders.spec import paths_of
from llava_bridge.training.config import TrainConfig

_WITH_PICTURES = {".parquet", ".arrow", ".tar"}
_END_BYTES = 1 << 20  # parquet's footer, which knows all row groups, lies at its end


def kind_of(config: TrainConfig) -> str:
    """What the manifest calls the output."""
    return "llm" if config.stages[-1] == "pretrain" else "llava"


def identity(config: TrainConfig) -> dict[str, Any]:
    """All that the result depends on, as dotted names: settings, then hashes below ``inputs``."""
    return _identity(without_secrets(plain(config)), without_secrets(inputs(config)))


def is_finished(config: TrainConfig) -> bool:
    """Whether the output is already there, made by this very run.

    Raises:
        UserError: the output is something else, or made with other settings or from other inputs.
    """
    output = Path(config.output)
    check_replaceable(output, kind_of(config), trained=True)
    if not (output / MANIFEST).is_file():
        return False
    if found := difference(_made_as(output), identity(config)):
        raise UserError(f"output: {output} holds another run: {found}; choose another output or remove the directory")
    return True


def _made_as(output: Path) -> dict[str, Any]:
    """The identity of the run that made ``output``, from its manifest."""
    manifest = read_manifest(output)
    try:
        hashes = {name: parent["hash"] for name, parent in manifest["parents"].items()}
        return _identity(*without_secrets((manifest["config"], {**hashes, **manifest["data"]})))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{output / MANIFEST}: expected config, data and parents of a finished run") from None


def _identity(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {name: _decisive(value) for name, value in leaves({"inputs": inputs})}
    return result_settings(config, TrainConfig) | inputs


def _decisive(value: Any) -> Any:
    """Of a list of data sources what the samples depend on; any other value as it is."""
    if not isinstance(value, list):
        return value
    return [result_settings(item, DataConfig) if isinstance(item, dict) else item for item in value]


def inputs(config: TrainConfig) -> dict[str, Any]:
    """What the run reads: the encoder, the LLM and each stage's data, with their hashes."""
    found: dict[str, Any] = {name: directory_hash(path) for name, path in parents(config).items()}
    return {**found, **data_of(config)}


def parents(config: TrainConfig) -> dict[str, str]:
    """The artifacts on disk that the model is made from."""
    found: dict[str, str] = {}
    if config.encoder and config.stages[-1] != "pretrain":
        found |= paths_of(config.encoder)
    for name in ("llm", "llava"):
        path = getattr(config, name)
        if path and Path(path).is_dir():
            found[name] = path
    return found


def data_of(config: TrainConfig) -> dict[str, Any]:
    """Each stage's data sources with their hashes, and the commits of what comes from the hub."""
    return {name: [describe_data(data) for data in config.stage(name).data] for name in config.stages} | commits(config)


def commits(config: TrainConfig) -> dict[str, str]:
    """The commit that each name on the hub means: so the hub's cache calls its directory."""
    found: dict[str, str] = {}
    if config.encoder and config.stages[-1] != "pretrain":
        found |= encoder_commits(config.encoder)
    for field in ("llm", "llava"):
        name = getattr(config, field)
        if name and is_on_hub(name):
            found[field] = model_directory(name, field).name
    return found


def describe_data(data: DataConfig) -> dict[str, Any]:
    """A source with the hash of its files (pictures are not read), and that of its manifest if it has one."""
    path = Path(data.path)
    files = [file for named in local_files(data.path) for file in _files_with_talk(named, data.format)]
    digest = hashlib.sha256("".join(map(_file_hash, files)).encode()).hexdigest()
    manifest = path.parent / "manifest.json"
    whole = {"directory_hash": directory_hash(path.parent)} if path.is_file() and manifest.is_file() else {}
    return {**plain(data), "hash": digest, **whole}


def _files_with_talk(path: Path, format: str) -> list[Path]:
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
    ends = [read_span(path, start, _END_BYTES) for start in (0, max(0, size - _END_BYTES))]
    return hashlib.sha256(b"".join([f"{path.name} {size} ".encode(), *ends])).hexdigest()
