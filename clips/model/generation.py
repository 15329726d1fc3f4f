"""Captions by an encoder's captioner: all words in parallel, or one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from clips.model.captioner import Captioner
from clips.model.tokenizer import BOS, EOS, PAD, ClipsTokenizer
from clips.model.towers import Towers, encode_image, encode_text


@torch.inference_mode()
def caption_images(towers: Towers, captioner: Captioner, images: Tensor, texts: Tensor | None) -> list[str]:
    """Return the captions of B images.

    Args:
        towers: an encoder's open_clip model, in evaluation mode.
        captioner: of the same encoder, in evaluation mode.
        images: (B, 3, S, S), normalized pixels.
        texts: (B, L) token sequences of their web captions; not used, and may be None, if the captioner reads no text.
    """
    image_tokens = encode_image(towers, images)[1].float()
    text_tokens = None
    if captioner.text_projection is not None and texts is not None:
        text_tokens = encode_text(towers, texts)[1].float()
    return [ClipsTokenizer().decode(tokens) for tokens in generate(captioner, image_tokens, text_tokens)]


def generate(captioner: Captioner, image_tokens: Tensor, text_tokens: Tensor | None) -> list[list[int]]:
    """Return the tokens of the captions of B images, without begin and end token.

    A captioner of learnable tokens predicts all words in parallel, a teacher-forced one word after word: the most
    probable token at each position.

    Args:
        captioner: in evaluation mode.
        image_tokens: (B, I, image width).
        text_tokens: (B, W, text width), or None if it reads no text.
    """
    if captioner.embedding is None:
        hidden = captioner.decode(image_tokens, text_tokens)  # the head runs per sample: it has 32,000 logits per word
        return [_until_end(captioner.head(row).argmax(dim=-1).tolist()) for row in hidden]
    return [
        _continue(captioner, image_tokens[n : n + 1], None if text_tokens is None else text_tokens[n : n + 1])
        for n in range(len(image_tokens))
    ]


def _continue(captioner: Captioner, image_tokens: Tensor, text_tokens: Tensor | None) -> list[int]:
    """Return the tokens of one image's caption, each fed to the captioner to predict the next."""
    tokens = [BOS]
    while len(tokens) < captioner.config.length and tokens[-1] != EOS:
        row = torch.tensor([tokens], device=image_tokens.device)
        hidden = captioner.decode(image_tokens, text_tokens, len(tokens), row)[0, -1]
        logits = captioner.head(hidden)
        logits[[PAD, BOS]] = -torch.inf
        tokens.append(int(logits.argmax()))
    return _until_end(tokens)


def _until_end(tokens: list[int]) -> list[int]:
    words = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
    return [token for token in words if token not in {PAD, BOS}]
