"""open_clip's files: directories in its Hub format, training checkpoints, bare state dicts.

Published CLIPS and OpenVision weights have the same format. Their configs were written for the authors' fork of
open_clip, which derived the tokenizer from the model's name; here the config states it (``tokenizer_mode``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clips.errors import UserError, error_reason
from clips.interchange.imported_encoder import (
    ImportedEncoder,
    configs_for_architecture,
    license_from_card,
    no_tokenizer,
)
from clips.interchange.weight_mapping import Weights
from clips.model.architectures import complete_preprocess_cfg
from clips.model.loading import library_errors_as_user_errors, read_weights
from clips.model.tokenizer import ClipsTokenizer, copy_tokenizer_files
from clips.model_refs import (
    CAPTIONER_WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_PICKLE,
    OPEN_CLIP_WEIGHTS,
    state_tokenizer,
)
from clips.text_files import safe_json_loads

_WEIGHTS = (OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.safetensors", OPEN_CLIP_PICKLE)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # beside the weights of OpenAI's TorchScript archives
_TEXT_PARTS = ("text_projection", "positional_embedding", "token_embedding", "transformer.", "ln_final", "cls_emb")


def is_supported(path: Path) -> bool:
    """Whether this is a directory in open_clip's Hub format, or a single weights file."""
    return (path / OPEN_CLIP_CONFIG).is_file() if path.is_dir() else path.suffix in _ENDINGS


def load(path: Path, architecture: str | None) -> ImportedEncoder:
    """See `clips.interchange.importing`."""
    where = _find_weights(path) if path.is_dir() else path
    recorded = _read_config(path / OPEN_CLIP_CONFIG) if path.is_dir() else None
    weights = read_weights(where)
    while all(name.startswith("model.") for name in weights):  # Lightning's
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name not in _NUMBERS}
    if architecture is not None:
        cfg, preprocess, source = configs_for_architecture(architecture, weights)
    elif recorded is not None:
        cfg = recorded["model_cfg"]
        preprocess, source = (
            complete_preprocess_cfg({}, cfg["vision_cfg"].get("image_size", 224)),
            "open_clip's default",
        )
    else:
        raise UserError(f"{path}: a weights file does not state its architecture; give --architecture")
    if recorded is not None and recorded.get("preprocess_cfg"):
        preprocess = complete_preprocess_cfg(recorded["preprocess_cfg"], preprocess["size"])
        source = f"that of {OPEN_CLIP_CONFIG}"
    return ImportedEncoder(
        model_cfg=cfg,
        preprocess_cfg=preprocess,
        preprocess_source=source,
        weights=_rename_text_tower(weights, bool(cfg.get("custom_text"))),
        write_tokenizer=_tokenizer_writer(path, cfg["text_cfg"]),
        license=license_from_card(path),
        where=where,
    )


def _find_weights(directory: Path) -> Path:
    others = sorted(path for path in directory.iterdir() if path.suffix in _ENDINGS)
    for path in [*(directory / name for name in _WEIGHTS), *others]:
        if path.is_file() and path.name != CAPTIONER_WEIGHTS:
            return path
    raise UserError(f"{directory}: no weights in it; expected {_WEIGHTS[0]} or {_WEIGHTS[-1]}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = safe_json_loads(path.read_text(encoding="utf-8"))
        config["model_cfg"]["vision_cfg"].keys()
        config["model_cfg"]["text_cfg"].keys()
        return state_tokenizer(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected open_clip's model_cfg with both towers ({error_reason(error)})") from None


def _tokenizer_writer(path: Path, text: dict[str, Any]) -> Callable[[Path], None]:
    if text.get("tokenizer_mode") == "clips":
        return ClipsTokenizer(text["context_length"]).save
    if not text.get("hf_tokenizer_name"):
        return no_tokenizer
    if path.is_dir() and any((path / name).is_file() for name in _TOKENIZER):
        return lambda directory: copy_tokenizer_files(path, directory)
    return lambda directory: _download_tokenizer(str(text["hf_tokenizer_name"]), directory)


def _download_tokenizer(name: str, directory: Path) -> None:
    from transformers import AutoTokenizer

    with library_errors_as_user_errors(f"tokenizer {name}: cannot be downloaded from the Hub"):
        AutoTokenizer.from_pretrained(name).save_pretrained(directory)


def _rename_text_tower(weights: Weights, custom_text: bool) -> Weights:
    """Return ``weights`` with the text tower's prefix of this architecture, ``text.`` or none."""
    if custom_text:
        return {f"text.{name}" if name.startswith(_TEXT_PARTS) else name: value for name, value in weights.items()}
    return {name.removeprefix("text."): value for name, value in weights.items()}
