"""In which order samples are seen: a pure function of the seed, over all epochs of a stage.

A run that resumes from a checkpoint therefore only needs the number of samples that it has seen.

Source: ``llava/train/llava_trainer.py`` in haotian-liu/LLaVA (``LengthGroupedSampler``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class RandomOrder(Sampler[int]):
    """``total`` sample indices: concatenated shuffled epochs, LLaVA's order in its first stage.

    The last step of an epoch is filled with the next one's first samples; LLaVA leaves it smaller.

    Args:
        samples: number of samples.
        total: number of indices to return.
        seed: seed of the shuffling.
    """

    def __init__(self, samples: int, total: int, seed: int) -> None:
        self.samples, self.total, self.seed = samples, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        dice = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.total, self.samples):
            yield from torch.randperm(self.samples, generator=dice).tolist()[: self.total - start]


class LengthGroupedSampler(Sampler[int]):
    """``total`` sample indices: in each optimizer step samples with images or samples without, else at random.

    The first epoch is LLaVA's ``group_by_modality_length``, index for index, its last one or two steps mixed. Lengths
    only determine a sample's micro-batch within its step: all micro-batches of a step have about the same length, so
    that no process waits for another. To sort more samples than one step's by length would pad less, but then steps of
    short answers alone each count as much as steps of long ones (``scripts/bench/sample_order.py``). The last step of
    an epoch, even of a single one, is filled with random samples of a next epoch, which continues with the others;
    LLaVA leaves that step smaller.

    Args:
        sizes: whether each sample has images, and its length in any unit that grows with its tokens.
        batch_size: samples per optimizer step, over all processes.
        total: number of indices to return.
        seed: seed of all shuffling.
        micro_batches: number of equal parts of a step, over all processes. The samples of a step do not depend on it.
    """

    def __init__(
        self, sizes: Sequence[tuple[bool, int]], batch_size: int, total: int, seed: int, micro_batches: int = 1
    ) -> None:
        self.sizes = sizes
        self.batch_size = batch_size
        self.total = total
        self.seed = seed
        self.micro_batches = micro_batches

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        dice = torch.Generator().manual_seed(self.seed)
        given = 0
        while given < self.total:
            chosen = list(range(len(self.sizes)))
            if missing := -given % self.batch_size:
                shuffled = torch.randperm(len(chosen), generator=dice).tolist()
                first, chosen = shuffled[:missing], sorted(shuffled[missing:])
            else:
                first = []
            epoch = [*first, *self._grouped(chosen, dice)][: self.total - given]
            yield from epoch
            given += len(epoch)

    def _grouped(self, chosen: list[int], dice: torch.Generator) -> list[int]:
        """LLaVA's ``get_modality_length_grouped_indices``."""
        kinds = [[index for index in chosen if self.sizes[index][0] == shows] for shows in (True, False)]
        steps = [self._length_grouped(kind, dice) for kind in kinds if kind]
        if len(steps) == 1:
            return [index for step in steps[0] for index in step]
        whole = [step for kind in steps for step in kind[:-1]]
        mixed = [whole[place] for place in torch.randperm(len(whole), generator=dice).tolist()]
        rest = sorted(index for kind in steps for index in kind[-1])
        return [index for step in [*mixed, rest] for index in step]

    def _length_grouped(self, chosen: list[int], dice: torch.Generator) -> list[list[int]]:
        """LLaVA's ``get_length_grouped_indices``, step by step: at random, then by length within each."""
        shuffled = [chosen[place] for place in torch.randperm(len(chosen), generator=dice).tolist()]
        steps = [shuffled[start : start + self.batch_size] for start in range(0, len(shuffled), self.batch_size)]
        return [self._in_even_parts(sorted(step, key=lambda index: -self.sizes[index][1])) for step in steps]

    def _in_even_parts(self, step: list[int]) -> list[int]:
        """LLaVA's ``split_to_even_chunks``: the longest sample first, each into the part that is the shortest."""
        count = self.micro_batches
        if len(step) % count:
            return [index for part in range(count) for index in step[part::count]]
        parts: list[list[int]] = [[] for _ in range(count)]
        lengths: list[float] = [0] * count
        for index in step:
            shortest = lengths.index(min(lengths))
            parts[shortest].append(index)
            full = len(parts[shortest]) == len(step) // count
            lengths[shortest] = math.inf if full else lengths[shortest] + self.sizes[index][1]
        return [index for part in parts for index in part]
