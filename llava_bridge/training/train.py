"""``llava-bridge train``: from an encoder and an LLM to a LLaVA, by stages.

    llava-bridge train --config llava.yaml                                          # starts deepspeed itself
    deepspeed --num_accelerators 2 --module llava_bridge train --config llava.yaml  # the same by hand

The way from here: :func:`train` starts the processes, :func:`llava_bridge.training.stages.run_stages` runs in each of
them, and :func:`llava_bridge.training.trainer.train_stage` is one stage.
"""

from __future__ import annotations

from clips.core.artifact import is_finished, write_file
from clips.plain import to_yaml
from llava_bridge.training.config import TrainConfig
from llava_bridge.training.inputs import kind_of, run_identity
from llava_bridge.training.launch import (
    answers_for_run,
    hand_over_errors,
    is_main_process,
    launch,
    launched_processes,
    report,
)
from llava_bridge.training.stages import remove_leftover, run_stages
from llava_bridge.training.workspace import check_inputs, held_work_directory, work_directory


def train(config: TrainConfig) -> None:
    """Run the stages, in this process if a launcher started it, else in processes that DeepSpeed's launcher starts.

    Interrupted, the same command goes on from the last checkpoint; finished, it does nothing.

    Raises:
        UserError: see :class:`TrainConfig`; missing or unfitting parts and data.
    """
    processes = launched_processes()
    with hand_over_errors():
        config = config if processes is None else config.among(processes)
        check_inputs(config)
        if is_finished(config.output, kind_of(config), run_identity(config)):
            report(f"{config.output}: already trained with this config; nothing to do")
            if is_main_process():
                remove_leftover(config)
        elif not answers_for_run():
            run_stages(config)
        else:
            with held_work_directory(config) as lock, hand_over_errors():
                if processes is None:
                    _start(config, lock)
                else:
                    run_stages(config)
            report(f"wrote {config.output}")


def _start(config: TrainConfig, lock: int) -> None:
    work = work_directory(config)
    write_file(work / "config.yaml", to_yaml(config))
    launch(["train", "--config", str(work / "config.yaml")], config.launch.processes or 1, work / "log.txt", lock)
