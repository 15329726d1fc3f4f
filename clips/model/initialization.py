"""Initial weights: random as in the reference code, or those of trained towers, their positions resized."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clips.errors import UserError
from clips.model.architectures import ModelConfig
from clips.model.captioner import Captioner
from clips.model.loading import first_mismatch, read_safetensors, read_weights, require_finite
from clips.model.towers import Towers, text_tower
from clips.model_refs import (
    CAPTIONER_CONFIG,
    CAPTIONER_WEIGHTS,
    find_open_clip_weights,
    read_encoder_config,
    resolve_encoder_dir,
)
from clips.text_files import safe_json_loads

_FIELD = "model.pretrained"


@torch.no_grad()
def initialize_openvision(clip: Towers) -> None:
    """Initialize the weights of an open_clip model: its ViT, if it has one, and the biases of its text tower."""
    for block in clip.transformer.resblocks:
        _zero_biases(block)
    visual = clip.visual
    if not hasattr(visual, "conv1") or not hasattr(visual, "transformer"):  # a ResNet or a timm trunk
        return
    nn.init.kaiming_uniform_(visual.conv1.weight, nonlinearity="relu")
    nn.init.normal_(visual.class_embedding, std=1e-6)
    nn.init.normal_(visual.proj, std=0.02)
    for block in visual.transformer.resblocks:
        _zero_biases(block)
        for weight in (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_fc.weight):
            nn.init.normal_(weight, std=0.02)
        out = block.mlp.c_proj.weight  # (width, hidden)
        # torch's trunc_normal_ samples until all fit, which meta tensors cannot. The divisor is the standard deviation
        # of a standard normal truncated at two of them.
        std, end = (0.3072 / out.shape[0]) ** 0.5 / 0.87962566103423978, math.erf(2 / math.sqrt(2))
        out.uniform_(-end, end).erfinv_().mul_(math.sqrt(2) * std)


def _zero_biases(block: Any) -> None:
    for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
        nn.init.zeros_(bias)


def load_pretrained(towers: Towers, captioner: Captioner | None, config: ModelConfig, cfg: dict[str, Any]) -> list[str]:
    """Load the weights of ``config.pretrained`` into ``towers`` and, if it has one, into ``captioner``.

    Position embeddings of another image size or text length are interpolated; fixed ones stay unchanged. From an
    encoder with other tokens (for example OpenAI's CLIP) only the image tower is loaded.

    Args:
        towers: an open_clip model of the same architecture except for the sizes of its inputs.
        captioner: or None.
        config: of the model.
        cfg: the ``model_cfg`` of the new towers.

    Returns:
        The adapted and the randomly initialized parts, as text.

    Raises:
        UserError: no such directory, weights of another architecture or activation, or no weights for a frozen text
            tower.
    """
    assert config.pretrained is not None
    directory = resolve_encoder_dir(config.pretrained, _FIELD)
    source = read_encoder_config(directory)
    quick = bool(source.get("model_cfg", {}).get("quick_gelu"))  # which the weights do not show
    if source and quick != bool(cfg.get("quick_gelu")):
        kind = "with" if quick else "without"
        raise UserError(f"model.architecture: expected one {kind} -quickgelu, as {config.pretrained} was trained")
    path = find_open_clip_weights(directory)
    weights = read_weights(path)
    lines = _resize_image_positions(weights, towers)
    text_cfg = cfg.get("text_cfg")
    if text_cfg is not None and _has_same_tokens(directory, weights, towers, text_cfg):
        name = next((name for name in ("positional_embedding", "text.positional_embedding") if name in weights), None)
        own = getattr(text_tower(towers), "positional_embedding", None)
        if name is not None and own is not None and len(weights[name]) != len(own):
            before = len(weights[name])
            # Long-CLIP's number of well-trained text positions (arXiv 2403.15378, section 3.2)
            fixed = 20 if config.text_pos_embed_interpolation == "long_clip" else 0
            weights[name] = resize_text_pos_embed(weights[name], len(own), fixed)
            lines.append(f"text positions interpolated from {before} to {len(own)}, the first {fixed} unchanged")
        if ("logit_bias" in weights) != (towers.logit_bias is not None):
            weights.pop("logit_bias", None)
            initial = towers.state_dict()
            weights |= {name: initial[name] for name in ("logit_scale", "logit_bias") if name in initial}
            lines.append(
                f"{directory} was trained with another type of loss; scale and bias of the logits keep their initial "
                "values"
            )
        _load(towers, weights, path)
    else:
        if config.lock_text:
            raise UserError(
                f"model.lock_text: expected false, or model.architecture: {config.pretrained}, which has other tokens"
            )
        visual = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
        _load(towers.visual, visual, path)
        if text_cfg is not None:
            return [*lines, f"the text tower is randomly initialized: {directory} has none of these tokens"]
    if captioner is None:
        return lines
    path = directory / CAPTIONER_WEIGHTS
    if not path.is_file():
        return [*lines, f"{directory} has no captioner; it is randomly initialized"]
    if safe_json_loads((directory / CAPTIONER_CONFIG).read_text(encoding="utf-8")) != vars(captioner.config):
        return [*lines, f"the captioner of {directory} has another shape; it is randomly initialized"]
    _load(captioner, read_safetensors(path, f"{_FIELD}: {path}"), path)
    return lines


def _has_same_tokens(directory: Path, weights: dict[str, Tensor], towers: Towers, text_cfg: dict[str, Any]) -> bool:
    if (cfg := read_encoder_config(directory).get("model_cfg")) is not None:
        entries = ("vocab_size", "hf_tokenizer_name", "tokenizer_mode")
        return all(cfg.get("text_cfg", {}).get(name) == text_cfg.get(name) for name in entries)
    own = text_tower(towers).token_embedding.weight  # without a config their number must do
    return any(len(value) == len(own) for name, value in weights.items() if name.endswith("token_embedding.weight"))


def _load(module: Towers, weights: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    for name, value in weights.items():
        if name in own and value.numel() == own[name].numel():  # axes of length 1 may differ
            weights[name] = value.reshape(own[name].shape)
    if mismatch := first_mismatch(weights, own):
        raise UserError(f"{_FIELD}: {path} {mismatch}; expected the same architecture")
    require_finite(weights, f"{_FIELD}: {path}")
    module.load_state_dict(weights, strict=False)


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


def resize_pos_embed(table: Tensor, patches: int, prefix: int, *, antialias: bool = True) -> Tensor:
    """Interpolate learned positions (bicubic) to a square of ``patches`` patches.

    Args:
        table: (prefix + old patches, D), or (1, prefix + old patches, D); the result has its dimensions.
        patches: the new number of patches.
        prefix: rows before those of the patches, which stay unchanged.
        antialias: as open_clip; transformers does not, and uses another cubic kernel.
    """
    if table.ndim == 3:
        return resize_pos_embed(table[0], patches, prefix, antialias=antialias)[None]
    before, after = math.isqrt(len(table) - prefix), math.isqrt(patches)
    if before == after:
        return table
    grid = table[prefix:].T.reshape(1, -1, before, before)
    resized = F.interpolate(grid, size=(after, after), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([table[:prefix], resized[0].flatten(1).T])


def resize_timm_pos_embed(table: Tensor, trunk: Any) -> Tensor:
    """Interpolate learned positions for a timm ViT, as timm does; matching ones are returned unchanged.

    Args:
        table: (1, prefix + old patches, D).
        trunk: of the requested image size; one without such a table needs no interpolation.
    """
    own = getattr(trunk, "pos_embed", None)
    if not isinstance(own, Tensor) or own.ndim != 3 or own.shape == table.shape:
        return table
    from timm.layers import resample_abs_pos_embed

    prefix = 0 if getattr(trunk, "no_embed_class", False) else int(getattr(trunk, "num_prefix_tokens", 0))
    return resample_abs_pos_embed(table, new_size=list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix)


def resize_sincos_pos_embed(table: Tensor, patches: int) -> Tensor | None:
    """Return fixed positions for a square of ``patches`` by the formula of ``table``, open_clip's or the authors'.

    Args:
        table: (1 + old patches, D), the first for the class token.
        patches: the new number of patches.

    Returns:
        (1 + patches, D), or None if ``table`` follows neither.
    """
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    def open_clip_formula(side: int, width: int) -> Tensor:
        return torch.from_numpy(get_2d_sincos_pos_embed(width, side, cls_token=True)).float()

    before, after = math.isqrt(len(table) - 1), math.isqrt(patches)
    for formula in (open_clip_formula, openvision_sincos_pos_embed):
        if torch.allclose(formula(before, table.shape[1]), table.float(), atol=1e-3):
            return formula(after, table.shape[1])
    return None


def openvision_sincos_pos_embed(side: int, width: int) -> Tensor:
    """Return (1 + side², width) fixed positions of the published towers: sines and cosines, zeros for the class token.

    Source: [C], ``posemb_sincos_2d``, after MoCo v3. open_clip's own (``sin_cos_2d``) have slightly different
    frequencies.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    x, y = (index.flatten()[:, None] * frequencies for index in (columns, rows))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([table.new_zeros(1, width), table]).float()


def resize_text_pos_embed(table: Tensor, length: int, fixed: int) -> Tensor:
    """Interpolate learned positions linearly to (length, width), except the first ``fixed``, which stay unchanged.

    Raises:
        UserError: ``length`` is not above ``fixed``.
    """
    if not fixed < min(len(table), length):
        raise UserError(f"model.context_length: expected more than the {fixed} fixed positions, got {length}")
    resized = F.interpolate(table[fixed:].t()[None], size=length - fixed, mode="linear", align_corners=True)
    return torch.cat([table[:fixed], resized[0].t()])
