"""transformers' ``VisionTextDualEncoderModel``: any timm image tower with the text tower of CLIP or SigLIP.

A CLIPS text tower is SigLIP's (no causal mask, the feature at the last position), which transformers' ``AutoModel``
builds only if it is registered:

    AutoModel.register(SiglipTextConfig, SiglipTextModel, exist_ok=True)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clips.encoder import LoadedEncoder
from clips.errors import UserError
from clips.interchange import hf_clip, timm_tower
from clips.interchange import hf_files as files
from clips.interchange.hf_siglip import siglip_text_config
from clips.interchange.imported_encoder import Features
from clips.interchange.tower_config import reject_unsupported, text_prefix, transformer_spec
from clips.interchange.weight_mapping import Weights, from_open_clip, shapes_of, weight_link
from clips.model.loading import library_errors_as_user_errors
from clips.model.towers import text_pool_type, text_tower

_TARGET = "hf_dual: transformers' VisionTextDualEncoderModel"
_TEXT_TOWERS = {(True, "argmax"): "clip", (True, "eos"): "clip", (False, "last"): "siglip"}
"""Whether later words are masked, and the position of the feature → the model with this text tower."""


def register_siglip_text() -> None:
    """Register SigLIP's text tower with transformers' ``AutoModel``."""
    from transformers import AutoModel, SiglipTextConfig, SiglipTextModel

    AutoModel.register(SiglipTextConfig, SiglipTextModel, exist_ok=True)


def export(encoder: LoadedEncoder, directory: Path) -> Features:
    """See `clips.interchange.exporting`.

    Raises:
        UserError: no unmodified text tower or no timm model computes this encoder.
    """
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    register_siglip_text()
    model = encoder.model
    _check(model)
    tower = timm_tower.build_timm_tower(encoder)
    classifier = tower.get_classifier()
    if not isinstance(classifier, torch.nn.Linear) or (classifier.bias is not None and classifier.bias.any()):
        raise UserError(f"{_TARGET} projects images without a bias, this image tower otherwise; use timm")
    config = VisionTextDualEncoderConfig(
        vision_config=_vision_config(encoder, tower),
        text_config=_text_config(model),
        projection_dim=classifier.out_features,
    )
    with library_errors_as_user_errors("hf_dual: this version of transformers cannot build the model"):  # such as 5.17
        theirs = VisionTextDualEncoderModel(config).eval()
    theirs.load_state_dict(_weights(model, tower, classifier, theirs))
    theirs.save_pretrained(directory)
    files.write_preprocessing(encoder.config["preprocess_cfg"], directory)
    files.write_tokenizer(encoder.tokenizer, encoder.config["model_cfg"]["text_cfg"], directory)
    return hf_clip.feature_functions(theirs)


def _check(model: Any) -> None:
    if not hasattr(text_tower(model), "token_embedding"):
        raise UserError(f"{_TARGET} needs open_clip's own text tower, this is another; use timm")
    no_text_tower = (_text_model_type(model) is None, "has no text tower with this attention mask and pooling")
    reject_unsupported(_TARGET, [no_text_tower, *hf_clip.text_tower_problems(model)], hint="; use timm")


def _text_model_type(model: Any) -> str | None:
    return _TEXT_TOWERS.get((getattr(text_tower(model), "attn_mask", None) is not None, text_pool_type(model)))


def _text_config(model: Any) -> dict[str, Any]:
    if _text_model_type(model) == "clip":
        return {"model_type": "clip_text_model"} | hf_clip.clip_text_config(model)
    text = text_tower(model)
    return {"model_type": "siglip_text_model"} | siglip_text_config(text, transformer_spec(text, "text", _TARGET))


def _vision_config(encoder: LoadedEncoder, tower: Any) -> dict[str, Any]:
    """Return the entries of a ``TimmWrapperConfig``."""
    from open_clip.transformer import VisionTransformer

    visual = encoder.model.visual
    if isinstance(visual, VisionTransformer):
        name, arguments = timm_tower.vit_arguments(visual)
    else:
        vision = encoder.config["model_cfg"]["vision_cfg"]
        name, pool = vision["timm_model_name"], vision.get("timm_pool")
        arguments = {"global_pool": pool} if pool else {}
    return {
        "model_type": "timm_wrapper",
        "architecture": name,
        "model_args": arguments,
        "hidden_size": tower.get_classifier().in_features,
        "num_classes": 0,
        "label_names": [],
        "pretrained_cfg": timm_tower.timm_preprocessing(encoder.config["preprocess_cfg"]),
    }


def _weights(model: Any, tower: Any, classifier: torch.nn.Linear, theirs: Any) -> Weights:
    text, shapes = text_prefix(model), shapes_of(theirs)
    head = next(name for name, module in tower.named_modules() if module is classifier)
    image = {name: value for name, value in tower.state_dict().items() if not name.startswith(f"{head}.")}
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith("visual.")}
    links = [
        *hf_clip.text_weight_links(len(text_tower(model).transformer.resblocks), text),
        weight_link(f"{text}text_projection", "text_projection.weight", transposed=True),
        weight_link("logit_scale", "logit_scale"),
    ]
    weights = from_open_clip(ours, links, shapes)
    if "text_model.head.weight" in shapes:  # the identity as SigLIP's projection
        weights["text_model.head.weight"] = torch.eye(shapes["text_model.head.weight"][0])
        weights["text_model.head.bias"] = torch.zeros(shapes["text_model.head.bias"])
    weights |= {f"vision_model.timm_model.{name}": value for name, value in image.items()}
    return weights | {"visual_projection.weight": classifier.weight}
