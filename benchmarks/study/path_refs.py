"""References in the strings of a step's config: local files, outputs of other steps, names on the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clips.data.remote_files import is_remote
from clips.model_refs import HF_HUB_PREFIX, is_on_hub

PATH_PREFIX = "$"  # of a path in the study's output or below an entry of ``paths``
HUB_DATASET = "hub dataset"
"""Stands for the field ``path`` or ``data`` next to ``format: datasets``, which names a dataset on the Hub."""
_HUB_FIELDS = {"llm", "llava", HUB_DATASET, "model_args"}  # fields whose ``ORG/NAME`` may be on the Hub
_PATH_FIELDS = {"encoder", "llm", "llava", "path", "data", "image_root", "source", "pretrained", "pretrained_trunk",
                "model_args"}  # fmt: skip
"""Fields in which a single word may be a file or directory; in other fields it is a setting's value."""
_TEXT_FIELDS = {"prompt", "templates", "judge_model", "chat_template"}
"""Fields that contain no path, even if their text has a slash."""
_MAX_FILE_NAME = 255  # on most systems; a longer string is no path
_ARGUMENT = re.compile(r"((?:^|,)\w+=)")  # of lmms-eval's models: pretrained=DIRECTORY,device_map=cpu


class PathPiece(NamedTuple):
    """A part of a string that may be a path or name, and the text before it; the joined pieces are the string."""

    before: str
    reference: str


def split_refs(text: str, field: str) -> list[PathPiece]:
    """Split ``timm:NAME@FILE``, ``transformers:DIRECTORY`` or a model's arguments into pieces.

    ``field`` is the key of the text in its config.
    """
    if field == "model_args" and "=" in text:
        _, *parts = _ARGUMENT.split(text)
        return [PathPiece(before, reference) for before, reference in zip(parts[::2], parts[1::2], strict=True)]
    source, colon, rest = text.partition(":")
    if source == "transformers" and colon:
        return [PathPiece(f"{source}:", rest)]
    if source == "timm" and "@" in rest:
        name, _, file = rest.rpartition("@")
        return [PathPiece(f"{source}:{name}@", file)]
    return [PathPiece("", text)]


def locate(spec: str, paths: Mapping[str, str]) -> str:
    """An encoder or path with ``$name/…`` below the study's path of that name."""
    located = ""
    for piece in split_refs(spec, "encoder"):
        name, _, below = piece.reference.removeprefix(PATH_PREFIX).partition("/")
        is_named = piece.reference.startswith(PATH_PREFIX) and name in paths
        located += piece.before + (str(Path(paths[name], below)) if is_named else piece.reference)
    return located


def hub_name(piece: PathPiece, field: str) -> str | None:
    """The name on the Hub that a piece refers to, or None."""
    is_model = field in _HUB_FIELDS or piece.before.endswith("transformers:")
    may_be = is_model or piece.reference.startswith(HF_HUB_PREFIX)
    return piece.reference.removeprefix(HF_HUB_PREFIX) if may_be and is_on_hub(piece.reference) else None


def external_file(piece: PathPiece, field: str) -> Path | None:
    """The file, directory or range of files (``{00..11}.tar``) that a piece refers to, or None."""
    text = piece.reference
    if field in _TEXT_FIELDS or not text or "\n" in text or max(map(len, text.split("/"))) > _MAX_FILE_NAME:
        return None
    if is_remote(text) or hub_name(piece, field) is not None:
        return None
    path = Path(text)
    return path if path.is_absolute() or len(path.parts) > 1 or (field in _PATH_FIELDS and path.exists()) else None


def map_strings(value: Any, change: Callable[[str, str], str], field: str = "") -> Any:
    """``value`` with every string in it replaced by ``change(field, text)``, where ``field`` is the nearest key."""
    if isinstance(value, str):
        return change(field, value)
    if isinstance(value, Mapping):
        hub_keys = {"path", "data"} if value.get("format") == "datasets" else set[str]()
        return {key: map_strings(item, change, HUB_DATASET if key in hub_keys else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change, field) for item in value]
    return value
