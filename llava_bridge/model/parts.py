"""Quick checks of the directories that a LLaVA is made from, before anything heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from clips.errors import UserError
from clips.jsontext import parse_json
from clips.references import HUB, hub_directory
from llava_bridge.encoders.spec import members, parse_spec

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_LLAVAS = ("llava", "llava_bridge", "llava_next", "llava_next_bridge")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


def is_on_hub(reference: str) -> bool:
    """Whether a model is meant by its name on the hub: ``hf-hub:ORG/NAME``, or ``ORG/NAME``, no directory here."""
    return reference.startswith(HUB) or (bool(_HUB_NAME.fullmatch(reference)) and not Path(reference).exists())


def model_directory(reference: str, field: str) -> Path:
    """Where a model in transformers' layout, or a LLaVA in another, lies: the directory itself, or the hub's copy.

    Args:
        reference: a directory; or ``ORG/NAME`` on the hub, also ``ORG/NAME@REVISION``, also behind ``hf-hub:``.
        field: of the config, for the error.

    Raises:
        UserError: it is neither.
    """
    if not is_on_hub(reference):
        return Path(reference)
    try:
        return hub_directory(reference.removeprefix(HUB), field)
    except UserError as error:
        if reference.startswith(HUB):
            raise
        raise UserError(f"{field}: {reference} is not a directory; {str(error).removeprefix(f'{field}: ')}") from None


def open_clip_directory(reference: str) -> Path:
    """The directory of an encoder in open_clip's layout: ``reference`` itself, or the hub's copy of ``hf-hub:NAME``.

    Raises:
        UserError: the hub does not give it.
    """
    return hub_directory(reference.removeprefix(HUB), "encoder") if reference.startswith(HUB) else Path(reference)


def encoder_commits(spec: str) -> dict[str, str]:
    """``{"encoder": commit}`` of the hub's repository that a spec names, ``encoder_1`` … of several; of timm's none.

    The hub's cache calls a repository's directory by its commit.
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


def vision_directory(reference: str) -> Path:
    """The directory of an encoder in transformers' layout, as of :func:`model_directory`."""
    return model_directory(reference, "encoder")


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
        config = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def check_llava(llava: str) -> None:
    """Raise UserError unless ``llava`` is a LLaVA in transformers' layout, with tokenizer and weights.

    Args:
        llava: as of :func:`model_directory`.
    """
    directory = model_directory(llava, "llava")
    if not directory.is_dir():
        raise UserError(f"llava: {llava} is not a directory")
    if not is_llava(directory):
        hint = "; `llava-bridge convert` makes one of it" if is_original(directory) else ""
        raise UserError(f"llava: {llava} is no LLaVA in transformers' layout{hint}")
    _check_model(llava, directory, "llava", "LLaVA")


def check_llm(llm: str) -> None:
    """Raise UserError unless ``llm`` has config, tokenizer and weights.

    Args:
        llm: as of :func:`model_directory`. A LLaVA in transformers' layout will do as well: its LLM is meant.
    """
    directory = model_directory(llm, "llm")
    if "mm_vision_tower" in read_config(directory):
        raise UserError(f"llm: {llm} is a LLaVA in the original layout; give what `llava-bridge convert` makes of it")
    _check_model(llm, directory, "llm", "causal LM")


def _check_model(name: str, directory: Path, field: str, kind: str) -> None:
    if not (directory / "config.json").is_file():
        raise UserError(f"{field}: {name} has no config.json (expected a directory with a transformers {kind})")
    if not any((directory / file).is_file() for file in _TOKENIZERS):
        raise UserError(f"{field}: {name} has no tokenizer (expected tokenizer.json beside config.json)")
    if not any([*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]):
        raise UserError(f"{field}: {name} has no weights (expected *.safetensors, or pytorch_model*.bin)")


def check_encoder(spec: str) -> None:
    """Raise UserError unless the files that an encoder spec names are there."""
    source, reference = parse_spec(spec)
    if source == "open_clip":
        directory = open_clip_directory(reference)
        if not directory.is_dir():
            raise UserError(
                f"encoder: {directory} is not a directory (expected one in open_clip's hub layout, hf-hub:ORG/NAME, "
                "timm:NAME, or transformers:DIRECTORY)"
            )
        if not (directory / OPEN_CLIP_CONFIG).is_file() and (directory / "config.json").is_file():
            instead = f"transformers:{reference.removeprefix(HUB)}"
            raise UserError(f"encoder: {reference} is no directory of open_clip's; try {instead}")
        for name, what in ((OPEN_CLIP_CONFIG, "config"), (OPEN_CLIP_WEIGHTS, "weights")):
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
