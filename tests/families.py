"""Families of cases of which the short set runs some."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick_of(cases: Iterable[str], *quick: str) -> list[Any]:
    """All ``cases`` of a test, those other than ``quick`` for the long set alone."""
    found = list(cases)
    assert set(quick) <= set(found)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in found]
