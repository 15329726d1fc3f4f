"""Count what the encoders of a study cost, so that recipes compare at equal compute as well as at equal samples.

    python scripts/training_flops.py scripts/studies/ablation.yaml --like clips

For every encoder trained there: floating point operations of one sample in a training step (forward and backward, as
torch's own counter sees them, attention and matrix products and convolutions), steps as the study has them, and the
steps that cost as much as the encoder ``--like``. A frozen trunk counts even where its outputs are kept.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.study.plan import make_plan
from benchmarks.study.schema import read_study
from clips import recipes
from clips.commandline import parse_config, to_yaml
from clips.config import TrainConfig
from clips.data.loader import collate
from clips.errors import UserError, suggest
from clips.model import build_model
from clips.tokenizer import ClipsTokenizer

_BATCH = 8
_CAPTIONS = ("a web caption", "A first sentence of the caption. " * 40)


def flops_of_sample(config: TrainConfig) -> float:
    """FLOPs of one sample in a training step of ``config``, captions as long as its places allow."""
    import numpy as np

    model, recipe = build_model(config.model, config.recipe, config.seed), recipes.build(config.recipe)
    tokenizer = ClipsTokenizer(model.context_length)
    rng = np.random.default_rng(0)
    samples = [{**recipe.prepare(*_CAPTIONS, rng, tokenizer), "bad": []} for _ in range(_BATCH)]
    batch = collate(samples)
    del batch["bad"]
    batch["image"] = torch.zeros(_BATCH, 3, model.image_size, model.image_size)
    with FlopCounterMode(display=False) as counter:
        recipe.losses(model(batch), batch)["loss"].backward()
    return counter.get_total_flops() / _BATCH


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="the study file")
    parser.add_argument("--like", required=True, help="the encoder whose compute the others shall have")
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    if arguments.like not in study.encoders:
        raise suggest(arguments.like, study.encoders, "encoder")
    seed = study.seeds[0]
    configs = {
        name: step.config
        for step in make_plan(study).steps
        for name in study.encoders
        if step.name == f"encoder-{name}-s{seed}"
    }
    found = {}
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder  # no trunk's output is there yet
            file = Path(folder) / "config.yaml"
            file.write_text(to_yaml(config), encoding="utf-8")
            parsed = parse_config(TrainConfig, ["--config", str(file)], prog="training_flops")
            assert parsed is not None
            if parsed.steps is None:
                raise UserError(f"encoders.{name}: expected its length in 'steps'")
            found[name] = (flops_of_sample(parsed), parsed.steps, parsed.batch_size)
    like_flops, like_steps, like_batch = found[arguments.like]
    total = like_flops * like_steps * like_batch
    print(f"{'encoder':32} {'MFLOP/sample':>12} {'steps':>6} {'TFLOP':>8} {'steps at equal compute':>24}")
    for name, (flops, steps, batch) in found.items():
        equal = round(total / flops / batch)
        print(f"{name:32} {flops / 1e6:12.1f} {steps:6} {flops * steps * batch / 1e12:8.2f} {equal:24}")


if __name__ == "__main__":
    main()
