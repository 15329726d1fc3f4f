"""In which order samples are seen: a pure function of the seed, over all epochs of a stage.

A run that goes on from a checkpoint therefore only needs the number of samples that it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_BATCHES_SORTED_TOGETHER = 32


class GroupedOrder(Sampler[int]):
    """``total`` sample indices: shuffled epochs end to end, then batches filled with like samples.

    Like lengths together mean less padding, and a batch without pictures shows the encoder a blank only. Samples are
    sorted among a few batches at a time, those without pictures first, so that one of those batches at most has both
    kinds. Then these batches are shuffled, so that all sorts alternate at random. LLaVA calls it
    ``group_by_modality_length``.

    Args:
        sizes: whether each sample shows pictures, and its length in any unit that grows with its tokens.
        batch_size: samples in an optimizer step, over all processes.
        total: how many indices to give.
        seed: of all shuffling.
    """

    def __init__(self, sizes: Sequence[tuple[bool, int]], batch_size: int, total: int, seed: int) -> None:
        self.sizes = sizes
        self.batch_size = batch_size
        self.total = total
        self.seed = seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        dice = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        while len(order) < self.total:
            order += torch.randperm(len(self.sizes), generator=dice).tolist()
        del order[self.total :]
        window = self.batch_size * _BATCHES_SORTED_TOGETHER
        for start in range(0, self.total, window):
            group = sorted(order[start : start + window], key=lambda index: self.sizes[index])
            batches = [group[first : first + self.batch_size] for first in range(0, len(group), self.batch_size)]
            short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
            mixed = [batches[index] for index in torch.randperm(len(batches), generator=dice).tolist()]
            for batch in mixed + short:
                yield from batch
