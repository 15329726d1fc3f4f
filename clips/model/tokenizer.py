"""The CLIPS tokenization: lower-cased BERT WordPiece between a begin and an end token, class token last.

>>> ClipsTokenizer(8)("a red car")
tensor([[   1, 1037, 2417, 2482,    2,    0,    0,  101]])

Source: [C] of the method; equal to unmodified open_clip's ``HFTokenizer(tokenizer_mode="clips")`` token by token.
The vocabulary (``vocab/vocab.txt``, BERT base uncased, Apache-2.0) ships with the package: no download is needed.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from clips.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PAD, BOS, EOS, UNKNOWN, CLASS = 0, 1, 2, 100, 101
VOCAB_SIZE = 32_000  # rows of the embedding table and of the caption head; the vocabulary fills 30,522 of them
CONTEXT_LENGTH = 80
VOCAB_FILE = Path(__file__).parent / "vocab" / "vocab.txt"
_SPECIAL = {"pad": "[PAD]", "bos": "[unused0]", "eos": "[unused1]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
_SPECIAL["mask"] = "[MASK]"
_WORDS_KEPT = 1 << 16  # words whose tokens a process caches: most words of a caption are frequent
_LONGEST_WORD = 100  # of cached words; otherwise a process would cache texts without spaces, of any length
MAX_CHARS_PER_TOKEN = 50
"""More characters than any token has, see `shortened`."""


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

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Rows for the text tower, (n, context_length) int64: ``[BOS] tokens [EOS] 0 … [CLASS]``."""
        return self._rows(texts, self.context_length, last=CLASS)

    def encode_target(self, texts: str | Sequence[str], length: int = 128) -> Tensor:
        """Rows for the captioner to predict, (n, length) int64: ``[BOS] tokens [EOS] 0 …``."""
        return self._rows(texts, length)

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
        import torch  # not needed by code that only counts tokens

        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.full((len(texts), length), PAD)
        filled = rows.numpy()  # the same memory
        if last is not None:
            filled[:, -1] = last
        for row, text in zip(filled, texts, strict=True):
            kept = [BOS, *_first_ids(text, length - 2 - (last is not None)), EOS]
            row[: len(kept)] = kept
        return rows


def _first_ids(text: str, count: int) -> list[int]:
    """Return the first ``count`` tokens of ``text``, without special ones."""
    ids: list[int] = []
    for word in clean_text(truncate_text(text, count)).split(" "):
        ids += _ids_of(word) if len(word) <= _LONGEST_WORD else wordpiece().encode(word, add_special_tokens=False).ids
        if len(ids) >= count:
            break
    return ids[:count]


@lru_cache(maxsize=_WORDS_KEPT)
def _ids_of(word: str) -> tuple[int, ...]:
    """Return the tokens of a string between two spaces: WordPiece does not look beyond it."""
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
    tokenizer.encode_special_tokens = True  # "[CLS]" in a caption is a word in brackets [C]
    return tokenizer


def truncate_text(text: str, tokens: int) -> str:
    """Return the part of a very long text that can contain its first ``tokens`` tokens; other texts unchanged.

    Unmodified tokenizers process all of it first: one word of a megabyte takes BPE hours.
    """
    most = MAX_CHARS_PER_TOKEN * tokens
    return text if len(text) <= most else " ".join(text.split())[:most]


def clean_text(text: str) -> str:
    """Return ``text`` with broken encoding fixed, HTML entities resolved and whitespace collapsed, as open_clip."""
    if not (text.isascii() and text.replace("\n", " ").isprintable() and "&" not in text):  # ASCII needs no fix
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())
