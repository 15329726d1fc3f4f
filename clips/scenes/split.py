"""Which combinations are kept for testing: a rule of names alone, whatever the seed.

- One in five *pairs of kinds* is held out: its two kinds never stand together in a training scene,
  and every test scene with two or more kinds holds at least one such pair. So the set of kinds of
  such a test scene never occurs in training, and neither does any larger set with it.
- One in five pairs of *kind and background* is held out: no training scene shows the kind on that
  background, and every test scene with a single kind shows it on such a background.

Each kind alone, and each background alone, does occur in training.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

from clips.scenes.dice import fingerprint

ONE_IN = 5


@functools.cache
def pair_held_out(first: str, second: str) -> bool:
    """Whether the two kinds may not stand together in training."""
    low, high = sorted((first, second))
    return fingerprint("held-out kinds", low, high) % ONE_IN == 0


@functools.cache
def setting_held_out(kind: str, background: str) -> bool:
    """Whether the kind may not stand on the background in training."""
    return fingerprint("held-out setting", kind, background) % ONE_IN == 0


def belongs_to_test(kinds: Iterable[str], background: str) -> bool:
    """Whether a scene with these kinds on this background is a new combination, as test scenes are."""
    different = sorted(set(kinds))
    if len(different) == 1:
        return setting_held_out(different[0], background)
    return any(pair_held_out(a, b) for a, b in itertools.combinations(different, 2))


def belongs_to_training(kinds: Iterable[str], background: str) -> bool:
    """Whether nothing in the scene is held out. Some scenes belong to neither side; none belongs to both."""
    different = sorted(set(kinds))
    return not (
        any(setting_held_out(kind, background) for kind in different)
        or any(pair_held_out(a, b) for a, b in itertools.combinations(different, 2))
    )
