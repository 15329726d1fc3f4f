"""Count the training FLOPs of a study's encoders, to compare recipes at equal compute.

    python scripts/training_flops.py scripts/studies/ablation.yaml --like scenes.clips

For every encoder that the study trains (with a dotted name: those with the first part of ``--like``), the table has the
FLOPs of a training step, and the number of steps with the compute of the encoder ``--like``. FLOPs are those of torch's
counter (attention, matrix products, convolutions; forward and backward) over the first batches of the encoder's data,
summed over its stages. A frozen trunk counts even if its outputs are cached, unless ``--skip_cached`` is given. Missing
data of the study are created first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.engine import run_steps
from benchmarks.study.locks import locked
from benchmarks.study.schema import read_study
from benchmarks.study.steps import Step
from benchmarks.study.study_commands import current_keys
from clips.commandline.parsing import parse_config
from clips.data.loader import iterate_batches
from clips.errors import UserError, unknown_name_error
from clips.method import recipes
from clips.method.clips_model import build_model
from clips.method.objectives import compute_losses
from clips.planning.profilers import FlopCounter
from clips.training.setup import open_train_dataset
from clips.training.stages import stage_configs
from clips.training.train_config import EncoderTrainConfig
from clips.typed_data import to_yaml

_BATCHES = 2


def flops_per_sample(config: EncoderTrainConfig) -> float:
    """FLOPs of one sample in a training step of ``config``, over the first batches of its data."""
    data = open_train_dataset(config)
    model, recipe = build_model(config.model, config.recipe, config.seed), recipes.Recipe(config.recipe)
    found = 0.0
    for batch in iterate_batches(data, first_step=0, last_step=_BATCHES):
        del batch["invalid_samples"]
        if not config.model.cache_trunk_features:
            batch["image"] = batch["image"] / 255
        with torch.no_grad():
            model(batch)  # computes the outputs of the frozen layers, which later steps read from the cache
        with FlopCounter() as counter:
            compute_losses(recipe, model(batch), batch)["loss"].backward()
        found += counter.total
    return found / _BATCHES / config.global_batch_size


def stages_of(step: Step, *, skip_cached: bool) -> list[EncoderTrainConfig]:
    """The config of each stage of a study's encoder, without the weights of the previous stage."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(step.config), encoding="utf-8")
        config = parse_config(EncoderTrainConfig, ["--config", str(file)], prog="training_flops")
    assert config is not None
    stages = stage_configs(config)
    if any(stage.max_steps is None for stage in stages):
        raise UserError(f"{step.name}: expected its length in 'max_steps'")
    names = () if skip_cached else ("cache_trunk_features", "cache_text_features")
    first: dict[str, Any] = dict.fromkeys(names, False)
    later = {**first, "pretrained": None}
    return [
        replace(stage, model=replace(stage.model, **(later if number else first)))
        for number, stage in enumerate(stages)
    ]


def make_data(plan: StudyPlan) -> None:
    """Run the study's unfinished data steps."""
    steps = [step for step in plan.steps if step.kind == "data"]
    directory = plan.study.directory
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        summary = run_steps(steps, current_keys(plan), directory, jobs=1)
    if not summary.complete:
        raise UserError(f"{directory}/steps: {', '.join(summary.failed)} failed; see its log.txt")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="the study file")
    parser.add_argument("--like", required=True, help="the encoder whose compute is the reference")
    parser.add_argument("--skip_cached", action="store_true", help="do not count layers whose outputs are cached")
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    if arguments.like not in study.encoders:
        raise unknown_name_error(arguments.like, study.encoders, "encoder")
    plan = build_plan(study)
    make_data(plan)
    entry, dot, _ = arguments.like.partition(".")
    names = [name for name in study.encoders if not dot or name.startswith(entry + dot)]
    encoders = {f"encoder-{name}-s{study.seeds[0]}": name for name in names}
    cost: dict[str, tuple[int, float]] = {}  # encoder → its training steps, their FLOPs
    for step in plan.steps:
        if step.name in encoders:
            stages = stages_of(step, skip_cached=arguments.skip_cached)
            parts = [flops_per_sample(stage) * (stage.max_steps or 0) * stage.global_batch_size for stage in stages]
            cost[encoders[step.name]] = sum(stage.max_steps or 0 for stage in stages), sum(parts)
            print(f"{step.name}: {sum(parts) / 1e12:.2f} TFLOP", file=sys.stderr)
    if arguments.like not in cost:
        raise UserError(f"--like: expected an encoder that the study trains, got '{arguments.like}'")
    total = cost[arguments.like][1]
    print(f"{'encoder':32} {'steps':>6} {'TFLOP':>8} {'GFLOP a step':>12} {'steps at equal compute':>24}")
    for name, (steps, flops) in cost.items():
        print(f"{name:32} {steps:6} {flops / 1e12:8.2f} {flops / steps / 1e9:12.2f} {round(steps * total / flops):24}")


if __name__ == "__main__":
    main()
