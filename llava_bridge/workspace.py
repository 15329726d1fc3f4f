"""Where a run reads and writes, looked at before anything starts."""

from __future__ import annotations

from pathlib import Path

from clips.artifact import MANIFEST
from clips.errors import UserError
from llava_bridge.config import TrainConfig
from llava_bridge.launch import deepspeed_config
from llava_bridge.parts import check_encoder, check_llm


def work_directory(config: TrainConfig) -> Path:
    """Where an unfinished run keeps its state: a hidden directory beside the output."""
    output = Path(config.output)
    return output.with_name(f".{output.name}.work")


def start_directory(config: TrainConfig, name: str, work: Path) -> Path | None:
    """The model that stage ``name`` goes on from: that of the stage before it, None if it is the first."""
    stages: list[str] = list(config.stages)
    before = stages[: stages.index(name)]
    return work / before[-1] / "model" if before else None


def check_inputs(config: TrainConfig) -> None:
    """Find missing parts and data before processes are started.

    Raises:
        UserError: naming the file or directory that is missing.
    """
    if config.llm:
        check_llm(config.llm)
    if config.encoder and config.stages[-1] != "pretrain":
        check_encoder(config.encoder)
    deepspeed_config(config.launch.deepspeed)
    for name in config.stages:
        for data in config.stage(name).data:
            if not Path(data.path).exists():
                raise UserError(f"{name}.data: {data.path}: no such file or directory")


def check_output(output: Path) -> None:
    """Refuse to replace a directory that this suite did not write."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {output} is a file, expected a directory to write")
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise UserError(f"output: {output} is not empty and was not written by this suite; choose another directory")
