"""The CLIPS tokenization: lower-cased BERT WordPiece between a begin and an end token, class token last.

>>> ClipsTokenizer(8)("a red car")
tensor([[   1, 1037, 2417, 2482,    2,    0,    0,  101]])

Source: [C] of `clips.method.recipes`; equal to open_clip's ``HFTokenizer(tokenizer_mode="clips")`` token by token.
The vocabulary (``vocab/vocab.txt``, BERT base uncased, Apache-2.0) ships with the package: no download is needed.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from clips.core.artifact import HASH_EXCLUDED_FILES
from clips.errors import UserError
from clips.lazy_import import without_wandb
from clips.model.loading import library_errors_as_user_errors
from clips.model_refs import CAPTIONER_CONFIG, OPEN_CLIP_CONFIG

if TYPE_CHECKING:
    from torch import Tensor

PAD, BOS, EOS, CLASS = 0, 1, 2, 101
VOCAB_SIZE = 32_000  # rows of the embedding table and of the caption head; the vocabulary fills 30,522 of them
CONTEXT_LENGTH = 80
VOCAB_FILE = Path(__file__).parent / "vocab" / "vocab.txt"
_SPECIAL = {
    "pad": "[PAD]",
    "bos": "[unused0]",
    "eos": "[unused1]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
MAX_CHARS_PER_TOKEN = 50
"""Upper bound of the characters of a token, see `truncate_text`."""


class TextTokenizer(Protocol):
    """Maps texts to the token sequences of a text tower."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Rows (n, context length) int64."""
        ...

    def count_unknown(self, texts: Sequence[str]) -> tuple[int, int]:
        """(unknown tokens, all tokens) of texts, without begin, end and padding, as far as the context reaches."""
        ...

    def save(self, directory: Path) -> None:
        """Write the files from which open_clip recreates it."""
        ...


def unknown_tokens(unknown: int, tokens: int) -> str:
    """A line about the result of `TextTokenizer.count_unknown`; from 5 % it says what that means."""
    ratio = unknown / max(1, tokens)
    meaning = "; for the model, captions differ by the other tokens alone: another language or script?"
    return f"{ratio:.1%} of the tokens of captions are unknown to the tokenizer{meaning if ratio >= 0.05 else ''}"


class ClipsTokenizer:
    """Map texts to the token sequences of the text tower and the captioner.

    Args:
        context_length: length of a row for the text tower, class token included; at least 4.
    """

    def __init__(self, context_length: int = CONTEXT_LENGTH) -> None:
        if context_length < 4:
            raise UserError(f"context_length: expected at least 4 (begin, a token, end, class), got {context_length}")
        self.context_length = context_length
        self._wordpiece = wordpiece()

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Rows for the text tower, (n, context_length) int64: ``[BOS] tokens [EOS] 0 … [CLASS]``."""
        return self._rows(texts, context_length or self.context_length, last=CLASS)

    def encode_target(self, texts: str | Sequence[str], length: int = 128) -> Tensor:
        """Rows for the captioner to predict, (n, length) int64: ``[BOS] tokens [EOS] 0 …``."""
        return self._rows(texts, length)

    def count_unknown(self, texts: Sequence[str]) -> tuple[int, int]:
        """See `TextTokenizer`."""
        rows = self.encode_target(texts, self.context_length - 1)  # without the class token
        words = rows[(rows != PAD) & (rows != BOS) & (rows != EOS)].tolist()
        return words.count(self._wordpiece.token_to_id(_SPECIAL["unk"])), len(words)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Return the text of one sequence up to its first end token, without the special tokens."""
        ids = [int(token) for token in tokens]
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        return self._wordpiece.decode([token for token in ids if token < self._wordpiece.get_vocab_size()])

    def save(self, directory: str | Path) -> None:
        """Write the files from which unmodified ``open_clip.get_tokenizer("local-dir:…")`` loads the same tokenizer.

        They state no maximum length: open_clip truncates texts itself, and transformers would only print a warning.
        """
        folder = Path(directory)
        self._wordpiece.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        } | {f"{name}_token": token for name, token in _SPECIAL.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "vocab.txt").write_bytes(VOCAB_FILE.read_bytes())

    def _rows(self, texts: str | Sequence[str], length: int, last: int | None = None) -> Tensor:
        import torch  # here, so that code that only counts tokens starts faster

        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.full((len(texts), length), PAD)
        filled = rows.numpy()  # the same memory
        if last is not None:
            filled[:, -1] = last
        for row, text in zip(filled, texts, strict=True):
            ids, count = [BOS], length - 2 - (last is not None)
            for word in clean_text(truncate_text(text, count)).split(" "):
                # The cache would keep the words of texts without spaces, which have no bound.
                ids += word_ids(word) if len(word) <= 100 else word_ids.__wrapped__(word)
                if len(ids) > count:
                    break
            ids = [*ids[: count + 1], EOS]
            row[: len(ids)] = ids
        return rows


