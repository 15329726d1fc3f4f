"""LLaVA with this suite's projectors, which transformers' own LLaVA and LLaVA-NeXT lack."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from llava_bridge.model.configuration_llava import BridgeLlavaConfig, BridgeLlavaNextConfig
from llava_bridge.projectors import ProjectorConfig, ProjectorShape, build_projector

AnyConfig = LlavaConfig | LlavaNextConfig
AnyLlava = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
"""With a fixed number of tokens per image, or with tiles (see :mod:`llava_bridge.model.anyres`)."""


class BridgeLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LLaVA with another projector."""

    config_class = BridgeLlavaConfig

    def __init__(self, config: BridgeLlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = new_projector(config)


class BridgeLlavaNextForConditionalGeneration(LlavaNextForConditionalGeneration):
    """transformers' LLaVA-NeXT with another projector."""

    config_class = BridgeLlavaNextConfig

    def __init__(self, config: BridgeLlavaNextConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = new_projector(config)


def config_kind(*, tiles: bool, stock: bool) -> Any:
    """Return the class of a LLaVA's config: with or without tiles, transformers' own or with a suite projector."""
    if tiles:
        return LlavaNextConfig if stock else BridgeLlavaNextConfig
    return LlavaConfig if stock else BridgeLlavaConfig


def empty_llava(config: AnyConfig) -> Any:
    """Build the LLaVA of ``config``, with its weights on the meta device."""
    kinds: dict[type, Any] = {
        LlavaConfig: LlavaForConditionalGeneration,
        LlavaNextConfig: LlavaNextForConditionalGeneration,
        BridgeLlavaConfig: BridgeLlavaForConditionalGeneration,
        BridgeLlavaNextConfig: BridgeLlavaNextForConditionalGeneration,
    }
    with torch.device("meta"):
        return kinds[type(config)](config)


def new_projector(config: AnyConfig) -> nn.Module:
    """Build the untrained projector of ``config``, initialized as PyTorch does; seed torch before."""
    if isinstance(config, BridgeLlavaConfig | BridgeLlavaNextConfig):
        return build_projector(
            ProjectorConfig(**(config.projector or {})), ProjectorShape(**(config.projector_shape or {}))
        )
    kind: Any = LlavaNextMultiModalProjector if isinstance(config, LlavaNextConfig) else LlavaMultiModalProjector
    return kind(config)


def new_image_newline(width: int) -> nn.Parameter:
    """Return the untrained token (W,) that ends a row of tile features, initialized as the original does."""
    return nn.Parameter(torch.randn(width) / width**0.5)


class MultimodalConnector(nn.Module):
    """The modules between encoder and LLM, as one part without forward.

    Args:
        llava: a transformers LLaVA. One with tiles also has a learned token for the ends of rows.
    """

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.projector = llava.model.multi_modal_projector
        if isinstance(newline := getattr(llava.model, "image_newline", None), nn.Parameter):
            self.image_newline = newline
