"""Started as a launcher would start it: trains LLaVAs one after the other in one process."""

from __future__ import annotations

import sys

from clips.commandline.parsing import parse_config
from llava_bridge.training.train import run_train
from llava_bridge.training.train_config import LlavaTrainConfig

for path in sys.argv[1:]:
    config = parse_config(LlavaTrainConfig, ["--config", path], prog="driver")
    assert config is not None
    run_train(config)
