"""Time and memory of recalls from embeddings, compared with CLIP_benchmark's function.

    pip install --no-deps clip-benchmark
    python scripts/bench/recall_speed.py --threads 2                           (COCO's test: 5,000 × 25,000)
    python scripts/bench/recall_speed.py --sizes 100000x500000 --alone --rounds 1
    python scripts/bench/recall_speed.py --alone --sizes 10000x50000 20000x100000 40000x200000 --rounds 3
    python scripts/bench/recall_speed.py --device cuda

The embeddings are random unit vectors with five captions near each image, the same for both sides. Each side runs in a
separate process and returns R@1, 5 and 10 in both directions, which must be equal. Memory is the peak of that process
beyond the loaded embeddings (on a GPU: of torch's allocations). ``--alone`` omits CLIP_benchmark, whose matrices do not
fit at larger sizes.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import alternate, begin, common_parser, record, speed_up, spread, table

CUTS = (1, 5, 10)
PER_IMAGE = 5
MIB = 2**20


def main() -> None:
    args = begin(arguments())
    head = ["images × captions", "side", "seconds", "peak MiB", "times as fast", "share of its memory", "ps a cell"]
    print(table(head, [row for size in args.sizes for row in rows_of(size, args)]))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["5000x25000"], help="images x captions")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="CLIP_benchmark's batch size; 64 is its default")
    parser.add_argument("--alone", action="store_true", help="without CLIP_benchmark")
    return parser.parse_args()


def rows_of(size: str, args: argparse.Namespace) -> list[list[str]]:
    num_images, captions = map(int, re.split("[x×]", size))
    names = ["ours"] if args.alone else ["ours", "CLIP_benchmark"]
    sides = {name: functools.partial(in_a_process, name, num_images, captions, args) for name in names}
    runs = alternate(sides, args.rounds, warmup=0)
    seconds = {name: [run["seconds"] for run in found] for name, found in runs.items()}
    memory = {name: spread([run["memory"] / MIB for run in found]) for name, found in runs.items()}
    if not args.alone:
        ours, theirs = (runs[name][0]["recalls"] for name in names)
        if not np.allclose(ours, theirs, atol=1e-6, rtol=0):
            raise SystemExit(f"the recalls differ: {ours} and {theirs}")
    rows = []
    for name in names:
        times, share = ("", "") if args.alone else ("1", "1")
        if name == "ours" and not args.alone:
            times = f"{speed_up(seconds, 'ours', 'CLIP_benchmark'):.1f}"
            share = f"{memory['ours'].median / memory['CLIP_benchmark'].median:.4f}"
        record(args, size=size, side=name, seconds=spread(seconds[name]), peak_mib=memory[name])
        cells = spread([1e12 * value / (num_images * captions) for value in seconds[name]])
        rows.append([size, name, f"{spread(seconds[name]):.2f}", f"{memory[name]:.0f}", times, share, f"{cells:.0f}"])
    return rows


def in_a_process(name: str, num_images: int, captions: int, args: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(
        target=measured, args=(theirs, name, num_images, captions, args.width, args.device, args.threads, args.batch)
    )
    child.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise SystemExit(f"{name} ended without a result (exit status {child.exitcode})") from None
    child.join()
    return found


def measured(
    sender: Any, name: str, num_images: int, captions: int, width: int, device: str, threads: int, batch: int
) -> None:
    torch.set_num_threads(threads)
    images, texts, owner = (value.to(device) for value in embeddings(num_images, captions, width))
    recalls: Any = {"ours": our_recalls, "CLIP_benchmark": functools.partial(their_recalls, batch)}[name]
    recalls(images[:50], texts[: 50 * PER_IMAGE], owner[: 50 * PER_IMAGE])  # loads libraries
    _ = float(images.sum() + texts.sum())  # brings swapped pages back
    before = start_counting(device)
    start = time.perf_counter()
    found = recalls(images, texts, owner)
    seconds = time.perf_counter() - start
    sender.send({"recalls": found, "seconds": seconds, "memory": peak(device) - before})
    sender.close()


def embeddings(num_images: int, captions: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors of images, of captions near their images, and the index of each caption's image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(num_images, width, generator=generator), dim=1)
    owner = torch.arange(captions) * num_images // captions
    noise = torch.randn(captions, width, generator=generator).mul_(0.2)
    texts = torch.nn.functional.normalize(noise.add_(images[owner]), dim=1)
    return images, texts, owner


def our_recalls(images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> list[float]:
    from benchmarks.tasks.encoders.recall import compute_ranks

    pairs = np.stack([owner.cpu().numpy(), np.arange(len(owner))], axis=1)
    to_captions, to_images = compute_ranks(images, texts, pairs)
    return [float(found.hit(k).mean()) for k in CUTS for found in (to_images, to_captions)]


def their_recalls(batch: int, images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> list[float]:
    """The recalls as in CLIP_benchmark's ``evaluate``, from embeddings."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = texts.cpu() @ images.cpu().t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner.cpu()] = True
    device = str(images.device)
    found = []
    for k in CUTS:
        for similarity, right in ((scores, positive), (scores.T, positive.T)):
            recalls = batchify(recall_at_k, similarity, right, batch, device, k=k)
            found.append(float((recalls > 0).float().mean()))
    return found


def start_counting(device: str) -> int:
    """Reset the peak; the current memory."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak on Linux
    return peak(device)


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


if __name__ == "__main__":
    main()
