"""The cost of a checkpoint, in training steps.

    python scripts/bench/checkpoint_stall.py --architecture clips-s-16 --batch 32
    torchrun --nproc-per-node 2 scripts/bench/checkpoint_stall.py --strategy fsdp --batch 16

Rounds of steps with a checkpoint alternate with rounds without one. The cost is the difference of their times, in
steps: the copying that training waits for, and the slowdown of steps during the writing in the background.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import torch
from measure import common_parser, machine, record, spread, table

from clips.method.recipes import RECIPES, RecipeConfig
from clips.model.architectures import CaptionerConfig, ModelConfig
from clips.parallel.distributed import all_gather_objects, end_processes, start_processes, wait_for_main_process
from clips.parallel.distributed_config import DistributedConfig
from clips.parallel.strategies import STRATEGIES
from clips.train import save_checkpoint
from clips.training.checkpoint import Checkpointer
from clips.training.train_step import TrainRun, train_step


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    processes = start_processes()
    say = print if processes.is_main else lambda *_: None
    device = processes.device.type  # a GPU if there is one, as in a training
    say(machine(device))
    captioner = CaptionerConfig(max_loss_tokens=args.positions)
    texts = [measure.captions(None, "", args.batch)] * 2
    run, batch = measure.start(
        ModelConfig(architecture=args.architecture, image_size=args.image_size),
        RecipeConfig(name=args.recipe, captioner=captioner),
        args.precision,
        texts,
        device,
        processes,
        DistributedConfig(strategy=args.strategy),
    )
    folder = Path(all_gather_objects(tempfile.mkdtemp(dir=args.folder) if processes.is_main else None)[0])
    try:
        lost, waited, size, step = trial(run, batch, folder, args)
        wait_for_main_process()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        end_processes()
    if processes.is_main:
        record(args, processes=processes.count, waited=waited, lost=lost, bytes=size, seconds=step)
    say(f"{args.architecture}, {args.recipe}, batch {args.batch}, {args.precision}: a step takes {step:.2f} s,")
    say(f"{processes.count} process(es), {args.strategy}")
    say(f"a checkpoint has {size / 2**20:.0f} MiB; {args.steps} steps per checkpoint")
    say(table(["", "steps"], [["training waits for", f"{waited:.2f}"], ["total cost", f"{lost:.2f}"]]))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--architecture", default="clips-s-16")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--recipe", default="clip", choices=list(RECIPES))
    parser.add_argument("--positions", type=int, help="tokens of a caption that the captioner's loss uses")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--strategy", default="ddp", choices=list(STRATEGIES), help="in processes under torchrun")
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--folder", help="a directory on the disk in question")
    return parser.parse_args()


def trial(run: TrainRun, batch: dict[str, Any], folder: Path, args: argparse.Namespace) -> tuple[Any, Any, int, float]:
    """Steps lost, steps waited for, bytes of a checkpoint, seconds of a step."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    waits = []
    with Checkpointer(folder, run.processes, keep=1) as checkpointer:
        for number in range(-1, args.rounds):  # the first round warms up
            for side in ("with", "without")[:: -1 if number % 2 else 1]:
                measure.synchronize()
                start = time.perf_counter()
                if side == "with":
                    save_checkpoint(run, checkpointer)
                    wait = time.perf_counter() - start
                for _ in range(args.steps):
                    train_step(run, batch)
                measure.synchronize()
                if number >= 0:
                    seconds[side].append(time.perf_counter() - start)
                    waits += [wait] if side == "with" else []
                checkpointer.wait()
                run.state.step += args.steps
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    step = statistics.median(seconds["without"]) / args.steps
    lost = [(one - other) / step for one, other in zip(seconds["with"], seconds["without"], strict=True)]
    return spread(lost), spread([wait / step for wait in waits]), size, step


if __name__ == "__main__":
    main()
