"""References to model directories: a path, or a Hub repo id ``ORG/NAME`` or ``ORG/NAME@REVISION``."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

from clips.errors import UserError, error_reason
from clips.text_files import safe_json_loads

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
OPEN_CLIP_PICKLE = "open_clip_pytorch_model.bin"
CAPTIONER_CONFIG = "captioner_config.json"
CAPTIONER_WEIGHTS = "captioner.safetensors"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
HF_HUB_PREFIX = "hf-hub:"
TRAIN_CONFIG = "config.yaml"
"""The config of an unfinished LLaVA, in its `work_dir`."""
TIMM_PREFIX = "timm:"
DUAL_MODELS = ("clip", "metaclip_2", "siglip", "siglip2", "aimv2", "tipsv2")
"""``model_type`` of transformers' models with a text tower whose features are compared with those of images."""
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_PICKLES = ["pytorch_model*.bin", OPEN_CLIP_PICKLE, "mm_projector.bin"]
_DUPLICATES = ["consolidated*"]  # the same weights in another format
_CLIPS_TEXT = {
    "context_length": 80,
    "hf_tokenizer_name": "bert-base-uncased",
    "pool_type": "last",
    "no_causal_mask": True,
    "act_kwargs": {"approximate": "tanh"},
}
"""Entries of the ``text_cfg`` of a published CLIPS or OpenVision model."""


def is_config_file(reference: str) -> bool:
    """Whether it is a file with an open_clip model config, not a name or a directory."""
    return reference.endswith(".json")


@functools.cache  # the Hub is queried once
def download_from_hub(name: str, field: str) -> Path:
    """The local copy of a Hub repository's config, tokenizer and weights; missing files are downloaded.

    Weights are safetensors, or PyTorch's older files if there are none (read with ``weights_only``). Without a network
    an existing copy is used. The directory's name is the commit.

    Args:
        name: ``ORG/NAME``, or ``ORG/NAME@REVISION`` for a branch, tag or commit.
        field: config field, for the error.

    Raises:
        UserError: no such repository, no permission to read it, or no network and no copy.
    """
    directory = _download(name, field, _PATTERNS)
    if not any(directory.glob("*model*.safetensors")):  # not a part, as caption_decoder.safetensors of OpenVision 2
        return _download(name, field, [*_PATTERNS, *_PICKLES])
    if (directory / OPEN_CLIP_CONFIG).is_file() and not (directory / OPEN_CLIP_WEIGHTS).is_file():
        return _download(name, field, [*_PATTERNS, OPEN_CLIP_PICKLE])  # the others are in transformers' format
    return directory


