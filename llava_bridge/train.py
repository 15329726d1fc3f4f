"""``llava-bridge train``: from an encoder and an LLM to a LLaVA, by stages.

    llava-bridge train --config llava.yaml                                          # starts deepspeed itself
    deepspeed --num_accelerators 2 --module llava_bridge train --config llava.yaml  # the same by hand

The way from here: :func:`train` starts the processes, :func:`llava_bridge.stages.run_stages` runs in each of
them, and :func:`llava_bridge.trainer.train_stage` is one stage.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from clips.artifact import MANIFEST, say, write_file
from clips.commandline import to_yaml
from clips.errors import UserError
from llava_bridge.config import TrainConfig
from llava_bridge.launch import deepspeed_config, hand_over_errors, is_launched, launch
from llava_bridge.parts import check_encoder, check_llm


def train(config: TrainConfig) -> None:
    """Run the stages, in this process if a launcher started it, else in processes that DeepSpeed's launcher starts.

    Interrupted, the same command goes on from the last checkpoint.

    Raises:
        UserError: see :class:`TrainConfig`; missing or unfitting parts and data.
    """
    if is_launched():
        with hand_over_errors():
            from llava_bridge.stages import run_stages

            run_stages(config)
        return
    check_output(Path(config.output))
    check_inputs(config)
    work = work_directory(config)
    work.mkdir(parents=True, exist_ok=True)
    write_file(work / "config.yaml", to_yaml(config))
    launch(["train", "--config", str(work / "config.yaml")], config.launch.processes, work / "log.txt")
    shutil.rmtree(work, ignore_errors=True)
    say(f"wrote {config.output}")


def work_directory(config: TrainConfig) -> Path:
    """Where an unfinished run keeps its state: a hidden directory beside the output."""
    output = Path(config.output)
    return output.with_name(f".{output.name}.work")


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
