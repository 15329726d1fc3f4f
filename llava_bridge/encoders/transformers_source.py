"""Encoders that are transformers vision models, also the image towers of full CLIPs and SigLIPs.

Each type is an entry of :data:`FAMILIES`.
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
from clips.model_refs import resolve_model_dir
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder, VisionTower
from llava_bridge.encoders.spec import check_encoder_files

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's constants


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A type of vision model.

    Args:
        model: the class in transformers.
        prefix: number of tokens before those of the patches, by its config; the first is the class token.
        positions: name of the learned positions, if another image size needs interpolation; None if the model itself
            interpolates.
        forward: its output with all hidden states from pixels (B, 3, S, S).
        in_hf_llava: whether transformers' own LLaVA supports the unmodified model.
    """

    model: str
    prefix: Callable[[Any], int]
    positions: str | None
    forward: Callable[[Any, Tensor], Any]
    in_hf_llava: bool = True


def _forward_pixels(model: Any, pixels: Tensor) -> Any:
    return model(pixels, output_hidden_states=True)


def _forward_patches(model: Any, pixels: Tensor) -> Any:
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
    "clip_vision_model": ModelFamily(
        model="CLIPVisionModel", prefix=lambda _: 1, positions=_TABLE, forward=_forward_pixels
    ),
    "siglip_vision_model": ModelFamily(
        model="SiglipVisionModel", prefix=lambda _: 0, positions=_TABLE, forward=_forward_pixels
    ),
    "siglip2_vision_model": ModelFamily(
        model="Siglip2VisionModel", prefix=lambda _: 0, positions=None, forward=_forward_patches, in_hf_llava=False
    ),
    "aimv2_vision_model": ModelFamily(
        model="Aimv2VisionModel", prefix=lambda _: 0, positions=_TABLE, forward=_forward_pixels
    ),
    "dinov2": ModelFamily(model="Dinov2Model", prefix=lambda _: 1, positions=None, forward=_forward_pixels),
    "dinov2_with_registers": ModelFamily(
        model="Dinov2WithRegistersModel", prefix=_registers, positions=None, forward=_forward_pixels, in_hf_llava=False
    ),
    "dinov3_vit": ModelFamily(
        model="DINOv3ViTModel", prefix=_registers, positions=None, forward=_forward_pixels, in_hf_llava=False
    ),
}
"""``model_type`` of the vision config → its model."""


class TransformersTower(VisionTower):
    """A transformers vision model with its own hidden states; register tokens are dropped."""

    default_layer = -2

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        config = _build_config(architecture)
        self.family = FAMILIES[config.model_type]
        self.prefix = self.family.prefix(config)
        self.class_token = self.prefix > 0
        self.depth = config.num_hidden_layers
        self.model = _model_class(self.family)(config)

    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield the embedded tokens, then each layer's output, (B, G² + 1, D); without class token (B, G², D).

        transformers always computes all layers.
        """
        for state in self.family.forward(self.model, pixels).hidden_states[: deepest + 1]:
            yield state if self.prefix <= 1 else torch.cat([state[:, :1], state[:, self.prefix :]], dim=1)

    def hf_model(self) -> Any | None:
        """Return the model that transformers' own LLaVA would use instead of this tower; None if it has none."""
        return self.model if self.family.in_hf_llava else None


def build(architecture: Mapping[str, Any]) -> VisionTower:
    """Build the model of the stored vision config."""
    return TransformersTower(architecture)


def load(reference: str, image_size: int | None) -> VisionEncoder:
    """Read a directory in the transformers format, or a model of the Hub by its repo id.

    Raises:
        UserError: it is missing, incomplete, or its type is not in :data:`FAMILIES`.
    """
    from transformers import AutoConfig

    check_encoder_files(f"transformers:{reference}")
    directory = resolve_model_dir(reference, "encoder")
    with library_errors_as_user_errors(f"encoder: {reference}: expected a directory in the transformers format"):
        config = AutoConfig.from_pretrained(directory)
    config = getattr(config, "vision_config", config)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(f"encoder: {reference} is a {config.model_type}; expected one of {', '.join(FAMILIES)}")
    model = load_pretrained(_model_class(family), directory, f"encoder: {reference}", dtype=torch.float32)
    pixels = _pixels(directory, config)
    if image_size is not None:
        pixels = dataclasses.replace(pixels, size=image_size)
    if pixels.size % config.patch_size:
        raise UserError(
            f"image_size: expected a multiple of {config.patch_size}, the patch size of {reference}, got {pixels.size}"
        )
    weights = model.state_dict()
    if family.positions in weights:
        config = type(config).from_dict({**config.to_dict(), "image_size": pixels.size})
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


def _build_config(architecture: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    values = dict(architecture["config"])
    model_type = values.pop("model_type")
    if model_type not in FAMILIES:
        raise UserError(f"encoder: a {model_type} is not supported; expected one of {', '.join(FAMILIES)}")
    return AutoConfig.for_model(model_type, **values)


def _model_class(family: ModelFamily) -> Any:
    import transformers

    return getattr(transformers, family.model)


def _pixels(directory: Path, config: Any) -> ImagePreprocess:
    """Return the preprocessing of the checkpoint, with the image size after cropping."""
    from transformers import AutoImageProcessor

    with library_errors_as_user_errors(
        f"encoder: {directory}: expected a preprocessor_config.json that states how images are normalized"
    ):
        processor = AutoImageProcessor.from_pretrained(directory)
        size = image_size_of(processor) or getattr(config, "image_size", None)
        red, green, blue = processor.image_mean
        return ImagePreprocess(
            size=int(size or config.patch_size * math.isqrt(config.num_patches)),
            mean=(red, green, blue),
            std=tuple(processor.image_std),
            interpolation=_RESAMPLE.get(int(processor.resample), "bicubic"),
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
    if sides.get("height") != sides.get("width"):
        raise UserError(f"expected square images, got {sides}")
    side = sides.get("height") or sides.get("shortest_edge")
    return None if side is None else int(side)
