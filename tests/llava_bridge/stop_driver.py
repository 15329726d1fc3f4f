"""Started as a launcher would start it: trains a LLaVA, and gets SIGTERM after N steps.

python stop_driver.py CONFIG STEPS
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from clips.commandline.parsing import parse_config
from llava_bridge.training.train import run_train
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.trainer import StageProgress

config = parse_config(LlavaTrainConfig, ["--config", sys.argv[1]], prog="driver")
assert config is not None
log = StageProgress.log


def log_and_stop(self: StageProgress, step: int, logs: Mapping[str, Any]) -> None:
    log(self, step, logs)
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)


StageProgress.log = log_and_stop  # type: ignore[method-assign]
run_train(config)
