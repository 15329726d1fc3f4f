"""The vision tower of a transformers LLaVA: any encoder of this suite, rebuilt from its config.

After ``llava_bridge.register()`` unmodified ``LlavaForConditionalGeneration.from_pretrained`` loads the bridge's
LLaVAs.

Legend: B images, S image size in pixels, N tokens, D width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from clips.core.cache import TensorShards
from clips.core.identity import cache_directory
from clips.errors import UserError
from clips.model.feature_cache import weights_digest
from clips.model.loading import library_errors_as_user_errors
from llava_bridge.encoders import build_tower
from llava_bridge.encoders.encoder import VisionEncoder, VisionTower, load_weights, probe_output_shape


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


class EncoderVisionModel(PreTrainedModel):
    """A :class:`VisionTower` behind transformers' vision model interface."""

    config_class = EncoderVisionConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: EncoderVisionConfig) -> None:
        super().__init__(config)
        self.tower: VisionTower = build_tower(config.source, config.architecture or {})
        # Computed buffers become persistent: `from_pretrained` builds on the meta device, where their values are lost.
        saved = set(self.tower.state_dict())
        for module in self.tower.modules():
            module._non_persistent_buffers_set.clear()
        self.computed_buffers = set(self.tower.state_dict()) - saved
        buffers = self.tower.named_buffers()
        self.integer_buffers = {name: value.dtype for name, value in buffers if not value.is_floating_point()}
        self.feature_shards: TensorShards | None = None
        self.cached_layers: list[int] = []
        self.cached_features: Tensor | None = None
        self.feature_keys: Sequence[str] = ()
        self.gradient_checkpointing = False  # transformers requires this attribute for activation checkpointing
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPooling:
        """Run the tower up to the deepest requested state.

        ``pixel_values`` (B, 3, S, S) are normalized; the states have their precision, or that of a tower that is not
        float32. ``output_hidden_states``: None or False for the last state only, True for all, or the requested
        indices, as transformers passes them; the others are None in the tuple.
        """
        layers = self.layer_indices(output_hidden_states)
        if self.feature_keys and sorted(layers) == self.cached_layers:
            states = self._cached_states(pixel_values)  # each (B, N, D)
        else:
            states = self.compute_states(pixel_values, layers)
        hidden: Any = None
        if output_hidden_states is not None and output_hidden_states is not False:
            hidden = tuple(states.get(index) for index in range(self.tower.depth + 1))
        return BaseModelOutputWithPooling(last_hidden_state=states.get(self.tower.depth), hidden_states=hidden)

    def _cached_states(self, pixel_values: Tensor) -> dict[int, Tensor]:
        """The cached hidden states; those that the cache lacks are computed and added to it."""
        features = self.cached_features
        if features is None:
            assert self.feature_shards is not None
            features_by_row = [self.feature_shards.get(key) for key in self.feature_keys]
            missing = [row for row, known in enumerate(features_by_row) if known is None]
            if missing:
                computed = self.compute_states(pixel_values[missing], set(self.cached_layers))
                stacked = torch.stack([computed[index] for index in self.cached_layers], dim=1).cpu()
                for row, added in zip(missing, stacked, strict=True):
                    self.feature_shards.add(self.feature_keys[row], added)
                    features_by_row[row] = added
                if len(missing) == len(features_by_row):  # without a copy back to the device
                    return computed
            features = torch.stack(cast("list[Tensor]", features_by_row))
        return dict(zip(self.cached_layers, features.to(pixel_values.device).unbind(1), strict=True))

    def compute_states(self, pixel_values: Tensor, layers: set[int]) -> dict[int, Tensor]:
        """Layer → its hidden states (B, N, D) of pixel values (B, 3, H, W), computed by the tower."""
        states: dict[int, Tensor] = {}
        self.tower.recompute = self.gradient_checkpointing and self.training
        needs_grad = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters())
        if self.dtype != torch.float32:  # a processor's pixels are float32
            pixel_values = pixel_values.to(self.dtype)
        autocast = pixel_values.dtype != self.dtype  # bf16 training with float32 weights of the tower
        with (
            torch.set_grad_enabled(needs_grad),
            torch.autocast(pixel_values.device.type, pixel_values.dtype, enabled=autocast),
        ):
            # channels last are faster for convolutions
            pixels = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
            for index, state in enumerate(self.tower.states(pixels, max(layers))):
                if index in layers:
                    states[index] = state.to(pixel_values.dtype)
        return states

    def cache_features(self, layers: int | list[int], dtype: torch.dtype) -> TensorShards:
        """Store these hidden states, of pixels of this dtype, in the user's cache from now on, and return it.

        For a frozen tower. Call it while the weights are unsharded: their hash is part of the cache's name.
        """
        self.cached_layers = sorted(self.layer_indices(layers))
        architecture = json.dumps([self.config.source, self.config.architecture], sort_keys=True, default=str)
        variant = "".join(f"-{index}" for index in self.cached_layers)
        variant += f"-{hashlib.sha256(architecture.encode()).hexdigest()[:12]}-{str(dtype).removeprefix('torch.')}"
        self.feature_shards = TensorShards(cache_directory("features") / f"{weights_digest(self.tower)}{variant}")
        return self.feature_shards

    def feature_bytes(self, dtype: torch.dtype) -> int:
        """The bytes of an image's cached states."""
        tokens = (self.config.image_size // self.config.patch_size) ** 2 + int(self.config.class_token)
        return len(self.cached_layers) * tokens * self.config.hidden_size * dtype.itemsize

    @contextlib.contextmanager
    def with_features(self, features: Tensor | None, keys: Sequence[str]) -> Iterator[None]:
        """Meanwhile :meth:`forward` returns ``features`` (P, L, N, D) of the cache.

        Without ``features`` it looks for each image's under its key, as others may have been added since the loader's
        workers looked for them, and computes and adds the missing ones.
        """
        self.cached_features, self.feature_keys = features, keys
        try:
            yield
        finally:
            self.cached_features, self.feature_keys = None, ()

    def hf_model(self) -> PreTrainedModel | None:
        """Return the model that transformers' own LLaVA uses instead of this one, with these weights, or None.

        It needs no import of this package, but computes all of its layers, and in the LLM's precision. Values computed
        at construction are not saved with it.
        """
        model = self.tower.hf_model()
        for name in self.computed_buffers if model is not None else ():
            module, _, buffer = name.rpartition(".")
            self.tower.get_submodule(module)._non_persistent_buffers_set.add(buffer)
        return model

    def layer_indices(self, layers: bool | int | list[int] | None) -> set[int]:
        """The states to return for ``output_hidden_states``: 0 are the embeddings."""
        count = self.tower.depth + 1
        if layers is None or layers is False:
            return {count - 1}
        if layers is True:  # transformers 5.17 asks for all states and reads one
            return set(self.cached_layers or range(count))
        return {index % count for index in ([layers] if isinstance(layers, int) else layers)}

    def train(self, mode: bool = True) -> EncoderVisionModel:
        """Keep a frozen tower in evaluation mode: no stochastic depth, no new batch statistics."""
        return super().train(mode and any(weight.requires_grad for weight in self.parameters()))

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialization of the tower's own library."""


def load_with_float32_tower(load: Callable[[], Any]) -> Any:
    """Return the LLaVA that ``load`` loads by transformers, in bf16 or not, with its tower in float32."""
    # No argument of from_pretrained keeps a part in another dtype, and transformers' classes are not ours.
    PreTrainedModel._keep_in_fp32_modules_strict = {"vision_tower"}
    try:
        model = load()
    finally:
        PreTrainedModel._keep_in_fp32_modules_strict = None
    if isinstance(vision := model.model.vision_tower, EncoderVisionModel):
        for name, dtype in vision.integer_buffers.items():  # transformers casts them to float32, too
            module, _, buffer = name.rpartition(".")
            owner = vision.tower.get_submodule(module)
            setattr(owner, buffer, getattr(owner, buffer).to(dtype))
    return model


def build_vision_model(encoder: VisionEncoder, layer: int | Sequence[int] | None = None) -> EncoderVisionModel:
    """The tower of ``encoder`` with its weights, frozen, in float32; its config states grid and width of ``layer``.

    Raises:
        UserError: no such architecture, the weights do not match, there is no such state, or it is not a square
            grid.
    """
    where = encoder.parent or f"{encoder.source} {dict(encoder.architecture)}"

    def plain(value: Any) -> Any:  # JSON writes no other mappings than dicts
        return {key: plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    config = EncoderVisionConfig(source=encoder.source, architecture=plain(encoder.architecture))
    with library_errors_as_user_errors(f"encoder: the architecture of {where} cannot be built"):
        model = EncoderVisionModel(config).float()
    if encoder.weights is not None:
        computed = {name: value for name, value in model.tower.named_buffers() if name in model.computed_buffers}
        load_weights(model.tower, {**computed, **encoder.weights}, where)
    layers = resolve_feature_layer(model.tower, layer)
    with library_errors_as_user_errors(f"image_size: {where} does not support {encoder.pixels.size} px"):
        shapes = {
            probe_output_shape(model.tower, encoder.pixels.size, index, where)
            for index in (layers if isinstance(layers, list) else [layers])
        }
    if len(shapes) > 1:
        raise UserError(
            f"vision_feature_layer: the states {layers} of {where} differ in grid or width; expected one of them"
        )
    grid, width = shapes.pop()
    config.hidden_size = width
    config.num_hidden_layers = model.tower.depth
    config.image_size = encoder.pixels.size
    config.patch_size = encoder.pixels.size // grid
    config.class_token = model.tower.class_token
    model.requires_grad_(False)
    return model.eval()


def resolve_feature_layer(tower: VisionTower, layer: int | Sequence[int] | None) -> int | list[int]:
    """The hidden state that the LLM sees, or the concatenated ones, None replaced by the tower's default.

    Raises:
        UserError: there is no such state; the message has the valid range.
    """
    if layer is None:
        return tower.default_layer
    layers = [layer] if isinstance(layer, int) else list(layer)
    for index in layers:
        if not -tower.depth - 1 <= index <= tower.depth:
            valid = f"{-tower.depth - 1} to {tower.depth}" if tower.depth else "only -1, the last feature map"
            raise UserError(f"vision_feature_layer: this encoder has {valid}, got {index}")
    return layers[0] if len(layers) == 1 else layers
