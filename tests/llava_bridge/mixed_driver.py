"""Started as one of several training processes: trains LLaVAs in whose steps some processes have text, others images.

python mixed_driver.py CONFIG...
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

from clips.commandline.parsing import parse_config
from llava_bridge.training.train import run_train
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.trainer import StageTrainer

# A step's samples, T of text and P with an image: of two processes the first has the first two, or every other one.
STEPS = ("TTPP", "PPTT", "TPTT", "PTPP", "TTTT", "TTPP", "PPPT", "PPTT")
STEP = StageTrainer.training_step


def mixed_order(self: StageTrainer, train_dataset: Any = None) -> list[int]:
    """Samples in the kinds that `STEPS` states, in place of the order of training."""
    shows = [bool(shown) for shown, _ in self.train_dataset.sizes()]  # type: ignore[union-attr]
    of_kind = {
        kind: itertools.cycle([index for index, one in enumerate(shows) if one == (kind == "P")]) for kind in "TP"
    }
    return [next(of_kind[kind]) for step in STEPS for kind in step]


def training_step(self: StageTrainer, model: Any, *arguments: Any, **options: Any) -> Any:
    """A step between two looks at what ZeRO-3 has cut: a weight that stays whole is gathered once."""
    reject_full_weights(model)
    loss = STEP(self, model, *arguments, **options)
    reject_full_weights(model)
    return loss


def reject_full_weights(model: Any) -> None:
    whole = [
        name
        for name, weight in model.named_parameters()
        if hasattr(weight, "ds_status") and weight.ds_status != ZeroParamStatus.NOT_AVAILABLE
    ]
    assert not whole, f"ZeRO-3 has not cut {len(whole)} weights, among them {whole[0]}"


if __name__ == "__main__":
    StageTrainer._get_train_sampler = mixed_order  # type: ignore[method-assign,assignment]
    StageTrainer.training_step = training_step  # type: ignore[method-assign]
    for path in sys.argv[1:]:
        config = parse_config(LlavaTrainConfig, ["--config", path], prog="driver")
        assert config is not None
        run_train(config)
