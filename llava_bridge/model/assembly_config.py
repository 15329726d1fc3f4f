"""How an encoder and an LLM become a LLaVA.

This module does not import torch, so that configs are checked quickly.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from clips.ranges import Positive
from llava_bridge.model.image_processing import ImageAspectRatio, check_pinpoints
from llava_bridge.projectors import ProjectorConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssemblyConfig:
    """How an encoder and an LLM become a LLaVA.

    Args:
        image_size: image size in pixels; null uses the encoder's own. For ViTs learned positions are interpolated.
        vision_feature_layer: hidden state of the encoder that the LLM sees (-1 is the last), or several, concatenated:
            ``[-2, -5]``; null: -2 for most ViTs and CLIP's ResNets, -1 for timm's others, RADIO, InternVL and Qwen-VL.
        vision_feature_select_strategy: ``default`` drops the class token, ``full`` keeps it, as in transformers
            (LLaVA: ``patch``, ``cls_patch``).
        image_aspect_ratio: how images become squares: ``squash``, ``pad`` with the encoder's mean color
            (LLaVA-1.5's), or a center ``crop``; or ``anyres``, LLaVA-NeXT's: a base image and tiles at full resolution.
        image_grid_pinpoints: with ``anyres``: the heights and widths in pixels that images are resized into before they
            are cut into tiles; null uses LLaVA-NeXT's, 1 × 2, 2 × 1, 2 × 2, 3 × 1 and 1 × 3 tiles.
        projector: maps the encoder's features to tokens of the LLM.
        chat_template: ``auto`` (the LLM's own if it has one, else vicuna) or a template's name: vicuna, vicuna_v1 (with
            LLaVA-1.5's preamble), llama_2, llama_3, llama_3_1 (3.2, too), chatml (Qwen, SmolLM), qwen_1_5 (the same
            with LLaVA-NeXT's system message), mistral, gemma, phi_3, tulu (OLMo), turns.
        seed: seed of the projector's weights, and of an encoder without weights.
    """

    image_size: Positive | None = None
    vision_feature_layer: int | list[int] | None = None
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    image_aspect_ratio: ImageAspectRatio = "squash"
    image_grid_pinpoints: list[list[int]] | None = None
    projector: ProjectorConfig = dataclasses.field(default_factory=ProjectorConfig)
    chat_template: str = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        check_pinpoints(self.image_aspect_ratio, self.image_grid_pinpoints)
