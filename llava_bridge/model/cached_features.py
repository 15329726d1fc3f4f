"""Features of a frozen encoder on disk, read ahead by the loader's workers, so that no step waits for a file or a hash.

Legend: P images, or with tiles all tiles of all images; L hidden states, N tokens, D width, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from clips.core.tensor_shards import TensorShards
from clips.model.feature_cache import digest

FEATURES, KEYS = "cached_features", "feature_keys"


class FeatureReader:
    """Finds the features of a batch's images.

    Args:
        shards: the features (L, N, D) by the hash of the pixels.
        dtype: of the training's pixels, which are hashed in it.
        config: the LLaVA's.
    """

    def __init__(self, shards: TensorShards, dtype: torch.dtype, config: Any) -> None:
        self.shards = shards
        self.dtype = dtype
        self.pinpoints = getattr(config, "image_grid_pinpoints", None)
        self.size = config.vision_config.image_size

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``feature_keys``, and ``cached_features`` (P, L, N, D) if all images have them; empty without images."""
        if "pixel_values" not in batch:
            return {}
        keys = [digest(pixels) for pixels in self._encoded(batch).to(self.dtype)]
        found = [self.shards.get(key) for key in keys]
        known = [features for features in found if features is not None]
        return {KEYS: keys} | ({FEATURES: torch.stack(known)} if len(known) == len(keys) else {})

    def _encoded(self, batch: Mapping[str, Any]) -> Tensor:
        """The images that the encoder gets (P, 3, S, S), in order: transformers' LLaVA-NeXT drops empty tiles."""
        pixels: Tensor = batch["pixel_values"]
        if pixels.ndim == 4:
            return pixels
        counts = [image_size_to_num_patches(size, self.pinpoints, self.size) for size in batch["image_sizes"]]
        return torch.cat([tiles[:count] for tiles, count in zip(pixels, counts, strict=True)])


class FlushCallback(TrainerCallback):
    """Writes the collected features after each pass over the data, for the next one, and with each checkpoint.

    Args:
        shards: the features.
        steps: of a pass.
    """

    def __init__(self, shards: TensorShards, steps: int) -> None:
        self.shards = shards
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write after the last step of a pass."""
        if state.global_step % self.steps == 0:
            self.shards.flush()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write."""
        self.shards.flush()
