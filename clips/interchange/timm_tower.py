"""Export the image tower as a timm model in timm's Hub format: ``timm.create_model("local-dir:…", pretrained=True)``.

The tower's projection becomes its classifier, so the model's output is the image feature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clips.encoder import LoadedEncoder
from clips.errors import UserError
from clips.interchange.hf_files import mlp_ratio
from clips.interchange.imported_encoder import Features
from clips.interchange.tower_config import norm_eps_matches, reject_unsupported, transformer_spec
from clips.interchange.weight_mapping import (
    OPEN_CLIP,
    TIMM,
    WeightLink,
    block_links,
    from_open_clip,
    shapes_of,
    weight_bias_links,
    weight_link,
)
from clips.model.architectures import complete_preprocess_cfg

# timm models of which everything is configurable except the epsilon of the norms
_BASE_MODELS = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_TARGET = "timm's VisionTransformer"


def export(encoder: LoadedEncoder, directory: Path) -> Features:
    """See `clips.interchange.exporting`; the returned features are those of images only.

    Raises:
        UserError: no timm model computes this image tower.
    """
    import timm

    tower = build_timm_tower(encoder)
    timm.models.save_for_hf(tower, str(directory), safe_serialization=True)

    def features(pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tower(pixels), encoder.model.encode_text(tokens)

    return features


def build_timm_tower(encoder: LoadedEncoder) -> Any:
    """Return the image tower as a timm model in evaluation mode, with its projection as the classifier."""
    from open_clip.transformer import VisionTransformer

    visual = encoder.model.visual
    if isinstance(visual, VisionTransformer):
        return _build_vit(visual, encoder.config["preprocess_cfg"])
    if hasattr(visual, "trunk"):
        return _build_trunk(visual, encoder.config)
    raise UserError(f"timm has no equivalent of this image tower ({type(visual).__name__})")


def vit_arguments(visual: Any) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a model equivalent to an open_clip ViT, up to the projection."""
    blocks = transformer_spec(visual, "image", _TARGET)
    has_pre_norm = not isinstance(visual.ln_pre, nn.Identity)
    norms = [visual.ln_post, visual.ln_pre] if has_pre_norm else [visual.ln_post]
    problems = (
        (visual.attn_pool is not None or visual.pool_type not in ("avg", "tok"), "does not support this pooling"),
        (blocks.eps not in _BASE_MODELS, f"has the epsilons {', '.join(map(str, _BASE_MODELS))}, not {blocks.eps}"),
        (not all(norm_eps_matches(norm, blocks) for norm in norms), "has one epsilon for all norms"),
    )
    reject_unsupported(_TARGET, problems, hint="")
    return _BASE_MODELS[blocks.eps], {
        "img_size": visual.image_size[0],
        "patch_size": visual.patch_size[0],
        "embed_dim": blocks.width,
        "depth": blocks.layers,
        "num_heads": blocks.heads,
        "mlp_ratio": mlp_ratio(blocks.inner, blocks.width),
        "act_layer": _ACTIVATIONS[blocks.activation],
        "pre_norm": has_pre_norm,
        "class_token": True,
        "global_pool": "avg" if visual.pool_type == "avg" else "token",
        "fc_norm": bool(visual.final_ln_after_pool),
    }


def vit_links(layers: int, *, norm_after_pool: bool) -> list[WeightLink]:
    """Names of a ViT's tensors, without timm's patch bias."""
    return [
        weight_link("visual.class_embedding", "cls_token"),
        weight_link("visual.positional_embedding", "pos_embed"),
        weight_link("visual.conv1.weight", "patch_embed.proj.weight"),
        *weight_bias_links("visual.ln_pre.{}", "norm_pre.{}"),
        *weight_bias_links("visual.ln_post.{}", "fc_norm.{}" if norm_after_pool else "norm.{}"),
        *block_links(("visual.transformer.resblocks.{}.", OPEN_CLIP), ("blocks.{}.", TIMM), layers),
        weight_link("visual.proj", "head.weight", transposed=True),
    ]


def _build_vit(visual: Any, preprocess: dict[str, Any]) -> Any:
    import timm

    name, arguments = vit_arguments(visual)
    overlay, classes = timm_preprocessing(preprocess), visual.proj.shape[1]
    tower: Any = timm.create_model(name, pretrained_cfg_overlay=overlay, num_classes=classes, **arguments)
    shapes = shapes_of(tower)
    links = vit_links(arguments["depth"], norm_after_pool=arguments["fc_norm"])
    ours = {f"visual.{key}": value for key, value in visual.state_dict().items()}
    weights = from_open_clip(ours, links, shapes)
    for bias in ("patch_embed.proj.bias", "head.bias"):
        if bias in shapes:
            weights[bias] = torch.zeros(shapes[bias])
    tower.load_state_dict(weights)
    return tower.eval()


def _build_trunk(visual: Any, config: dict[str, Any]) -> Any:
    """Return a timm trunk with open_clip's linear projection as its classifier; unchanged without a projection."""
    import timm

    vision = config["model_cfg"]["vision_cfg"]
    if not set(visual.head._modules) <= {"drop", "proj"}:
        raise UserError("timm has no equivalent of this image tower's head")
    projection = getattr(visual.head, "proj", None)
    options: dict[str, Any] = {"num_classes": 0 if projection is None else projection.out_features}
    if vision.get("timm_pool"):
        options["global_pool"] = vision["timm_pool"]
    overlay = timm_preprocessing(config["preprocess_cfg"])
    tower: Any = timm.create_model(vision["timm_model_name"], pretrained_cfg_overlay=overlay, **options)
    weights = dict(visual.trunk.state_dict())
    if projection is not None:
        classifier = tower.get_classifier()
        name = next(name for name, module in tower.named_modules() if module is classifier)
        bias = projection.bias if projection.bias is not None else torch.zeros(projection.out_features)
        weights |= {f"{name}.weight": projection.weight, f"{name}.bias": bias}
    tower.load_state_dict(weights)
    return tower.eval()


def timm_preprocessing(preprocess: dict[str, Any]) -> dict[str, Any]:
    """Return timm's record of an open_clip preprocess_cfg. Raises UserError if timm has no such resizing."""
    cfg = complete_preprocess_cfg(preprocess, preprocess["size"])
    if cfg["resize_mode"] == "longest":
        raise UserError("preprocess_cfg: timm has no resize mode 'longest' as open_clip's")
    return {
        "input_size": (3, *cfg["size"]),
        "mean": tuple(cfg["mean"]),
        "std": tuple(cfg["std"]),
        "interpolation": cfg["interpolation"],
        "crop_pct": 1.0,
        "crop_mode": "squash" if cfg["resize_mode"] == "squash" else "center",
    }
