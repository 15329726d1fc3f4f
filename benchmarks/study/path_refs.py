"""What the texts of a step's config refer to: files here, what the study itself makes, names on the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clips.data.remote_files import is_remote
from clips.model_refs import HF_HUB_PREFIX, is_on_hub

PATH_PREFIX = "$"  # begins a path in the study's output, or one below an entry of ``paths``
DATASET = "data set"
"""Stands for the field that names a data set of the hub: ``path`` or ``data`` beside ``datasets``."""
_MODELS = {"llm", "llava", DATASET, "model_args"}  # fields whose ``ORG/NAME`` may be on the Hub
_PLACES = {
    "encoder",
    "llm",
    "llava",
    "path",
    "data",
    "image_root",
    "source",
    "pretrained",
    "pretrained_trunk",
    "model_args",
}
"""Fields in which a single word may be a file or directory; elsewhere it is some setting's value."""
_WORDS = {"prompt", "templates", "judge_model", "chat_template"}
"""Fields whose texts are none, whatever slashes they have."""
_LONGEST_NAME = 255  # of a file, for most systems; what is longer is no path
_ARGUMENT = re.compile(r"((?:^|,)\w+=)")  # of lmms-eval's models: pretrained=DIRECTORY,device_map=cpu
_MEMBER = re.compile(r"(^several:(?:interleave:)?|\s*\+\s*)")  # of several encoders: several:A + B


class PathPiece(NamedTuple):
    """A part of a text that may be a path or a name, and what stands before it; all pieces joined are the text."""

    before: str
    reference: str


def split_refs(text: str, field: str) -> list[PathPiece]:
    """Cut a text up: ``timm:NAME@FILE``, ``transformers:DIRECTORY``, ``several:A + B``, a model's arguments.

    Args:
        text: of a config.
        field: its name there.
    """
    if field == "model_args" and "=" in text:
        return _cut(_ARGUMENT, text)
    if text.startswith("several:"):
        return [
            PathPiece(f"{joint}{inner.before}", inner.reference)
            for joint, member in _cut(_MEMBER, text)
            for inner in split_refs(member, field)
        ]
    source, colon, rest = text.partition(":")
    if source == "transformers" and colon:
        return [PathPiece(f"{source}:", rest)]
    if source == "timm" and "@" in rest:
        name, _, file = rest.rpartition("@")
        return [PathPiece(f"{source}:{name}@", file)]
    return [PathPiece("", text)]


def _cut(joint: re.Pattern[str], text: str) -> list[PathPiece]:
    """A text whose references stand behind joints."""
    _, *parts = joint.split(text)
    return [PathPiece(before, reference) for before, reference in zip(parts[::2], parts[1::2], strict=True)]


def hub_name(piece: PathPiece, field: str) -> str | None:
    """The name on the Hub that a piece is; None where it is none."""
    may_be = field in _MODELS or piece.before.endswith("transformers:") or piece.reference.startswith(HF_HUB_PREFIX)
    return piece.reference.removeprefix(HF_HUB_PREFIX) if may_be and is_on_hub(piece.reference) else None


def external_file(piece: PathPiece, field: str) -> Path | None:
    """The file or directory that a piece names, or the range of files (``{00..11}.tar``); None where it names none."""
    text = piece.reference
    if field in _WORDS or not text or "\n" in text or max(map(len, text.split("/"))) > _LONGEST_NAME or is_remote(text):
        return None
    if hub_name(piece, field) is not None:
        return None
    path = Path(text)
    if path.is_absolute() or len(path.parts) > 1 or (field in _PLACES and path.exists()):
        return path
    return None


def map_strings(value: Any, change: Callable[[str, str], str], field: str = "") -> Any:
    """``value`` with every text in it replaced by ``change(field, text)``, where ``field`` is the nearest key."""
    if isinstance(value, str):
        return change(field, value)
    if isinstance(value, Mapping):
        of_hub = value.get("format") == "datasets"
        names = {key: DATASET if of_hub and key in {"path", "data"} else key for key in value}
        return {key: map_strings(item, change, names[key]) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change, field) for item in value]
    return value
