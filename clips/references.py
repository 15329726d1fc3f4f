"""Encoder directories by reference: a path, or ``hf-hub:NAME``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from clips.errors import UserError, reason_of

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
HUB = "hf-hub:"


@functools.cache  # the hub is asked once
def encoder_directory(reference: str, field: str) -> Path:
    """The directory of an encoder.

    Args:
        reference: the directory, or ``hf-hub:NAME``.
        field: of the config, for the error.

    Raises:
        UserError: no such encoder.
    """
    if not reference.startswith(HUB):
        if not (Path(reference) / WEIGHTS).is_file():
            raise UserError(f"{field}: {reference}: expected an encoder directory with {WEIGHTS}")
        return Path(reference)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(reference.removeprefix(HUB), allow_patterns=wanted))
    except Exception as error:  # the hub's, the network's and the file system's own
        raise UserError(f"{field}: {reference}: cannot be had from the hub ({reason_of(error)})") from None


def described(directory: Path) -> dict[str, Any]:
    """What an encoder directory says of itself; empty where it says nothing."""
    file = directory / CONFIG
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
