"""The text tower's tokenizer: this method's own, or that of an encoder whose towers are trained unchanged.

tokenize = text_tokenizer(ModelConfig(architecture="imported/clip"))
tokenize(["a red car"])  # (1, context length)
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from clips.commandline.lean_imports import without_wandb
from clips.core.artifact import RECORDS
from clips.errors import UserError, reason_of
from clips.model import architectures
from clips.model.architectures import FIELD, ModelConfig
from clips.model.tokenizer import ClipsTokenizer, shortened
from clips.references import CAPTIONER_CONFIG, CONFIG, encoder_directory

_ENDINGS = (".json", ".txt", ".model")


class TextTokenizer(Protocol):
    """Map texts to the token sequences of a text tower."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Rows (n, context length) int64."""
        ...

    def save(self, directory: Path) -> None:
        """Write the files from which open_clip recreates it."""
        ...


class StockTokenizer:
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

        try:
            self._tokenize: Any = open_clip.get_tokenizer(f"local-dir:{directory}", context_length=context_length)
        except Exception as error:  # transformers passes on the exceptions of its parts
            raise UserError(f"{FIELD}: {directory}: its tokenizer cannot be loaded ({reason_of(error)})") from None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows (n, context length) int64."""
        return self._tokenize([shortened(text, self.context_length) for text in texts])

    def save(self, directory: Path) -> None:
        """Copy the tokenizer's files."""
        copy_tokenizer(self.directory, directory)


def text_tokenizer(config: ModelConfig) -> TextTokenizer:
    """Return the tokenizer of the towers in ``config``.

    Raises:
        UserError: the config is wrong, or another encoder's tokenizer cannot be loaded.
    """
    length = int(architectures.model_cfg(config)["text_cfg"]["context_length"])
    if not architectures.is_reference(config.architecture):
        return ClipsTokenizer(length)
    return _stock(config.architecture, length)


@functools.cache
def _stock(reference: str, context_length: int) -> StockTokenizer:
    return StockTokenizer(encoder_directory(reference, FIELD), context_length)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy the small files of ``source`` that may belong to a tokenizer, without config and artifact records."""
    for path in sorted(source.iterdir()):
        if path.suffix in _ENDINGS and path.name not in {*RECORDS, CONFIG, "config.json", CAPTIONER_CONFIG}:
            shutil.copyfile(path, directory / path.name)
