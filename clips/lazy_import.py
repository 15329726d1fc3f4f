"""Resolution of registry entries given as strings, so that modules are imported at first use."""

from __future__ import annotations

import importlib
from typing import Any


def import_from_string(reference: str) -> Any:
    """Import ``module:name``."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
