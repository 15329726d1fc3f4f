"""The order of samples over all epochs of a stage, a pure function of the seed.

A run that resumes from a checkpoint therefore needs only the number of samples seen.

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
        rng = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.total, self.samples):
            yield from torch.randperm(self.samples, generator=rng).tolist()[: self.total - start]


class LengthGroupedSampler(Sampler[int]):
    """``total`` sample indices: in each optimizer step samples with images or samples without, else at random.

    The first epoch equals LLaVA's ``group_by_modality_length``, index for index; its last one or two steps are mixed.
    Lengths determine only a sample's micro-batch within its step: all micro-batches of a step have about the same
    length, so that no process waits for another. Sorting more samples than those of one step would pad less, but steps
    of short answers would weigh as much as steps of long ones (docs/bridge.md). The last step of an
    epoch, even of a single one, is filled with random samples of the next epoch, which continues with the others;
    LLaVA leaves that step smaller.

    Args:
        sizes: whether each sample has images, and its length in any unit that grows with its tokens.
        batch_size: samples per optimizer step, over all processes.
        total: number of indices to return.
        seed: seed of all shuffling.
        micro_batches: per step, over all processes. The samples of a step do not depend on it.
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
        rng = torch.Generator().manual_seed(self.seed)
        num_yielded = 0
        while num_yielded < self.total:
            first, remaining = [], list(range(len(self.sizes)))
            if missing := -num_yielded % self.batch_size:
                shuffled = torch.randperm(len(remaining), generator=rng).tolist()
                first, remaining = shuffled[:missing], sorted(shuffled[missing:])
            epoch = [*first, *self._grouped(remaining, rng)][: self.total - num_yielded]
            yield from epoch
            num_yielded += len(epoch)

    def _grouped(self, chosen: list[int], rng: torch.Generator) -> list[int]:
        """LLaVA's ``get_modality_length_grouped_indices``."""
        modalities = [[index for index in chosen if self.sizes[index][0] == has_images] for has_images in (True, False)]
        steps = [self._length_grouped(modality, rng) for modality in modalities if modality]
        if len(steps) == 1:
            return [index for step in steps[0] for index in step]
        full = [step for modality in steps for step in modality[:-1]]
        shuffled = [full[number] for number in torch.randperm(len(full), generator=rng).tolist()]
        last = sorted(index for modality in steps for index in modality[-1])
        return [index for step in [*shuffled, last] for index in step]

    def _length_grouped(self, chosen: list[int], rng: torch.Generator) -> list[list[int]]:
        """LLaVA's ``get_length_grouped_indices``, step by step: at random, then by length within each."""
        shuffled = [chosen[number] for number in torch.randperm(len(chosen), generator=rng).tolist()]
        steps = [shuffled[start : start + self.batch_size] for start in range(0, len(shuffled), self.batch_size)]
        return [self._in_even_chunks(sorted(step, key=lambda index: -self.sizes[index][1])) for step in steps]

    def _in_even_chunks(self, step: list[int]) -> list[int]:
        """LLaVA's ``split_to_even_chunks``: the longest sample first, each into the shortest micro-batch."""
        count = self.micro_batches
        if len(step) % count:
            return [index for chunk in range(count) for index in step[chunk::count]]
        chunks: list[list[int]] = [[] for _ in range(count)]
        lengths: list[float] = [0] * count
        for index in step:
            shortest = lengths.index(min(lengths))
            chunks[shortest].append(index)
            full = len(chunks[shortest]) == len(step) // count
            lengths[shortest] = math.inf if full else lengths[shortest] + self.sizes[index][1]
        return [index for chunk in chunks for index in chunk]
