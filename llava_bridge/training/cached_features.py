"""Features of a frozen encoder on disk, read ahead by the loader's workers, so that no step waits for a file or a hash.

Legend: P images, or with tiles all tiles of all images; L hidden states, N tokens, D width, S image size in pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from clips.core.cache import TensorShards
from clips.errors import UserError
from clips.model.feature_cache import digest
from llava_bridge.model.modeling_vision import EncoderVisionModel
from llava_bridge.training.launch import log_rank0
from llava_bridge.training.setup import StageSetup

FEATURES, KEYS = "cached_features", "feature_keys"


def enable_feature_cache(setup: StageSetup, dtype: torch.dtype, name: str) -> TensorShards:
    """Read the frozen encoder's features from the cache in the loader's workers, and add the missing ones.

    Returns the cache. Logs the space that they need, as a disk that is full would end a training of hours.

    Raises:
        UserError: the tower is transformers' own.
    """
    tower = setup.model.model.vision_tower
    if not isinstance(tower, EncoderVisionModel):
        raise UserError("cache_vision_features: expected false, as the vision tower of this LLaVA is transformers' own")
    shards = tower.cache_features(setup.model.config.vision_feature_layer, dtype)
    setup.collator.read_features = FeatureReader(shards, dtype, setup.model.config)
    needed = len(setup.dataset) * tower.feature_bytes(dtype)
    free = shutil.disk_usage(next(path for path in (shards.directory, *shards.directory.parents) if path.is_dir())).free
    log_rank0(
        f"{name}: caches features in {shards.directory}, {needed / 1e9:,.2f} GB for one image or tile of each sample; "
        f"{free / 1e9:,.1f} GB are free"
    )
    return shards


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
