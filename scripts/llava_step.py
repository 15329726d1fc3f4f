"""The authors' side of ``compare_with_llava.py``: their training, step by step. Runs beside libraries of their time.

Everything is theirs but the order of the samples, which is that of the file, and that losses are written down.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

OPTIONAL = ("datasets", "peft", "bitsandbytes")
"""What transformers imports where it is there, and this training needs not: those that are may be too new for it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llava", required=True)
    parser.add_argument("--losses", required=True, help="JSON that is written: the loss of each step")
    parser.add_argument("--tower", choices=["theirs", "float32"], required=True)
    args, sys.argv[1:] = parser.parse_known_args()
    sys.path.insert(0, args.llava)
    sys.modules.update(dict.fromkeys(OPTIONAL))
    run(args)


def run(args: argparse.Namespace) -> None:
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
    from llava.train import train as their
    from torch.utils.data import SequentialSampler

    losses: list[float] = []
    parts: list[float] = []

    class Recorded(their.LLaVATrainer):
        def _get_train_sampler(self) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *given: Any) -> Any:
            parts.append(float(loss := super().training_step(*given)))
            if len(parts) == self.args.gradient_accumulation_steps:
                losses.append(sum(parts))
                parts.clear()
            return loss

    if args.tower == "float32":  # else it computes in half precision whatever the rest does
        CLIPVisionTower.to = lambda self, *_, **__: self
    their.LLaVATrainer = Recorded
    their.train()
    Path(args.losses).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
