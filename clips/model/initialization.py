"""Initial weights: random as in the reference code, or those of trained towers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clips.errors import UserError
from clips.model.architectures import NORMALIZATIONS, ModelConfig, complete_preprocess_cfg, is_encoder_ref
from clips.model.captioner import Captioner
from clips.model.loading import first_mismatch, read_safetensors, read_weights, require_finite
from clips.model.pos_embed import (
    resize_pos_embed,
    resize_sincos_pos_embed,
    resize_text_pos_embed,
    resize_timm_pos_embed,
)
from clips.model.towers import Towers, text_tower
from clips.model_refs import (
    CAPTIONER_CONFIG,
    CAPTIONER_WEIGHTS,
    OPEN_CLIP_CONFIG,
    find_open_clip_weights,
    read_encoder_config,
    resolve_encoder_dir,
)
from clips.text_files import safe_json_loads

_STD = 0.02
_CLASS_STD = 1e-6
_MLP_OUT_VARIANCE = 0.3072  # times 1 / width
_TRUNCATED = 0.87962566103423978  # standard deviation of a standard normal truncated at two standard deviations


@torch.no_grad()
def initialize_openvision(clip: Towers) -> None:
    """Initialize the weights of an open_clip model: its ViT, if it has one, and the biases of its text tower."""
    for block in clip.transformer.resblocks:
        _zero_biases(block)
    visual = clip.visual
    if not hasattr(visual, "conv1") or not hasattr(visual, "transformer"):  # a ResNet or a timm trunk
        return
    nn.init.kaiming_uniform_(visual.conv1.weight, nonlinearity="relu")
    nn.init.normal_(visual.class_embedding, std=_CLASS_STD)
    nn.init.normal_(visual.proj, std=_STD)
    for block in visual.transformer.resblocks:
        _zero_biases(block)
        for weight in (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_fc.weight):
            nn.init.normal_(weight, std=_STD)
        out = block.mlp.c_proj.weight  # (width, hidden)
        std = (_MLP_OUT_VARIANCE / out.shape[0]) ** 0.5 / _TRUNCATED
        end = math.erf(2 / math.sqrt(2))  # torch's trunc_normal_ samples until all fit, which meta tensors cannot
        out.uniform_(-end, end).erfinv_().mul_(math.sqrt(2) * std)


def _zero_biases(block: Any) -> None:
    for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
        nn.init.zeros_(bias)


_FIELD = "model.pretrained"
_TOKENS = ("vocab_size", "hf_tokenizer_name", "tokenizer_mode")
_VISUAL = "visual."
_LONG_CLIP_POSITIONS = 20  # Long-CLIP's number of well-trained text positions (arXiv 2403.15378, section 3.2)


def load_pretrained(
    towers: Towers, captioner: Captioner | None, config: ModelConfig, text_cfg: dict[str, Any] | None
) -> list[str]:
    """Load the weights of ``config.pretrained`` into ``towers`` and, if it has one, into ``captioner``.

    Position embeddings of another image size or text length are interpolated; fixed ones stay unchanged. From an
    encoder with other tokens (for example OpenAI's CLIP) only the image tower is loaded.

    Args:
        towers: an open_clip model of the same architecture except for the sizes of its inputs.
        captioner: or None.
        config: of the model.
        text_cfg: of the new towers, as open_clip has it; None without a text tower.

    Returns:
        The adapted and the randomly initialized parts, as text.

    Raises:
        UserError: no such directory, weights of another architecture, or no weights for a frozen text tower.
    """
    assert config.pretrained is not None
    directory = resolve_encoder_dir(config.pretrained, _FIELD)
    path = find_open_clip_weights(directory)
    weights = read_weights(path)
    lines = _resize_image_positions(weights, towers)
    if text_cfg is None or not _has_same_tokens(directory, weights, towers, text_cfg):
        if config.lock_text:
            raise UserError(
                f"model.lock_text: expected false, or model.architecture: {config.pretrained}, which has other tokens"
            )
        visual = {name.removeprefix(_VISUAL): value for name, value in weights.items() if name.startswith(_VISUAL)}
        _load(towers.visual, visual, path)
        if text_cfg is not None:
            return [*lines, f"the text tower is randomly initialized: {directory} has none of these tokens"]
    else:
        lines += _resize_text_positions(weights, towers, config.text_pos_embed_interpolation)
        lines += _reset_logits_of_other_loss(weights, towers, directory)
        _load(towers, weights, path)
    return lines if captioner is None else [*lines, *_load_captioner(captioner, directory)]


def _load_captioner(captioner: Captioner, directory: Path) -> list[str]:
    """Load the encoder's captioner if it has one of the same shape; returns why not."""
    path = directory / CAPTIONER_WEIGHTS
    if not path.is_file():
        return [f"{directory} has no captioner; it is randomly initialized"]
    dims = safe_json_loads((directory / CAPTIONER_CONFIG).read_text(encoding="utf-8"))
    if dims != vars(captioner.config):
        return [f"the captioner of {directory} has another shape; it is randomly initialized"]
    _load(captioner, read_safetensors(path, f"{_FIELD}: {path}"), path)
    return []


def check_pretrained_compatible(cfg: dict[str, Any], preprocess: dict[str, Any], config: ModelConfig) -> None:
    """Reject an encoder whose normalization or activation differs, which its weights do not show.

    Args:
        cfg: the new encoder's ``model_cfg``.
        preprocess: its ``preprocess_cfg``.
        config: of the model, with ``pretrained``.

    Raises:
        UserError: pixels were normalized differently or nothing states how, or the activation was another one.
    """
    reference = str(config.pretrained)
    source = read_encoder_config(resolve_encoder_dir(reference, _FIELD))
    if source:
        theirs = complete_preprocess_cfg(source.get("preprocess_cfg") or {}, preprocess["size"])
        mean, std = theirs["mean"], theirs["std"]
        if not _close(mean + std, preprocess["mean"] + preprocess["std"]):
            known = (name for name, values in NORMALIZATIONS.items() if _close(mean + std, values[0] + values[1]))
            if name := next(known, None):
                raise UserError(f"model.normalization: expected {name}, with which {reference} was trained")
            raise UserError(
                f"{_FIELD}: {reference} was trained with mean {mean} and standard deviation {std} of pixels, expected "
                f"those of a model.normalization ({', '.join(NORMALIZATIONS)}), or it as model.architecture as well"
            )
    elif config.normalization is None and not is_encoder_ref(config.architecture):
        raise UserError(
            f"model.normalization: expected the one with which {reference} was trained, because it has no "
            f"{OPEN_CLIP_CONFIG}: {', '.join(NORMALIZATIONS)}"
        )
    quick = bool(source.get("model_cfg", {}).get("quick_gelu"))
    if source and quick != bool(cfg.get("quick_gelu")):
        kind = "with" if quick else "without"
        raise UserError(f"model.architecture: expected one {kind} -quickgelu, as {reference} was trained")


def _close(values: list[float], others: list[float]) -> bool:
    """Whether means and deviations are equal but for rounding, which is less than a quarter of a gray level."""
    return all(abs(value - other) < 1e-3 for value, other in zip(values, others, strict=True))


def _resize_image_positions(weights: dict[str, Tensor], towers: Towers) -> list[str]:
    visual = towers.visual
    if hasattr(visual, "trunk"):
        name = "visual.trunk.pos_embed"
        if name not in weights or (resized := resize_timm_pos_embed(weights[name], visual.trunk)) is weights[name]:
            return []
        before, weights[name] = weights[name].shape[1], resized
        return [f"image positions interpolated from {before} to {resized.shape[1]}"]
    pool = getattr(visual, "attnpool", None)  # of CLIP's ResNets
    holder, name = (visual, "visual.") if pool is None else (pool, "visual.attnpool.")
    own, name = getattr(holder, "positional_embedding", None), f"{name}positional_embedding"
    if name not in weights or own is None or weights[name].shape == own.shape:
        return []
    if not own.requires_grad and (fixed := resize_sincos_pos_embed(weights[name], len(own) - 1)) is not None:
        weights[name] = fixed
        return []
    before = len(weights[name])
    weights[name] = resize_pos_embed(weights[name], len(own) - 1, prefix=1)
    return [f"image positions interpolated from {before} to {len(own)}"]


def _has_same_tokens(directory: Path, weights: dict[str, Tensor], towers: Towers, text_cfg: dict[str, Any]) -> bool:
    """Whether the encoder has the tokens of ``text_cfg``; without its config, whether it has the same number."""
    if (cfg := read_encoder_config(directory).get("model_cfg")) is not None:
        return all(cfg.get("text_cfg", {}).get(name) == text_cfg.get(name) for name in _TOKENS)
    own = text_tower(towers).token_embedding.weight
    return any(len(value) == len(own) for name, value in weights.items() if name.endswith("token_embedding.weight"))


def _resize_text_positions(weights: dict[str, Tensor], towers: Towers, interpolation: str) -> list[str]:
    name = next((name for name in ("positional_embedding", "text.positional_embedding") if name in weights), None)
    own = getattr(text_tower(towers), "positional_embedding", None)
    if name is None or own is None or len(weights[name]) == len(own):
        return []
    before = len(weights[name])
    fixed = _LONG_CLIP_POSITIONS if interpolation == "long_clip" else 0
    weights[name] = resize_text_pos_embed(weights[name], len(own), fixed)
    return [f"text positions interpolated from {before} to {len(own)}, the first {fixed} unchanged"]


def _reset_logits_of_other_loss(weights: dict[str, Tensor], towers: Towers, directory: Path) -> list[str]:
    """Keep the initial scale and bias of the logits if the encoder has no bias and the towers do, or vice versa."""
    if ("logit_bias" in weights) == (towers.logit_bias is not None):
        return []
    weights.pop("logit_bias", None)
    weights |= {name: value for name, value in towers.state_dict().items() if name in ("logit_scale", "logit_bias")}
    return [
        f"{directory} was trained with another type of loss; scale and bias of the logits keep their initial values"
    ]


def _load(module: Towers, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights that match the module's up to axes of length 1."""
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    for name, value in weights.items():
        if name in shapes and value.numel() == shapes[name].numel():
            weights[name] = value.reshape(shapes[name])
    if mismatch := first_mismatch(weights, shapes):
        raise UserError(f"{_FIELD}: {path} {mismatch}; expected the same architecture")
    require_finite(weights, f"{_FIELD}: {path}")
    module.load_state_dict(weights, strict=False)
