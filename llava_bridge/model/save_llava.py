"""Save a LLaVA so that transformers loads it without this package, where possible, and vLLM under its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPVisionModel, SiglipVisionModel

from clips.errors import UserError
from llava_bridge.encoders.encoder import VisionTower
from llava_bridge.model.modeling_llava import AnyLlava
from llava_bridge.model.modeling_vision import EncoderVisionModel

MAX_SHARD_SIZE = "5GB"
_TOWER = "model.vision_tower."


def save_llava(model: AnyLlava, directory: Path) -> None:
    """Save a LLaVA by ``save_pretrained``; a tower of CLIP or SigLIP with the names that it has in files on the Hub.

    transformers 5 writes ``model.vision_tower.embeddings…`` and also reads the Hub's
    ``model.vision_tower.vision_model.embeddings…``; the LLaVA class of vLLM reads the latter only.
    """
    weights = model.state_dict()
    if type(model.model.vision_tower) in (CLIPVisionModel, SiglipVisionModel):
        weights = {name.replace(_TOWER, f"{_TOWER}vision_model.", 1): value for name, value in weights.items()}
    model.save_pretrained(directory, state_dict=weights, max_shard_size=MAX_SHARD_SIZE)


def convert_tower_to_transformers(model: AnyLlava) -> bool:
    """Replace the tower by transformers' own vision model, if there is one; return whether it was possible.

    The LLaVA then loads without an import of this package.
    """
    tower = model.model.vision_tower
    hf_tower = tower.tower.hf_model() if isinstance(tower, EncoderVisionModel) else None
    if hf_tower is None or _reads_final_norm(model, tower.tower):  # transformers' LLaVA reads layers' outputs only
        return False
    # transformers joins tiles by the tower's config; that of DINOv2 states the image size of its training.
    if hasattr(model.model, "image_newline") and _grid(hf_tower.config) != _grid(tower.config):
        return False
    model.model.vision_tower = tower.hf_model()
    model.config.vision_config = hf_tower.config
    return True


def convert_open_clip_tower(model: AnyLlava, *, clip_only: bool = False) -> None:
    """Replace a ViT of open_clip or timm by the ``CLIPVisionModel`` or ``SiglipVisionModel`` with its hidden states.

    Args:
        model: the LLaVA.
        clip_only: whether only a ``CLIPVisionModel`` is accepted.

    Raises:
        UserError: the tower is another one, or transformers' model does not compute the hidden states that are read.
    """
    from clips.interchange.hf_clip import clip_vision_model
    from clips.interchange.hf_siglip import siglip_vision_model
    from llava_bridge.encoders.open_clip_source import OpenClipVit
    from llava_bridge.encoders.timm_source import TimmVit

    tower, config = getattr(model.model.vision_tower, "tower", None), model.config.vision_config
    if isinstance(tower, OpenClipVit):
        hf_tower = clip_vision_model(tower.visual)
    elif isinstance(tower, TimmVit) and not clip_only:
        hf_tower = siglip_vision_model(tower.trunk)
        if _reads_final_norm(model, tower):
            raise UserError("vision_feature_layer: transformers' last hidden state has no final norm, timm's has")
    else:
        raise UserError(f"expected a ViT of open_clip or timm as vision tower, got {type(tower).__name__}")
    model.model.vision_tower = hf_tower
    if hasattr(model.model, "image_newline") and _grid(hf_tower.config) != _grid(config):
        raise UserError(
            f"transformers joins tiles by the tower's grid, {_grid(hf_tower.config)}; expected {_grid(config)}"
        )
    model.config.vision_config = hf_tower.config


def _reads_final_norm(model: AnyLlava, tower: VisionTower) -> bool:
    layers = model.config.vision_feature_layer
    return any(tower.is_normalized(layer) for layer in (layers if isinstance(layers, list) else [layers]))


def _grid(config: Any) -> tuple[int, int]:
    """Image size, and number of patches in a row."""
    return config.image_size, config.image_size // config.patch_size
