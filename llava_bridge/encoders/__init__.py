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

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clips.errors import UserError, unknown_name_error
from clips.model.loading import require_finite
from llava_bridge.encoders.spec import ENCODER_SOURCES, parse_spec

if TYPE_CHECKING:
    from llava_bridge.encoders.encoder import VisionEncoder, VisionTower

__all__ = ["ENCODER_SOURCES", "build_tower", "load_encoder", "parse_spec"]


def load_encoder(spec: str, image_size: int | None = None) -> VisionEncoder:
    """Load the encoder ``spec``.

    Args:
        spec: see the module's table.
        image_size: image size in pixels; None uses the encoder's own.

    Raises:
        UserError: an unknown source or name, missing or non-matching weights.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size: expected at least 1, got {image_size}")
    source, reference = parse_spec(spec)
    encoder: VisionEncoder = importlib.import_module(ENCODER_SOURCES[source]).load(reference, image_size)
    if encoder.weights is not None:
        require_finite(encoder.weights, f"encoder: {encoder.parent or spec}")
    return encoder


def build_tower(source: str, architecture: Mapping[str, Any]) -> VisionTower:
    """Build the empty tower of ``source`` with this architecture, initialized as its library does."""
    if source not in ENCODER_SOURCES:
        raise unknown_name_error(source, ENCODER_SOURCES, "encoder source")
    return importlib.import_module(ENCODER_SOURCES[source]).build(architecture)
