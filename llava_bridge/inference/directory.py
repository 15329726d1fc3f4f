"""The directory of a LLaVA; without torch, so that a wrong name is reported immediately."""

from __future__ import annotations

from pathlib import Path

from clips.errors import UserError
from clips.model_refs import resolve_model_dir


def resolve_llava_dir(reference: str | Path) -> Path:
    """The directory of a LLaVA, or of the Hub's copy, as :func:`clips.model_refs.resolve_model_dir`.

    Raises:
        UserError: it is no LLaVA directory, or has no weights.
    """
    path = resolve_model_dir(str(reference), "llava")
    if not (path / "config.json").is_file():
        reason = "no config.json in it" if path.is_dir() else "no such directory"
        raise UserError(f"{path}: {reason}; expected a LLaVA directory")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{path}: no weights here (expected *.safetensors)")
    return path
