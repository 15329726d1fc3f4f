"""Started as one of several training processes: trains LLaVAs and keeps what their encoders compute, and with what.

python encoder_driver.py CONFIG...
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from clips.commandline.parsing import parse_config
from llava_bridge.model.modeling_vision import EncoderVisionModel
from llava_bridge.training.train import run_train
from llava_bridge.training.train_config import LlavaTrainConfig

compute = EncoderVisionModel.compute_states
kept: list[tuple[torch.dtype, list[torch.Tensor]]] = []


def computed(self: EncoderVisionModel, *inputs: Any) -> dict[int, torch.Tensor]:
    states: Any = compute(self, *inputs)
    kept.append((next(self.parameters()).dtype, [state.detach().clone() for state in states.values()]))
    return states


if __name__ == "__main__":
    EncoderVisionModel.compute_states = computed  # type: ignore[method-assign]
    for path in sys.argv[1:]:
        kept.clear()
        config = parse_config(LlavaTrainConfig, ["--config", path], prog="driver")
        assert config is not None
        run_train(config)
        torch.save(kept, f"{path}.encoder{os.environ['RANK']}")
