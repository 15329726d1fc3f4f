"""Random choices that are the same in every process, on every machine, with every library version.

Each ``DeterministicRng`` reads an endless stream of 64-bit numbers, SHAKE-256 of its key. It does not use Python's
``hash``, ``random`` or numpy's generators, whose streams may change.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_BLOCK = 64


def encode(key: tuple[object, ...]) -> bytes:
    """The bytes that a key is hashed as."""
    return "\x1f".join(str(part) for part in key).encode()


class DeterministicRng:
    """A stream of random choices named by ``key``: equal keys give equal choices."""

    def __init__(self, *key: object) -> None:
        self._key = encode(key)
        self._block = 0
        self._numbers: list[int] = []

    def below(self, limit: int) -> int:
        """Return an integer from 0 to ``limit - 1``."""
        if not self._numbers:
            digest = hashlib.shake_256(self._key + struct.pack("<Q", self._block)).digest(8 * _BLOCK)
            self._numbers = list(struct.unpack(f"<{_BLOCK}Q", digest))
            self._block += 1
        return (self._numbers.pop() * limit) >> 64

    def between(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def chance(self, per_mille: int) -> bool:
        """Return True with probability ``per_mille`` / 1000."""
        return self.below(1000) < per_mille

    def choice(self, items: Sequence[T]) -> T:
        """Return one of ``items``, all equally likely."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """Return one of ``items``, with probability proportional to its weight."""
        ticket = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            ticket -= weight
            if ticket < 0:
                return item
        raise AssertionError("unreachable")

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return ``count`` different positions of ``items`` in random order (all of them if there are fewer)."""
        pool = list(items)
        taken = []
        for _ in range(min(count, len(pool))):
            position = self.below(len(pool))
            pool[position], pool[-1] = pool[-1], pool[position]
            taken.append(pool.pop())
        return taken

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return all ``items`` in random order."""
        return self.sample(items, len(items))
