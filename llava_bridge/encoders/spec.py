"""Encoder specs: the one string in a config that names an encoder."""

from __future__ import annotations

from pathlib import Path

from clips.errors import suggest

SOURCES: dict[str, str] = {
    "open_clip": "llava_bridge.encoders.open_clip_source",
    "timm": "llava_bridge.encoders.timm_source",
    "transformers": "llava_bridge.encoders.transformers_source",
}
"""Source → the module that reads it, with ``load(reference, image_size)`` and ``build(architecture)``."""


def parse_spec(spec: str) -> tuple[str, str]:
    """Split an encoder spec into (source, reference); a spec without a source is an open_clip directory.

    Raises:
        UserError: an unknown source.
    """
    source, colon, reference = spec.partition(":")
    if not colon or "/" in source:
        return "open_clip", spec
    if source not in SOURCES:
        raise suggest(source, SOURCES, "encoder source")
    return source, reference


def path_of(spec: str) -> dict[str, str]:
    """``{"encoder": path}`` of the directory or file that a spec names; empty where it names none on disk."""
    source, reference = parse_spec(spec)
    path = reference.partition("@")[2] if source == "timm" else reference
    return {"encoder": path} if path and Path(path).exists() else {}
