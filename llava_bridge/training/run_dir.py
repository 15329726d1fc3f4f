"""Before a training starts: its inputs are checked and hashed, and the directory of an unfinished run is prepared.

The identity of a run is its config with the hashes of encoder, LLM and data. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.core.artifact import atomic_write, directory_hash, lock_output
from clips.core.identity import RUN, Identity, digest, identity, read_run, run_text
from clips.data.remote_files import local_files
from clips.data.tar_index import read_byte_range
from clips.errors import UserError, unknown_name_error
from clips.gpus import visible_gpus
from clips.model_refs import is_on_hub, resolve_model_dir, work_dir
from clips.text_files import safe_json_loads
from clips.typed_data import to_plain
from llava_bridge.data import read_samples
from llava_bridge.data.sources import ConversationSourceConfig, HeldOutSourceConfig, reject_missing
from llava_bridge.encoders import check_encoder_files, encoder_commits, local_paths
from llava_bridge.model.llava_checks import check_llm_dir, resolve_llava_dir
from llava_bridge.training.launch import launcher_world_size, log_rank0
from llava_bridge.training.train_config import LlavaTrainConfig

MAX_GRAD_NORM = 1.0
"""LLaVA's, and transformers' default."""
CHECKPOINTS_DIR = "checkpoints"
COMPLETE_MARKER = "complete"
"""The file in a checkpoint that is written last."""
_DEEPSPEED_CONFIGS = Path(__file__).parent / "deepspeed_configs"
_IMAGE_CONTAINERS = {".parquet", ".arrow", ".tar"}
_END_BYTES = 1 << 20  # includes parquet's footer with all row groups

# ---------------------------------------------------------------- checks


def check_inputs(config: LlavaTrainConfig) -> None:
    """Check parts and data before processes are started.

    UserError: a file or directory is missing, or a setting is not supported with these processes.
    """
    if config.llava:
        resolve_llava_dir(config.llava, "llava")
    if config.llm:
        check_llm_dir(config.llm)
    if config.encoder:
        check_encoder_files(config.encoder)
    sources: list[tuple[str, HeldOutSourceConfig]] = []
    for name in config.stages:
        _check_deepspeed(config, name)
        stage, field = config.stage(name), config.deepspeed_field(name)
        is_zero3 = deepspeed_config(config.deepspeed(name), field)["zero_optimization"].get("stage") == 3
        quantizes = stage.lora is not None and stage.lora.quantization is not None
        for is_used, own in ((quantizes, f"{name}.lora.quantization"), (stage.optim == "adamw_8bit", f"{name}.optim")):
            if is_used and importlib.util.find_spec("bitsandbytes") is None:
                raise UserError(f"{own}: expected bitsandbytes to be installed (pip install 'clips-suite[qlora]')")
        if quantizes and is_zero3:
            raise UserError(f"{field}: expected zero2 with {name}.lora.quantization; ZeRO-3 does not shard 4 bits")
        if config.distributed.torch_compile and is_zero3:
            raise UserError(
                f"{field}: expected zero2 with distributed.torch_compile, as ZeRO-3 divides each layer into small "
                "graphs"
            )
        sources += [(f"{name}.data", source) for source in stage.data]
    sources += [(field, source) for field, _, source in config.validation.sources()]
    for field, source in sources:
        try:
            local_files(source.path)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None


def _check_deepspeed(config: LlavaTrainConfig, name: str) -> None:
    """Check that the DeepSpeed JSON of a stage states no other sizes or precision than the stage itself."""
    chosen, field, stage = config.deepspeed(name), config.deepspeed_field(name), config.stage(name)
    stated = deepspeed_config(chosen, field)
    if not (
        _DEEPSPEED_CONFIGS / f"{chosen}.json"
    ).is_file():  # a shipped one: without the seconds of DeepSpeed's import
        _check_zero_settings(stated["zero_optimization"], f"{field}: {chosen}")
    processes = config.distributed.num_processes or launcher_world_size() or max(1, len(visible_gpus()))
    micro = stage.micro_batch_size or stage.global_batch_size // processes
    expected: dict[str, Any] = {
        "train_batch_size": stage.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": stage.global_batch_size // (micro * processes),
        "gradient_clipping": MAX_GRAD_NORM,
    }
    for key, value in expected.items():
        if stated.get(key, "auto") not in ("auto", value):
            raise UserError(f'{field}: {chosen}: {key}: expected "auto" or {value}, as in {name}, got {stated[key]}')
    precisions = {"fp16": False}
    if config.precision != "auto":
        precisions["bf16"] = config.precision == "bf16"
    for key, is_used in precisions.items():
        value = stated.get(key, {}).get("enabled", "auto")
        if value not in ("auto", is_used):
            raise UserError(
                f'{field}: {chosen}: {key}.enabled: expected "auto" with precision {config.precision}, '
                f"got {json.dumps(value)}"
            )


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
        found = f"got {json.dumps(first['input'], default=str)}: {first['msg']}"
        raise UserError(f"{where}: zero_optimization.{name}: {found}") from None
    except AssertionError as error:  # a deprecated name with the one that replaces it
        raise UserError(f"{where}: zero_optimization: {error}") from None
    finally:
        logging.disable(before)


def deepspeed_config(name: str, field: str = "distributed.deepspeed") -> dict[str, Any]:
    """The DeepSpeed config ``name``: a shipped one, or a JSON file; ``field`` begins errors.

    UserError: no such file, or no object in JSON.
    """
    shipped = _DEEPSPEED_CONFIGS / f"{name}.json"
    path = shipped if shipped.is_file() else Path(name)
    try:
        found = safe_json_loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(file.stem for file in _DEEPSPEED_CONFIGS.glob("*.json")))
        raise UserError(f"{field}: expected a JSON file or one of {known}, got '{name}'") from None
    except ValueError as error:
        raise UserError(f"{field}: {path} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{field}: {path}: expected a JSON object, got {type(found).__name__}")
    for part, default in (("zero_optimization", None), ("bf16", {}), ("fp16", {})):
        if not isinstance(found.get(part, default), dict):
            raise UserError(f"{field}: {path}: {part}: expected an object, got {json.dumps(found.get(part))}")
    return found


# ---------------------------------------------------------------- the identity


def run_identity(config: LlavaTrainConfig) -> Identity:
    """The identity of a run, with the hashes of the encoder, the LLM, each stage's data and its DeepSpeed file."""
    inputs = {name: directory_hash(path) for name, path in parent_artifacts(config).items()} | _hub_commits(config)
    for stage in config.stages:
        for index, source in enumerate(map(describe_data, config.stage(stage).data)):
            inputs |= {
                f"{stage}.data[{index}].{name}": source[name] for name in ("hash", "directory_hash") if name in source
            }
    for stage in config.stages:
        chosen = config.deepspeed(stage)
        if Path(chosen).is_file():  # a shipped one is part of the code
            inputs[f"{stage}.deepspeed"] = digest(deepspeed_config(chosen, config.deepspeed_field(stage)))
    return identity("llava-bridge train", config, inputs)


