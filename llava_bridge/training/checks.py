"""Checks of a run's parts, data and settings before processes start."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clips.data.remote_files import local_files
from clips.errors import UserError, unknown_name_error
from clips.gpus import visible_gpus
from clips.text_files import safe_json_loads
from llava_bridge.data.sources import HeldOutSourceConfig
from llava_bridge.encoders.spec import check_encoder_files
from llava_bridge.model.llava_checks import check_llava_dir, check_llm_dir
from llava_bridge.training.launch import launcher_world_size
from llava_bridge.training.train_config import LlavaTrainConfig

MAX_GRAD_NORM = 1.0
"""LLaVA's, and transformers' default."""


def check_inputs(config: LlavaTrainConfig) -> None:
    """Check parts and data before processes are started.

    Raises:
        UserError: a file or directory is missing, or a setting is not supported with these processes.
    """
    if config.llava:
        check_llava_dir(config.llava)
    if config.llm:
        check_llm_dir(config.llm)
    if config.encoder:
        check_encoder_files(config.encoder)
    sources: list[tuple[str, HeldOutSourceConfig]] = []
    for name in config.stages:
        _check_stage(config, name)
        sources += [(f"{name}.data", source) for source in config.stage(name).data]
    sources += [(field, source) for field, _, source in config.validation.sources()]
    for field, source in sources:
        try:
            local_files(source.path)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None


def _check_stage(config: LlavaTrainConfig, name: str) -> None:
    """Check the stage's settings, packages and DeepSpeed JSON; its data is checked elsewhere."""
    stage, is_zero3 = config.stage(name), _is_zero3(config, name)
    _check_deepspeed(config, name)
    quantizes = stage.lora is not None and stage.lora.quantization is not None
    for is_used, field in ((quantizes, f"{name}.lora.quantization"), (stage.optim == "adamw_8bit", f"{name}.optim")):
        if is_used and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(f"{field}: expected bitsandbytes to be installed (pip install 'clips-suite[qlora]')")
    if quantizes and is_zero3:
        raise UserError(
            f"{config.deepspeed_field(name)}: expected zero2 with {name}.lora.quantization; "
            "ZeRO-3 does not shard 4 bits"
        )
    if config.distributed.torch_compile and is_zero3:
        raise UserError(
            f"{config.deepspeed_field(name)}: expected zero2 with distributed.torch_compile, as ZeRO-3 divides each "
            "layer into small graphs"
        )


def _check_deepspeed(config: LlavaTrainConfig, name: str) -> None:
    """Check that the DeepSpeed JSON of a stage states no other sizes or precision than the stage itself."""
    chosen, field, stage = config.deepspeed(name), config.deepspeed_field(name), config.stage(name)
    stated = deepspeed_config(chosen, field)
    _check_zero_settings(stated["zero_optimization"], chosen, field)
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
    precisions = {"fp16.enabled": False}
    if config.precision != "auto":
        precisions["bf16.enabled"] = config.precision == "bf16"
    for key, is_used in precisions.items():
        value = stated.get(key.partition(".")[0], {}).get("enabled", "auto")
        if value not in ("auto", is_used):
            raise UserError(
                f'{field}: {chosen}: {key}: expected "auto" with precision {config.precision}, got {json.dumps(value)}'
            )


def _check_zero_settings(stated: Mapping[str, Any], chosen: str, field: str) -> None:
    """Check names and values of ``zero_optimization`` by DeepSpeed's own class, which it calls after loading models."""
    if (Path(__file__).parent / "deepspeed_configs" / f"{chosen}.json").is_file():
        return  # a shipped one: without the seconds that importing DeepSpeed takes
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
            raise UserError(f"{field}: {chosen}: {unknown_name_error(name, known, 'zero_optimization')}") from None
        found = f"got {json.dumps(first['input'], default=str)}: {first['msg']}"
        raise UserError(f"{field}: {chosen}: zero_optimization.{name}: {found}") from None
    except AssertionError as error:  # a deprecated name with the one that replaces it
        raise UserError(f"{field}: {chosen}: zero_optimization: {error}") from None
    finally:
        logging.disable(before)


def _is_zero3(config: LlavaTrainConfig, name: str) -> bool:
    stated = deepspeed_config(config.deepspeed(name), config.deepspeed_field(name))
    return stated["zero_optimization"].get("stage") == 3


def deepspeed_config(name: str, field: str = "distributed.deepspeed") -> dict[str, Any]:
    """The DeepSpeed config ``name``: a shipped one, or a JSON file; ``field`` begins errors.

    Raises:
        UserError: no such file, or no object in JSON.
    """
    shipped = Path(__file__).parent / "deepspeed_configs" / f"{name}.json"
    path = shipped if shipped.is_file() else Path(name)
    try:
        found = safe_json_loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(file.stem for file in shipped.parent.glob("*.json")))
        raise UserError(f"{field}: expected a JSON file or one of {known}, got '{name}'") from None
    except ValueError as error:
        raise UserError(f"{field}: {path} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{field}: {path}: expected a JSON object, got {type(found).__name__}")
    for part, default in (("zero_optimization", None), ("bf16", {}), ("fp16", {})):
        if not isinstance(found.get(part, default), dict):
            raise UserError(f"{field}: {path}: {part}: expected an object, got {json.dumps(found.get(part))}")
    return found
