"""Trains a LLaVA in processes of which one never comes to a collective in which the others wait.

python hung_driver.py train --config CONFIG STEP
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from clips.commandline.parsing import parse_config
from llava_bridge.training import launch
from llava_bridge.training.train import run_train
from llava_bridge.training.train_config import LlavaTrainConfig

STAND_IN = "--launch"


def hang(step: int) -> None:
    """Let the process of rank 1 sleep in place of the step after ``step``."""
    from llava_bridge.training.stage_trainer import StageTrainer

    compute = StageTrainer.training_step

    def training_step(self: StageTrainer, *arguments: Any, **named: Any) -> Any:
        if os.environ["RANK"] == "1" and self.state.global_step == step:
            time.sleep(10**6)
        return compute(self, *arguments, **named)

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


if __name__ == "__main__" and STAND_IN in sys.argv:  # in the launcher's place: starts this file, not the package
    from deepspeed.launcher.launch import main

    at = sys.argv.index("--module")
    del sys.argv[1], sys.argv[at - 1]
    sys.argv[at - 1] = __file__
    main()
elif __name__ == "__main__":
    step = int(os.environ["HANGS_AFTER"])
    if "RANK" in os.environ:
        hang(step)
    launch._deepspeed = lambda: [sys.executable, "-u", __file__, STAND_IN]  # type: ignore[assignment]
    config = parse_config(LlavaTrainConfig, sys.argv[2:], prog="driver")
    assert config is not None
    run_train(config)
