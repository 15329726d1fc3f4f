"""transformers' LLaVA and LLaVA-NeXT with this suite's projectors."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from clips.typed_data import from_plain
from llava_bridge.model.configuration_llava import BridgeLlavaConfig, BridgeLlavaNextConfig
from llava_bridge.projectors import ProjectorConfig, ProjectorShape, build_projector

AnyConfig = LlavaConfig | LlavaNextConfig
AnyLlava = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
"""With a fixed number of tokens per image, or with tiles (see :mod:`llava_bridge.model.anyres`)."""


class BridgeLlavaModel(LlavaModel):
    """transformers' LLaVA without its head, with another projector; what ``AutoModel`` builds, as vLLM needs it."""

    config_class = BridgeLlavaConfig

    def __init__(self, config: BridgeLlavaConfig) -> None:
        super().__init__(config)
        replace_projector(self, config)


class BridgeLlavaNextModel(LlavaNextModel):
    """The same with tiles."""

    config_class = BridgeLlavaNextConfig

    def __init__(self, config: BridgeLlavaNextConfig) -> None:
        super().__init__(config)
        replace_projector(self, config)


class BridgeLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LLaVA with another projector."""

    config_class = BridgeLlavaConfig

    def __init__(self, config: BridgeLlavaConfig) -> None:
        super().__init__(config)
        replace_projector(self.model, config)


class BridgeLlavaNextForConditionalGeneration(LlavaNextForConditionalGeneration):
    """transformers' LLaVA-NeXT with another projector."""

    config_class = BridgeLlavaNextConfig

    def __init__(self, config: BridgeLlavaNextConfig) -> None:
        super().__init__(config)
        replace_projector(self.model, config)


def config_class(*, tiles: bool, hf_projector: bool) -> Any:
    """Return the class of a LLaVA's config: with or without tiles, with transformers' projector or another one."""
    if tiles:
        return LlavaNextConfig if hf_projector else BridgeLlavaNextConfig
    return LlavaConfig if hf_projector else BridgeLlavaConfig


def empty_llava(config: AnyConfig) -> Any:
    """Build the LLaVA of ``config``, with its weights on the meta device."""
    model_classes: dict[type, Any] = {
        LlavaConfig: LlavaForConditionalGeneration,
        LlavaNextConfig: LlavaNextForConditionalGeneration,
        BridgeLlavaConfig: BridgeLlavaForConditionalGeneration,
        BridgeLlavaNextConfig: BridgeLlavaNextForConditionalGeneration,
    }
    with torch.device("meta"):
        return model_classes[type(config)](config)


def replace_projector(llava: Any, config: AnyConfig) -> None:
    """Replace the projector of transformers' LLaVA without head."""
    llava.multi_modal_projector = new_projector(config)


def new_projector(config: AnyConfig) -> nn.Module:
    """Build the untrained projector of ``config``, initialized as PyTorch does; seed torch before."""
    if isinstance(config, BridgeLlavaConfig | BridgeLlavaNextConfig):
        shape = ProjectorShape(**(config.projector_shape or {}))
        saved = config.projector or {}  # with fields of older versions
        known = {field.name: saved[field.name] for field in dataclasses.fields(ProjectorConfig) if field.name in saved}
        return build_projector(from_plain(ProjectorConfig, known, what="projector"), shape)
    if isinstance(config, LlavaNextConfig):
        return LlavaNextMultiModalProjector(config)
    return LlavaMultiModalProjector(config)


def new_image_newline(width: int) -> nn.Parameter:
    """Return the untrained token (W,) that ends a row of tile features, initialized as in the original LLaVA."""
    return nn.Parameter(torch.randn(width) / width**0.5)


def use_square_images(llava: Any) -> None:
    """Let a LLaVA with tiles read ``pixel_values`` (P, 3, S, S), one square each, as one without tiles does."""
    llava.model.get_image_features = functools.partial(_square_image_features, llava.model)


def _square_image_features(model: LlavaNextModel, pixel_values: Tensor, _: Any = None, **options: Any) -> Any:
    return LlavaModel.get_image_features(model, pixel_values, **options)


class MultimodalConnector(nn.Module):
    """The trainable modules between encoder and LLM: projector, and with tiles ``image_newline``; no forward.

    Args:
        llava: a transformers LLaVA.
    """

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.projector = llava.model.multi_modal_projector
        if isinstance(newline := getattr(llava.model, "image_newline", None), nn.Parameter):
            self.image_newline = newline
