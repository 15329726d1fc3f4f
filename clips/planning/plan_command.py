"""``clips plan``, which reads the training's config before it imports torch."""

from __future__ import annotations

from clips.commandline.parsing import parse_config
from clips.planning.plan_config import TrainPlanConfig
from clips.training.train_config import EncoderTrainConfig


def run_plan(config: TrainPlanConfig) -> None:
    """Print memory, time, GPUs and storage of a training.

    Raises:
        UserError: the training's file is missing or invalid, or its batch cannot be divided by the GPUs.
    """
    training = parse_config(EncoderTrainConfig, ["--config", config.train_config], prog=config.train_config)
    assert training is not None
    from clips.planning.plan_tables import print_plan  # imports torch

    print_plan(config, training)
