"""LLaVA's side of ``compare_with_llava.py``: its training with the libraries of its time.

Only two things differ from LLaVA: samples are in the order of the file, and the loss of each step is recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

OPTIONAL = ("datasets", "peft", "bitsandbytes")
"""Optional imports of transformers that this training does not use; installed versions may be too new for it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llava", required=True)
    parser.add_argument("--losses", required=True, help="JSON to write: the loss of each step")
    parser.add_argument("--tower", choices=["theirs", "float32"], required=True)
    args, sys.argv[1:] = parser.parse_known_args()
    sys.path.insert(0, args.llava)
    sys.modules.update(dict.fromkeys(OPTIONAL))  # type: ignore[arg-type]
    run(args)


def run(args: argparse.Namespace) -> None:
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
    from llava.train import train as llava_train
    from torch.utils.data import SequentialSampler

    losses: list[float] = []
    parts: list[float] = []

    class RecordingTrainer(llava_train.LLaVATrainer):
        def _get_train_sampler(self) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any) -> Any:
            parts.append(float(loss := super().training_step(*arguments)))
            if len(parts) == self.args.gradient_accumulation_steps:
                losses.append(sum(parts))
                parts.clear()
            return loss

    if args.tower == "float32":  # LLaVA always casts its tower to half precision
        CLIPVisionTower.to = lambda self, *_, **__: self
    llava_train.LLaVATrainer = RecordingTrainer
    llava_train.train()
    Path(args.losses).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
