"""Encoder directories in open_clip's Hub format, readable by open_clip alone.

python -c "import open_clip; open_clip.create_model_and_transforms('local-dir:encoders/clips')"
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clips.core.artifact import atomic_write
from clips.errors import UserError, error_reason
from clips.lazy_import import without_wandb
from clips.method.clips_model import ClipsModel
from clips.model.captioner import Captioner, CaptionerDims
from clips.model.loading import library_errors_as_user_errors, read_weights, require_finite
from clips.model.tokenizer import ClipsTokenizer, truncate_text
from clips.model.towers import build_towers
from clips.model_refs import (
    CAPTIONER_CONFIG,
    CAPTIONER_WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    find_open_clip_weights,
    require_encoder_config,
    state_tokenizer,
)
from clips.text_files import safe_json_loads


def write_encoder(model: ClipsModel, directory: Path) -> None:
    """Write towers, tokenizer, preprocessing and the captioner, if any, into ``directory``."""
    config = {"model_cfg": model.model_cfg, "preprocess_cfg": model.preprocess_cfg}
    atomic_write(directory / OPEN_CLIP_CONFIG, json.dumps(config, indent=2) + "\n")
    _write_weights(model.clip, directory / OPEN_CLIP_WEIGHTS)
    if "text_cfg" in model.model_cfg:
        model.tokenizer.save(directory)
    if model.captioner is not None:
        shape = dataclasses.asdict(model.captioner.config)
        atomic_write(directory / CAPTIONER_CONFIG, json.dumps(shape, indent=2) + "\n")
        _write_weights(model.captioner, directory / CAPTIONER_WEIGHTS)


def _write_weights(module: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, path)


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """A loaded encoder directory.

    Args:
        model: the open_clip model, or an `clips.model.towers.ImageTower`, in evaluation mode, on CPU, float32.
        preprocess: image → (3, size, size) float tensor.
        tokenizer: list of n strings, and optionally another context length → (n, context length) int64 tokens; raises
            UserError without a text tower.
        config: the directory's open_clip_config.json.
    """

    model: Any
    preprocess: Any
    tokenizer: Any
    config: dict[str, Any]


def load_encoder(directory: str | Path) -> LoadedEncoder:
    """Load an encoder directory of this suite, or any other in open_clip's Hub format.

    Raises:
        UserError: the directory or its config or weights are missing, invalid, not finite or do not match.
    """
    directory = Path(directory)
    config = require_encoder_config(directory)
    stated = state_tokenizer(config)
    weights = find_open_clip_weights(directory)
    if not weights.is_file():
        raise UserError(f"{weights}: missing; expected the encoder's weights")
    with without_wandb():
        import open_clip

    if "text_cfg" not in config["model_cfg"]:
        return _checked(_load_image_tower(directory, config), directory)
    text = config["model_cfg"]["text_cfg"]
    if isinstance(text, dict) and text.get("hf_pooler_type") == "last_pooler":  # which open_clip does not have
        raise UserError(
            f"{directory}: its text tower is a language model of an earlier version of this suite, which is no longer "
            "read; LLaVAs still read its image tower"
        )
    try:
        changed = {}
        if "hf_model_name" in text and (directory / "config.json").is_file():
            # A language model as text tower: its own directory may be gone, and its config is here as well.
            changed = {"text_cfg": text | {"hf_model_name": str(directory.absolute())}}
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}", **changed)
        tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{directory}") if stated is config else ClipsTokenizer()
    except Exception as error:  # open_clip raises the exceptions of its dependencies: torch, safetensors, transformers
        raise UserError(f"{directory}: open_clip cannot load this encoder ({error_reason(error)})") from None
    return _checked(LoadedEncoder(model.eval(), preprocess, _TruncatingTokenizer(tokenizer), stated), directory)


def _checked(encoder: LoadedEncoder, directory: Path) -> LoadedEncoder:
    require_finite(encoder.model.state_dict(), str(directory))
    return encoder


def _load_image_tower(directory: Path, config: dict[str, Any]) -> LoadedEncoder:
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    def reject_texts(texts: Sequence[str]) -> torch.Tensor:
        raise UserError(f"{directory}: this encoder has no text tower")

    with library_errors_as_user_errors(f"{directory}: this image tower cannot be loaded"):
        model = build_towers(config["model_cfg"])
        model.load_state_dict(read_weights(find_open_clip_weights(directory)))
        known = merge_preprocess_dict(config["preprocess_cfg"], {})
        preprocess = image_transform_v2(PreprocessCfg(**known), is_train=False)
    return LoadedEncoder(model.eval(), preprocess, reject_texts, config)


class _TruncatingTokenizer:
    """open_clip's tokenizer, with `truncate_text` for strings of any length."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        length = context_length or self._tokenizer.context_length
        return self._tokenizer([truncate_text(text, length) for text in texts], length)

    def __getattr__(self, name: str) -> Any:
        if name == "_tokenizer":  # of an empty copy, as `copy` and `pickle` create it
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


def load_captioner(directory: str | Path) -> Captioner:
    """The captioner of an encoder directory, in evaluation mode.

    Raises:
        UserError: the directory has none, or it is invalid.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    if not (directory / CAPTIONER_WEIGHTS).is_file():
        expected = f"an encoder directory with {CAPTIONER_WEIGHTS} (a recipe with a captioner)"
        raise UserError(f"{directory}: expected {expected}")
    try:
        shape = safe_json_loads((directory / CAPTIONER_CONFIG).read_text(encoding="utf-8"))
        captioner = Captioner(CaptionerDims(**shape))
        captioner.load_state_dict(load_file(directory / CAPTIONER_WEIGHTS))
    except Exception as error:  # JSON, safetensors and torch each raise their own
        raise UserError(f"{directory}: its captioner cannot be loaded ({error_reason(error)})") from None
    return captioner.eval()
