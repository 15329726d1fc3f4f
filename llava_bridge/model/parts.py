"""Quick checks of the directories that a LLaVA is made from, before anything heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clips.errors import UserError
from llava_bridge.encoders.spec import members, parse_spec

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_LLAVAS = ("llava", "llava_bridge", "llava_next", "llava_next_bridge")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def is_llava(directory: str | Path) -> bool:
    """Whether ``directory`` holds a LLaVA in transformers' layout, stock or with parts of ours."""
    config = read_config(directory)
    return config.get("model_type") in _LLAVAS and "text_config" in config


def is_original(directory: str | Path) -> bool:
    """Whether ``directory`` holds a LLaVA in the layout of its first authors, or a projector of one."""
    stated = "mm_vision_tower" in read_config(directory) or "mm_hidden_size" in read_config(directory)
    return stated or (Path(directory) / "mm_projector.bin").is_file()


def read_config(directory: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a model's directory; empty where there is none.

    Raises:
        UserError: it is not JSON.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def check_llava(llava: str) -> None:
    """Raise UserError unless ``llava`` is a LLaVA directory in transformers' layout, with tokenizer and weights."""
    if not Path(llava).is_dir():
        raise UserError(f"llava: {llava} is not a directory")
    if not is_llava(llava):
        hint = "; `llava-bridge convert` makes one of it" if is_original(llava) else ""
        raise UserError(f"llava: {llava} is no LLaVA in transformers' layout{hint}")
    _check_model(llava, "llava", "LLaVA")


def check_llm(llm: str) -> None:
    """Raise UserError unless ``llm`` is a directory with config, tokenizer and safetensors weights.

    A LLaVA in transformers' layout will do as well: its LLM is meant.
    """
    if "mm_vision_tower" in read_config(llm):
        raise UserError(f"llm: {llm} is a LLaVA in the original layout; give what `llava-bridge convert` makes of it")
    _check_model(llm, "llm", "causal LM")


def _check_model(llm: str, field: str, kind: str) -> None:
    directory = Path(llm)
    if not (directory / "config.json").is_file():
        raise UserError(f"{field}: {directory} has no config.json (expected a directory with a transformers {kind})")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise UserError(f"{field}: {directory} has no tokenizer (expected tokenizer.json beside config.json)")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{field}: {directory} has no weights (expected *.safetensors)")


def check_encoder(spec: str) -> None:
    """Raise UserError unless the files that an encoder spec names are there."""
    source, reference = parse_spec(spec)
    if source == "open_clip":
        directory = Path(reference)
        if not directory.is_dir():
            raise UserError(
                f"encoder: {directory} is not a directory (expected one in open_clip's hub layout, timm:NAME, or "
                "transformers:DIRECTORY)"
            )
        if not (directory / OPEN_CLIP_CONFIG).is_file() and (directory / "config.json").is_file():
            raise UserError(f"encoder: {directory} is no directory of open_clip's; try transformers:{directory}")
        for name, what in ((OPEN_CLIP_CONFIG, "config"), (OPEN_CLIP_WEIGHTS, "weights")):
            if not (directory / name).is_file():
                raise UserError(f"encoder: {directory} has no {what} (expected {name})")
    elif source == "transformers":
        directory = Path(reference)
        if directory.is_dir() and not (directory / "config.json").is_file():
            raise UserError(f"encoder: {directory} has no config.json (expected a model in transformers' layout)")
        if not directory.is_dir() and (reference.startswith((".", "/", "~")) or reference.count("/") > 1):
            raise UserError(f"encoder: {directory} is not a directory")
    elif source == "several":
        for member in members(spec):
            check_encoder(member)
    elif source == "timm":
        _, _, origin = reference.partition("@")
        if origin not in {"", "random"} and not Path(origin).is_file():
            raise UserError(f"encoder: {origin}: no such file (expected safetensors weights, or @random)")
