"""Vision encoders by name: one string in a config selects the encoder of a LLaVA.

========================================  =====================================================
``path/to/encoder``                       a directory in open_clip's Hub format
``hf-hub:ORG/NAME``                       the same from the Hub; ``ORG/NAME@REVISION`` for one of its commits
``timm:NAME``                             a timm model with its pretrained weights from the Hub
``timm:NAME@path/weights.safetensors``    the same with local weights
``timm:NAME@random``                      the same, untrained
``transformers:path/to/model``            a vision model of transformers, of a type in ``FAMILIES``
``transformers:ORG/NAME``                 the same from the Hub
========================================  =====================================================

A source is a module with two functions: ``load(reference, image_size) -> VisionEncoder``, and
``build(architecture) -> VisionTower``, which rebuilds the tower without weights from a stored config.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.errors import UserError, unknown_name_error
from clips.model.loading import reject_other_weights, require_finite
from clips.model_refs import (
    DUAL_MODELS,
    HF_HUB_PREFIX,
    OPEN_CLIP_CONFIG,
    ModelFiles,
    download_from_hub,
    find_open_clip_weights,
    reject_adapters,
    resolve_model_dir,
)
from clips.text_files import safe_json_loads

if TYPE_CHECKING:
    from llava_bridge.encoders.encoder import VisionEncoder, VisionTower

__all__ = ["ENCODER_SOURCES", "build_tower", "load_encoder", "parse_spec"]  # for users; the rest checks specs early

ENCODER_SOURCES: dict[str, str] = {
    "open_clip": "llava_bridge.encoders.open_clip_source",
    "timm": "llava_bridge.encoders.timm_source",
    "transformers": "llava_bridge.encoders.transformers_source",
}
"""Source → the module that reads it, with ``load(reference, image_size)`` and ``build(architecture)``."""


def load_encoder(spec: str, image_size: int | None = None) -> VisionEncoder:
    """Load the encoder ``spec``, see the module's table; without ``image_size`` (pixels) at its own.

    Raises:
        UserError: an unknown source or name, missing or non-matching weights.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size: expected at least 1, got {image_size}")
    source, reference = parse_spec(spec)
    encoder: VisionEncoder = importlib.import_module(ENCODER_SOURCES[source]).load(reference, image_size)
    if encoder.weights is not None:
        where = f"encoder: {encoder.parent or spec}"
        require_finite(encoder.weights, where)
        reject_other_weights({name: str(value.dtype) for name, value in encoder.weights.items()}, where)
    return encoder


def build_tower(source: str, architecture: Mapping[str, Any]) -> VisionTower:
    """Build the empty tower of ``source`` with this architecture, initialized as its library does."""
    if source not in ENCODER_SOURCES:
        raise unknown_name_error(source, ENCODER_SOURCES, "encoder source")
    return importlib.import_module(ENCODER_SOURCES[source]).build(architecture)


# ---------------------------------------------------------------- the string and its files


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


def resolve_open_clip_dir(reference: str) -> Path:
    """The directory of an open_clip encoder: ``reference`` itself, or the Hub's copy of ``hf-hub:NAME``.

    Raises:
        UserError: it cannot be downloaded, or is a file.
    """
    if reference.startswith(HF_HUB_PREFIX):
        return download_from_hub(reference.removeprefix(HF_HUB_PREFIX), "encoder")
    reject_adapters(Path(reference), f"encoder: {reference}")
    if Path(reference).is_file():  # epoch_1.pt
        raise UserError(
            f"encoder: {reference} is a file, expected an encoder directory; "
            f"`clips import {reference} --architecture NAME --output DIR` makes one of a checkpoint"
        )
    return Path(reference)


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
    try:
        content = safe_json_loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # reported by what reads the encoder
    return content if isinstance(content, dict) else {}


def resolve_encoder(spec: str) -> ModelFiles:
    """The files of an encoder spec.

    Raises:
        UserError: one is missing.
    """
    source, reference = parse_spec(spec)
    if source == "open_clip":
        return ModelFiles.of(reference, require_open_clip_dir(reference))
    if source == "transformers":
        files = ModelFiles.of(reference, require_transformers_dir(reference))
        return dataclasses.replace(files, reference=f"transformers:{files.reference}")
    _, _, origin = reference.partition("@")
    if source != "timm" or origin in {"", "random"}:
        return ModelFiles(reference=spec)
    if not Path(origin).is_file():
        raise UserError(f"encoder: {origin}: no such file (expected safetensors weights, or @random)")
    return ModelFiles(reference=spec, path=Path(origin), local=origin)


def require_open_clip_dir(reference: str) -> Path:
    """As `resolve_open_clip_dir`.

    Raises:
        UserError: it has no config or weights, or is another kind of directory; as there.
    """
    directory = resolve_open_clip_dir(reference)
    if not directory.is_dir():
        raise UserError(
            f"encoder: {directory} is not a directory (expected one in open_clip's Hub format, hf-hub:ORG/NAME, "
            "timm:NAME, or transformers:DIRECTORY)"
        )
    if not (directory / OPEN_CLIP_CONFIG).is_file() and (directory / "config.json").is_file():
        suggestion = f"transformers:{reference.removeprefix(HF_HUB_PREFIX)}"
        raise UserError(f"encoder: {reference} is no directory of open_clip's; try {suggestion}")
    if not (directory / OPEN_CLIP_CONFIG).is_file() and (directory / ".checkpoints").is_dir():
        raise UserError(
            f"encoder: the training of {reference} is not finished; `clips train {directory}/config.yaml` "
            f"continues it, `clips export {directory} --output DIR` writes the encoder of its last checkpoint"
        )
    for path, content in ((directory / OPEN_CLIP_CONFIG, "config"), (find_open_clip_weights(directory), "weights")):
        if not path.is_file():
            raise UserError(f"encoder: {reference} has no {content} (expected {path.name})")
    return directory


def require_transformers_dir(reference: str) -> Path:
    """The directory of an encoder in transformers' format, or the Hub's copy.

    Raises:
        UserError: there is none, or it has no config.
    """
    directory = resolve_model_dir(reference, "encoder")
    if not directory.is_dir():
        raise UserError(f"encoder: {directory} is not a directory (expected one, or ORG/NAME on the Hub)")
    if not (directory / "config.json").is_file():
        raise UserError(f"encoder: {reference} has no config.json (expected a model in the transformers format)")
    return directory
