"""``clips plan``: what a training will need.

clips plan scripts/configs/clips-l-14.yaml --gpu h200 --count 64
"""

from __future__ import annotations

import json
from pathlib import Path

from clips.commandline.parsing import parse_config
from clips.core.artifact import write_file
from clips.planning.config import PlanConfig
from clips.training.config import TrainConfig


def plan(config: PlanConfig) -> None:
    """Carry out ``config``: tables on the terminal, and the file.

    Raises:
        UserError: the training's file is not there or wrong, or its batch cannot be shared so.
    """
    training = parse_config(TrainConfig, ["--config", config.training], prog=config.training)
    assert training is not None
    from clips.planning.plan import make_plan
    from clips.planning.table import show

    found = make_plan(config, training)
    show(found)
    if config.json is not None:
        write_file(Path(config.json), json.dumps(found, indent=1) + "\n")
