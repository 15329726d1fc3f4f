"""What a model's config resolves to, with the text tower's tokenizer: this method's, or that of another encoder.

tokenize = resolve_architecture(ModelConfig(architecture="imported/clip")).tokenizer
tokenize(["a red car"])  # (1, context length)
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from clips.core.artifact import HASH_EXCLUDED_FILES
from clips.lazy_import import without_wandb
from clips.model import architectures
from clips.model.architectures import CONFIG_FIELD, ModelConfig
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a model's config resolves to: the same with and without initial weights, for every recipe.

    Args:
        model_cfg: open_clip's, of both towers.
        preprocess_cfg: open_clip's.
        tokenizer: of the text tower.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: TextTokenizer

    @property
    def image_size(self) -> int:
        """In pixels."""
        return int(self.preprocess_cfg["size"][0])


def resolve_architecture(config: ModelConfig) -> Architecture:
    """Resolve ``config``.

    Raises:
        UserError: the architecture is unknown, sizes do not fit, or another encoder's tokenizer cannot be loaded.
    """
    cfg = architectures.model_cfg(config)
    length = int(cfg["text_cfg"]["context_length"])
    tokenizer: TextTokenizer = ClipsTokenizer(length)
    if architectures.is_encoder_ref(config.architecture):
        directory = resolve_encoder_dir(config.architecture, CONFIG_FIELD)
        if state_tokenizer(found := require_encoder_config(directory)) is found:
            tokenizer = OpenClipTokenizer(directory, length)
    preprocess = architectures.resolve_preprocess_cfg(config, cfg)
    return Architecture(model_cfg=cfg, preprocess_cfg=preprocess, tokenizer=tokenizer)


def copy_tokenizer_files(source: Path, directory: Path) -> None:
    """Copy the small files of ``source`` that may belong to a tokenizer, without config and artifact records."""
    excluded = {*HASH_EXCLUDED_FILES, OPEN_CLIP_CONFIG, "config.json", CAPTIONER_CONFIG}
    for path in sorted(source.iterdir()):
        if path.suffix in _ENDINGS and path.name not in excluded:
            shutil.copyfile(path, directory / path.name)
