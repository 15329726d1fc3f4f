"""transformers' LLaVA and LLaVA-NeXT with this suite's projectors, registered with transformers and vLLM."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
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
from llava_bridge.model.modeling_vision import EncoderVisionConfig, EncoderVisionModel
from llava_bridge.projectors import ProjectorConfig, ProjectorShape, build_projector

AnyConfig = LlavaConfig | LlavaNextConfig
AnyLlava = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
"""With a fixed number of tokens per image, or with tiles (see :mod:`llava_bridge.model.image_processing`)."""


class BridgeLlavaConfig(LlavaConfig):
    """A LLaVA's config with the projector between encoder and LLM.

    Args:
        projector: the fields of :class:`llava_bridge.projectors.ProjectorConfig`.
        projector_shape: those of :class:`llava_bridge.projectors.ProjectorShape`.
    """

    model_type = "llava_bridge"

    projector: dict[str, Any] | None = None
    projector_shape: dict[str, Any] | None = None


class BridgeLlavaNextConfig(LlavaNextConfig):
    """The same for a LLaVA with tiles."""

    model_type = "llava_next_bridge"

    projector: dict[str, Any] | None = None
    projector_shape: dict[str, Any] | None = None


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


LLAVAS: dict[tuple[bool, bool], tuple[Any, Any]] = {
    (False, True): (LlavaConfig, LlavaForConditionalGeneration),
    (True, True): (LlavaNextConfig, LlavaNextForConditionalGeneration),
    (False, False): (BridgeLlavaConfig, BridgeLlavaForConditionalGeneration),
    (True, False): (BridgeLlavaNextConfig, BridgeLlavaNextForConditionalGeneration),
}
"""Whether with tiles, and whether with transformers' projector → classes of config and model."""


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
    """The trainable modules between encoder and LLM: projector, and with tiles ``image_newline``; no forward."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.projector = llava.model.multi_modal_projector
        if isinstance(newline := getattr(llava.model, "image_newline", None), nn.Parameter):
            self.image_newline = newline


# ---------------------------------------------------------------- registration


def register() -> None:
    """Register configs and models with transformers' Auto classes, which then load this suite's LLaVAs.

    ``import llava_bridge`` does not, since importing transformers takes seconds. Functions of this package that load a
    LLaVA call it; further calls do nothing.
    """
    AutoConfig.register(EncoderVisionConfig.model_type, EncoderVisionConfig, exist_ok=True)
    AutoModel.register(EncoderVisionConfig, EncoderVisionModel, exist_ok=True)
    for model in (BridgeLlavaModel, BridgeLlavaNextModel):  # without head, as vLLM builds them
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModel.register(model.config_class, model, exist_ok=True)
    for llava in (BridgeLlavaForConditionalGeneration, BridgeLlavaNextForConditionalGeneration):
        AutoModelForImageTextToText.register(llava.config_class, llava, exist_ok=True)


def register_with_vllm() -> None:
    """Register configs, models and their architectures: vLLM's plugin, which it calls in each of its processes.

    vLLM resolves only transformers' own architectures to its transformers backend; others must be in its registry
    (https://docs.vllm.ai/en/latest/design/plugin_system.html).
    """
    from vllm import ModelRegistry

    register()
    register_weight_names()
    for llava in (BridgeLlavaForConditionalGeneration, BridgeLlavaNextForConditionalGeneration):
        backend = "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM"
        ModelRegistry.register_model(llava.__name__, backend)


def register_weight_names() -> None:
    """Register how files name the weights of the LLaVAs without head, which are all that vLLM builds.

    transformers saves a LLaVA's language model as ``language_model.model``. Version 5.23 reads that in any class; 5.19,
    which vLLM 0.32 uses, in transformers' own classes only.
    """
    from transformers import conversion_mapping

    for model in (BridgeLlavaModel, BridgeLlavaNextModel):
        renaming = conversion_mapping.WeightRenaming(r"^model\.language_model\.model\.", "model.language_model.")
        conversion_mapping.register_checkpoint_conversion_mapping(model.__name__, [renaming], overwrite=True)