def data_manifest(config: LlavaTrainConfig) -> dict[str, Any]:
    """Each stage's data sources with their hashes, and the commits of Hub repositories."""
    sources = {name: [describe_data(data) for data in config.stage(name).data] for name in config.stages}
    return sources | _hub_commits(config)


def parent_artifacts(config: LlavaTrainConfig) -> dict[str, str]:
    """The local directories and files of encoder, LLM and LLaVA."""
    models = {"llm": config.llm, "llava": config.llava}
    encoder = local_paths(config.encoder) if config.encoder else {}
    return encoder | {name: path for name, path in models.items() if path and Path(path).is_dir()}


def _hub_commits(config: LlavaTrainConfig) -> dict[str, str]:
    """The commit of each Hub repository, by which the Hub's cache names its directory."""
    models = {"llm": config.llm, "llava": config.llava}
    encoder = encoder_commits(config.encoder) if config.encoder else {}
    return encoder | {
        field: resolve_model_dir(name, field).name for field, name in models.items() if name and is_on_hub(name)
    }


def describe_data(data: ConversationSourceConfig) -> dict[str, Any]:
    """A source with the hash of its files (without separate images), and that of its manifest if it has one."""
    files: list[Path] = []
    for listed in local_files(data.path):
        if listed.is_file():
            files.append(listed)
        else:  # a directory: the files in it from which the format may read conversations
            files += sorted([*listed.glob("*.json"), *listed.glob("*.jsonl")])
            tables = listed.rglob("*") if data.format in {"conversations", "vqa", "webdataset"} else []
            files += sorted(file for file in tables if file.suffix in _IMAGE_CONTAINERS)
    description = {**to_plain(data), "hash": hashlib.sha256("".join(map(_file_hash, files)).encode()).hexdigest()}
    path = Path(data.path)
    if path.is_file() and path.with_name("manifest.json").is_file():
        description["directory_hash"] = directory_hash(path.parent)
    return description


def _file_hash(path: Path) -> str:
    """A file's hash; for one with images, which may be large, the hash of its size and its ends."""
    if path.suffix not in _IMAGE_CONTAINERS:
        return directory_hash(path)
    size = path.stat().st_size
    ends = [read_byte_range(path, start, _END_BYTES) for start in (0, max(0, size - _END_BYTES))]
    return hashlib.sha256(b"".join([f"{path.name} {size} ".encode(), *ends])).hexdigest()


# ---------------------------------------------------------------- the directory of an unfinished run


@contextlib.contextmanager
def lock_work_dir(config: LlavaTrainConfig) -> Iterator[None]:
    """Lock the work directory for this run.

    The directory is deleted when the block succeeds, or fails with a UserError before there is progress. UserError:
    another run has locked it, or it cannot be written.
    """
    work = work_dir(config.output)
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


def prepare_work_dir(work: Path, config: LlavaTrainConfig) -> None:
    """Keep the state of this run if it was interrupted; delete that of another run without progress.

    UserError: images are missing with ``missing_images: error``, or another run has progress here.
    """
    for data in (data for name in config.stages for data in config.stage(name).data):
        if data.missing_images == "error":
            log_rank0(f"checking all images of {data.path}")
            reject_missing(read_samples(data, config.seed), data.path, log_rank0)
        elif data.format == "llava" or Path(data.path).suffix in {".json", ".jsonl"}:
            # Converted once, and its errors reported, before all processes start.
            read_samples(data, config.seed)
    run, before = run_identity(config), read_run(work / RUN)
    if has_progress(work):
        run.reject_other(work, before or {})
    if before is not None and run.difference(before) is None:
        log_rank0(f"resuming the unfinished run in {work}")
        return
    for entry in work.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    atomic_write(work / RUN, run_text(run))


def remove_leftover(config: LlavaTrainConfig) -> None:
    """Delete the work directory of a finished run, unless another run has progress in it."""
    work = work_dir(config.output)
    if has_progress(work) and run_identity(config).difference(read_run(work / RUN) or {}):
        log_rank0(f"{work} has an unfinished run with other settings; remove it if it is not needed")
        return
    shutil.rmtree(work, ignore_errors=True)
