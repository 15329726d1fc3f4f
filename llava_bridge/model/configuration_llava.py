"""The configs of the suite's vision tower and of LLaVAs with its projectors, without the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import LlavaConfig, LlavaNextConfig, PretrainedConfig

_waiting: list[Callable[[], None]] = []


def on_first_instantiation(call: Callable[[], None]) -> None:
    """Register a callback for the creation of the first of these configs.

    Not earlier: transformers may still be importing what the models need.
    """
    if call not in _waiting:
        _waiting.append(call)


def _made() -> None:
    while _waiting:
        _waiting.pop()()


class EncoderVisionConfig(PretrainedConfig):
    """Everything needed to build the tower again.

    Args:
        source: the entry of :data:`llava_bridge.encoders.ENCODER_SOURCES` that builds the tower.
        architecture: the arguments of that entry.
        hidden_size: D.
        num_hidden_layers: index of the last hidden state.
        image_size: S.
        patch_size: S divided by the size of the token grid; in a LLaVA with tiles, of the projector's output grid, from
            which transformers computes how tiles join.
        class_token: whether token 0 of each hidden state is a class token.
        tokens_of_a_place: number of tokens per grid cell.
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
    tokens_of_a_place: int = 1

    def __post_init__(self, **fields: Any) -> None:
        _made()
        super().__post_init__(**fields)


class BridgeLlavaConfig(LlavaConfig):
    """A LLaVA's config that also states the projector between encoder and LLM.

    Args:
        projector: the fields of :class:`llava_bridge.projectors.ProjectorConfig`.
        projector_shape: those of :class:`llava_bridge.projectors.ProjectorShape`.
    """

    model_type = "llava_bridge"

    projector: dict[str, Any] | None = None
    projector_shape: dict[str, Any] | None = None

    def __post_init__(self, **fields: Any) -> None:
        _made()
        super().__post_init__(**fields)


class BridgeLlavaNextConfig(LlavaNextConfig):
    """The same for a LLaVA with tiles.

    Args:
        projector: see :class:`BridgeLlavaConfig`.
        projector_shape: see there.
    """

    model_type = "llava_next_bridge"

    projector: dict[str, Any] | None = None
    projector_shape: dict[str, Any] | None = None

    def __post_init__(self, **fields: Any) -> None:
        _made()
        super().__post_init__(**fields)
