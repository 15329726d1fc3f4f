"""The model FLOPs utilization (MFU) of this suite's training step.

    python scripts/bench/mfu.py --threads 2                                            (S/16 on a CPU)
    python scripts/bench/mfu.py --device cuda --architecture clips-l-14 --batch 256 --precisions bf16 --compile

At a batch of 256 `clips plan` estimates 71 GB for L/14 under `clip` and 122 GB under `clips` (measured on an H200: 71.4
and 122.5); with --checkpointing 12 and 17.

The peak is that of a large matrix product in the step's precision, measured alternately with the step. The step's
operations are those of its matrix products and attentions, counted as they run, with the backward pass, but without
skipped padding and recomputation. With --compile or --checkpointing they are counted on eight samples without these.

--repeat N trains N steps twice instead, with and without torch's deterministic mode, and counts weights that differ: on
a GPU some kernels add in varying order, and a resumed run can then differ from an uninterrupted one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable

import measure
import torch
from measure import begin, common_parser, flops, record, seconds_of, spread, table, take_turns
from torch import Tensor

from clips.method.recipes import RECIPES, CaptionerConfig, RecipeConfig
from clips.model.architectures import ModelConfig
from clips.train import train_step
from clips.training.setup import TrainRun
from clips.training.train_config import DistributedConfig

SECONDS_OF_PRODUCTS = 1.0
COUNTED = 8  # samples


def main() -> None:
    args = begin(arguments())
    if args.repeat:
        repeat(args)
        return
    print(f"{args.architecture} at {args.image_size} px, batch {args.batch}, texts: {args.captions or 'full rows'}")
    head = ["recipe", "precision", "threads", "peak TFLOP/s", "step TFLOP/s", "MFU", "samples/s"]
    for number, (recipe, precision) in enumerate(itertools.product(args.recipes, args.precisions)):
        lines = table(head, [row(args, recipe, precision)]).splitlines()
        print("\n".join(lines if number == 0 else lines[-1:]), flush=True)  # the next may not fit into memory


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--architecture", default="clips-s-16")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--captions", help="JSON or JSONL with captions; without it every text fills its row")
    parser.add_argument("--web", default="web", help="field of the web captions")
    parser.add_argument("--synthetic", default="fused", help="field of the synthetic captions")
    parser.add_argument("--recipes", nargs="+", default=["clip", "clips"], choices=list(RECIPES))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile of the layers")
    parser.add_argument(
        "--checkpointing", action="store_true", help="compute activations again instead of storing them"
    )
    parser.add_argument("--repeat", type=int, help="compare the weights of two trainings of so many steps")
    parser.add_argument("--matrix", type=int, default=4096, help="rows and columns of the product that is the peak")
    parser.add_argument("--steps", type=int, default=1, help="in a turn; more, for steps of milliseconds on a GPU")
    return parser.parse_args()


def row(args: argparse.Namespace, recipe: str, precision: str) -> list[str]:
    step = our_step(args, recipe, precision)
    seconds, cells = measure_mfu(step, operations(args, recipe, precision), args, precision, recipe=recipe)
    samples = spread([args.batch / value for value in seconds])
    return [recipe, precision, str(args.threads), *cells, f"{samples:.3g}"]


def measure_mfu(
    step: Callable[[], object], work: float, args: argparse.Namespace, precision: str, **names: str
) -> tuple[list[float], list[str]]:
    """Seconds of a step of ``work`` operations; and peak TFLOP/s, step TFLOP/s and MFU as table cells."""
    product, repeats = matrix_product(args, precision)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    sides = {"step": lambda: [step() for _ in range(args.steps)], "peak": product}
    seconds = take_turns(sides, args.rounds, args.clock)
    steps = [value / args.steps for value in seconds["step"]]
    peaks = [2 * args.matrix**3 * repeats / value / 1e12 for value in seconds["peak"]]
    rates = [work / value / 1e12 for value in steps]
    ratios = spread([rate / peak for rate, peak in zip(rates, peaks, strict=True)])
    memory = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
    found = {"seconds": spread(steps), "peak_tflops": spread(peaks), "tflops": spread(rates), "mfu": ratios}
    record(args, precision=precision, **names, **found, flops=work, max_bytes=memory)
    return steps, [f"{spread(peaks):.3g}", f"{spread(rates):.3g}", f"{ratios:.1%}"]


def operations(args: argparse.Namespace, recipe: str, precision: str) -> float:
    """Floating point operations of a step, without recomputation."""
    if not (args.compile or args.checkpointing):
        return flops(our_step(args, recipe, precision))
    fields = {**vars(args), "batch": min(args.batch, COUNTED), "compile": False, "checkpointing": False}
    few = argparse.Namespace(**fields)
    return flops(our_step(few, recipe, precision)) * args.batch / few.batch


def our_step(args: argparse.Namespace, recipe: str, precision: str) -> Callable[[], object]:
    run, batch = started(args, recipe, precision)
    return lambda: train_step(run, batch)


def started(args: argparse.Namespace, recipe: str, precision: str) -> tuple[TrainRun, dict[str, Tensor]]:
    model = ModelConfig(architecture=args.architecture, image_size=args.image_size)
    texts = [measure.captions(args.captions, field, args.batch) for field in (args.web, args.synthetic)]
    recipe_config = RecipeConfig(name=recipe, captioner=CaptionerConfig())
    scale = DistributedConfig(torch_compile=args.compile, activation_checkpointing=args.checkpointing)
    return measure.start(model, recipe_config, precision, texts, args.device, scale)


def matrix_product(args: argparse.Namespace, precision: str) -> tuple[Callable[[], object], int]:
    """A function that multiplies two square matrices for about a second, and the number of its products."""
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    left, right = (torch.randn(args.matrix, args.matrix, device=args.device, dtype=kind) for _ in range(2))
    out = torch.empty_like(left)

    def products(repeats: int) -> None:
        for _ in range(repeats):
            torch.mm(left, right, out=out)
        measure.synchronize()

    products(1)
    start = time.perf_counter()
    products(1)
    repeats = max(1, round(SECONDS_OF_PRODUCTS / (time.perf_counter() - start)))
    return lambda: products(repeats), repeats


# ---------------------------------------------------------------- two trainings


def repeat(args: argparse.Namespace) -> None:
    """Print how many weights of two trainings differ, and what torch's deterministic mode costs."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which the deterministic mode needs
    rows = []
    for recipe, precision, deterministic in itertools.product(args.recipes, args.precisions, (False, True)):
        torch.use_deterministic_algorithms(deterministic)  # an error, not a warning: attention of cuDNN obeys only that
        (first, one), (second, other) = (trained(args, recipe, precision) for _ in range(2))
        unequal = [name for name, weight in first.items() if not torch.equal(weight, second[name])]
        names = {"recipe": recipe, "precision": precision, "deterministic": deterministic}
        seconds = spread([one, other])
        record(args, **names, unequal=unequal, tensors=len(first), seconds=seconds)
        rows.append([*map(str, names.values()), f"{len(unequal)} of {len(first)}", f"{seconds.median * 1e3:.1f}"])
    print(table(["recipe", "precision", "deterministic", "unequal weight tensors", "ms a step"], rows))


def trained(args: argparse.Namespace, recipe: str, precision: str) -> tuple[dict[str, Tensor], float]:
    """The weights after ``--repeat`` steps, and the seconds of a step but the first."""
    torch.manual_seed(0)
    run, batch = started(args, recipe, precision)
    train_step(run, batch)
    seconds = seconds_of(lambda: [train_step(run, batch) for _ in range(args.repeat - 1)], args.clock)
    weights = {name: weight.detach().cpu() for name, weight in run.parallel.model.named_parameters()}
    return weights, seconds / max(args.repeat - 1, 1)


if __name__ == "__main__":
    main()
