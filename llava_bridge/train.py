"""``llava-bridge train``: from an encoder and an LLM to a LLaVA, by stages.

    llava-bridge train --config llava.yaml                                          # starts deepspeed itself
    deepspeed --num_accelerators 2 --module llava_bridge train --config llava.yaml  # the same by hand

The way from here: :func:`train` starts the processes, :func:`llava_bridge.stages.run_stages` runs in each of
them, and :func:`llava_bridge.trainer.train_stage` is one stage.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from clips.artifact import say, write_file
from clips.commandline import to_yaml
from llava_bridge.config import TrainConfig
from llava_bridge.launch import hand_over_errors, is_launched, launch
from llava_bridge.stages import run_stages
from llava_bridge.workspace import check_inputs, check_output, work_directory


def train(config: TrainConfig) -> None:
    """Run the stages, in this process if a launcher started it, else in processes that DeepSpeed's launcher starts.

    Interrupted, the same command goes on from the last checkpoint.

    Raises:
        UserError: see :class:`TrainConfig`; missing or unfitting parts and data.
    """
    if is_launched():
        with hand_over_errors():
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
