"""What a training of a LLaVA reads: checked and resolved once, by rank 0, without torch.

The identity of a run is its config with the hashes of encoder, LLM and data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from clips.core.artifact import directory_hash
from clips.core.identity import Identity, digest, identity, walk_files
from clips.data.remote_files import local_files
from clips.data.tar_index import is_clutter, read_byte_range
from clips.errors import UserError, unknown_name_error
from clips.gpus import visible_gpus
from clips.model_refs import ModelFiles, work_dir
from clips.text_files import safe_json_loads
from clips.typed_data import to_plain
from llava_bridge.data.sources import ConversationSourceConfig
from llava_bridge.encoders import resolve_encoder
from llava_bridge.model.llava_checks import resolve_llava_dir, resolve_llm_dir
from llava_bridge.training.launch import launcher_world_size
from llava_bridge.training.train_config import LlavaTrainConfig

MAX_GRAD_NORM = 1.0
"""LLaVA's, and transformers' default."""
_DEEPSPEED_CONFIGS = Path(__file__).parent / "deepspeed_configs"
_BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_IMAGE_CONTAINERS = {".parquet", ".arrow", ".tar"}
_TEXT_FILES = {".json", ".jsonl", ".jsonlines", ".csv", ".tsv", ".txt"}
_HASHED = _IMAGE_CONTAINERS | _TEXT_FILES
_END_BYTES = 1 << 20  # includes parquet's footer with all row groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSpeedFile:
    """The DeepSpeed JSON of a stage.

    Args:
        name: a shipped one, or a file.
        field: the config's field that names it.
        settings: its content.
        is_shipped: whether it is a part of this suite.
    """

    name: str
    field: str
    settings: Mapping[str, Any]
    is_shipped: bool

    @property
    def ignored(self) -> list[str]:
        """Its parts in whose place the stage has settings."""
        return [part for part in ("optimizer", "scheduler") if self.settings.get(part)]

    @property
    def for_trainer(self) -> dict[str, Any]:
        """The settings for HF's Trainer, which fills in "auto"; without them DeepSpeed uses float32 and no clipping."""
        automatic = dict.fromkeys((*_BATCHES, "gradient_clipping"), "auto")
        stated = {key: value for key, value in self.settings.items() if key not in self.ignored}
        return {**automatic, **stated, "bf16": {"enabled": "auto", **stated.get("bf16", {})}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a training reads.

    Args:
        config: its config.
        processes: its training processes: a launcher's, or those that the config states, or one for each visible GPU.
        gpus: number of visible GPUs.
        models: encoder, llm, llava → their files.
        data: stage → its sources with their hashes.
        deepspeed: stage → its DeepSpeed JSON.
        identity: of the run, as its output and unfinished work record it.
    """

    config: LlavaTrainConfig
    processes: int
    gpus: int
    models: Mapping[str, ModelFiles]
    data: Mapping[str, Sequence[Mapping[str, Any]]]
    deepspeed: Mapping[str, DeepSpeedFile]
    identity: Identity

    @property
    def work(self) -> Path:
        """The directory of the unfinished run."""
        return work_dir(self.config.output)

    @property
    def parents(self) -> dict[str, str]:
        """The local directories and files of the models."""
        return {name: files.local for name, files in self.models.items() if files.local}

    @property
    def commits(self) -> dict[str, str]:
        """The commits of models on the Hub."""
        return {name: files.commit for name, files in self.models.items() if files.commit}


def resolve_inputs(config: LlavaTrainConfig) -> Inputs:
    """Check models, DeepSpeed's settings and data, and then hash them.

    Raises:
        UserError: a file or directory is missing, or a setting is not supported with these processes.
    """
    models: dict[str, ModelFiles] = {}
    if config.llava:
        models["llava"] = ModelFiles.of(config.llava, resolve_llava_dir(config.llava, "llava"))
    if config.llm:
        models["llm"] = ModelFiles.of(config.llm, resolve_llm_dir(config.llm))
    if config.encoder:
        models["encoder"] = resolve_encoder(config.encoder)
    gpus = len(visible_gpus())
    processes = launcher_world_size() or config.distributed.num_processes or max(1, gpus)
    deepspeed: dict[str, DeepSpeedFile] = {name: resolve_deepspeed(config, name, processes) for name in config.stages}
    sources = [(f"{name}.data", source) for name in config.stages for source in config.stage(name).data]
    for field, source in [*sources, *((field, source) for field, _, source in config.validation.sources())]:
        try:
            local_files(source.path)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None
    data: dict[str, list[dict[str, Any]]] = {
        name: [describe_data(source) for source in config.stage(name).data] for name in config.stages
    }

    contents = {
        name: directory_hash(files.local) if files.local else files.commit
        for name, files in models.items()
        if files.local or files.commit
    }
    for name, described in data.items():
        for index, description in enumerate(described):
            hashes = {
                key: description[key]
                for key in ("hash", "other_hash", "linked_hash", "directory_hash")
                if key in description
            }
            contents |= {f"{name}.data[{index}].{key}": content for key, content in hashes.items()}
    for name, file in deepspeed.items():
        if not file.is_shipped:  # which is part of the code
            contents[f"{name}.deepspeed"] = digest(file.settings)
    run = identity("llava-bridge train", config, contents)
    return Inputs(
        config=config, processes=processes, gpus=gpus, models=models, data=data, deepspeed=deepspeed, identity=run
    )


# ---------------------------------------------------------------- DeepSpeed's settings


def resolve_deepspeed(config: LlavaTrainConfig, name: str, processes: int) -> DeepSpeedFile:
    """The DeepSpeed JSON of a stage, which may state no other sizes or precision than the stage itself."""
    stage = config.stage(name)
    field = f"{name}.deepspeed" if stage.deepspeed else "distributed.deepspeed"
    file = read_deepspeed_file(stage.deepspeed or config.distributed.deepspeed, field)
    stated, where = file.settings, f"{field}: {file.name}"
    if not file.is_shipped:  # which needs no check, and not the seconds of DeepSpeed's import
        _check_zero_settings(stated["zero_optimization"], where)
    batches = zip(_BATCHES, (stage.global_batch_size, *stage.micro_batches(processes)), strict=True)
    expected: dict[str, Any] = {**dict(batches), "gradient_clipping": MAX_GRAD_NORM}
    for key, value in expected.items():
        if stated.get(key, "auto") not in ("auto", value):
            raise UserError(f'{where}: {key}: expected "auto" or {value}, as in {name}, got {stated[key]}')
    precisions = {"fp16": False}
    if config.precision != "auto":
        precisions["bf16"] = config.precision == "bf16"
    for key, is_used in precisions.items():
        value = stated.get(key, {}).get("enabled", "auto")
        if value not in ("auto", is_used):
            raise UserError(
                f'{where}: {key}.enabled: expected "auto" with precision {config.precision}, got {json.dumps(value)}'
            )
    quantizes = stage.lora is not None and stage.lora.quantization is not None
    for is_used, setting in ((quantizes, f"{name}.lora.quantization"), (stage.optim == "adamw_8bit", f"{name}.optim")):
        if is_used and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(f"{setting}: expected bitsandbytes to be installed (pip install 'clips-suite[qlora]')")
    if stated["zero_optimization"].get("stage") == 3:
        if quantizes:
            raise UserError(f"{field}: expected zero2 with {name}.lora.quantization; ZeRO-3 does not shard 4 bits")
        if config.distributed.torch_compile:
            raise UserError(
                f"{field}: expected zero2 with distributed.torch_compile, as ZeRO-3 divides each layer into small "
                "graphs"
            )
    return file


def _check_zero_settings(stated: dict[str, Any], where: str) -> None:
    """Check names and values of ``zero_optimization`` by DeepSpeed's own class, which it calls after loading models."""
    import pydantic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # DeepSpeed's about the hardware and deprecated names, repeated by the training
    try:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        DeepSpeedZeroConfig(**stated)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            known = [info.alias or each for each, info in DeepSpeedZeroConfig.model_fields.items()]
            raise UserError(f"{where}: {unknown_name_error(name, known, 'zero_optimization')}") from None
        problem = f"got {json.dumps(first['input'], default=str)}: {first['msg']}"
        raise UserError(f"{where}: zero_optimization.{name}: {problem}") from None
    except AssertionError as error:  # a deprecated name with the one that replaces it
        raise UserError(f"{where}: zero_optimization: {error}") from None
    finally:
        logging.disable(before)


def read_deepspeed_file(name: str, field: str) -> DeepSpeedFile:
    """The DeepSpeed JSON ``name``: a shipped one, or a file; ``field`` begins errors.

    Raises:
        UserError: no such file, or no object in JSON.
    """
    shipped = _DEEPSPEED_CONFIGS / f"{name}.json"
    path = shipped if shipped.is_file() else Path(name)
    try:
        settings = safe_json_loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(file.stem for file in _DEEPSPEED_CONFIGS.glob("*.json")))
        raise UserError(f"{field}: expected a JSON file or one of {known}, got '{name}'") from None
    except ValueError as error:
        raise UserError(f"{field}: {path} is not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{field}: {path}: expected a JSON object, got {type(settings).__name__}")
    for part, default in (("zero_optimization", None), ("bf16", {}), ("fp16", {})):
        if not isinstance(settings.get(part, default), dict):
            raise UserError(f"{field}: {path}: {part}: expected an object, got {json.dumps(settings.get(part))}")
    return DeepSpeedFile(name=name, field=field, settings=settings, is_shipped=path == shipped)


