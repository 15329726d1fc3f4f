"""Encoders in open_clip's Hub format: its own ViT, CLIP's ResNet, and timm trunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clips.errors import UserError
from clips.lazy_import import without_wandb
from clips.model.compute import SelfAttention, pack_attention
from clips.model.initialization import resize_pos_embed, resize_sincos_pos_embed
from clips.model.loading import library_errors_as_user_errors, read_weights
from clips.model_refs import OPEN_CLIP_CONFIG, find_open_clip_weights
from clips.text_files import safe_json_loads
from llava_bridge.encoders import require_open_clip_dir, timm_source
from llava_bridge.encoders.encoder import ImagePreprocess, VisionEncoder, VisionTower

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_TOWER_ALONE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bilinear"}
"""Default preprocessing of a tower alone: that of OpenVision 2 (``main_openvision2.py`` and ``openvision2.py`` of
https://github.com/UCSC-VLAA/OpenVision), whose config states none.
"""
_POSITIONS = "positional_embedding"


class OpenClipVit(VisionTower):
    """open_clip's ViT. Hidden state i is the output of residual block i, before any final LayerNorm."""

    class_token = True
    default_layer = -2

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.depth = len(visual.transformer.resblocks)
        # PyTorch's own attention reads the weights of its output layer, which vLLM replaces.
        pack_attention(visual.transformer, SelfAttention)

    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield the embedded tokens, then each block's output, (B, G² + 1, D)."""
        tokens = self.visual._embeds(pixels)
        yield tokens
        for block in self.visual.transformer.resblocks[:deepest]:
            tokens = self.run_block(block, tokens)
            yield tokens


class OpenClipResNet(VisionTower):
    """CLIP's ResNet. Hidden state i is the feature map of stage i, 0 the stem's; from stage 2 the grid size halves."""

    class_token = False
    default_layer = -2
    depth = 4

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield the feature maps of the stem and of each stage as tokens, row by row, (B, G², D)."""
        visual = self.visual
        features = pixels
        stages = (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        for stage in stages[: deepest + 1]:
            features = self.run_block(stage, features)
            yield features.flatten(2).transpose(1, 2).contiguous()


def build(architecture: Mapping[str, Any]) -> VisionTower:
    """Build the ViT or ResNet of ``embed_dim``, ``vision_cfg`` and ``quick_gelu``."""
    with without_wandb():
        from open_clip.model import _build_vision_tower
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.transformer import VisionTransformer

    vision = {**architecture["vision_cfg"], "patch_dropout": 0.0}
    visual = _build_vision_tower(architecture["embed_dim"], vision, architecture.get("quick_gelu", False))
    if isinstance(visual, VisionTransformer):
        return OpenClipVit(visual)
    if isinstance(visual, ModifiedResNet):
        return OpenClipResNet(visual)
    raise UserError(f"{OPEN_CLIP_CONFIG}: vision_cfg describes a {type(visual).__name__}, expected a ViT or ResNet")


def load(reference: str, image_size: int | None) -> VisionEncoder:
    """Read the image tower of an encoder directory.

    Raises:
        UserError: config or weights are missing or do not match; ``image_size`` differs from the tower's own.
    """
    directory = require_open_clip_dir(reference)
    config = _read_config(directory)
    model, vision = config["model_cfg"], config["model_cfg"]["vision_cfg"]
    weights, alone = _visual_weights(directory)
    own = _pixels(directory / OPEN_CLIP_CONFIG, vision, config.get("preprocess_cfg") or (_TOWER_ALONE if alone else {}))
    pixels = own if image_size is None else dataclasses.replace(own, size=image_size)
    if vision.get("timm_model_name"):
        trunk = {name.removeprefix("trunk."): value for name, value in weights.items() if name.startswith("trunk.")}
        return timm_source.make_encoder(vision["timm_model_name"], trunk, pixels, where=str(directory))
    architecture = {key: model[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in model}
    if alone and "ln_pre.weight" not in weights:  # the authors' ViTs have none, but one's config may not say so
        architecture["vision_cfg"] = vision = {**vision, "no_ln_pre": True}
    if image_size is not None and image_size != own.size:
        patch = vision.get("patch_size")
        if isinstance(vision.get("layers"), list) or not isinstance(patch, int):
            raise UserError(f"image_size: expected none, as {directory} is no ViT")
        if image_size % patch:
            raise UserError(
                f"image_size: expected a multiple of {patch}, the patch size of {directory}, got {image_size}"
            )
        architecture["vision_cfg"] = {**vision, "image_size": image_size}
        if (table := weights.get(_POSITIONS)) is not None:  # learned positions are interpolated, fixed ones computed
            patches = (image_size // patch) ** 2
            fixed = resize_sincos_pos_embed(table, patches) if vision.get("pos_embed_type") == "sin_cos_2d" else None
            weights[_POSITIONS] = resize_pos_embed(table, patches, prefix=1) if fixed is None else fixed
    return VisionEncoder(
        source="open_clip",
        architecture=architecture,
        weights={f"visual.{name}": value for name, value in weights.items()},
        pixels=pixels,
        parent=str(directory),
    )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / OPEN_CLIP_CONFIG
    with library_errors_as_user_errors(f"{path}: expected open_clip's model_cfg with embed_dim and vision_cfg"):
        config = safe_json_loads(path.read_text(encoding="utf-8"))
        if not isinstance(config["model_cfg"]["embed_dim"], int):
            raise TypeError("embed_dim is no integer")
        config["model_cfg"]["vision_cfg"].keys()
        return config


def _pixels(path: Path, vision: Mapping[str, Any], preprocess: Mapping[str, Any]) -> ImagePreprocess:
    def channels(values: Any) -> tuple[float, float, float]:
        red, green, blue = values
        return float(red), float(green), float(blue)

    with library_errors_as_user_errors(
        f"{path}: expected sizes, mean and std of three channels and an interpolation in preprocess_cfg"
    ):
        stated = preprocess.get("size") or vision.get("image_size", 224)
        sides = [stated, stated] if isinstance(stated, int) else list(stated)
        if sides[0] != sides[-1]:
            raise UserError(f"{OPEN_CLIP_CONFIG}: expected square images, got image size {sides}")
        pixels = ImagePreprocess(
            size=int(sides[0]),
            mean=channels(preprocess.get("mean") or OPENAI_MEAN),
            std=channels(preprocess.get("std") or OPENAI_STD),
            interpolation=preprocess.get("interpolation") or "bicubic",
        )
    if pixels.interpolation not in {"bilinear", "bicubic"}:
        raise UserError(
            f"{path}: preprocess_cfg.interpolation: expected bilinear or bicubic, got {pixels.interpolation}"
        )
    return pixels


def _visual_weights(directory: Path) -> tuple[dict[str, Tensor], bool]:
    """The image tower's weights, and whether the file has a tower alone, without prefix."""
    from safetensors import safe_open

    path = find_open_clip_weights(directory)
    if path.suffix == ".safetensors":
        with (
            library_errors_as_user_errors(f"encoder: {path} is not a readable safetensors file"),
            safe_open(path, framework="pt") as file,
        ):
            every = file.keys()
            names = [name for name in every if name.startswith("visual.")] or every
            weights = {name: file.get_tensor(name) for name in names}
    else:
        weights = read_weights(path)
    visual = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
    return visual or weights, not visual
