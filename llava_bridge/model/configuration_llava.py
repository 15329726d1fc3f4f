"""The configs of the suite's vision tower and of LLaVAs with its projectors, without the models."""

from __future__ import annotations

from typing import Any

from transformers import LlavaConfig, LlavaNextConfig, PretrainedConfig


class EncoderVisionConfig(PretrainedConfig):
    """Everything needed to build the tower again.

    Args:
        source: the entry of :data:`llava_bridge.encoders.ENCODER_SOURCES` that builds the tower.
        architecture: the arguments of that entry.
        hidden_size: D.
        num_hidden_layers: index of the last hidden state.
        image_size: S.
        patch_size: S divided by the size of the token grid; in a LLaVA with tiles, of the projector's output grid, by
            which transformers joins tiles.
        class_token: whether token 0 of each hidden state is a class token.
    """

    model_type = "llava_bridge_encoder"
    base_config_key = "vision_config"

    source: str = "open_clip"
    architecture: dict[str, Any] | None = None
    hidden_size: int = 0
    num_hidden_layers: int = 0
    image_size: int = 0
    patch_size: int = 1
    class_token: bool = True


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
    """The same for a LLaVA with tiles.

    Args:
        projector: see :class:`BridgeLlavaConfig`.
        projector_shape: see :class:`BridgeLlavaConfig`.
    """

    model_type = "llava_next_bridge"

    projector: dict[str, Any] | None = None
    projector_shape: dict[str, Any] | None = None
