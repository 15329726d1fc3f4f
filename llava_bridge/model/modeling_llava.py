"""transformers' LLaVA and LLaVA-NeXT with this suite's projectors."""

from __future__ import annotations

import dataclasses
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


class _OtherProjector:
    """Replaces the projector of a transformers LLaVA, with or without head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        llava: Any = getattr(self, "model", self)
        llava.multi_modal_projector = new_projector(config)


class BridgeLlavaModel(_OtherProjector, LlavaModel):
    """transformers' LLaVA without its head, with another projector; what ``AutoModel`` builds, as vLLM needs it."""

    config_class = BridgeLlavaConfig


class BridgeLlavaNextModel(_OtherProjector, LlavaNextModel):
    """The same with tiles."""

    config_class = BridgeLlavaNextConfig


class BridgeLlavaForConditionalGeneration(_OtherProjector, LlavaForConditionalGeneration):
    """transformers' LLaVA with another projector."""

    config_class = BridgeLlavaConfig


class BridgeLlavaNextForConditionalGeneration(_OtherProjector, LlavaNextForConditionalGeneration):
    """transformers' LLaVA-NeXT with another projector."""

    config_class = BridgeLlavaNextConfig


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


def use_square_images(llava: Any) -> None:
    """Let a LLaVA with tiles read ``pixel_values`` (P, 3, S, S), one square each, as one without tiles does."""

    def square_image_features(pixel_values: Tensor, _: Any = None, **options: Any) -> Any:
        return LlavaModel.get_image_features(llava.model, pixel_values, **options)

    llava.model.get_image_features = square_image_features


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
