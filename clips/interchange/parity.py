"""Compare an encoder with the same model in another library: features, preprocessing of an image, tokens of texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from clips.errors import UserError
from clips.interchange.conversion import Features
from clips.interchange.hf_files import cleaning_name, has_image_processor, has_tokenizer, load_image_processor
from clips.model.architectures import complete_preprocess_cfg
from clips.model.loading import library_errors_as_user_errors
from clips.model.towers import text_pool_type

_PLAIN_TEXTS = ("a photo of a cat", "Two red buses stand beside a tree, and a dog runs across the street.", "")
_ODD_TEXTS = (
    "the dog’s toy",
    "“Curly” quotes – and … ‘dashes’",
    "résumé, São Paulo, ÎLE",
    "emoji 🙂👍🏽, 家",
    "two  spaces,\ta tab\nand a line",
    "ﬁne print, ½ of x², ＡＢＣ",
    "fish &amp; chips",
    "&hearts; and &#9829;",
    "repaired: cafÃ©",
    "word " * 200,
)
_SPECIAL_TEXTS = ("<|endoftext|> as text", "<end_of_text> as text")  # which libraries read as special tokens, or not
_LEVELS = 0.3  # of 255: rounding differs by less, lanczos from bicubic by 0.45, bilinear by 1.0, a crop's pixel by 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between an encoder and the same model in another library; None if not compared.

    Args:
        largest_difference: of unit features, of the same pixels and tokens.
        pixel_levels: mean difference of an image's pixels through both preprocessings, of 255 levels.
        image_difference: largest difference of the image's unit features through both preprocessings.
        other_tokens: texts whose tokens differ.
    """

    largest_difference: float | None = None
    pixel_levels: float | None = None
    image_difference: float | None = None
    other_tokens: list[str] | None = None

    def __str__(self) -> str:
        """In one line."""
        if self.largest_difference is None:
            return "all weights taken over by name"
        said = (
            f"features differ from the source's by {self.largest_difference:.1e} at most for the same pixels and tokens"
        )
        if self.pixel_levels is not None:
            said += (
                f", by {self.image_difference:.1e} for an image through both preprocessings "
                f"(pixels by {self.pixel_levels:.2f} of 255 levels on average)"
            )
        if self.other_tokens:
            said += f"; other tokens: {', '.join(map(repr, self.other_tokens))}"
        return said


@torch.no_grad()
def compare(encoder: Any, features: Features, directory: Path) -> Parity:
    """Compare an encoder with another library's model.

    Args:
        encoder: a `clips.encoder.LoadedEncoder`; images are noise of its size.
        features: computes the other model's features of pixels and tokens.
        directory: of transformers, whose image processor and tokenizer are compared as well, if it has them.

    Raises:
        UserError: the image's pixels differ by more than rounding, or plain texts have other tokens.
    """
    preprocess, noise = encoder.config["preprocess_cfg"], torch.Generator().manual_seed(0)
    preprocess = complete_preprocess_cfg(preprocess, preprocess["size"])
    height, width = preprocess["size"]
    pixels = torch.randn(2, 3, height, width, generator=noise)
    tokens = encoder.tokenizer(list(_PLAIN_TEXTS))
    ours = encoder.model.encode_image(pixels), encoder.model.encode_text(tokens)
    levels, through = None, None
    if has_image_processor(directory):
        # Shading, edges and noise; twice as wide as high, and larger than the encoder's images.
        rows, columns = np.mgrid[0 : height * 3 // 2, 0 : width * 3]
        shading = np.stack([columns * 200 / columns.max(), rows * 200 / rows.max(), (rows + columns) % 97 * 2], axis=-1)
        shading[(rows // 9 + columns // 13) % 5 == 0] += 50
        grain = np.random.default_rng(0).integers(0, 6, shading.shape)
        image = Image.fromarray((shading + grain).astype(np.uint8))
        with library_errors_as_user_errors(f"{directory}: transformers cannot preprocess an image"):
            other = load_image_processor(directory)(image, return_tensors="pt").pixel_values[0].float()
        own = encoder.preprocess(image)
        if own.shape != other.shape:
            raise UserError(
                f"{directory}: expected {tuple(own.shape)} from its image processor, got {tuple(other.shape)}"
            )
        levels = float(((own - other).abs() * 255 * torch.tensor(preprocess["std"]).view(3, 1, 1)).mean())
        if not levels <= _LEVELS:
            raise UserError(
                f"{directory}: open_clip's pixels would differ from its image processor's by {levels:.1f} of 255 "
                "levels on average"
            )
        through = _difference(encoder.model.encode_image(own[None]), features(other[None], tokens[:1])[0])
    return Parity(
        largest_difference=max(map(_difference, ours, features(pixels, tokens))),
        pixel_levels=levels,
        image_difference=through,
        other_tokens=_other_tokens(encoder, directory) if has_tokenizer(directory) else None,
    )


def _difference(own: torch.Tensor, other: torch.Tensor) -> float:
    return float((F.normalize(own, dim=-1) - F.normalize(other, dim=-1)).abs().max())


def _other_tokens(encoder: Any, directory: Path) -> list[str]:
    # Only the cleaning of texts may differ, which transformers does not do.
    from open_clip.tokenizer import get_clean_fn
    from transformers import AutoTokenizer

    texts = [*_PLAIN_TEXTS, *_ODD_TEXTS, *_SPECIAL_TEXTS]
    ours = encoder.tokenizer(texts)
    clean = get_clean_fn(cleaning_name(encoder.config["model_cfg"]["text_cfg"]))
    length = ours.shape[1]
    with library_errors_as_user_errors(f"{directory}: transformers cannot read its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)

    def rows(written: list[str]) -> list[list[int]]:
        return tokenizer(written, padding="max_length", truncation=True, max_length=length).input_ids

    # Padding after an end token has no effect in towers whose later tokens are masked.
    ends = tokenizer.eos_token_id if text_pool_type(encoder.model) in ("argmax", "eos") else None

    def up_to_end(row: list[int]) -> list[int]:
        return row[: row.index(ends) + 1] if ends in row else row

    def equal(own: list[int], other: list[int]) -> bool:
        return up_to_end(own) == up_to_end(other)

    for text, own, other in zip(texts, ours.tolist(), rows([clean(text) for text in texts]), strict=True):
        if text not in _SPECIAL_TEXTS and not equal(own, other):
            raise UserError(
                f"{directory}: transformers gives {text[:40]!r} other tokens than open_clip: {other}, {own}"
            )
    as_they_are = zip(texts, ours.tolist(), rows(texts), strict=True)
    return [text[:40] for text, own, other in as_they_are if not equal(own, other)]
