"""The work directory of a run, and checks of its inputs before processes start."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from clips.core.artifact import log_info, write_errors_as_user_errors
from clips.data.formats.conversations import local_files
from clips.errors import UserError
from llava_bridge.encoders.spec import check_encoder_files
from llava_bridge.model.llava_checks import check_llava_dir, check_llm_dir
from llava_bridge.training.launch import deepspeed_config
from llava_bridge.training.train_config import LlavaTrainConfig

CHECKPOINTS_DIR = "checkpoints"
SHARDS_DIR = "shards"
"""The directory of FSDP's shards in a checkpoint."""
COMPLETE_MARKER = "complete"
"""The file in a checkpoint that is written last."""


def work_dir(config: LlavaTrainConfig) -> Path:
    """The hidden directory next to the output with the state of an unfinished run."""
    output = Path(config.output)
    return output.with_name(f".{output.name}.work")


@contextlib.contextmanager
def lock_work_dir(config: LlavaTrainConfig) -> Iterator[int]:
    """Lock the work directory for this run; yields the lock's file descriptor, for child processes to inherit.

    The directory is deleted when the block succeeds, or fails with a UserError before there is progress.

    Raises:
        UserError: another run has locked it, or it cannot be written.
    """
    work = work_dir(config)
    with write_errors_as_user_errors(config.output):
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"output: another run is writing {config.output}") from None
        except OSError as error:  # network file systems may be mounted without locks
            log_info(f"{work}: no locks here ({error.strerror}); ensure that no other run writes {config.output}")
        try:
            yield lock.fileno()
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
    if config.encoder and config.stages[-1] != "llm_pretrain":
        check_encoder_files(config.encoder)
    _check_quantization(config)
    for name in config.stages:
        if (
            config.stage(name).cache_vision_features
            and _is_zero3(config, name)
            and (config.distributed.num_processes or 1) > 1
        ):
            raise UserError(
                f"{name}.cache_vision_features: expected false under ZeRO-3 with several processes, which is not "
                "tested; distributed.strategy: fsdp supports it"
            )
        for data in config.stage(name).data:
            try:
                local_files(data.path)
            except UserError as error:
                raise UserError(f"{name}.data: {error}") from None


def _is_zero3(config: LlavaTrainConfig, name: str) -> bool:
    chosen = config.deepspeed(name)
    return chosen is not None and deepspeed_config(chosen).get("zero_optimization", {}).get("stage") == 3


def _check_quantization(config: LlavaTrainConfig) -> None:
    loras = {name: config.stage(name).lora for name in config.stages}
    first = next((name for name, lora in loras.items() if lora is not None and lora.quantization), None)
    if first is None:
        return
    field = f"{first}.lora.quantization"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{field}: expected bitsandbytes to be installed (pip install 'clips-suite[qlora]')")
    if config.distributed.strategy == "fsdp":
        raise UserError(f"distributed.strategy: expected deepspeed with {field}; FSDP does not shard 4 bits")
    if _is_zero3(config, first):
        raise UserError(f"distributed.deepspeed: expected zero2 with {field}; ZeRO-3 does not shard 4 bits")
