"""Initialize from trained towers: weights of an encoder directory in a model of another resolution or text length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from clips.errors import UserError, error_reason
from clips.jsontext import safe_json_loads
from clips.model.architectures import NORMALIZATIONS
from clips.model.captioner import Captioner
from clips.model.pos_embed import (
    resize_pos_embed,
    resize_sincos_pos_embed,
    resize_timm_pos_embed,
    stretch_text_pos_embed,
)
from clips.model.towers import Towers
from clips.model_refs import (
    CAPTIONER_CONFIG,
    CAPTIONER_WEIGHTS,
    OPEN_CLIP_WEIGHTS,
    read_encoder_config,
    resolve_encoder_dir,
)

_FIELD = "model.pretrained"
_TOKENS = ("vocab_size", "hf_tokenizer_name", "tokenizer_mode")
_VISUAL = "visual."
_KEPT_POSITIONS = 20  # Long-CLIP's number of well-trained text positions (arXiv 2403.15378, section 3.2)


def load_pretrained(
    towers: Towers,
    captioner: Captioner | None,
    reference: str,
    text_cfg: dict[str, Any],
    *,
    stretch: str = "linear",
    needs_text: bool = False,
) -> list[str]:
    """Load the weights of an encoder directory into ``towers`` and, if it has one, into ``captioner``.

    Position embeddings of another image size or text length are interpolated; fixed ones stay unchanged. From an
    encoder with other tokens (for example OpenAI's CLIP) only the image tower is loaded.

    Args:
        towers: an open_clip model of the same architecture except for the sizes of its inputs.
        captioner: or None.
        reference: the directory, or ``hf-hub:NAME``.
        text_cfg: of the new towers, as open_clip has it.
        stretch: interpolation of text positions: "linear", or "long_clip", which keeps the first 20.
        needs_text: whether a randomly initialized text tower is an error.

    Returns:
        The adapted and the randomly initialized parts, as text.

    Raises:
        UserError: no such directory, or weights of another architecture.
    """
    directory = resolve_encoder_dir(reference, _FIELD)
    weights = _read(directory / OPEN_CLIP_WEIGHTS)
    said = _fit_images(weights, towers)
    if not _same_tokens(directory, weights, towers, text_cfg):
        if needs_text:
            raise UserError(
                f"model.lock_text: expected false, or model.architecture: {reference}, which reads other tokens"
            )
        visual = {name.removeprefix(_VISUAL): value for name, value in weights.items() if name.startswith(_VISUAL)}
        _load(towers.visual, visual, directory / OPEN_CLIP_WEIGHTS)
        return [*said, f"the text tower of {directory} reads other tokens; a new one begins"]
    said += _fit_texts(weights, towers, stretch)
    _load(towers, weights, directory / OPEN_CLIP_WEIGHTS)
    if captioner is None:
        return said
    if not (directory / CAPTIONER_WEIGHTS).is_file():
        return [*said, f"{directory} has no captioner; a new one begins"]
    shape = safe_json_loads((directory / CAPTIONER_CONFIG).read_text(encoding="utf-8"))
    if shape != vars(captioner.config):
        return [*said, f"the captioner of {directory} has another shape; a new one begins"]
    _load(captioner, _read(directory / CAPTIONER_WEIGHTS), directory / CAPTIONER_WEIGHTS)
    return said


def check_pretrained_compatible(cfg: dict[str, Any], preprocess: dict[str, Any], reference: str) -> None:
    """Reject an encoder that computes differently in ways that its weights do not show.

    Args:
        cfg: the new encoder's ``model_cfg``.
        preprocess: its ``preprocess_cfg``.
        reference: as in `load_pretrained`.

    Raises:
        UserError: pixels were normalized differently, or the activation was another one.
    """
    told = read_encoder_config(resolve_encoder_dir(reference, _FIELD))
    theirs = told.get("preprocess_cfg", {})
    for name, (mean, std) in NORMALIZATIONS.items():
        if (theirs.get("mean"), theirs.get("std")) == (mean, std) != (preprocess["mean"], preprocess["std"]):
            raise UserError(f"model.normalization: expected {name}, with which {reference} was trained")
    quick = bool(told.get("model_cfg", {}).get("quick_gelu"))
    if told and quick != bool(cfg.get("quick_gelu")):
        kind = "with" if quick else "without"
        raise UserError(f"model.architecture: expected one {kind} -quickgelu, as {reference} was trained")


def _fit_images(weights: dict[str, Tensor], towers: Towers) -> list[str]:
    visual = towers.visual
    if hasattr(visual, "trunk"):
        return _fit_trunk(weights, visual.trunk)
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


def _fit_trunk(weights: dict[str, Tensor], trunk: Any) -> list[str]:
    """Interpolate positions of a timm ViT as timm itself does."""
    name = "visual.trunk.pos_embed"
    if name not in weights or (fitted := resize_timm_pos_embed(weights[name], trunk)) is weights[name]:
        return []
    before, weights[name] = weights[name].shape[1], fitted
    return [f"image positions interpolated from {before} to {fitted.shape[1]}"]


def _same_tokens(directory: Path, weights: dict[str, Tensor], towers: Towers, text_cfg: dict[str, Any]) -> bool:
    """Whether the encoder reads the tokens of ``text_cfg``; without its config, whether it embeds as many."""
    if (cfg := read_encoder_config(directory).get("model_cfg")) is not None:
        return all(cfg["text_cfg"].get(name) == text_cfg.get(name) for name in _TOKENS)
    own = (towers.text if hasattr(towers, "text") else towers).token_embedding.weight
    return any(len(value) == len(own) for name, value in weights.items() if name.endswith("token_embedding.weight"))


def _fit_texts(weights: dict[str, Tensor], towers: Towers, stretch: str) -> list[str]:
    name = next((name for name in ("positional_embedding", "text.positional_embedding") if name in weights), None)
    own = getattr(towers.text if hasattr(towers, "text") else towers, "positional_embedding", None)
    if name is None or own is None or len(weights[name]) == len(own):
        return []
    before = len(weights[name])
    kept = _KEPT_POSITIONS if stretch == "long_clip" else 0
    weights[name] = stretch_text_pos_embed(weights[name], len(own), kept)
    return [f"text positions interpolated from {before} to {len(own)}, the first {kept} as they were"]


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own errors
        raise UserError(f"model.pretrained: {path}: cannot be read ({error_reason(error)})") from None


def _load(module: Towers, weights: dict[str, Tensor], path: Path) -> None:
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    extra = [name for name in weights if name not in wanted]
    unlike = [name for name in weights if name in wanted and weights[name].numel() != wanted[name].numel()]
    for problem, names in (("lacks", missing), ("has the unknown", extra), ("has another shape of", unlike)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"model.pretrained: {path} {problem} {names[0]}{more}; expected the same architecture")
    module.load_state_dict({name: value.reshape(wanted[name].shape) for name, value in weights.items()}, strict=False)
