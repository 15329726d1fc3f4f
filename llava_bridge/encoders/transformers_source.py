"""Encoders that are transformers vision models, also the image towers of CLIPs, SigLIPs and vision-language models.

Each type is an entry of :data:`FAMILIES`. The models that transformers wraps from timm are read as timm's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clips.errors import UserError
from clips.model.initialization import resize_pos_embed
from clips.model.loading import library_errors_as_user_errors, load_pretrained, read_safetensors
from clips.model_refs import resolve_model_dir
from llava_bridge.encoders import timm_source
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder, VisionTower
from llava_bridge.encoders.spec import check_encoder_files
from llava_bridge.encoders.transformers_families import FAMILIES, square_side

TIMM_WRAPPER = "timm_wrapper"
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's constants


class TransformersTower(VisionTower):
    """A transformers vision model with its own hidden states; of several class and register tokens the first is kept.

    Args:
        architecture: ``config``, a vision config or that of a model with one; ``final_norm``, whether the last hidden
            state passes through the family's final norm. LLaVAs of transformers lack the latter: they read the last
            layer's output.
    """

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        config = vision_config(architecture["config"])
        self.family = FAMILIES[config.model_type]
        self.prefix = self.family.prefix(config)
        self.class_token = self.prefix > 0
        self.default_layer = self.family.default_layer
        self.final_norm = architecture.get("final_norm", False)
        self.depth = getattr(config, "num_hidden_layers", None) or config.depth  # Qwen's in transformers 5.17
        self.model = self.family.model_class()(config)

    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield the embedded tokens, then each layer's output, (B, G² + 1, D); without class token (B, G², D).

        transformers always computes all layers.
        """
        for index, state in enumerate(self.family.forward(self.model, pixels)[: deepest + 1]):
            if index == self.depth and self.final_norm:
                state = self.model.get_submodule(self.family.final_norm)(state)
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

    from llava_bridge.model.modeling_llava import register

    register()  # the tower may be that of a LLaVA
    check_encoder_files(f"transformers:{reference}")
    directory = resolve_model_dir(reference, "encoder")
    with library_errors_as_user_errors(f"encoder: {reference}: expected a directory in the transformers format"):
        config = AutoConfig.from_pretrained(directory)
    if config.model_type == TIMM_WRAPPER:
        return _load_timm(directory, config, image_size)
    config = getattr(config, "vision_config", config)
    check_model_type(config.model_type, f"encoder: {reference}")
    family = FAMILIES[config.model_type]
    options: dict[str, Any] = {"dtype": torch.float32}
    if family.prefix_in_vlm is not None:
        options |= {"config": config, "key_mapping": {family.prefix_in_vlm: ""}}
    model = load_pretrained(family.model_class(), directory, f"encoder: {reference}", **options)
    pixels = _pixels(directory, config)
    if image_size is not None:
        pixels = dataclasses.replace(pixels, size=image_size)
    if pixels.size % (step := family.size_step(config)):
        raise UserError(f"image_size: expected a multiple of {step}, the patch size of {reference}, got {pixels.size}")
    weights = model.state_dict()
    if family.positions in weights:
        config = type(config).from_dict({**config.to_dict(), "image_size": pixels.size})
        patches = (pixels.size // step) ** 2
        table = weights[family.positions]
        weights[family.positions] = resize_pos_embed(table, patches, family.prefix(config), antialias=False)
    return VisionEncoder(
        source="transformers",
        architecture={"config": config.to_dict(), "final_norm": family.final_norm is not None},
        weights={f"model.{name}": value for name, value in weights.items()},
        pixels=pixels,
        parent=str(directory),
    )


def _load_timm(directory: Path, config: Any, image_size: int | None) -> VisionEncoder:
    """Read the timm model that transformers would wrap; its config has timm's preprocessing."""
    path, stated = directory / "model.safetensors", getattr(config, "pretrained_cfg", {})
    weights = read_safetensors(path, f"encoder: {path}")
    pixels = timm_source.preprocess_of(config.architecture, stated, image_size)
    own = {name.removeprefix("timm_model."): value for name, value in weights.items()}
    return timm_source.make_encoder(config.architecture, own, pixels, where=str(directory))


def vision_config(values: Mapping[str, Any]) -> Any:
    """Return transformers' config of a vision model from its values, or from those of a model with one.

    Raises:
        UserError: its type is not in :data:`FAMILIES`, or its values do not fit the type.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    values = dict(values)
    model_type = values.pop("model_type", "model without a model_type")
    if model_type not in CONFIG_MAPPING:
        check_model_type(model_type, "encoder")
    with library_errors_as_user_errors(f"encoder: expected the config of a {model_type}"):
        config = AutoConfig.for_model(model_type, **values)
    config = getattr(config, "vision_config", config)
    check_model_type(config.model_type, "encoder")
    return config


def check_model_type(model_type: str, what: str) -> None:
    """Raise UserError, which begins with ``what``, for a type that is not in :data:`FAMILIES`."""
    if model_type not in FAMILIES:
        raise UserError(f"{what} is a {model_type}; expected one of {', '.join(FAMILIES)}")


def _pixels(directory: Path, config: Any) -> ImagePreprocess:
    """Return the preprocessing of the checkpoint, with the image size after cropping."""
    from transformers import AutoImageProcessor

    with library_errors_as_user_errors(
        f"encoder: {directory}: expected a preprocessor_config.json that states how images are normalized"
    ):
        processor = AutoImageProcessor.from_pretrained(directory)
        # The processors of models without an image size state numbers of pixels.
        size = FAMILIES[config.model_type].image_size or image_size_of(processor)
        if not size and (stated := getattr(config, "image_size", None)) is not None:
            size = square_side(stated, "image_size")
        elif not size and hasattr(config, "num_patches"):  # SigLIP 2 NaFlex
            size = square_side(config.patch_size, "patch_size") * math.isqrt(config.num_patches)
        if size is None:
            raise UserError(f"image_size: expected a number of pixels, as {directory} states none")
        if (resample := int(processor.resample)) not in _RESAMPLE:
            expected = " or ".join(f"{number} ({name})" for number, name in _RESAMPLE.items())
            raise UserError(
                f"encoder: {directory}: preprocessor_config.json: resample: expected {expected}, got {resample}"
            )
        normalizes = processor.do_normalize is not False  # RADIO and TIPSv2 read pixels from 0 to 1
        return ImagePreprocess(
            size=size,
            mean=tuple(processor.image_mean) if normalizes else (0.0, 0.0, 0.0),
            std=tuple(processor.image_std) if normalizes else (1.0, 1.0, 1.0),
            interpolation=_RESAMPLE[resample],
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
