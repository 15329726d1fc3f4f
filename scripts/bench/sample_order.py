"""What does the order of samples do to the mean gradient, and what does it cost in padding?

    python scripts/bench/sample_order.py
    python scripts/bench/sample_order.py --data runs/demo/data/train/llava_instruct.json --llm runs/demo/llms/tiny-s0

A step's loss is the mean over its learned tokens: a token of a step with few of them counts more. For each order the
table has the share of the mean gradient that samples with few learned tokens get (the mean over steps of their share of
a step's learned tokens, beside their share of all), the tokens that are computed for each real one, and the same where
each step lasts as long as its longest micro-batch.

Without ``--data`` samples are drawn as in LLaVA-1.5's mixture of 665,000: numbers of samples by kind are those of table
7 of arXiv 2310.03744, turns and lengths are estimates. ``--mix three`` has one question a sample: short ones, requests
for a description, and texts without an image. *32 steps by length* is what this suite did before.
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

# kind: samples in thousands, shows an image, turns, tokens of an answer, of a question, few tokens
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
_LONGEST = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Of a sample: whether it shows an image, its tokens, how many of them are learned, whether these are few."""

    shows: bool
    tokens: int
    learned: int
    few: bool


def main() -> None:
    args = arguments()
    sizes = of_file(args) if args.data else drawn(MIXES[args.mix], args.seed)
    few = sum(size.learned for size in sizes if size.few) / sum(size.learned for size in sizes)
    print(f"{len(sizes):,} samples; few learned tokens: {few:.1%} of all tokens learned, "
          f"{sum(size.few for size in sizes) / len(sizes):.0%} of the samples")  # fmt: skip
    pairs = [(size.shows, size.tokens) for size in sizes]
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
    parser.add_argument("--llm", help="a directory with the tokenizer, beside --data")
    parser.add_argument("--image-tokens", type=int, default=10, help="beside --data")
    parser.add_argument("--few", type=int, default=10, help="beside --data: at most so many learned tokens are few")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def drawn(mix: Mix, seed: int) -> list[Size]:
    """A tenth of a mixture: turns drawn from Poisson's, answers from log-normal distributions."""
    dice, found = np.random.default_rng(seed), []
    for thousands, shows, turns, answer, question, few in mix.values():
        for _ in range(thousands * 100):
            count = 1 + dice.poisson(turns - 1)
            spread = 0.3 if few else 0.6
            answers = answer * np.exp(dice.normal(-(spread**2) / 2, spread, count))
            learned = int(np.maximum(2, np.rint(answers)).sum())
            tokens = learned + int(count * (question + 8)) + _IMAGE_TOKENS * shows
            found.append(Size(shows=shows, tokens=min(tokens, _LONGEST), learned=min(learned, _LONGEST), few=few))
    return found


def of_file(args: argparse.Namespace) -> list[Size]:
    from llava_bridge.conversation import IGNORE_INDEX, ConversationEncoder, resolve_chat_template
    from llava_bridge.model.build import name_tokens, read_tokenizer

    tokenizer = read_tokenizer(args.llm)
    name_tokens(tokenizer)
    chat = ConversationEncoder(tokenizer, resolve_chat_template(tokenizer.chat_template, "auto"), args.image_tokens)
    found = []
    for sample in read_samples(ConversationSourceConfig(path=str(Path(args.data)))):
        messages = [{"role": turn.role, "content": turn.content} for turn in sample.turns]
        encoded = chat.encode(messages, _LONGEST)
        learned = sum(label != IGNORE_INDEX for label in encoded.labels)
        found.append(
            Size(shows=bool(sample.images), tokens=len(encoded.input_ids), learned=learned, few=learned <= args.few)
        )
    return found


def sorted_together(pairs: Sequence[tuple[bool, int]], batch_size: int, total: int, seed: int) -> list[int]:
    """Samples of 32 steps sorted by kind and length, cut into steps, the steps shuffled."""
    dice = torch.Generator().manual_seed(seed)
    order, found = torch.randperm(len(pairs), generator=dice).tolist()[:total], []
    for start in range(0, total, batch_size * 32):
        group = sorted(order[start : start + batch_size * 32], key=lambda index: pairs[index])
        steps = [group[first : first + batch_size] for first in range(0, len(group), batch_size)]
        found += [index for place in torch.randperm(len(steps), generator=dice).tolist() for index in steps[place]]
    return found


def measured(sizes: Sequence[Size], order: Sequence[int], batch_size: int, parts: int) -> list[str]:
    shares, real, computed, longest = [], 0, 0, 0
    for start in range(0, len(order), batch_size):
        step = [sizes[index] for index in order[start : start + batch_size]]
        shares.append(sum(size.learned for size in step if size.few) / sum(size.learned for size in step))
        micro = len(step) // parts
        padded = [max(size.tokens for size in step[at : at + micro]) * micro for at in range(0, len(step), micro)]
        real += sum(size.tokens for size in step)
        computed, longest = computed + sum(padded), longest + max(padded) * parts
    return [f"{np.mean(shares):.0%}", f"{computed / real:.2f}", f"{longest / real:.2f}"]


if __name__ == "__main__":
    main()
