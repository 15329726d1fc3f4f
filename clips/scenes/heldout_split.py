"""The held-out combinations: a rule on names only, independent of the seed.

- One in five *pairs of classes* is held out: its two classes never occur together in a training scene, and every test
  scene with two or more classes contains at least one such pair. So the set of classes of such a test scene never
  occurs in training, and neither does any superset of it.
- One in five pairs of *class and background* is held out: no training scene shows the class on that background, and
  every test scene with a single class shows it on such a background.

Each class and each background does occur in training.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

from clips.scenes.rng import hash64

HELDOUT_ONE_IN = 5


@functools.cache
def is_pair_heldout(first: str, second: str) -> bool:
    """Whether the two classes are held out as a pair."""
    low, high = sorted((first, second))
    return hash64("held-out kinds", low, high) % HELDOUT_ONE_IN == 0


@functools.cache
def is_background_heldout(kind: str, background: str) -> bool:
    """Whether the class is held out on the background."""
    return hash64("held-out setting", kind, background) % HELDOUT_ONE_IN == 0


def is_test_scene(kinds: Iterable[str], background: str) -> bool:
    """Whether a scene with these classes on this background is a new combination, as test scenes are."""
    different = sorted(set(kinds))
    if len(different) == 1:
        return is_background_heldout(different[0], background)
    return any(is_pair_heldout(a, b) for a, b in itertools.combinations(different, 2))


def is_train_scene(kinds: Iterable[str], background: str) -> bool:
    """Whether the scene contains no held-out combination. Some scenes belong to no split; none belongs to both."""
    different = sorted(set(kinds))
    return not (
        any(is_background_heldout(kind, background) for kind in different)
        or any(is_pair_heldout(a, b) for a, b in itertools.combinations(different, 2))
    )
