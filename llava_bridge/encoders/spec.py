"""Encoder specs: the string in a config that names an encoder, and fast checks of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clips.errors import UserError, unknown_name_error
from clips.model_refs import (
    DUAL_MODELS,
    HF_HUB_PREFIX,
    OPEN_CLIP_CONFIG,
    download_from_hub,
    find_open_clip_weights,
    is_on_hub,
    resolve_model_dir,
)
from clips.text_files import safe_json_loads

ENCODER_SOURCES: dict[str, str] = {
    "open_clip": "llava_bridge.encoders.open_clip_source",
    "timm": "llava_bridge.encoders.timm_source",
    "transformers": "llava_bridge.encoders.transformers_source",
}
"""Source → the module that reads it, with ``load(reference, image_size)`` and ``build(architecture)``."""


def parse_spec(spec: str) -> tuple[str, str]:
    """Split an encoder spec into (source, reference); without a source it is an open_clip directory or Hub repo id.

    Raises:
        UserError: an unknown source.
    """
    source, colon, reference = spec.partition(":")
    if not colon or "/" in source or spec.startswith(HF_HUB_PREFIX):
        return "open_clip", spec
    if source not in ENCODER_SOURCES:
        raise unknown_name_error(source, ENCODER_SOURCES, "encoder source")
    return source, reference


def local_paths(spec: str) -> dict[str, str]:
    """Return ``{"encoder": path}`` of a spec's local directory or file."""
    source, reference = parse_spec(spec)
    path = reference.partition("@")[2] if source == "timm" else reference
    return {"encoder": path} if path and Path(path).exists() else {}


def resolve_open_clip_dir(reference: str) -> Path:
    """Return the directory of an open_clip encoder: ``reference`` itself, or the Hub's copy of ``hf-hub:NAME``.

    Raises:
        UserError: it cannot be downloaded.
    """
    if reference.startswith(HF_HUB_PREFIX):
        return download_from_hub(reference.removeprefix(HF_HUB_PREFIX), "encoder")
    return Path(reference)


def encoder_commits(spec: str) -> dict[str, str]:
    """Return ``{"encoder": commit}`` of a spec's Hub repository; none for timm's."""
    source, reference = parse_spec(spec)  # the Hub's cache names a repository's directory by its commit
    if source == "open_clip" and reference.startswith(HF_HUB_PREFIX):
        return {"encoder": resolve_open_clip_dir(reference).name}
    if source == "transformers" and is_on_hub(reference):
        return {"encoder": resolve_model_dir(reference, "encoder").name}
    return {}


def has_text_tower(spec: str) -> bool:
    """Whether an encoder has a text tower: encoders trained here may, timm trunks have none.

    For a model of transformers it is known only from a directory, not from a name on the Hub.
    """
    if spec.startswith("transformers:"):
        config = Path(spec.removeprefix("transformers:")) / "config.json"
        return config.is_file() and _read_object(config).get("model_type") in DUAL_MODELS
    if (config := Path(spec) / OPEN_CLIP_CONFIG).is_file():
        return "text_cfg" in _read_object(config).get("model_cfg", {"text_cfg": None})
    return not spec.startswith("timm:")


def _read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if it has none, which is reported by who reads the encoder."""
    try:
        content = safe_json_loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def check_encoder_files(spec: str) -> None:
    """Raise UserError unless the files of an encoder spec exist."""
    source, reference = parse_spec(spec)
    if source == "open_clip":
        directory = resolve_open_clip_dir(reference)
        if not directory.is_dir():
            raise UserError(
                f"encoder: {directory} is not a directory (expected one in open_clip's Hub format, hf-hub:ORG/NAME, "
                "timm:NAME, or transformers:DIRECTORY)"
            )
        if not (directory / OPEN_CLIP_CONFIG).is_file() and (directory / "config.json").is_file():
            suggestion = f"transformers:{reference.removeprefix(HF_HUB_PREFIX)}"
            raise UserError(f"encoder: {reference} is no directory of open_clip's; try {suggestion}")
        for path, content in ((directory / OPEN_CLIP_CONFIG, "config"), (find_open_clip_weights(directory), "weights")):
            if not path.is_file():
                raise UserError(f"encoder: {reference} has no {content} (expected {path.name})")
    elif source == "transformers":
        directory = resolve_model_dir(reference, "encoder")
        if not directory.is_dir():
            raise UserError(f"encoder: {directory} is not a directory (expected one, or ORG/NAME on the Hub)")
        if not (directory / "config.json").is_file():
            raise UserError(f"encoder: {reference} has no config.json (expected a model in the transformers format)")
    elif source == "timm":
        _, _, origin = reference.partition("@")
        if origin not in {"", "random"} and not Path(origin).is_file():
            raise UserError(f"encoder: {origin}: no such file (expected safetensors weights, or @random)")
