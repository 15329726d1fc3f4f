"""Compare the time that the roofline of `clips plan` predicts for a training step with the measured one, on this CPU.

    python scripts/bench/roofline.py --threads 1 --rounds 5

The rates of this CPU are measured in turns with the step, in float32: large matrix products, attention, memory, and the
smallest operation. Prediction and measurement are of `clips.training.train_step.train_step`, texts without padding.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import measure
import torch
from measure import begin, common_parser, parameters, record, spread, table, take_turns
from torch.nn import functional as F  # noqa: N812

from clips.method.recipes import RecipeConfig
from clips.model.architectures import CaptionerConfig, ModelConfig
from clips.planning.dry_run import fake_model
from clips.planning.roofline import Rates, roofline, trace_step
from clips.training.train_step import train_step

CASES = (("clips-ti-16", 224, "clip", 16), ("clips-s-16", 112, "clips", 16), ("clips-s-16", 224, "clip", 16))
REPEATS = 10


def main() -> None:
    args = begin(common_parser(__doc__).parse_args())
    head = ["step", "GFLOP/s", "GB/s", "predicted / s", "measured / s", "predicted to measured"]
    print(table(head, [compare(args, *case) for case in CASES]))


def compare(args: argparse.Namespace, architecture: str, size: int, recipe: str, batch: int) -> list[str]:
    """A row of the table."""
    model = ModelConfig(architecture=architecture, image_size=size)
    recipe_config = RecipeConfig(name=recipe, captioner=CaptionerConfig())
    run, samples = measure.start(model, recipe_config, "fp32", [measure.captions(None, "", batch)] * 2, args.device)
    trace = trace_step(fake_model(model, recipe_config), batch, device="cpu", bf16=False)
    sides, rates_of_sides = rate_sides()
    seconds = take_turns({"step": lambda: train_step(run, samples), **sides}, args.rounds, args.clock)
    rates = rates_of_sides({name: statistics.median(values) for name, values in seconds.items()})
    predicted = sum(part.seconds for part in roofline(trace, parameters(run.model), rates).values())
    name = f"{architecture} {size} px, {recipe}, batch {batch}"
    ratio = spread([predicted / value for value in seconds["step"]])
    record(args, step=name, rates=rates, predicted=predicted, seconds=spread(seconds["step"]), ratio=ratio)
    cells = [f"{rates.matmul / 1e9:.0f}", f"{rates.memory / 1e9:.1f}", f"{predicted:.2f}"]
    return [name, *cells, f"{spread(seconds['step']):.2f}", f"{ratio:.2f}"]


def rate_sides() -> tuple[dict[str, Callable[[], object]], Callable[[dict[str, float]], Rates]]:
    """Operations to time in turns with a step, and the rates of this CPU in float32 from their seconds."""
    left, right = torch.randn(3152, 384), torch.randn(384, 1536)
    query = torch.randn(16, 6, 197, 64, requires_grad=True)
    big, out, small = torch.randn(32_000_000), torch.empty(32_000_000), torch.randn(4)
    sides: dict[str, Callable[[], object]] = {
        "matmul": lambda: [left @ right for _ in range(REPEATS)],
        "forward": lambda: [F.scaled_dot_product_attention(query, query, query) for _ in range(REPEATS)],
        "both": lambda: [F.scaled_dot_product_attention(query, query, query).sum().backward() for _ in range(REPEATS)],
        "memory": lambda: [torch.add(big, 1.0, out=out) for _ in range(REPEATS)],
        "launch": lambda: [small.add(1.0) for _ in range(REPEATS)],
    }

    def rates(seconds: dict[str, float]) -> Rates:
        one = {name: value / REPEATS for name, value in seconds.items()}
        flops = 4 * 16 * 6 * 197 * 197 * 64
        attention = (flops / one["forward"], 2.5 * flops / (one["both"] - one["forward"]))
        return Rates(
            matmul=2 * left.numel() * right.shape[1] / one["matmul"],
            attention=attention,
            masked_attention=attention,
            memory=2 * big.nbytes / one["memory"],
            launch=one["launch"],
        )

    return sides, rates


if __name__ == "__main__":
    main()
