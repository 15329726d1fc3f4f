"""Where a run reads and writes, looked at before anything starts."""

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
from llava_bridge.encoders.encoder_checks import check_encoder_files
from llava_bridge.model.llava_checks import check_llava_dir, check_llm_dir
from llava_bridge.training.launch import deepspeed_config
from llava_bridge.training.train_config import LlavaTrainConfig

CHECKPOINTS_DIR = "checkpoints"
SHARDS_DIR = "shards"
"""The folder in a checkpoint with the shards of FSDP's processes."""
COMPLETE_MARKER = "complete"
"""The file in a checkpoint that is written last."""


def work_dir(config: LlavaTrainConfig) -> Path:
    """Where an unfinished run keeps its state: a hidden directory beside the output."""
    output = Path(config.output)
    return output.with_name(f".{output.name}.work")


@contextlib.contextmanager
def lock_work_dir(config: LlavaTrainConfig) -> Iterator[int]:
    """Hold the work directory for this run; yields the lock, which a child process that inherits it holds as well.

    The directory goes when the block ends well, or with a mistake before there is anything to go on with.

    Raises:
        UserError: another run holds it, and they would spoil each other; or it cannot be written.
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
        except OSError as error:  # network file systems may be mounted without
            log_info(f"{work}: no locks here ({error.strerror}); see to it that no other run writes {config.output}")
        try:
            yield lock.fileno()
        except UserError:
            if not has_progress(work):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def has_progress(work: Path) -> bool:
    """Whether a work directory has something to go on with: a finished stage or a whole checkpoint."""
    return any(work.glob("*/model")) or any(work.glob(f"*/{CHECKPOINTS_DIR}/*/{COMPLETE_MARKER}"))


def stage_start_dir(config: LlavaTrainConfig, name: str, work: Path) -> Path | None:
    """The model that stage ``name`` goes on from: that of the stage before it, None if it is the first."""
    stages: list[str] = list(config.stages)
    before = stages[: stages.index(name)]
    return work / before[-1] / "model" if before else None


def check_inputs(config: LlavaTrainConfig) -> None:
    """Find missing parts and data before processes are started.

    Raises:
        UserError: naming the file or directory that is missing, or what cannot be kept under ZeRO-3.
    """
    if config.llava:
        check_llava_dir(config.llava)
    if config.llm:
        check_llm_dir(config.llm)
    if config.encoder and config.stages[-1] != "llm_pretrain":
        check_encoder_files(config.encoder)
    cuts_weights = deepspeed_config(config.launch.deepspeed).get("zero_optimization", {}).get("stage") == 3
    _check_quantizing(config)
    for name in config.stages:
        if config.stage(name).cache_vision_features and cuts_weights and (config.launch.num_processes or 1) > 1:
            raise UserError(
                f"{name}.cache_vision_features: expected false under ZeRO-3 with several processes, which is not "
                "tested; launch.strategy: fsdp takes it"
            )
        for data in config.stage(name).data:
            try:
                local_files(data.path)
            except UserError as error:
                raise UserError(f"{name}.data: {error}") from None


def _check_quantizing(config: LlavaTrainConfig) -> None:
    loras = {name: config.stage(name).lora for name in config.stages}
    first = next((name for name, lora in loras.items() if lora is not None and lora.quantization), None)
    if first is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{first}.lora.quantization: expected bitsandbytes beside it (pip install 'clips-suite[qlora]')"
        )
    if config.launch.strategy == "fsdp":
        raise UserError(f"launch.strategy: expected deepspeed with {first}.lora.quantization; FSDP does not cut 4 bits")
    if deepspeed_config(config.launch.deepspeed).get("zero_optimization", {}).get("stage") == 3:
        raise UserError(f"launch.deepspeed: expected zero2 with {first}.lora.quantization; ZeRO-3 does not cut 4 bits")
