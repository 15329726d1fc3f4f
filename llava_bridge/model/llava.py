"""LLaVA with a projector of ours, for those that transformers' own LLaVA and LLaVA-NeXT do not have."""

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

from llava_bridge.model.model_configs import BridgeLlavaConfig, BridgeLlavaNextConfig
from llava_bridge.projectors import ProjectorConfig, Shape, build

AnyConfig = LlavaConfig | LlavaNextConfig
AnyLlava = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
"""With a fixed number of tokens for each picture, or with tiles (see :mod:`llava_bridge.model.anyres`)."""


class BridgeLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LLaVA with another projector in the same place."""

    config_class = BridgeLlavaConfig

    def __init__(self, config: BridgeLlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = new_projector(config)


class BridgeLlavaNextForConditionalGeneration(LlavaNextForConditionalGeneration):
    """transformers' LLaVA-NeXT with another projector in the same place."""

    config_class = BridgeLlavaNextConfig

    def __init__(self, config: BridgeLlavaNextConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = new_projector(config)


def config_kind(*, tiles: bool, stock: bool) -> Any:
    """The class of a LLaVA's config: with tiles or without, transformers' own or with a projector of ours."""
    if tiles:
        return LlavaNextConfig if stock else BridgeLlavaNextConfig
    return LlavaConfig if stock else BridgeLlavaConfig


def empty_llava(config: AnyConfig) -> Any:
    """The LLaVA that ``config`` describes, its weights on the meta device."""
    kinds: dict[type, Any] = {
        LlavaConfig: LlavaForConditionalGeneration,
        LlavaNextConfig: LlavaNextForConditionalGeneration,
        BridgeLlavaConfig: BridgeLlavaForConditionalGeneration,
        BridgeLlavaNextConfig: BridgeLlavaNextForConditionalGeneration,
    }
    with torch.device("meta"):
        return kinds[type(config)](config)


def new_projector(config: AnyConfig) -> nn.Module:
    """The untrained projector that ``config`` describes, initialised as PyTorch does; seed torch before."""
    if isinstance(config, BridgeLlavaConfig | BridgeLlavaNextConfig):
        return build(ProjectorConfig(**(config.projector or {})), Shape(**(config.projector_shape or {})))
    kind: Any = LlavaNextMultiModalProjector if isinstance(config, LlavaNextConfig) else LlavaMultiModalProjector
    return kind(config)


def new_newline(width: int) -> nn.Parameter:
    """The untrained token (W,) that ends a row of tiles' features, initialised as the original does."""
    return nn.Parameter(torch.randn(width) / width**0.5)


class ProjectorPart(nn.Module):
    """All of a LLaVA that stands between encoder and LLM, as one part: it has no forward of its own.

    Args:
        llava: a transformers LLaVA. One with tiles also has a learnt token for the ends of rows.
    """

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.projector = llava.model.multi_modal_projector
        if isinstance(newline := getattr(llava.model, "image_newline", None), nn.Parameter):
            self.image_newline = newline