@lru_cache(maxsize=1 << 16)  # most words of a caption are frequent
def word_ids(word: str) -> tuple[int, ...]:
    """BERT's tokens of a string between two spaces, which do not depend on the other strings."""
    return tuple(wordpiece().encode(word, add_special_tokens=False).ids)


def tokenizer_text_cfg(context_length: int = CONTEXT_LENGTH) -> dict[str, Any]:
    """Return the entries of an open_clip ``text_cfg`` that select this tokenizer."""
    return {
        "context_length": context_length,
        "vocab_size": VOCAB_SIZE,
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_mode": "clips",
    }


@cache
def wordpiece() -> Tokenizer:
    """Return BERT's lower-casing WordPiece tokenizer over the shipped vocabulary, with this method's special tokens."""
    tokenizer = Tokenizer(models.WordPiece.from_file(str(VOCAB_FILE), unk_token=_SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    tokenizer.encode_special_tokens = True  # "[CLS]" in a caption is text, as in the authors' code
    return tokenizer


def truncate_text(text: str, tokens: int) -> str:
    """Return the part of a very long text that can contain its first ``tokens`` tokens; other texts unchanged.

    Tokenizers process the full text before they truncate it: one word of a megabyte takes BPE hours.
    """
    limit = MAX_CHARS_PER_TOKEN * tokens
    return text if len(text) <= limit else " ".join(text.split())[:limit]


def clean_text(text: str) -> str:
    """Return ``text`` with broken encoding fixed, HTML entities resolved and whitespace collapsed, as open_clip."""
    if not (text.isascii() and text.replace("\n", " ").isprintable() and "&" not in text):  # ASCII needs no fix
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def require_rows(tokenizer: Any, rows: int, where: str) -> None:
    """Raise UserError, which begins with ``where``, if a tokenizer has ids beyond a table of embeddings of ``rows``.

    Special tokens that no text gets, such as T5's sentinels, may be beyond it.
    """
    own = getattr(tokenizer, "tokenizer", tokenizer)  # that of transformers in open_clip's
    if isinstance(own, ClipsTokenizer):
        own = wordpiece()
    vocabulary: dict[str, int] = own.get_vocab() if hasattr(own, "get_vocab") else own.encoder
    specials = getattr(own, "added_tokens_decoder", {})
    used = {getattr(own, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk", "cls", "sep")}
    largest = max(
        token for token in vocabulary.values() if token in used or token not in specials or not specials[token].special
    )
    if largest >= rows:
        raise UserError(
            f"{where}: its tokenizer has ids up to {largest}, expected ids below {rows}, the rows of its text tower's "
            "table of embeddings"
        )


class OpenClipTokenizer:
    """The tokenizer of another encoder, as open_clip loads it from the encoder's directory.

    Args:
        directory: of the encoder.
        context_length: length of a row.
        rows: of the encoder's table of embeddings.

    Raises:
        UserError: the directory's tokenizer cannot be loaded, or has ids beyond the table.
    """

    def __init__(self, directory: Path, context_length: int, rows: int) -> None:
        self.directory, self.context_length = directory, context_length
        with without_wandb():
            import open_clip

        with library_errors_as_user_errors(f"model.architecture: {directory}: its tokenizer cannot be loaded"):
            self._tokenize: Any = open_clip.get_tokenizer(f"local-dir:{directory}", context_length=context_length)
        require_rows(self._tokenize, rows, f"model.architecture: {directory}")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows (n, context length) int64."""
        return self._tokenize([truncate_text(text, self.context_length) for text in texts])

    def count_unknown(self, texts: Sequence[str]) -> tuple[int, int]:
        """See `TextTokenizer`; tokens of bytes, as CLIP's and GPT-2's, can write every text."""
        inner = getattr(self._tokenize, "tokenizer", None)  # of transformers
        unknown, special = getattr(inner, "unk_token_id", None), set(getattr(inner, "all_special_ids", []))
        ends = {getattr(inner, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        tokens = [token for row in self(texts).tolist() for token in row if token not in special or token == unknown]
        return 0 if unknown in ends else tokens.count(unknown), len(tokens)

    def save(self, directory: Path) -> None:
        """Copy the tokenizer's files."""
        copy_tokenizer_files(self.directory, directory)


def copy_tokenizer_files(source: Path, directory: Path) -> None:
    """Copy the small files of ``source`` that may belong to a tokenizer, without config and artifact records."""
    excluded = {*HASH_EXCLUDED_FILES, OPEN_CLIP_CONFIG, "config.json", CAPTIONER_CONFIG}
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".txt", ".model") and path.name not in excluded:
            shutil.copyfile(path, directory / path.name)
