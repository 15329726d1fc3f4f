"""Which sample comes when: pure functions of the seed, so that a run can go on from any step on any world size.

Training reads one endless stream of positions 0, 1, 2, …; position p belongs to epoch p // n, and within an
epoch every sample occurs exactly once. Step s of global batch B reads positions s·B … (s+1)·B − 1, cut into
equal, consecutive slices, one a process.
"""

from __future__ import annotations

import functools

import numpy as np

_ORDER, _SAMPLE = 0, 1  # separate streams of random numbers


def sample_at(position: int, *, size: int, seed: int, shuffle: bool = True) -> int:
    """The index of the sample at ``position`` of the stream over ``size`` samples."""
    epoch, place = divmod(position, size)
    return int(_permutation(size, seed, epoch)[place]) if shuffle else place


@functools.lru_cache(maxsize=3)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(size)


def sample_generator(position: int, *, size: int, seed: int) -> np.random.Generator:
    """Random numbers for drawing captions and crops: the same for the same sample in the same epoch."""
    index = sample_at(position, size=size, seed=seed)
    return np.random.default_rng([_SAMPLE, seed, position // size, index])


def positions_of_step(step: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The positions that process ``rank`` reads in ``step``; ``batch_size`` is the global one."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return range(start, start + share)
