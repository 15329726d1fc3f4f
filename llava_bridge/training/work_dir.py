"""The work directory of a run, and checks of its inputs before processes start."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clips.core.locks import lock_output
from clips.data.formats.conversation_rows import local_files
from clips.errors import UserError, unknown_name_error
from clips.gpus import visible_gpus
from llava_bridge.data.sources import HeldOutSourceConfig
from llava_bridge.encoders.spec import check_encoder_files
from llava_bridge.model.llava_checks import check_llava_dir, check_llm_dir
from llava_bridge.training.launch import deepspeed_config, launcher_world_size
from llava_bridge.training.train_config import LlavaTrainConfig

CONFIG_FILE = "config.yaml"
"""The file in a work directory from which the processes other than rank 0 read their config."""
CHECKPOINTS_DIR = "checkpoints"
COMPLETE_MARKER = "complete"
"""The file in a checkpoint that is written last."""
MAX_GRAD_NORM = 1.0
"""LLaVA's, and transformers' default."""


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
