"""``llava-bridge train``: from an encoder and an LLM to a LLaVA, by stages.

    llava-bridge train --config llava.yaml                                          # starts deepspeed itself
    deepspeed --num_accelerators 2 --module llava_bridge train --config llava.yaml  # under another launcher

:func:`run_train` starts the processes, :func:`llava_bridge.training.stages.run_stages` runs in each of them, and
:func:`llava_bridge.training.trainer.train_stage` trains one stage.
"""

from __future__ import annotations

from clips.core.artifact import atomic_write, is_finished
from clips.serialization import to_yaml
from llava_bridge.training.launch import (
    forward_user_errors,
    is_main_process,
    is_reporting_process,
    launch,
    launcher_world_size,
    log_rank0,
)
from llava_bridge.training.run_identity import artifact_kind, run_identity
from llava_bridge.training.stages import remove_leftover, run_stages
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.work_dir import check_inputs, lock_work_dir, work_dir


def run_train(config: LlavaTrainConfig) -> None:
    """Run the stages: in this process under a launcher, else in processes that DeepSpeed's launcher starts.

    After an interruption the same command resumes from the last checkpoint; after the end it does nothing.

    Raises:
        UserError: see :class:`LlavaTrainConfig`; missing or incompatible parts and data.
    """
    processes = launcher_world_size()
    with forward_user_errors():
        config = config if processes is None else config.with_processes(processes)
        check_inputs(config)
        if is_finished(config.output, artifact_kind(config), run_identity(config)):
            log_rank0(f"{config.output}: already trained with this config; nothing to do")
            if is_main_process():
                remove_leftover(config)
        elif not is_reporting_process():
            run_stages(config)
        else:
            with lock_work_dir(config) as lock, forward_user_errors():
                if processes is None:
                    _start(config, lock)
                else:
                    run_stages(config)
            log_rank0(f"wrote {config.output}")


def _start(config: LlavaTrainConfig, lock: int) -> None:
    work = work_dir(config)
    atomic_write(work / "config.yaml", to_yaml(config))
    launch(["train", "--config", str(work / "config.yaml")], config.launch.num_processes or 1, work / "log.txt", lock)
