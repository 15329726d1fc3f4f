"""Functions shared by the formats of transformers: configs, preprocessing, tokenizers, activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clips.errors import UserError, error_reason
from clips.jsontext import safe_json_loads

_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_ACTIVATIONS: dict[
    str, tuple[bool, dict[str, Any] | None]
] = {  # transformers' name → whether open_clip calls it quick_gelu, and the act_kwargs of its GELU
    "quick_gelu": (True, None),
    "gelu": (False, None),
    "gelu_new": (False, {"approximate": "tanh"}),
    "gelu_pytorch_tanh": (False, {"approximate": "tanh"}),
}


def model_type(path: Path) -> str | None:
    """Return the model type in a directory's config.json; None if there is none."""
    try:
        found = safe_json_loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("model_type") if isinstance(found, dict) else None


@contextmanager
def library_errors_as_user_errors(where: str | Path, what: str) -> Iterator[None]:
    """Convert a library's exception about a user's file to one line: the file, the expectation, the reason."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers, timm and safetensors raise their own
        raise UserError(f"{where}: {what} ({error_reason(error)})") from None


def from_pretrained(kind: Any, path: Path) -> Any:
    """Load the model of class ``kind`` from a directory, in evaluation mode and float32.

    Raises:
        UserError: it cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    import torch

    with library_errors_as_user_errors(path, f"transformers reads no {kind.__name__} here"):
        model, info = kind.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, use_safetensors=_safe(path), weights_only=True
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(problem) or ())):
            raise UserError(f"{path}: its weights do not fit its config.json: {problem.replace('_', ' ')}: {names[0]}")
    return model.eval()


def _safe(path: Path) -> bool | None:
    return True if any(path.glob("*.safetensors")) else None


def activation_options(vision: str, text: str, where: Path) -> tuple[bool, dict[str, Any], dict[str, Any]]:
    """Return ``quick_gelu`` of both towers and the extra entries of each one's config.

    Raises:
        UserError: open_clip has no such activation, or the towers need different ones.
    """
    for name in (vision, text):
        if name not in _ACTIVATIONS:
            raise UserError(f"{where}: open_clip has no activation '{name}'; expected {', '.join(_ACTIVATIONS)}")
    (quick, vision_kwargs), (text_quick, text_kwargs) = _ACTIVATIONS[vision], _ACTIVATIONS[text]
    if quick != text_quick:
        raise UserError(f"{where}: open_clip has quick_gelu in both towers or in none, not {vision} and {text}")
    options = [{"act_kwargs": found} if found else {} for found in (vision_kwargs, text_kwargs)]
    return quick, options[0], options[1]


def activation_name(act: Any) -> str | None:
    """Return the name of an open_clip activation module in transformers and timm; None if they have none.

    timm spells the tanh variant ``gelu_tanh``, see `clips.interchange.timm_tower`.
    """
    from open_clip.transformer import QuickGELU
    from torch import nn

    if isinstance(act, QuickGELU):
        return "quick_gelu"
    if isinstance(act, nn.GELU):
        return {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[act.approximate]
    return None


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

    with library_errors_as_user_errors(path / names[0], "transformers cannot read this preprocessing"):
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
    """Return preprocessor_config.json of an open_clip preprocess_cfg."""
    from transformers import CLIPImageProcessor

    height, width = preprocess["size"]
    cut = preprocess.get("resize_mode", "shortest") == "shortest"
    resampling = {name: number for number, name in _RESAMPLING.items()}
    if preprocess.get("resize_mode") not in (None, "shortest", "squash"):
        raise UserError(f"preprocess_cfg: transformers has no resize mode '{preprocess['resize_mode']}'")
    CLIPImageProcessor(
        size={"shortest_edge": min(height, width)} if cut else {"height": height, "width": width},
        crop_size={"height": height, "width": width},
        do_center_crop=cut,
        resample=resampling[preprocess.get("interpolation", "bicubic")],
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    ).save_pretrained(directory)


def has_tokenizer(path: Path) -> bool:
    """Whether a directory holds a tokenizer that transformers may read."""
    return any((path / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model"))


def save_tokenizer(path: Path, directory: Path) -> None:
    """Write the tokenizer of a directory of transformers into ``directory``."""
    from transformers import AutoTokenizer

    with library_errors_as_user_errors(path, "transformers cannot read this tokenizer"):
        AutoTokenizer.from_pretrained(path).save_pretrained(directory)


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write an open_clip tokenizer in transformers' format."""
    if hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.save_pretrained(directory)
        return
    from transformers import CLIPTokenizer

    named = {tokenizer.sot_token_id: "<|startoftext|>", tokenizer.eot_token_id: "<|endoftext|>"}
    CLIPTokenizer(
        vocab={named.get(number, word): number for word, number in tokenizer.encoder.items()},
        merges=list(tokenizer.bpe_ranks),
        model_max_length=tokenizer.context_length,
    ).save_pretrained(directory)
