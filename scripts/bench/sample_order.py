"""The effect of the order of samples on the mean gradient and on padding.

    python scripts/bench/sample_order.py
    python scripts/bench/sample_order.py --data runs/demo/data/train/llava_instruct.json --llm runs/demo/llms/tiny-s0

A step's loss is the mean over its supervised tokens: a token of a step with few of them counts more. For each order the
table has the share of the mean gradient of samples with few supervised tokens (the mean over steps of their share of
the step's supervised tokens, next to their share of all), the ratio of computed to real tokens, and the same ratio if
each step takes as long as its longest micro-batch.

Without ``--data`` samples are drawn as in LLaVA-1.5's mixture of 665,000: numbers of samples by type are those of table
7 of arXiv 2310.03744, turns and lengths are estimates. ``--mix three`` has one question per sample: short ones,
requests for a description, and texts without an image. *32 steps by length* is the former order of this suite.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from measure import table

from llava_bridge.data import ConversationSourceConfig, read_samples
from llava_bridge.data.sampler import LengthGroupedSampler, RandomOrder

# type: samples in thousands, has an image, turns, tokens of an answer, of a question, few tokens
Mix = dict[str, tuple[int, bool, float, float, int, bool]]
MIXES: dict[str, Mix] = {
    "665k": {
        "LLaVA, conversations": (58, True, 3.5, 45, 15, False),
        "LLaVA, descriptions": (23, True, 1, 115, 15, False),
        "LLaVA, reasoning": (77, True, 1, 130, 25, False),
        "ShareGPT": (40, False, 4, 230, 60, False),
        "VQAv2": (83, True, 5.4, 2.3, 10, True),
        "GQA": (72, True, 10, 2.1, 13, True),
        "OKVQA": (9, True, 1, 2.4, 25, True),
        "OCR-VQA": (80, True, 5, 5, 14, True),
        "A-OKVQA": (66, True, 1, 2, 55, True),
        "TextCaps": (22, True, 1, 16, 50, False),
        "RefCOCO": (48, True, 6, 22, 25, False),
        "Visual Genome": (86, True, 5, 18, 20, False),
    },
    "three": {
        "questions": (410, True, 1, 6, 15, True),
        "descriptions": (210, True, 1, 60, 15, False),
        "texts": (40, False, 1, 400, 100, False),
    },
}
_IMAGE_TOKENS = 576
_MAX_LENGTH = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Of a sample: whether it has an image, its tokens, how many of them are supervised, whether these are few."""

    has_image: bool
    tokens: int
    supervised: int
    few: bool


def main() -> None:
    args = arguments()
    sizes = read_sizes(args) if args.data else random_sizes(MIXES[args.mix], args.seed)
    few = sum(size.supervised for size in sizes if size.few) / sum(size.supervised for size in sizes)
    print(f"{len(sizes):,} samples; few supervised tokens: {few:.1%} of all supervised tokens, "
          f"{sum(size.few for size in sizes) / len(sizes):.0%} of the samples")  # fmt: skip
    pairs = [(size.has_image, size.tokens) for size in sizes]
    parts, total = args.batch_size // args.micro_batch, len(sizes) // args.batch_size * args.batch_size
    orders: dict[str, Iterable[int]] = {
        "random": RandomOrder(len(sizes), total, args.seed),
        "LLaVA's group_by_modality_length": LengthGroupedSampler(pairs, args.batch_size, total, args.seed, parts),
        "32 steps by length": sorted_together(pairs, args.batch_size, total, args.seed),
    }
    head = ["order", "few tokens' share", "computed ÷ real", "by the longest micro-batch"]
    rows = [[name, *measured(sizes, list(order), args.batch_size, parts)] for name, order in orders.items()]
    print(table(head, rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="LLaVA's JSON; the mixture above if not given")
    parser.add_argument("--mix", choices=list(MIXES), default="665k")
    parser.add_argument("--llm", help="with --data: a directory with the tokenizer")
    parser.add_argument("--image-tokens", type=int, default=10, help="with --data")
    parser.add_argument("--few", type=int, default=10, help="with --data: up to this number supervised tokens are few")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def random_sizes(mix: Mix, seed: int) -> list[Size]:
    """A tenth of a mixture: turns from Poisson distributions, answers from log-normal ones."""
    rng, sizes = np.random.default_rng(seed), []
    for thousands, has_image, turns, answer, question, few in mix.values():
        for _ in range(thousands * 100):
            count = 1 + rng.poisson(turns - 1)
            spread = 0.3 if few else 0.6
            answers = answer * np.exp(rng.normal(-(spread**2) / 2, spread, count))
            supervised = int(np.maximum(2, np.rint(answers)).sum())
            tokens = min(supervised + int(count * (question + 8)) + _IMAGE_TOKENS * has_image, _MAX_LENGTH)
            sizes.append(Size(has_image=has_image, tokens=tokens, supervised=min(supervised, _MAX_LENGTH), few=few))
    return sizes


def read_sizes(args: argparse.Namespace) -> list[Size]:
    from llava_bridge.conversation import IGNORE_INDEX, ConversationEncoder, resolve_chat_template
    from llava_bridge.model.build import name_tokens, read_tokenizer

    tokenizer = read_tokenizer(args.llm)
    name_tokens(tokenizer)
    chat = ConversationEncoder(tokenizer, resolve_chat_template(tokenizer.chat_template, "auto"), args.image_tokens)
    sizes = []
    for sample in read_samples(ConversationSourceConfig(path=str(Path(args.data)))):
        messages = [{"role": turn.role, "content": turn.content} for turn in sample.turns]
        encoded = chat.encode(messages, _MAX_LENGTH)
        supervised, few = sum(label != IGNORE_INDEX for label in encoded.labels), args.few
        size = {"tokens": len(encoded.input_ids), "supervised": supervised, "few": supervised <= few}
        sizes.append(Size(has_image=bool(sample.images), **size))
    return sizes


def sorted_together(pairs: Sequence[tuple[bool, int]], batch_size: int, total: int, seed: int) -> list[int]:
    """Samples of 32 steps sorted by modality and length, cut into steps, the steps shuffled."""
    rng = torch.Generator().manual_seed(seed)
    order, found = torch.randperm(len(pairs), generator=rng).tolist()[:total], []
    for start in range(0, total, batch_size * 32):
        group = sorted(order[start : start + batch_size * 32], key=lambda index: pairs[index])
        steps = [group[first : first + batch_size] for first in range(0, len(group), batch_size)]
        found += [index for step in torch.randperm(len(steps), generator=rng).tolist() for index in steps[step]]
    return found


def measured(sizes: Sequence[Size], order: Sequence[int], batch_size: int, parts: int) -> list[str]:
    shares, real, computed, longest = [], 0, 0, 0
    for start in range(0, len(order), batch_size):
        step = [sizes[index] for index in order[start : start + batch_size]]
        shares.append(sum(size.supervised for size in step if size.few) / sum(size.supervised for size in step))
        micro = len(step) // parts
        padded = [max(size.tokens for size in step[at : at + micro]) * micro for at in range(0, len(step), micro)]
        real += sum(size.tokens for size in step)
        computed, longest = computed + sum(padded), longest + max(padded) * parts
    return [f"{np.mean(shares):.0%}", f"{computed / real:.2f}", f"{longest / real:.2f}"]


if __name__ == "__main__":
    main()
