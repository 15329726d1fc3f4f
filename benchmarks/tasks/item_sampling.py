"""Pseudo-random selection of the items that the report shows: by hash, independent of results and models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def hash_order(names: Iterable[Any]) -> list[Any]:
    """Names in the order of their SHA-256: pseudo-random and independent of other names."""
    return sorted(names, key=lambda name: hashlib.sha256(str(name).encode()).digest())


def first_per_image(names: Iterable[Any], images: Mapping[Any, str], most: int) -> list[Any]:
    """The first ``most`` names, skipping those whose image is already selected.

    Args:
        names: items, in order of preference.
        images: item → image; an item without one counts as its own image.
        most: maximum number of names.
    """
    taken: dict[str, Any] = {}
    for name in names:
        if len(taken) == most:
            break
        taken.setdefault(images.get(name, str(name)), name)
    return list(taken.values())
