"""The result of reading any format: an encoder in open_clip's terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from clips.errors import UserError, unknown_name_error
from clips.interchange.weight_mapping import Weights, shapes_of
from clips.model.architectures import ModelConfig, complete_preprocess_cfg, list_architectures
from clips.model.architectures import model_cfg as clips_model_cfg
from clips.model.architectures import preprocess_cfg as clips_preprocess_cfg
from clips.model.towers import build_towers

Features = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
OPENAI_PREPROCESS = {
    "mode": "RGB",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
PREPROCESSING_OF_FILES = "open_clip's for a file of weights"
_FAMILY = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "so400m": "so400m", "huge": "h"}
_OPENVISION = re.compile(r"openvision-vit-(?P<family>[a-z0-9]+)-patch(?P<patch>\d+)-(?P<size>\d+)")
_CLIPS = re.compile(r"vit-(?P<family>[a-z])-(?P<patch>\d+)-clips-(?P<size>\d+)")


@dataclass(frozen=True, kw_only=True)
class ImportedEncoder:
    """An encoder read from another format.

    Args:
        model_cfg: open_clip's configuration of the towers.
        preprocess_cfg: open_clip's preprocessing.
        preprocess_source: where it is stated, as text.
        weights: under open_clip's names.
        write_tokenizer: writes the tokenizer's files into a directory.
        features: the source's own image and text features of pixels and tokens, if its library is installed.
        approximation: a known small difference of open_clip's towers, as text.
        license: the license that the source states.
        where: the file or directory of the weights, for messages.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    preprocess_source: str
    weights: Weights
    write_tokenizer: Callable[[Path], None]
    features: Features | None = None
    approximation: str | None = None
    license: str | None = None
    where: Path = field(default_factory=Path)


def no_tokenizer(directory: Path) -> None:
    """Write nothing: the tokenizer ships with open_clip."""


def parse_released_name(name: str) -> tuple[str, int | None]:
    """Map a published name to architecture and image size (openvision-vit-large-patch14-224, ViT-L-14-CLIPS-224).

    Any other name is returned unchanged, without a size.
    """
    for pattern in (_OPENVISION, _CLIPS):
        if match := pattern.fullmatch(name.lower()):
            family = _FAMILY.get(match["family"], match["family"])
            architecture = f"clips-{family}-{match['patch']}"
            if architecture in list_architectures():
                return architecture, int(match["size"])
    return name, None


def configs_for_architecture(name: str, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return ``model_cfg`` and ``preprocess_cfg`` of an architecture, and where the latter is stated.

    The weights determine the sizes of a CLIPS architecture. An architecture of open_clip has the preprocessing that
    open_clip gives to its weights in a file (``pretrained=FILE``), whatever its published weights have.

    Raises:
        UserError: an unknown architecture.
    """
    architecture, size = parse_released_name(name)
    if architecture in list_architectures():
        table = weights.get("positional_embedding", weights.get("text.positional_embedding"))
        length = len(table) if table is not None and len(table) >= 4 else None
        cfg = clips_model_cfg(ModelConfig(architecture=architecture, context_length=length))
        patch = cfg["vision_cfg"].get("patch_size")
        if size is None and patch and "visual.positional_embedding" in weights:
            size = int(patch) * round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
        if size is not None:  # not always a multiple of the patch size: SO400M/14 was published at 384 px
            cfg["vision_cfg"]["image_size"] = size
        if "logit_bias" in weights:
            cfg["init_logit_bias"] = 0.0
        return cfg, clips_preprocess_cfg(cfg), f"that of {architecture}"
    import open_clip

    open_clip_cfg = open_clip.get_model_config(architecture)
    if open_clip_cfg is None:
        raise unknown_name_error(name, [*list_architectures(), *open_clip.list_models()], "architecture")
    image_size = open_clip_cfg["vision_cfg"].get("image_size", 224)
    return open_clip_cfg, complete_preprocess_cfg({}, image_size), PREPROCESSING_OF_FILES


def tower_shapes(cfg: Mapping[str, Any], where: str | Path) -> dict[str, torch.Size]:
    """Return the shapes of the tower tensors that ``cfg`` describes.

    Raises:
        UserError: open_clip cannot build the two towers from it.
    """
    if "multimodal_cfg" in cfg:
        raise UserError(f"{where}: expected image and text towers, but this architecture has CoCa's decoder")
    if "hf_model_name" in cfg["text_cfg"]:
        raise UserError(f"{where}: expected open_clip's own text tower, but this architecture has one of transformers")
    with torch.device("meta"):
        return shapes_of(build_towers(dict(cfg)))


def license_from_card(path: Path) -> str | None:
    """Return the license in the front matter of a directory's model card."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        front = card.read_text(encoding="utf-8").split("---")[1]
        stated = yaml.safe_load(front).get("license")
    except (OSError, ValueError, IndexError, AttributeError, RecursionError, yaml.YAMLError):
        return None
    return str(stated) if stated else None
