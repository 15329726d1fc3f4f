"""Started as one of several training processes: trains LLaVAs and notes what their encoders compute, and in what.

python encoder_driver.py CONFIG...
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

from clips.commandline.parsing import parse_config
from llava_bridge.model.vision import EncoderVisionModel
from llava_bridge.training.config import TrainConfig
from llava_bridge.training.train import train

compute = EncoderVisionModel._computed
notes: list[str] = []


def noted(self: EncoderVisionModel, pixel_values: torch.Tensor, wanted: set[int]) -> dict[int, torch.Tensor]:
    states: Any = compute(self, pixel_values, wanted)
    made = b"".join(state.detach().float().numpy().tobytes() for state in states.values())
    notes.append(f"{self.dtype} {hashlib.sha256(made).hexdigest()}")
    return states


if __name__ == "__main__":
    EncoderVisionModel._computed = noted  # type: ignore[method-assign]
    for path in sys.argv[1:]:
        notes.clear()
        config = parse_config(TrainConfig, ["--config", path], prog="driver")
        assert config is not None
        train(config)
        Path(f"{path}.encoder{os.environ['RANK']}").write_text("\n".join(notes))
