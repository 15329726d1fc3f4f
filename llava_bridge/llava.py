"""LLaVA with a projector of ours, for those that transformers' own LLaVA does not have."""

from __future__ import annotations

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llava_bridge.model_configs import BridgeLlavaConfig
from llava_bridge.projectors import ProjectorConfig, Shape, build


class BridgeLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LLaVA with another projector in the same place."""

    config_class = BridgeLlavaConfig

    def __init__(self, config: BridgeLlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = new_projector(config)


def new_projector(config: LlavaConfig) -> nn.Module:
    """The untrained projector that ``config`` describes, initialised as PyTorch does; seed torch before."""
    if not isinstance(config, BridgeLlavaConfig):
        return LlavaMultiModalProjector(config)
    return build(ProjectorConfig(**(config.projector or {})), Shape(**(config.projector_shape or {})))
