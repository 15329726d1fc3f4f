"""Check the files of an encoder spec before heavy imports."""

from __future__ import annotations

from pathlib import Path

from clips.errors import UserError
from clips.model_refs import (
    HF_HUB_PREFIX,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    download_from_hub,
    is_on_hub,
    resolve_model_dir,
)
from llava_bridge.encoders.spec import numbered_encoders, parse_spec, split_encoders


def resolve_open_clip_dir(reference: str) -> Path:
    """Return the directory of an open_clip encoder: ``reference`` itself, or the Hub's copy of ``hf-hub:NAME``.

    Raises:
        UserError: it cannot be downloaded.
    """
    if reference.startswith(HF_HUB_PREFIX):
        return download_from_hub(reference.removeprefix(HF_HUB_PREFIX), "encoder")
    return Path(reference)


def encoder_commits(spec: str) -> dict[str, str]:
    """Return ``{"encoder": commit}`` of a spec's Hub repository, ``encoder_1`` … for several; none for timm's."""
    commits = {}  # the Hub's cache names a repository's directory by its commit
    for field, source, reference in numbered_encoders(spec):
        if source == "open_clip" and reference.startswith(HF_HUB_PREFIX):
            commits[field] = resolve_open_clip_dir(reference).name
        elif source == "transformers" and is_on_hub(reference):
            commits[field] = resolve_model_dir(reference, "encoder").name
    return commits


def check_encoder_files(spec: str) -> None:
    """Raise UserError unless the files of an encoder spec exist."""
    source, reference = parse_spec(spec)
    if source == "open_clip":
        directory = resolve_open_clip_dir(reference)
        if not directory.is_dir():
            raise UserError(
                f"encoder: {directory} is not a directory (expected one in open_clip's Hub format, hf-hub:ORG/NAME, "
                "timm:NAME, or transformers:DIRECTORY)"
            )
        if not (directory / OPEN_CLIP_CONFIG).is_file() and (directory / "config.json").is_file():
            suggestion = f"transformers:{reference.removeprefix(HF_HUB_PREFIX)}"
            raise UserError(f"encoder: {reference} is no directory of open_clip's; try {suggestion}")
        for name, content in ((OPEN_CLIP_CONFIG, "config"), (OPEN_CLIP_WEIGHTS, "weights")):
            if not (directory / name).is_file():
                raise UserError(f"encoder: {reference} has no {content} (expected {name})")
    elif source == "transformers":
        directory = resolve_model_dir(reference, "encoder")
        if not directory.is_dir():
            raise UserError(f"encoder: {directory} is not a directory (expected one, or ORG/NAME on the Hub)")
        if not (directory / "config.json").is_file():
            raise UserError(f"encoder: {reference} has no config.json (expected a model in the transformers format)")
    elif source == "several":
        for member in split_encoders(spec):
            check_encoder_files(member)
    elif source == "timm":
        _, _, origin = reference.partition("@")
        if origin not in {"", "random"} and not Path(origin).is_file():
            raise UserError(f"encoder: {origin}: no such file (expected safetensors weights, or @random)")
