"""Memory and time of this suite's losses compared with naive ones, forward and backward.

    python scripts/bench/loss_memory.py --samples 16 --rounds 3              (seconds; the ratios hold at any size)
    python scripts/bench/loss_memory.py --threads 2                          (256 × 128 tokens: naive needs 13 GB)
    python scripts/bench/loss_memory.py --device cuda

Caption loss: ``clips.model.losses.linear_cross_entropy`` vs. ``F.cross_entropy(hidden @ weight.T)``, torch's own
``F.linear_cross_entropy`` if this version has it, and Liger's fused one if it is installed and there is a GPU. With
``--bf16`` matrix products are those of autocast. Contrastive loss: softmax of ``clips.model.losses`` of one process
among many, with simulated features of the others, vs. this process's rows of the logits, as with open_clip's
``--local-loss``. Memory is the peak of torch's allocations beyond the inputs and their gradients, counted at every
allocation; our gradients must be equal to the naive ones (nearly in bfloat16).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from unittest import mock

import torch
from measure import begin, common_parser, record, speed_up, spread, table, take_turns
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.profiler import ProfilerActivity, profile

from clips.model import losses
from clips.model.tokenizer import VOCAB_SIZE

MIB = 2**20
Loss = Callable[..., Tensor]


def main() -> None:
    args = begin(arguments())
    print(caption_table(args))
    print(contrastive_table(args))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 512, 768])
    parser.add_argument("--global-batches", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--local-batch", type=int, default=2048)
    parser.add_argument("--bf16", action="store_true", help="caption loss: matrix products in bfloat16")
    return parser.parse_args()


# ---------------------------------------------------------------- caption loss


def caption_table(args: argparse.Namespace) -> str:
    head = ["caption loss", "width", "peak MiB", "share of naive", "seconds", "times as fast as naive"]
    rows = []
    for width in args.widths:
        count = args.samples * args.tokens
        hidden = torch.randn(count, width, device=args.device).requires_grad_()
        weight = (torch.randn(VOCAB_SIZE, width, device=args.device) * width**-0.5).requires_grad_()
        labels = torch.randint(VOCAB_SIZE, (count,), device=args.device)
        rows += compare(caption_losses(args), (hidden, weight), labels, args, [str(width)])
    return table(head, rows)


def caption_losses(args: argparse.Namespace) -> dict[str, Loss]:
    dtype = torch.bfloat16 if args.bf16 else torch.float32

    def naive(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy((hidden.to(dtype) @ weight.to(dtype).t()).float(), labels, reduction="sum")

    def ours(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return losses.linear_cross_entropy(hidden, weight, labels, dtype)

    found: dict[str, Loss] = {"naive": naive, "ours": ours}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()

        def of_torch(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            factors = hidden.to(dtype), weight.to(dtype)
            return F.linear_cross_entropy(*factors, labels, reduction="sum", options=options).float()

        found["torch"] = of_torch
    if args.device == "cuda":
        try:
            from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
        except ImportError:
            print("Liger is not installed")
        else:
            found["Liger"] = lambda hidden, weight, labels: LigerFusedLinearCrossEntropyFunction.apply(
                hidden.to(dtype), weight.to(dtype), labels, None, None, -100, 0.0, 0.0, "sum"
            )[0].float()
    return found


# ---------------------------------------------------------------- contrastive loss


def contrastive_table(args: argparse.Namespace) -> str:
    head = ["contrastive loss", "global batch", "peak MiB", "share of naive", "seconds", "times as fast as naive"]
    rows = []
    for everyone in args.global_batches:
        leaves = tuple(unit(args.local_batch, args.device).requires_grad_() for _ in range(2))
        partners = [unit(everyone - args.local_batch, args.device) for _ in range(2)]
        scale = torch.tensor(14.0, device=args.device)
        rows += compare(contrastive_losses(partners), leaves, scale, args, [str(everyone)])
    return table(head, rows)


def unit(count: int, device: str) -> Tensor:
    return F.normalize(torch.randn(count, 512, device=device), dim=1)


def contrastive_losses(partners: list[Tensor]) -> dict[str, Loss]:
    """Losses of the first process for its own features; "naive" is open_clip's with ``--local-loss``."""

    def gathered(image: Tensor, text: Tensor) -> list[Tensor]:
        return [torch.cat([own, others]) for own, others in zip((image, text), partners, strict=True)]

    def ours(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        features = gathered(image, text)  # in the order of the loss's calls
        with mock.patch.object(losses, "gather_features", side_effect=features):
            return losses.contrastive_loss(image, [text], scale)

    def naive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        images, texts = gathered(image, text)
        labels = torch.arange(len(image), device=image.device)
        by_image, by_text = scale * image @ texts.t(), scale * text @ images.t()
        return (F.cross_entropy(by_image, labels) + F.cross_entropy(by_text, labels)) / 2

    return {"naive": naive, "ours": ours}


# ---------------------------------------------------------------- both


def compare(
    sides: dict[str, Loss], leaves: tuple[Tensor, ...], last: Tensor, args: argparse.Namespace, key: list[str]
) -> list[list[str]]:
    """A row for each side; raises AssertionError if our gradients differ from the naive ones."""
    runs = {name: gradients_of(loss, leaves, last) for name, loss in sides.items()}
    expected = runs["naive"]()
    differences = {name: relative_difference(run(), expected) for name, run in runs.items()}
    assert differences["ours"] < (0.02 if args.bf16 else 1e-4)
    returned = sum(value.nbytes for value in expected)
    del expected
    peaks = {name: peak_bytes(run, args.device) - returned for name, run in runs.items()}
    seconds = take_turns(runs, args.rounds, args.clock)
    for name in sides:
        measured = {"peak_bytes": peaks[name], "seconds": spread(seconds[name]), "difference": differences[name]}
        record(args, loss=name, size=key[0], rows=len(leaves[0]), **measured)
    return [
        [
            name,
            *key,
            f"{peaks[name] / MIB:.0f}",
            f"{peaks[name] / peaks['naive']:.3f}",
            f"{spread(seconds[name]):.3g}",
            f"{speed_up(seconds, name, 'naive'):.2f}",
        ]
        for name in sides
    ]


def relative_difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest of the gradients, by their norms."""
    pairs = zip(found, expected, strict=True)
    return max(((one - other).norm() / other.norm()).item() for one, other in pairs)


def gradients_of(loss: Loss, leaves: tuple[Tensor, ...], last: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(loss(*leaves, last), leaves)


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The peak of the bytes that ``run`` allocates, as counted by the allocator."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


if __name__ == "__main__":
    main()
