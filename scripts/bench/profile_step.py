"""The kernels of a training step by their time, and the gaps between them in which the device is idle.

    python scripts/bench/profile_step.py --device cuda --architecture clips-l-14 --batch 256 --precisions bf16
    python scripts/bench/profile_step.py --architecture clips-tiny --batch 4              (operations of a CPU instead)

A GPU's kernels are recorded by torch.profiler without the operations of the host, whose recording would slow it down;
the time of the same steps without the profiler is printed too. Idle are the moments without any kernel or copy.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measure import begin, common_parser, record, seconds_of, synchronize, table
from mfu import add_step_arguments, our_step
from torch.profiler import ProfilerActivity, profile

KINDS = {"cuda": {"kernel", "gpu_memcpy", "gpu_memset"}, "cpu": {"cpu_op"}}
WARMUP = 3
SHORT = 120  # characters of a kernel's name


class Kernel(NamedTuple):
    """A kernel with its start and end in microseconds."""

    start: float
    end: float
    name: str


def main() -> None:
    args = begin(arguments())
    for recipe, precision in itertools.product(args.recipes, args.precisions):
        report(args, recipe, precision)


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    add_step_arguments(parser)
    parser.add_argument("--steps", type=int, default=3, help="recorded")
    parser.add_argument("--top", type=int, default=20, help="kernels, and gaps, that are listed")
    return parser.parse_args()


def report(args: argparse.Namespace, recipe: str, precision: str) -> None:
    step = our_step(args, recipe, precision)
    for _ in range(WARMUP):
        step()
    bare = seconds_of(lambda: [step() for _ in range(args.steps)], args.clock) / args.steps
    kernels = recorded(lambda: [step() for _ in range(args.steps)], args.device)
    found = summary(kernels, args.steps, args.top)
    record(args, recipe=recipe, precision=precision, seconds_without_profiler=bare, **found)
    print(
        f"{recipe}, {precision}: {bare * 1e3:.2f} ms a step without the profiler; with it {found['ms']:.2f} ms, "
        f"{found['kernels']:.0f} kernels, {found['idle']:.1%} idle, {found['long_gaps']:.1f} gaps above 20 µs"
    )
    print(table(["kernel", "calls", "ms", "share"], [list(each.values()) for each in found["top"]]))
    print(table(["gap: after", "before", "µs"], [list(each.values()) for each in found["gaps"]]), flush=True)


def recorded(run: Callable[[], object], device: str) -> list[Kernel]:
    """The kernels of ``run`` by their start."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    synchronize()
    with profile(activities=[activity]) as found:
        run()
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    chosen = [event for event in events if event.get("cat") in KINDS[device] and event.get("ph") == "X"]
    return sorted(Kernel(event["ts"], event["ts"] + event["dur"], event["name"][:SHORT]) for event in chosen)


def summary(kernels: list[Kernel], steps: int, top: int) -> dict[str, Any]:
    """Times of a step in milliseconds: the kernels by their sum, and the longest gaps, with the kernels around them."""
    span, busy, gaps = max(kernel.end for kernel in kernels) - kernels[0].start, 0.0, []
    last = kernels[0]
    for kernel in kernels:
        if kernel.start > last.end:
            gaps.append((kernel.start - last.end, last.name, kernel.name))
        busy += max(0.0, kernel.end - max(kernel.start, last.end if kernel is not last else kernel.start))
        last = max(last, kernel, key=lambda each: each.end)
    totals: dict[str, float] = collections.defaultdict(float)
    for kernel in kernels:
        totals[kernel.name] += kernel.end - kernel.start
    calls, everything = collections.Counter(kernel.name for kernel in kernels), sum(totals.values())
    longest = sorted(totals, key=lambda name: -totals[name])[:top]
    return {
        "ms": span / 1e3 / steps,
        "idle": 1 - busy / span,
        "kernels": len(kernels) / steps,
        "long_gaps": sum(gap > 20 for gap, *_ in gaps) / steps,
        "top": [
            {"name": name, "calls": calls[name] / steps, "ms": round(totals[name] / 1e3 / steps, 4)}
            | {"share": round(totals[name] / everything, 4)}
            for name in longest
        ],
        "gaps": [
            {"after": before, "before": after, "us": round(gap, 1)} for gap, before, after in sorted(gaps)[::-1][:top]
        ],
    }


if __name__ == "__main__":
    main()
