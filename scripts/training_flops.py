"""Count what the encoders of a study cost, so that recipes compare at equal compute as well as at equal samples.

    python scripts/training_flops.py scripts/studies/ablation.yaml --like scenes.clips

For every encoder trained there (of names with dots, those that begin as ``--like``'s does): floating point operations
of one sample in a training step (forward and backward, as torch's own counter sees them: attention, matrix products
and convolutions), over the first batches of its own data, and the steps that cost as much as the encoder ``--like``;
of an encoder with stages those of all, in their proportion. A frozen trunk counts even where its outputs are kept.
The study's data are made first where they are not there yet.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.engine import run_steps
from benchmarks.study.locks import locked
from benchmarks.study.parser import read_study
from benchmarks.study.steps import Step
from benchmarks.study.study_commands import current_keys
from clips.commandline.parsing import parse_config
from clips.data.loader import iterate_batches
from clips.errors import UserError, unknown_name_error
from clips.method import recipes
from clips.method.clips_model import build_model
from clips.planning.profilers import FlopCounter
from clips.serialization import to_yaml
from clips.training.setup import open_train_dataset
from clips.training.stages import stage_configs
from clips.training.train_config import EncoderTrainConfig

_BATCHES = 2


def flops_per_sample(config: EncoderTrainConfig) -> float:
    """FLOPs of one sample in a training step of ``config``, over the first batches that it would be trained on."""
    data = open_train_dataset(config)
    model, recipe = build_model(config.model, config.recipe, config.seed), recipes.Recipe(config.recipe)
    found = 0.0
    for batch in iterate_batches(data, first_step=0, last_step=_BATCHES):
        del batch["bad"]
        batch["image"] = batch["image"] / 255
        with FlopCounter() as counter:
            recipe.losses(model(batch), batch)["loss"].backward()
        found += counter.total
    return found / _BATCHES / config.global_batch_size


def stages_of(step: Step) -> list[EncoderTrainConfig]:
    """The config of each stage of a training step of a study, the weights before it left out."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(step.config), encoding="utf-8")
        config = parse_config(EncoderTrainConfig, ["--config", str(file)], prog="training_flops")
    assert config is not None
    stages = stage_configs(config)
    if any(stage.steps is None for stage in stages):
        raise UserError(f"{step.name}: expected its length in 'steps'")
    model = {"cache_trunk_features": False}
    return [
        replace(stage, model=replace(stage.model, **model, **({"pretrained": None} if number else {})))
        for number, stage in enumerate(stages)
    ]


def make_data(plan: StudyPlan) -> None:
    """Run the study's data steps that have not run."""
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
    parser.add_argument("--like", required=True, help="the encoder whose compute the others shall have")
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    if arguments.like not in study.encoders:
        raise unknown_name_error(arguments.like, study.encoders, "encoder")
    plan = build_plan(study)
    make_data(plan)
    world, dot, _ = arguments.like.partition(".")
    names = [name for name in study.encoders if not dot or name.startswith(world + dot)]
    wanted = {f"encoder-{name}-s{study.seeds[0]}": name for name in names}
    cost: dict[str, tuple[int, float]] = {}  # encoder → its steps, what all of them cost
    for step in plan.steps:
        if step.name in wanted:
            stages = stages_of(step)
            parts = [flops_per_sample(stage) * (stage.steps or 0) * stage.global_batch_size for stage in stages]
            cost[wanted[step.name]] = sum(stage.steps or 0 for stage in stages), sum(parts)
            print(f"{step.name}: {sum(parts) / 1e12:.2f} TFLOP", file=sys.stderr)
    if arguments.like not in cost:
        raise UserError(f"--like: expected an encoder that the study trains, got '{arguments.like}'")
    total = cost[arguments.like][1]
    print(f"{'encoder':32} {'steps':>6} {'TFLOP':>8} {'GFLOP a step':>12} {'steps at equal compute':>24}")
    for name, (steps, flops) in cost.items():
        print(f"{name:32} {steps:6} {flops / 1e12:8.2f} {flops / steps / 1e9:12.2f} {round(steps * total / flops):24}")


if __name__ == "__main__":
    main()
