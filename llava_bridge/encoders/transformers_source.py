"""Encoders that are transformers vision models: CLIP's, SigLIP's, DINOv2's, …; one entry of :data:`FAMILIES` each.

From a checkpoint of a full CLIP or SigLIP the image tower is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from clips.model.pos_embed import resize_pos_embed
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder, VisionTower
from llava_bridge.encoders.encoder_checks import check_encoder_files, resolve_vision_dir

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's constants


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A type of vision model.

    Args:
        model: the class in transformers.
        prefix: tokens before those of the patches; the first is the class token.
        positions: the table of learned positions, if another image size needs interpolation; None if the model itself
            interpolates.
        call: how the model is called with pixels (B, 3, S, S).
        stock: whether transformers' own LLaVA supports the unmodified model.
    """

    model: str
    prefix: Callable[[Any], int]
    positions: str | None
    call: Callable[[Any, Tensor], Any]
    stock: bool = True


def _plainly(model: Any, pixels: Tensor) -> Any:
    return model(pixels, output_hidden_states=True)


def _as_patches(model: Any, pixels: Tensor) -> Any:
    """Call SigLIP 2's models for any aspect ratio with patches, row by row, each (P · P · 3), and their positions."""
    side = model.config.patch_size
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    patches = pixels.unflatten(2, (rows, side)).unflatten(4, (columns, side)).permute(0, 2, 4, 3, 5, 1)
    shapes = torch.tensor([[rows, columns]] * len(pixels), device=pixels.device)
    mask = torch.ones(len(pixels), rows * columns, dtype=torch.long, device=pixels.device)
    return model(patches.reshape(len(pixels), rows * columns, -1), mask, shapes, output_hidden_states=True)


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


_TABLE = "embeddings.position_embedding.weight"
FAMILIES: dict[str, ModelFamily] = {
    "clip_vision_model": ModelFamily(model="CLIPVisionModel", prefix=lambda _: 1, positions=_TABLE, call=_plainly),
    "siglip_vision_model": ModelFamily(model="SiglipVisionModel", prefix=lambda _: 0, positions=_TABLE, call=_plainly),
    "siglip2_vision_model": ModelFamily(
        model="Siglip2VisionModel", prefix=lambda _: 0, positions=None, call=_as_patches, stock=False
    ),
    "aimv2_vision_model": ModelFamily(model="Aimv2VisionModel", prefix=lambda _: 0, positions=_TABLE, call=_plainly),
    "dinov2": ModelFamily(model="Dinov2Model", prefix=lambda _: 1, positions=None, call=_plainly),
    "dinov2_with_registers": ModelFamily(
        model="Dinov2WithRegistersModel", prefix=_registers, positions=None, call=_plainly, stock=False
    ),
    "dinov3_vit": ModelFamily(model="DINOv3ViTModel", prefix=_registers, positions=None, call=_plainly, stock=False),
}
"""``model_type`` of the vision config → how to use its model."""


class TransformersTower(VisionTower):
    """A transformers vision model with its own hidden states; register tokens are dropped."""

    default_layer = -2

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        config = _config_of(architecture)
        self.family = FAMILIES[config.model_type]
        self.prefix = self.family.prefix(config)
        self.class_token = self.prefix > 0
        self.depth = config.num_hidden_layers
        self.model = _class_of(self.family)(config)

    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield the embedded tokens, then each layer's output, (B, G² + 1, D); without class token (B, G², D).

        transformers always computes all layers.
        """
        for state in self.family.call(self.model, pixels).hidden_states[: deepest + 1]:
            yield state if self.prefix <= 1 else torch.cat([state[:, :1], state[:, self.prefix :]], dim=1)

    def stock(self) -> Any | None:
        """Return the model that transformers' own LLaVA would use instead of this tower; None if it cannot."""
        return self.model if self.family.stock else None


def build(architecture: Mapping[str, Any]) -> VisionTower:
    """Build the model of the stored vision config."""
    return TransformersTower(architecture)


def load(reference: str, image_size: int | None) -> VisionEncoder:
    """Read a directory in the transformers format, or a model of the Hub by its repo id.

    Raises:
        UserError: it is missing, incomplete, or of a type that is not in :data:`FAMILIES`.
    """
    from transformers import AutoConfig

    check_encoder_files(f"transformers:{reference}")
    directory = resolve_vision_dir(reference)
    with library_errors_as_user_errors(f"encoder: {reference}: expected a directory in transformers' layout"):
        whole = AutoConfig.from_pretrained(directory)
    config = getattr(whole, "vision_config", whole)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(f"encoder: {reference} is a {config.model_type}; expected one of {', '.join(FAMILIES)}")
    model = load_pretrained(_class_of(family), directory, f"encoder: {reference}", dtype=torch.float32)
    pixels = _pixels(directory, config)
    if image_size is not None:
        pixels = dataclasses.replace(pixels, size=image_size)
    if pixels.size % config.patch_size:
        raise UserError(
            f"image_size: expected a multiple of {config.patch_size}, the patch size of {reference}, got {pixels.size}"
        )
    weights = model.state_dict()
    if family.positions in weights:
        config = _with_size(config, pixels.size)
        patches = (pixels.size // config.patch_size) ** 2
        table = weights[family.positions]
        weights[family.positions] = resize_pos_embed(table, patches, family.prefix(config), antialias=False)
    return VisionEncoder(
        source="transformers",
        architecture={"config": config.to_dict()},
        weights={f"model.{name}": value for name, value in weights.items()},
        pixels=pixels,
        parent=str(directory),
    )


def _with_size(config: Any, size: int) -> Any:
    found = type(config).from_dict(config.to_dict())
    found.image_size = size
    return found


def _config_of(architecture: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    values = dict(architecture["config"])
    kind = values.pop("model_type")
    if kind not in FAMILIES:
        raise UserError(f"encoder: a {kind} cannot be used; expected one of {', '.join(FAMILIES)}")
    return AutoConfig.for_model(kind, **values)


def _class_of(family: ModelFamily) -> Any:
    import transformers

    return getattr(transformers, family.model)


def _pixels(directory: Path, config: Any) -> ImagePreprocess:
    """Return the preprocessing of the checkpoint, with the image size after cropping."""
    from transformers import AutoImageProcessor

    with library_errors_as_user_errors(
        f"encoder: {directory}: expected a preprocessor_config.json that says how images are normalized"
    ):
        found = AutoImageProcessor.from_pretrained(directory)
        own = (
            image_size_of(found)
            or getattr(config, "image_size", None)
            or config.patch_size * math.isqrt(config.num_patches)
        )
        red, green, blue = found.image_mean
        return ImagePreprocess(
            size=int(own),
            mean=(red, green, blue),
            std=tuple(found.image_std),
            interpolation=_RESAMPLE.get(int(found.resample), "bicubic"),
        )


def image_size_of(processor: Any) -> int | None:
    """Return the size of the square that an image processor produces; None if it does not state one.

    Raises:
        UserError: it is not square.
    """
    crops = getattr(processor, "do_center_crop", True) is not False
    size = (getattr(processor, "crop_size", None) if crops else None) or getattr(processor, "size", None)
    if size is None:
        return None
    sides = {key: value for key, value in dict(size).items() if value is not None}
    found = sides.get("height") or sides.get("shortest_edge")
    if sides.get("height") != sides.get("width"):
        raise UserError(f"expected square images, got {sides}")
    return None if found is None else int(found)
