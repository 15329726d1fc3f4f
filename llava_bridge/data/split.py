"""Which photos are held back for testing: one rule for training and for the benchmark.

The rule looks at the photo's file name alone, so that all questions about one photo fall on one side, and
adding photos moves none.
"""

from __future__ import annotations

import hashlib

HELD_BACK_ONE_IN = 5


def is_held_back(photo: str) -> bool:
    """Whether the photo with this file name belongs to the held-back fifth, on which nothing is trained."""
    return int.from_bytes(hashlib.sha256(photo.encode()).digest()[:8], "big") % HELD_BACK_ONE_IN == 0
