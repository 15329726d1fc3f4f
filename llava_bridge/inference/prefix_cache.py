"""Shared prefixes: prompts about the same image compute the image and the text before it once.

The keys and values of a prefix are computed once and copied to each of its prompts. A row is then ``[padding, prefix,
padding, question]``; the attention mask excludes the padding, and positions are counted without it, so that every
token's result equals that of a single prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

_SPARE = 4  # batches with shared prefixes need less memory: a quarter of it is used for more prefixes


@dataclass(frozen=True)
class Prefix:
    """A common prefix of prompts.

    Args:
        ids: its tokens, up to the last token of the last image.
        images: its images.
        rows: the prompts with this prefix.
    """

    ids: list[int]
    images: Sequence[Image.Image]
    rows: list[int]


def find_shared_prefixes(
    ids: Sequence[Sequence[int]], images: Sequence[Sequence[Image.Image]], image_id: int
) -> list[Prefix]:
    """The prefixes that at least two of the prompts share.

    Args:
        ids: each prompt's tokens.
        images: each prompt's images; the same objects are the same images.
        image_id: the placeholder token of images.
    """
    prefixes: dict[Any, Prefix] = {}
    for row, (tokens, own) in enumerate(zip(ids, images, strict=True)):
        end = max((position + 1 for position, token in enumerate(tokens) if token == image_id), default=0)
        if 0 < end < len(tokens):
            key = (tuple(map(id, own)), tuple(tokens[:end]))
            prefixes.setdefault(key, Prefix(list(tokens[:end]), own, [])).rows.append(row)
    return [prefix for prefix in prefixes.values() if len(prefix.rows) > 1]


def batch_prefixes(prefixes: Sequence[Prefix], batch_size: int) -> Iterator[list[Prefix]]:
    """Batches of prefixes of similar length, each for at least one batch of prompts.

    Args:
        prefixes: all of them.
        batch_size: prompts per batch; the upper limit of prefixes per batch.
    """
    batch: list[Prefix] = []
    for prefix in sorted(prefixes, key=lambda each: len(each.ids)):
        batch.append(prefix)
        enough = sum(len(each.rows) for each in batch) >= batch_size and len(batch) >= batch_size // _SPARE
        if enough or len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


class PrefixCache:
    """The keys and values of some prefixes.

    Args:
        model: a LLaVA.
        inputs: the prefixes, padded on the left: ``input_ids`` and ``attention_mask`` (P, L), pixels.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        self.ids, self.mask = inputs["input_ids"], inputs["attention_mask"]
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self.cache = model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1).past_key_values

    @property
    def can_be_shared(self) -> bool:
        """Whether the cache has only keys and values of every token, no states and no sliding windows."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        return type(self.cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def inputs_for(self, prefixes: Sequence[int], suffixes: dict[str, Tensor]) -> dict[str, Any]:
        """The inputs of ``model.generate``.

        Args:
            prefixes: (B,) index of each prompt's prefix.
            suffixes: ``input_ids`` and ``attention_mask`` (B, R) of the remaining tokens, padded on the left.
        """
        indices = torch.tensor(prefixes, device=self.ids.device)
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]  # selecting replaces tensors, not contents
        cache.batch_select_indices(indices)
        return {
            "input_ids": torch.cat([self.ids[indices], suffixes["input_ids"]], dim=1),
            "attention_mask": torch.cat([self.mask[indices], suffixes["attention_mask"]], dim=1),
            "past_key_values": cache,
        }
