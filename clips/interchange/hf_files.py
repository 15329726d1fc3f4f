"""Functions shared by the formats of transformers: configs, preprocessing, tokenizers, activations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors
from clips.text_files import safe_json_loads

_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_ACTIVATIONS: dict[str, tuple[bool, dict[str, Any]]] = {
    "quick_gelu": (True, {}),
    "gelu": (False, {}),
    "gelu_new": (False, {"act_kwargs": {"approximate": "tanh"}}),
    "gelu_pytorch_tanh": (False, {"act_kwargs": {"approximate": "tanh"}}),
}
"""transformers' name → open_clip's ``quick_gelu``, and other entries of a tower's config."""


def model_type(path: Path) -> str | None:
    """Return the model type in a directory's config.json; None if there is none."""
    try:
        found = safe_json_loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("model_type") if isinstance(found, dict) else None


def from_pretrained(kind: Any, path: Path) -> Any:
    """Load the model of class ``kind`` from a directory, in evaluation mode and float32.

    Raises:
        UserError: it cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    import torch

    safe = any(path.glob("*.safetensors")) or None
    with library_errors_as_user_errors(f"{path}: transformers cannot read a {kind.__name__}"):
        model, info = kind.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, use_safetensors=safe, weights_only=True
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(problem) or ())):
            raise UserError(f"{path}: its weights do not fit its config.json: {problem.replace('_', ' ')}: {names[0]}")
    return model.eval()


def activation_options(vision: str, text: str, where: Path) -> tuple[bool, dict[str, Any], dict[str, Any]]:
    """Return ``quick_gelu`` of both towers and the extra entries of each one's config.

    Raises:
        UserError: open_clip has no such activation, or the towers need different ones.
    """
    for name in (vision, text):
        if name not in _ACTIVATIONS:
            raise UserError(f"{where}: open_clip has no activation '{name}'; expected {', '.join(_ACTIVATIONS)}")
    (quick, vision_options), (text_quick, text_options) = _ACTIVATIONS[vision], _ACTIVATIONS[text]
    if quick != text_quick:
        raise UserError(f"{where}: open_clip has quick_gelu in both towers or in none, not {vision} and {text}")
    return quick, vision_options, text_options


def activation_name(act: Any) -> str | None:
    """Return transformers' name of an activation module of open_clip or timm; None if there is none."""
    from open_clip.transformer import QuickGELU
    from timm import layers
    from torch import nn

    if isinstance(act, QuickGELU | layers.QuickGELU):
        return "quick_gelu"
    if isinstance(act, layers.GELUTanh) or (isinstance(act, nn.GELU) and act.approximate == "tanh"):
        return "gelu_pytorch_tanh"
    return "gelu" if isinstance(act, nn.GELU) else None


def mlp_ratio(inner: int, width: int) -> float:
    """Return the ratio from which open_clip and timm, which truncate decimals, compute a hidden layer of ``inner``."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width


def read_preprocessing(path: Path, size: int, default: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's preprocess_cfg of a directory's image processor; ``default`` if it has none."""
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((path / name).is_file() for name in names):
        return {"size": [size, size]} | dict(default)
    from transformers import AutoImageProcessor

    with library_errors_as_user_errors(f"{path / names[0]}: transformers cannot read this preprocessing"):
        processor = AutoImageProcessor.from_pretrained(path)
        shortest = "shortest_edge" in dict(processor.size)
        return {
            "size": [size, size],
            "mode": "RGB",
            "mean": [float(value) for value in processor.image_mean],
            "std": [float(value) for value in processor.image_std],
            "interpolation": _RESAMPLING[int(processor.resample)],
            "resize_mode": "shortest" if shortest else "squash",
            "fill_color": 0,
        }


def write_preprocessing(preprocess: Mapping[str, Any], directory: Path) -> None:
    """Write preprocessor_config.json of an open_clip preprocess_cfg."""
    from transformers import CLIPImageProcessor

    height, width = preprocess["size"]
    crops = preprocess.get("resize_mode", "shortest") == "shortest"
    resampling = {name: number for number, name in _RESAMPLING.items()}
    if preprocess.get("resize_mode") not in (None, "shortest", "squash"):
        raise UserError(f"preprocess_cfg: transformers has no resize mode '{preprocess['resize_mode']}'")
    CLIPImageProcessor(
        size={"shortest_edge": min(height, width)} if crops else {"height": height, "width": width},
        crop_size={"height": height, "width": width},
        do_center_crop=crops,
        resample=resampling[preprocess.get("interpolation", "bicubic")],
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    ).save_pretrained(directory)


def has_tokenizer(path: Path) -> bool:
    """Whether a directory contains the files of a tokenizer."""
    return any((path / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model"))


def save_tokenizer(path: Path, directory: Path) -> None:
    """Write the tokenizer of a directory of transformers into ``directory``."""
    from transformers import AutoTokenizer

    with library_errors_as_user_errors(f"{path}: transformers cannot read this tokenizer"):
        AutoTokenizer.from_pretrained(path).save_pretrained(directory)


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write the tokenizer of a loaded encoder in transformers' format."""
    if hasattr(tokenizer, "save"):  # a ClipsTokenizer
        tokenizer.save(directory)
        return
    if hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.save_pretrained(directory)
        return
    from transformers import CLIPTokenizer

    special = {tokenizer.sot_token_id: "<|startoftext|>", tokenizer.eot_token_id: "<|endoftext|>"}
    CLIPTokenizer(
        vocab={special.get(token_id, word): token_id for word, token_id in tokenizer.encoder.items()},
        merges=list(tokenizer.bpe_ranks),
        model_max_length=tokenizer.context_length,
    ).save_pretrained(directory)
