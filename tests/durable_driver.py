"""Started as a launcher would start it: trains a LLaVA, and writes what a power cut would have left.

python durable_driver.py CONFIG BASE RECORD
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from power_cut import Disk

from clips.commandline.parsing import parse_config
from llava_bridge.training.train import run_train
from llava_bridge.training.train_config import LlavaTrainConfig

config = parse_config(LlavaTrainConfig, ["--config", sys.argv[1]], prog="driver")
assert config is not None
with Disk(Path(sys.argv[2])).recording() as disk:
    run_train(config)
Path(sys.argv[3]).write_text(json.dumps({"left": disk.contents(), "before_deletions": disk.before_deletions}))
