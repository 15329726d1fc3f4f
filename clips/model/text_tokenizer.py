"""The text tower's tokenizer: this method's, a language model's, or that of an encoder trained as it is.

tokenize = build_text_tokenizer(ModelConfig(architecture="imported/clip"))
tokenize(["a red car"])  # (1, context length)
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from clips.core.artifact import HASH_EXCLUDED_FILES
from clips.errors import UserError
from clips.lazy_import import without_wandb
from clips.model import architectures
from clips.model.architectures import CONFIG_FIELD, ModelConfig
from clips.model.hf_text import load_tokenizer, read_text_config
from clips.model.loading import library_errors_as_user_errors
from clips.model.tokenizer import ClipsTokenizer, truncate_text
from clips.model_refs import (
    CAPTIONER_CONFIG,
    OPEN_CLIP_CONFIG,
    require_encoder_config,
    resolve_encoder_dir,
    state_tokenizer,
)

_ENDINGS = (".json", ".txt", ".model")


class TextTokenizer(Protocol):
    """Map texts to the token sequences of a text tower."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Rows (n, context length) int64."""
        ...

    def save(self, directory: Path) -> None:
        """Write the files from which open_clip recreates it."""
        ...


class OpenClipTokenizer:
    """The tokenizer of another encoder, as open_clip loads it from the encoder's directory.

    Args:
        directory: the encoder.
        context_length: length of a sequence.

    Raises:
        UserError: the directory's tokenizer cannot be loaded.
    """

    def __init__(self, directory: Path, context_length: int) -> None:
        self.directory, self.context_length = directory, context_length
        with without_wandb():
            import open_clip

        with library_errors_as_user_errors(f"{CONFIG_FIELD}: {directory}: its tokenizer cannot be loaded"):
            self._tokenize: Any = open_clip.get_tokenizer(f"local-dir:{directory}", context_length=context_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows (n, context length) int64."""
        return self._tokenize([truncate_text(text, self.context_length) for text in texts])

    def save(self, directory: Path) -> None:
        """Copy the tokenizer's files."""
        copy_tokenizer_files(self.directory, directory)


class LanguageModelTokenizer:
    """The tokenizer of a language model of transformers, used as open_clip's ``HFTokenizer`` does.

    Args:
        text_cfg: open_clip's, with ``hf_tokenizer_name`` and ``hf_model_name``.

    Raises:
        UserError: it cannot be loaded, has unknown options, or tokens that the model lacks.
    """

    def __init__(self, text_cfg: Mapping[str, Any]) -> None:
        from open_clip.tokenizer import get_clean_fn

        name, self.context_length = text_cfg["hf_tokenizer_name"], int(text_cfg["context_length"])
        options = dict(text_cfg.get("tokenizer_kwargs", {}))
        self._clean = get_clean_fn(options.pop("clean", "whitespace"))
        if options:
            raise UserError(f"{CONFIG_FIELD}: tokenizer_kwargs: expected only clean, got {', '.join(options)}")
        self._tokenizer = load_tokenizer(name)
        config = read_text_config(text_cfg["hf_model_name"])
        if len(self._tokenizer) > config.vocab_size:
            raise UserError(
                f"{CONFIG_FIELD}: hf_tokenizer_name: {name}: expected at most {config.vocab_size} tokens, "
                f"the vocabulary of {text_cfg['hf_model_name']}, got {len(self._tokenizer)}"
            )
        if text_cfg.get("hf_pooler_type") == "last_pooler" and config.pad_token_id in self._tokenizer("").input_ids:
            raise UserError(
                f"{CONFIG_FIELD}: hf_tokenizer_name: {name}: it adds the padding token {config.pad_token_id} to texts, "
                "so that last_pooler cannot find a text's end; set another pad_token_id in the model's config.json"
            )
        self._tokenizer.pad_token = self._tokenizer.convert_ids_to_tokens(config.pad_token_id)
        self._tokenizer.padding_side = self._tokenizer.truncation_side = "right"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows (n, context length) int64."""
        cleaned = [self._clean(truncate_text(text, self.context_length)) for text in texts]
        return self._tokenizer(
            cleaned, padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        ).input_ids

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(directory)


def build_text_tokenizer(config: ModelConfig) -> TextTokenizer:
    """Return the tokenizer of the towers in ``config``.

    Raises:
        UserError: the config is wrong, or another encoder's tokenizer cannot be loaded.
    """
    text = architectures.model_cfg(config)["text_cfg"]
    if architectures.is_encoder_ref(config.architecture):
        directory = resolve_encoder_dir(config.architecture, CONFIG_FIELD)
        if state_tokenizer(found := require_encoder_config(directory)) is found:
            return OpenClipTokenizer(directory, int(text["context_length"]))
    return LanguageModelTokenizer(text) if "hf_model_name" in text else ClipsTokenizer(int(text["context_length"]))


def copy_tokenizer_files(source: Path, directory: Path) -> None:
    """Copy the small files of ``source`` that may belong to a tokenizer, without config and artifact records."""
    excluded = {*HASH_EXCLUDED_FILES, OPEN_CLIP_CONFIG, "config.json", CAPTIONER_CONFIG}
    for path in sorted(source.iterdir()):
        if path.suffix in _ENDINGS and path.name not in excluded:
            shutil.copyfile(path, directory / path.name)
