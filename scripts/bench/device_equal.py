"""Features, losses and gradients on a GPU compared with those on the CPU, and losses of steps under each strategy.

    python scripts/bench/device_equal.py --device cuda --architecture clips-b-16 --image-size 224 --batch 8

The reference is the eager float32 model on the CPU, with the same weights and batch. Differences are norms relative to
the reference's. Under each strategy three steps are trained in float32. Ends with status 1 if a difference exceeds its
limit.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import measure
import torch
from measure import begin, common_parser, record, table
from mfu import add_batch_arguments
from torch import Tensor

from clips.method.recipes import RecipeConfig
from clips.model.architectures import CaptionerConfig, ModelConfig
from clips.parallel.distributed import DistributedContext, end_processes, start_processes
from clips.parallel.distributed_config import DistributedConfig
from clips.parallel.strategies import STRATEGIES
from clips.training.train_step import TrainRun, compute_gradients, train_step

STEPS, WARMED_UP = 3, 100_000  # the first step's number: with the full learning rate
LIMITS = {  # relative to the norm; cuDNN computes the patches' convolution in TF32
    "fp32": {"image": 1e-3, "text": 1e-3, "loss": 1e-3, "gradient": 1e-2},
    "bf16": {"image": 3e-2, "text": 3e-2, "loss": 1e-2, "gradient": 2e-1},
}
Values = dict[str, Tensor]


def main() -> None:
    args = begin(arguments())
    rows: list[list[str]] = []
    for recipe in args.recipes:
        expected = outputs(args, recipe, "fp32", compiled=False, device="cpu")
        for precision, compiled in itertools.product(args.precisions, (False, True) if args.compile else (False,)):
            found = outputs(args, recipe, precision, compiled=compiled, device=args.device)
            rows += compare(args, found, expected, recipe, precision, compiled)
    head = ["recipe", "precision", "compiled", "value", "relative difference", "limit"]
    print(table(head, rows))
    wrong = [row for row in rows if not float(row[4]) <= float(row[5])]  # also where a value is not a number
    sys.exit(1 if compare_strategies(args) or wrong else 0)


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    add_batch_arguments(parser)
    parser.set_defaults(batch=8)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    return parser.parse_args()


def started(
    args: argparse.Namespace,
    recipe: str,
    precision: str,
    device: str,
    scale: DistributedConfig,
    processes: DistributedContext | None = None,
) -> tuple[TrainRun, Values]:
    torch.manual_seed(0)
    model = ModelConfig(architecture=args.architecture, image_size=args.image_size)
    texts = [measure.captions(args.captions, field, args.batch) for field in (args.web, args.synthetic)]
    recipe_config = RecipeConfig(name=recipe, captioner=CaptionerConfig())
    return measure.start(model, recipe_config, precision, texts, device, processes, scale)


# ---------------------------------------------------------------- features, losses, gradients


def outputs(args: argparse.Namespace, recipe: str, precision: str, *, compiled: bool, device: str) -> Values:
    """Features, the loss and the gradient of one batch, on the CPU."""
    run, batch = started(args, recipe, precision, device, DistributedConfig(torch_compile=compiled))
    losses, features = compute_gradients(run, batch)
    gradients = [weight.grad.flatten() for weight in run.encoder.parameters() if weight.grad is not None]
    found = {
        "image": features["image"],
        "text": torch.cat([features[name] for name in run.recipe.spec.positives]),
        "loss": losses["loss"],
        "gradient": torch.cat(gradients),
    }
    return {name: value.detach().double().cpu() for name, value in found.items()}


def compare(
    args: argparse.Namespace, found: Values, expected: Values, recipe: str, precision: str, compiled: bool
) -> list[list[str]]:
    rows = []
    for name, limit in LIMITS[precision].items():
        difference = ((found[name] - expected[name]).norm() / expected[name].norm()).item()
        names = {"recipe": recipe, "precision": precision, "compiled": compiled, "value": name}
        record(args, **names, difference=difference, limit=limit, equal=difference <= limit)
        rows.append([*map(str, names.values()), f"{difference:.2g}", f"{limit:g}"])
    return rows


# ---------------------------------------------------------------- strategies


def compare_strategies(args: argparse.Namespace) -> list[str]:
    """The strategies whose losses differ from those of the CPU's ``ddp``, in one process."""
    recipe, limit = args.recipes[-1], 1e-2  # Adam's first updates have the size of the learning rate, noise included
    expected = losses_of(*started(args, recipe, "fp32", "cpu", DistributedConfig()))
    processes, wrong = start_processes(), []
    for strategy in args.strategies:
        scale = DistributedConfig(strategy=strategy)
        found = losses_of(*started(args, recipe, "fp32", args.device, scale, processes))
        equal = all(abs(one - other) <= limit * abs(other) for one, other in zip(found, expected, strict=True))
        record(args, strategy=strategy, recipe=recipe, losses=found, expected=expected, limit=limit, equal=equal)
        print(f"{strategy}: losses {found}, expected {expected}")
        wrong += [] if equal else [strategy]
    end_processes()
    return wrong


def losses_of(run: TrainRun, batch: Values) -> list[float]:
    found = []
    for number in range(STEPS):
        run.state.step = WARMED_UP + number
        found.append(train_step(run, batch).read()["loss"])
    return found


if __name__ == "__main__":
    main()