# ---------------------------------------------------------------- contents of data


def describe_data(data: ConversationSourceConfig) -> dict[str, Any]:
    """A source with the hash of its files (without separate images), and that of its manifest if it has one."""
    files: list[Path] = []
    others: list[Path] = []
    linked: list[Path] = []  # behind symlinked directories
    paths = local_files(data.path)
    for listed in paths:
        if listed.is_file():
            files.append(listed)
        else:  # a directory: the files in it from which a format may read conversations
            files += sorted(file for file in [*listed.glob("*.json"), *listed.glob("*.jsonl")] if file.is_file())
            below = sorted(file for file in listed.rglob("*") if file.is_file())
            if data.format in {"conversations", "vqa", "webdataset"}:
                files += [file for file in below if file.suffix in _IMAGE_CONTAINERS]
                plain = {*below}
                linked += [file for file in walk_files(listed) if file not in plain and file.is_file()]
            # a hash of its own, which earlier versions did not have: so their runs resume
            known = {*files}
            others += [
                file
                for file in below
                if file.suffix.lower() in _HASHED
                and file not in known
                and not any(map(is_clutter, file.relative_to(listed).parts))
                and not fnmatch(file.name, "cache-*.arrow")  # of datasets, which appear when they are read
            ]
    description = {**to_plain(data), "hash": _hash_of(files)}
    if any(listed.is_dir() for listed in paths):
        description["other_hash"] = _hash_of(others)
        description["linked_hash"] = _hash_of([file for file in linked if file.suffix.lower() in _HASHED])
    path = Path(data.path)
    if path.is_file() and path.with_name("manifest.json").is_file():
        description["directory_hash"] = directory_hash(path.parent)
    return description


def _hash_of(files: Sequence[Path]) -> str:
    return hashlib.sha256("".join(map(_file_hash, files)).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    """A file's hash; for one with images, which may be large, the hash of its size and its ends."""
    if path.suffix not in _IMAGE_CONTAINERS:
        return directory_hash(path)
    size = path.stat().st_size
    ends = [read_byte_range(path, start, _END_BYTES) for start in (0, max(0, size - _END_BYTES))]
    return hashlib.sha256(b"".join([f"{path.name} {size} ".encode(), *ends])).hexdigest()
