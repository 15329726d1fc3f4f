"""The vision tower inside a transformers LLaVA: any encoder of this suite, rebuilt from its config.

``import llava_bridge`` registers both classes with transformers, after which unmodified
``LlavaForConditionalGeneration.from_pretrained`` loads a directory that the bridge wrote.

Legend: B images, S image size in pixels, N tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from clips.errors import UserError
from clips.model.feature_cache import FeatureCache
from clips.model.loading import library_errors_as_user_errors
from llava_bridge.encoders import build_tower
from llava_bridge.encoders.encoder import (
    VisionEncoder,
    VisionTower,
    check_feature_layer,
    load_weights,
    probe_output_shape,
)
from llava_bridge.model.configuration_llava import EncoderVisionConfig


class EncoderVisionModel(PreTrainedModel):
    """A :class:`VisionTower` behind transformers' vision model interface."""

    config_class = EncoderVisionConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: EncoderVisionConfig) -> None:
        super().__init__(config)
        self.tower: VisionTower = build_tower(config.source, config.architecture or {})
        self.computed_buffers = _save_all_buffers(self.tower)
        self.kept: FeatureCache | None = None
        self.kept_layers: list[int] = []
        self.gradient_checkpointing = False  # transformers looks for this attribute before it checkpoints anything
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPooling:
        """Run the tower up to the deepest requested state.

        Args:
            pixel_values: (B, 3, S, S), normalized; the states have their precision.
            output_hidden_states: None or False for the last state only, True for all, or the requested indices (as
                transformers passes them); the others are None in the tuple.
            return_dict: ignored, the output is always a dict.
            unused: other arguments that LLaVA passes to its tower.
        """
        wanted = self._wanted(output_hidden_states)
        states: list[Tensor | None] = [None] * (self.tower.depth + 1)
        if self.kept is not None and sorted(wanted) == self.kept_layers:
            found = dict(zip(self.kept_layers, self.kept(pixel_values).unbind(1), strict=True))
        else:
            found = self._computed(pixel_values, wanted)
        for index, state in found.items():
            states[index] = state
        asked = output_hidden_states is not None and output_hidden_states is not False
        hidden: Any = tuple(states) if asked else None
        return BaseModelOutputWithPooling(last_hidden_state=states[-1], hidden_states=hidden)

    def _computed(self, pixel_values: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        """Return the hidden states of these indices, each (B, N, D)."""
        states: dict[int, Tensor] = {}
        self.tower.recompute = self.gradient_checkpointing and self.training
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters())
        half = pixel_values.dtype != self.dtype  # bf16 training around a tower that keeps its float32 weights
        with (
            torch.set_grad_enabled(learns),
            torch.autocast(pixel_values.device.type, pixel_values.dtype, enabled=half),
        ):
            pixels = pixel_values.to(self.dtype, memory_format=torch.channels_last)  # faster for convolutions
            for index, state in enumerate(self.tower.states(pixels, max(wanted))):
                if index in wanted:
                    states[index] = state.to(pixel_values.dtype)
        return states

    def keep_outputs(self, layers: int | list[int]) -> None:
        """Read these hidden states from the user's cache from now on, and compute missing ones.

        For a frozen tower. Call it while the weights are unsharded: their hash is part of the cache key.
        """
        wanted = sorted(self._wanted(layers))

        def compute(pixels: Tensor) -> Tensor:
            states = self._computed(pixels, set(wanted))
            return torch.stack([states[index] for index in wanted], dim=1)

        made_as = json.dumps([self.config.source, self.config.architecture], sort_keys=True, default=str)
        variant = "".join(f"-{index}" for index in wanted) + f"-{hashlib.sha256(made_as.encode()).hexdigest()[:12]}"
        self.kept, self.kept_layers = FeatureCache(self.tower, compute, kind="features", variant=variant), wanted
        self.kept.know_weights()

    def stock(self) -> PreTrainedModel | None:
        """Return the model that transformers' own LLaVA uses instead of this one, with these weights, or None.

        It needs no import of this package, but computes all of its layers, and in the LLM's precision. Values computed
        at construction are not saved with it.
        """
        model = self.tower.stock()
        for name in self.computed_buffers if model is not None else ():
            module, _, buffer = name.rpartition(".")
            self.tower.get_submodule(module)._non_persistent_buffers_set.add(buffer)
        return model

    def _wanted(self, asked: bool | int | list[int] | None) -> set[int]:
        count = self.tower.depth + 1
        if asked is None or asked is False:
            return {count - 1}
        if asked is True:
            return set(range(count))
        return {index % count for index in ([asked] if isinstance(asked, int) else asked)}

    def train(self, mode: bool = True) -> EncoderVisionModel:
        """Keep a tower without trainable weights in evaluation mode: no dropped paths, no new batch statistics."""
        return super().train(mode and any(weight.requires_grad for weight in self.parameters()))

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialization of the tower's own library."""


def _save_all_buffers(tower: nn.Module) -> set[str]:
    """Make computed buffers of the tower persistent; return their names.

    ``from_pretrained`` builds on the meta device, where computed values are lost.
    """
    saved = set(tower.state_dict())
    for module in tower.modules():
        module._non_persistent_buffers_set.clear()
    return set(tower.state_dict()) - saved


def build_vision_model(encoder: VisionEncoder, layer: int | Sequence[int] | None = None) -> EncoderVisionModel:
    """Return the tower of ``encoder`` with its weights, frozen, in float32.

    Args:
        encoder: as read from its source.
        layer: the hidden state whose grid and width the config states, or several that share them; None is the tower's
            default.

    Raises:
        UserError: no such architecture, the weights do not match, there is no such state, or it is not a square grid.
    """
    where = encoder.parent or f"{encoder.source} {dict(encoder.architecture)}"
    config = EncoderVisionConfig(source=encoder.source, architecture=_plain(encoder.architecture))
    with library_errors_as_user_errors(f"encoder: the architecture that {where} states cannot be built"):
        model = EncoderVisionModel(config).float()
    if encoder.weights is not None:
        computed = {name: value for name, value in model.tower.named_buffers() if name in model.computed_buffers}
        load_weights(model.tower, {**computed, **encoder.weights}, where)
    chosen = resolve_feature_layer(model.tower, layer)
    with library_errors_as_user_errors(f"image_size: {where} cannot take pictures of {encoder.pixels.size} px"):
        shapes = {
            probe_output_shape(model.tower, encoder.pixels.size, one, where)
            for one in (chosen if isinstance(chosen, list) else [chosen])
        }
    if len(shapes) > 1:
        raise UserError(
            f"vision_feature_layer: the states {chosen} of {where} differ in grid or width; expected one of them"
        )
    grid, width = shapes.pop()
    config.hidden_size = width
    config.num_hidden_layers = model.tower.depth
    config.image_size = encoder.pixels.size
    config.patch_size = encoder.pixels.size // grid
    config.class_token = model.tower.class_token
    config.tokens_of_a_place = model.tower.tokens_of_a_place
    model.requires_grad_(False)
    return model.eval()


def resolve_feature_layer(tower: VisionTower, wanted: int | Sequence[int] | None) -> int | list[int]:
    """Return the hidden state that the LLM sees, or the concatenated ones: ``wanted``, or the tower's default if None.

    Raises:
        UserError: there is no such state.
    """
    if wanted is None:
        return tower.default_layer
    layers = [wanted] if isinstance(wanted, int) else list(wanted)
    for layer in layers:
        check_feature_layer(tower, layer)
    return layers[0] if len(layers) == 1 else layers


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
