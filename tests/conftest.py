"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder with real data and models")
    return SHARED
