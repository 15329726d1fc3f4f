"""Fast checks of the directories of LLaVAs and LLMs, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clips.data.formats.dataset_format import IMAGE
from clips.errors import UserError
from clips.model_refs import resolve_model_dir
from clips.text_files import safe_json_loads


def resolve_llava_dir(reference: str | Path, field: str | None = None) -> Path:
    """The directory of a LLaVA, or of the Hub's copy, as :func:`clips.model_refs.resolve_model_dir`.

    The one check for whoever reads a LLaVA: chat and benchmarks as training. Messages begin with the config's
    ``field``, or with the directory.

    Raises:
        UserError: it is no directory of a LLaVA in the transformers format, or has no tokenizer or weights.
    """
    path = resolve_model_dir(str(reference), field or "llava")
    what = str(path) if field is None else f"{field}: {reference}"
    if not path.is_dir():
        raise UserError(f"{what}: no such directory; expected a LLaVA directory, or ORG/NAME on the Hub")
    _check_type(path, what)
    _check_files(what, path, "LLaVA")
    return path


_LLAVAS = ("llava", "llava_bridge", "llava_next", "llava_next_bridge")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def is_llava(directory: str | Path) -> bool:
    """Whether ``directory`` holds a LLaVA in the transformers format, unmodified or with parts of this suite."""
    config = read_config(directory)
    return config.get("model_type") in _LLAVAS and "text_config" in config


def is_original_llava(directory: str | Path) -> bool:
    """Whether ``directory`` holds a LLaVA in its authors' original format, or a projector of one."""
    has_fields = bool({"mm_vision_tower", "mm_hidden_size"} & read_config(directory).keys())
    return has_fields or (Path(directory) / "mm_projector.bin").is_file()


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read the ``config.json`` of a model's directory; empty if there is none.

    Raises:
        UserError: it is not JSON.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        return {}
    try:
        config = safe_json_loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def _check_type(directory: Path, what: str) -> None:
    """Raise UserError, which begins with ``what``, unless the directory holds a LLaVA in the transformers format."""
    if is_llava(directory):
        return
    if is_original_llava(directory):
        hint = "; `llava-bridge convert` writes one"
    elif not (directory / "config.json").is_file():
        hint = "; there is no config.json in it"
    else:
        model_type = read_config(directory).get("model_type")
        hint = f"; expected model_type llava or llava_next in its config.json, got {model_type}"
    raise UserError(f"{what} is no LLaVA in the transformers format{hint}")


def check_image_token(tokenizer: Any, config: Any, what: str) -> None:
    """Raise UserError, which begins with ``what``, unless ``<image>`` has the id that the LLaVA's config states."""
    if tokenizer.convert_tokens_to_ids(IMAGE) != config.image_token_index:
        raise UserError(f"{what}: expected {IMAGE} in its tokenizer as its config.json states")


def resolve_llm_dir(llm: str) -> Path:
    """The directory of a causal LM, or of a LLaVA, whose LLM is used; or the Hub's copy.

    Raises:
        UserError: it has no config, tokenizer or weights.
    """
    directory = resolve_model_dir(llm, "llm")
    if not directory.is_dir():
        raise UserError(f"llm: {llm} is not a directory (expected one, or ORG/NAME on the Hub)")
    if "mm_vision_tower" in read_config(directory):
        raise UserError(f"llm: {llm} is a LLaVA in the original format; convert it by `llava-bridge convert`")
    _check_files(f"llm: {llm}", directory, "causal LM")
    return directory


def _check_files(what: str, directory: Path, model: str) -> None:
    if not (directory / "config.json").is_file():
        raise UserError(f"{what} has no config.json (expected a directory with a transformers {model})")
    if not any((directory / file).is_file() for file in _TOKENIZERS):
        raise UserError(f"{what} has no tokenizer (expected tokenizer.json next to config.json)")
    if not any([*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]):
        raise UserError(f"{what} has no weights (expected *.safetensors, or pytorch_model*.bin)")
