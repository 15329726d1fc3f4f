"""Quick checks of the directories that a LLaVA is made from, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from clips.errors import UserError
from llava_bridge.encoders.spec import members, parse_spec

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_llm(llm: str) -> None:
    """Raise UserError unless ``llm`` is a directory with config, tokenizer and safetensors weights."""
    directory = Path(llm)
    if not (directory / "config.json").is_file():
        raise UserError(f"llm: {directory} has no config.json (expected a directory with a transformers causal LM)")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise UserError(f"llm: {directory} has no tokenizer (expected tokenizer.json beside config.json)")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"llm: {directory} has no weights (expected *.safetensors)")


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
