"""Started as a launcher would start it: trains a LLaVA, and gets SIGTERM after so many steps.

python stop_driver.py CONFIG STEPS
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from clips.commandline.parsing import parse_config
from llava_bridge.training.config import TrainConfig
from llava_bridge.training.progress import Progress
from llava_bridge.training.train import train

config = parse_config(TrainConfig, ["--config", sys.argv[1]], prog="driver")
assert config is not None
log = Progress.log


def log_and_stop(self: Progress, step: int, logs: Mapping[str, Any]) -> None:
    log(self, step, logs)
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)


Progress.log = log_and_stop  # type: ignore[method-assign]
train(config)
