"""Check the files of an encoder spec before heavy imports."""

from __future__ import annotations

from pathlib import Path

from clips.errors import UserError
from clips.references import CONFIG, HUB, WEIGHTS, hub_directory, is_on_hub, model_directory
from llava_bridge.encoders.spec import members, parse_spec


def open_clip_directory(reference: str) -> Path:
    """Return the directory of an open_clip encoder: ``reference`` itself, or the Hub's copy of ``hf-hub:NAME``.

    Raises:
        UserError: it cannot be downloaded.
    """
    return hub_directory(reference.removeprefix(HUB), "encoder") if reference.startswith(HUB) else Path(reference)


def vision_directory(reference: str) -> Path:
    """Return the directory of an encoder in the transformers format, as :func:`model_directory`."""
    return model_directory(reference, "encoder")


def encoder_commits(spec: str) -> dict[str, str]:
    """Return ``{"encoder": commit}`` of a spec's Hub repository, ``encoder_1`` … for several; none for timm's.

    The Hub's cache names a repository's directory by its commit.
    """
    found = {}
    encoders = members(spec)
    for number, encoder in enumerate(encoders, 1):
        source, reference = parse_spec(encoder)
        field = "encoder" if len(encoders) == 1 else f"encoder_{number}"
        if source == "open_clip" and reference.startswith(HUB):
            found[field] = open_clip_directory(reference).name
        elif source == "transformers" and is_on_hub(reference):
            found[field] = vision_directory(reference).name
    return found


def check_encoder(spec: str) -> None:
    """Raise UserError unless the files of an encoder spec exist."""
    source, reference = parse_spec(spec)
    if source == "open_clip":
        directory = open_clip_directory(reference)
        if not directory.is_dir():
            raise UserError(
                f"encoder: {directory} is not a directory (expected one in open_clip's hub layout, hf-hub:ORG/NAME, "
                "timm:NAME, or transformers:DIRECTORY)"
            )
        if not (directory / CONFIG).is_file() and (directory / "config.json").is_file():
            instead = f"transformers:{reference.removeprefix(HUB)}"
            raise UserError(f"encoder: {reference} is no directory of open_clip's; try {instead}")
        for name, what in ((CONFIG, "config"), (WEIGHTS, "weights")):
            if not (directory / name).is_file():
                raise UserError(f"encoder: {reference} has no {what} (expected {name})")
    elif source == "transformers":
        directory = vision_directory(reference)
        if not directory.is_dir():
            raise UserError(f"encoder: {directory} is not a directory (expected one, or ORG/NAME on the hub)")
        if not (directory / "config.json").is_file():
            raise UserError(f"encoder: {reference} has no config.json (expected a model in transformers' layout)")
    elif source == "several":
        for member in members(spec):
            check_encoder(member)
    elif source == "timm":
        _, _, origin = reference.partition("@")
        if origin not in {"", "random"} and not Path(origin).is_file():
            raise UserError(f"encoder: {origin}: no such file (expected safetensors weights, or @random)")
