"""Whether two trainings have the same weights, bit for bit, and what torch's deterministic mode costs.

    python scripts/bench/repeated_steps.py --device cuda --architecture clips-b-16 --batch 96 --precisions bf16

On a GPU some kernels add in varying order, and a resumed run can then differ from an uninterrupted one. `deterministic`
is ``torch.use_deterministic_algorithms``, which some of them obey.
"""

from __future__ import annotations

import argparse
import itertools
import os

import measure
import torch
from measure import begin, common_parser, record, seconds_of, spread, table
from mfu import add_batch_arguments
from torch import Tensor

from clips.method.recipes import RecipeConfig
from clips.model.architectures import CaptionerConfig, ModelConfig
from clips.training.train_step import train_step


def main() -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which the deterministic mode needs
    args = begin(arguments())
    head = ["recipe", "precision", "algorithms", "unequal weight tensors", "ms a step"]
    for number, case in enumerate(itertools.product(args.recipes, args.precisions, (False, True))):
        lines = table(head, [compare(*case, args)]).splitlines()
        print("\n".join(lines if number == 0 else lines[-1:]), flush=True)


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    add_batch_arguments(parser)
    parser.add_argument("--steps", type=int, default=4)
    return parser.parse_args()


def compare(recipe: str, precision: str, deterministic: bool, args: argparse.Namespace) -> list[str]:
    torch.use_deterministic_algorithms(deterministic)  # an error, not a warning: attention of cuDNN obeys only that
    (first, one), (second, other) = (trained(recipe, precision, args) for _ in range(2))
    unequal = [name for name, weight in first.items() if not torch.equal(weight, second[name])]
    kind = "deterministic" if deterministic else "default"
    seconds = spread([one, other])
    found = {"unequal": unequal, "tensors": len(first), "seconds": seconds}
    record(args, recipe=recipe, precision=precision, algorithms=kind, **found)
    return [recipe, precision, kind, f"{len(unequal)} of {len(first)}", f"{seconds.median * 1e3:.1f}"]


def trained(recipe: str, precision: str, args: argparse.Namespace) -> tuple[dict[str, Tensor], float]:
    """The weights after ``--steps`` steps, and the seconds of a step but the first."""
    torch.manual_seed(0)
    texts = [measure.captions(args.captions, field, args.batch) for field in (args.web, args.synthetic)]
    model = ModelConfig(architecture=args.architecture, image_size=args.image_size)
    recipe_config = RecipeConfig(name=recipe, captioner=CaptionerConfig())
    run, batch = measure.start(model, recipe_config, precision, texts, args.device)
    train_step(run, batch)
    seconds = seconds_of(lambda: [train_step(run, batch) for _ in range(args.steps - 1)], args.clock)
    weights = {name: weight.detach().cpu() for name, weight in run.parallel.model.named_parameters()}
    return weights, seconds / (args.steps - 1)


if __name__ == "__main__":
    main()
