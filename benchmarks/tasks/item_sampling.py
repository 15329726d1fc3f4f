"""Which items are shown to people: drawn by lot, so that nobody has chosen them, and the same for every row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def hash_order(names: Iterable[Any]) -> list[Any]:
    """Names in the order of their SHA-256: as good as random, and the same whatever else there is and whoever asks."""
    return sorted(names, key=lambda name: hashlib.sha256(str(name).encode()).digest())


def first_per_image(names: Iterable[Any], images: Mapping[Any, str], most: int) -> list[Any]:
    """The first ``most`` names, passing over those whose picture is there already.

    Args:
        names: items, in the order in which they are taken.
        images: item → picture; an item without one is a picture of its own.
        most: how many.
    """
    taken: dict[str, Any] = {}
    for name in names:
        if len(taken) == most:
            break
        taken.setdefault(images.get(name, str(name)), name)
    return list(taken.values())
