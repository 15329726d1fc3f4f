"""Caption strategies, which shorten a caption for the contrastive loss: one function each, selected by name.

A strategy maps (caption, random generator, maximum number of tokens) to a shorter caption; the same generator state
gives the same text. A *token* here is a word or a punctuation mark, as in BERT's pre-tokenization. Source: the paper
[P] compares truncate, random, block and sub-caption; the authors' code [C] defines sub-caption (see
`clips.method.recipes`); sub_captions extends it to a number of tokens, for [P]'s comparison over lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Strategy = Callable[[str, np.random.Generator, int], str]

_SENTENCE_END = re.compile(r"[.!]+")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def sentences(caption: str) -> list[str]:
    """Split ``caption`` at runs of ``.`` or ``!``; empty sentences are dropped."""
    return [piece.strip() for piece in _SENTENCE_END.split(caption) if piece.strip()]


def num_tokens(caption: str) -> int:
    """Count the tokens of a caption."""
    return len(_TOKEN.findall(caption))


def sub_caption(caption: str, rng: np.random.Generator, caption_tokens: int) -> str:
    """Return one sentence of any length, each equally likely; empty if the caption has none."""
    pieces = sentences(caption)
    return pieces[rng.integers(len(pieces))] if pieces else ""


def sub_captions(caption: str, rng: np.random.Generator, caption_tokens: int) -> str:
    """Return whole sentences in order, sampled until the next would exceed ``caption_tokens``; at least one."""
    pieces = sentences(caption)
    selected: list[int] = []
    remaining = caption_tokens
    for index in rng.permutation(len(pieces)):
        remaining -= num_tokens(pieces[index])
        if selected and remaining < 0:
            break
        selected.append(int(index))
    return ". ".join(pieces[index] for index in sorted(selected))


def block(caption: str, rng: np.random.Generator, caption_tokens: int) -> str:
    """Return ``caption_tokens`` consecutive tokens from a random position, each equally likely."""
    tokens = list(_TOKEN.finditer(caption))
    if len(tokens) <= caption_tokens:
        return caption
    first = int(rng.integers(len(tokens) - caption_tokens + 1))
    return caption[tokens[first].start() : tokens[first + caption_tokens - 1].end()]


def random_tokens(caption: str, rng: np.random.Generator, caption_tokens: int) -> str:
    """Return ``caption_tokens`` tokens sampled at random, in order."""
    tokens = _TOKEN.findall(caption)
    if len(tokens) <= caption_tokens:
        return caption
    selected = np.sort(rng.choice(len(tokens), caption_tokens, replace=False))
    return " ".join(tokens[index] for index in selected)


def truncate(caption: str, rng: np.random.Generator, caption_tokens: int) -> str:
    """Return the first ``caption_tokens`` tokens."""
    tokens = list(_TOKEN.finditer(caption))
    return caption if len(tokens) <= caption_tokens else caption[: tokens[caption_tokens - 1].end()]


def full_caption(caption: str, rng: np.random.Generator, caption_tokens: int) -> str:
    """Return the full caption."""
    return caption


STRATEGIES: dict[str, Strategy] = {
    "sub_caption": sub_caption,
    "sub_captions": sub_captions,
    "block": block,
    "random": random_tokens,
    "truncate": truncate,
    "full": full_caption,
}