def _download(name: str, field: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    repo_id, _, revision = name.partition("@")
    options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": _DUPLICATES}
    try:
        return Path(snapshot_download(repo_id, revision=revision or None, **options))
    except Exception as error:  # of the Hub, the network or the file system
        raise UserError(f"{field}: {name}: cannot be downloaded from the Hub ({error_reason(error)})") from None


def resolve_encoder_dir(reference: str, field: str) -> Path:
    """The directory of an encoder.

    Args:
        reference: the directory, or ``hf-hub:NAME`` (see `download_from_hub`).
        field: config field, for the error.

    Raises:
        UserError: no such encoder.
    """
    if not reference.startswith(HF_HUB_PREFIX):
        reject_adapters(Path(reference), f"{field}: {reference}")
        if not find_open_clip_weights(Path(reference)).is_file():
            raise UserError(f"{field}: {reference}: expected an encoder directory with {OPEN_CLIP_WEIGHTS}")
        return Path(reference)
    return download_from_hub(reference.removeprefix(HF_HUB_PREFIX), field)


def find_open_clip_weights(directory: Path) -> Path:
    """The weights of an encoder directory: safetensors, which may be missing, or else open_clip's older pickle."""
    path = directory / OPEN_CLIP_WEIGHTS
    return path if path.is_file() or not (directory / OPEN_CLIP_PICKLE).is_file() else directory / OPEN_CLIP_PICKLE


def read_encoder_config(directory: Path) -> dict[str, Any]:
    """The open_clip config of an encoder directory; empty if it has none."""
    file = directory / OPEN_CLIP_CONFIG
    return state_tokenizer(dict(safe_json_loads(file.read_text(encoding="utf-8")))) if file.is_file() else {}


def require_encoder_config(directory: Path) -> dict[str, Any]:
    """The open_clip config of an encoder directory.

    Raises:
        UserError: it has no ``model_cfg``.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; expected an encoder directory")
    reject_adapters(directory, str(directory))
    path = directory / OPEN_CLIP_CONFIG
    try:
        config = safe_json_loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected an encoder directory of open_clip's hub layout") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict) or "model_cfg" not in config:
        raise UserError(f"{path}: expected an object with 'model_cfg'")
    return config


def state_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """Return ``config`` with the CLIPS tokenization, which the authors' forks of open_clip derive from a model's name.

    All published configs of CLIPS and OpenVision have the entries that are compared here (``model_configs`` of
    https://github.com/UCSC-VLAA/CLIPS and https://github.com/UCSC-VLAA/OpenVision). CLIPA's, of the same authors, have
    another context and activation, and another tokenization.
    """
    cfg = config.get("model_cfg")
    text = cfg.get("text_cfg") if isinstance(cfg, dict) else None
    if not isinstance(text, dict) or "tokenizer_mode" in text or not text.items() >= _CLIPS_TEXT.items():
        return config
    stated = {key: value for key, value in text.items() if key != "tokenizer_kwargs"} | {"tokenizer_mode": "clips"}
    return config | {"model_cfg": {**config["model_cfg"], "text_cfg": stated}}


def is_on_hub(reference: str) -> bool:
    """Whether it is a Hub repo id: ``hf-hub:ORG/NAME``, or ``ORG/NAME`` without a local directory of this name."""
    is_repo_id = bool(_HUB_NAME.fullmatch(reference)) and not Path(reference).exists()
    return reference.startswith(HF_HUB_PREFIX) or is_repo_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a model that a reference names.

    Args:
        reference: names these files for any process: an absolute path, or a commit on the Hub, whose branches move.
        path: its directory or file; None if a library finds the weights by their name.
        local: the path as the reference states it; None for the Hub's copy.
        commit: of the Hub's copy, whose directory has its name.
    """

    reference: str
    path: Path | None = None
    local: str | None = None
    commit: str | None = None

    @classmethod
    def of(cls, reference: str, path: Path) -> ModelFiles:
        """Those of the path that a reference was resolved to."""
        if is_on_hub(reference):
            repository, commit = reference.partition("@")[0], path.name
            return cls(reference=f"{repository}@{commit}", path=path, commit=commit)
        # absolute, as a relative ORG/NAME would be one of the Hub once its directory is gone
        return cls(reference=str(path.absolute()), path=path, local=reference)


def work_dir(output: str | Path) -> Path:
    """The hidden directory next to the LLaVA ``output`` with the state of its unfinished training."""
    return Path(output).with_name(f".{Path(output).name}.work")


def reject_adapters(directory: Path, where: str) -> None:
    """Raise UserError, which begins with ``where``, for a directory of PEFT's adapters without a model."""
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise UserError(
            f"{where}: expected a model, got adapters of PEFT; save the model with them merged (merge_and_unload)"
        )


def resolve_model_dir(reference: str, field: str) -> Path:
    """The directory of a model in transformers' format, or of a LLaVA in another; downloaded if it is on the Hub.

    Args:
        reference: a directory; or ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hub, with or without ``hf-hub:``.
        field: config field, for the error.

    Raises:
        UserError: neither exists, or it is a LLaVA whose training is not finished, or adapters without their model.
    """
    is_missing = bool(Path(reference).name) and not Path(reference).exists()  # "." has no name
    if is_missing and (unfinished := work_dir(reference) / TRAIN_CONFIG).is_file():
        command = f"llava-bridge train --config {unfinished}"
        raise UserError(f"{field}: the training of {reference} is not finished; `{command}` continues it")
    if not is_on_hub(reference):
        reject_adapters(Path(reference), f"{field}: {reference}")
        return Path(reference)
    try:
        return download_from_hub(reference.removeprefix(HF_HUB_PREFIX), field)
    except UserError as error:
        if reference.startswith(HF_HUB_PREFIX):
            raise
        raise UserError(f"{field}: {reference} is not a directory; {str(error).removeprefix(f'{field}: ')}") from None
