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

from clips.scenes.dice import fingerprint

ONE_IN = 5


@functools.cache
def pair_held_out(first: str, second: str) -> bool:
    """Whether the two classes are held out as a pair."""
    low, high = sorted((first, second))
    return fingerprint("held-out kinds", low, high) % ONE_IN == 0


@functools.cache
def setting_held_out(kind: str, background: str) -> bool:
    """Whether the class is held out on the background."""
    return fingerprint("held-out setting", kind, background) % ONE_IN == 0


def belongs_to_test(kinds: Iterable[str], background: str) -> bool:
    """Whether a scene with these classes on this background is a new combination, as test scenes are."""
    different = sorted(set(kinds))
    if len(different) == 1:
        return setting_held_out(different[0], background)
    return any(pair_held_out(a, b) for a, b in itertools.combinations(different, 2))


def belongs_to_training(kinds: Iterable[str], background: str) -> bool:
    """Whether the scene contains no held-out combination. Some scenes belong to no split; none belongs to both."""
    different = sorted(set(kinds))
    return not (
        any(setting_held_out(kind, background) for kind in different)
        or any(pair_held_out(a, b) for a, b in itertools.combinations(different, 2))
    )
