"""Started as a launcher would start it: trains LLaVAs one after the other in one process."""

from __future__ import annotations

import sys

from clips.commandline.parsing import parse_config
from llava_bridge.training.config import TrainConfig
from llava_bridge.training.train import train

for path in sys.argv[1:]:
    config = parse_config(TrainConfig, ["--config", path], prog="driver")
    assert config is not None
    train(config)
