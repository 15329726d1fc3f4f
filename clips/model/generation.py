"""Decode captions: all words in parallel, or autoregressively."""

from __future__ import annotations

import torch
from torch import Tensor

from clips.errors import UserError
from clips.model.captioner import Captioner
from clips.model.tokenizer import BOS, EOS, PAD


def generate(
    captioner: Captioner, image_tokens: Tensor, text_tokens: Tensor | None, *, num_beams: int = 1
) -> list[int]:
    """Return the tokens of one image's caption, without begin and end token.

    A captioner of learnable tokens predicts all words in parallel. A teacher-forced one decodes autoregressively:
    greedily, or by beam search over the mean log-probability of a word.

    Args:
        captioner: in evaluation mode.
        image_tokens: (1, I, image width).
        text_tokens: (1, W, text width), or None if it reads no text.
        num_beams: number of beams.

    Raises:
        UserError: more than one beam for a captioner that predicts in parallel.
    """
    if captioner.embedding is None:
        if num_beams > 1:
            raise UserError("num_beams: expected 1, because this captioner predicts all words in parallel")
        return _until_end(captioner.logits(image_tokens, text_tokens)[0].argmax(dim=-1).tolist())
    beams, finished = [([BOS], 0.0)], []
    for _ in range(captioner.config.length - 1):
        rows = torch.tensor([tokens for tokens, _ in beams], device=image_tokens.device)
        images = image_tokens.expand(len(beams), -1, -1)
        texts = None if text_tokens is None else text_tokens.expand(len(beams), -1, -1)
        hidden = captioner.decode(images, texts, rows.shape[1], rows)[:, -1]  # the head has 32,000 logits per word
        scores = captioner.head(hidden).log_softmax(dim=-1)
        scores[:, [PAD, BOS]] = -torch.inf
        best, tokens = scores.topk(num_beams, dim=-1)
        extended = [
            ([*beams[row][0], int(tokens[row, rank])], beams[row][1] + float(best[row, rank]))
            for row in range(len(beams))
            for rank in range(num_beams)
        ]
        extended.sort(key=lambda beam: -beam[1])
        finished += [beam for beam in extended[:num_beams] if beam[0][-1] == EOS]
        beams = [beam for beam in extended if beam[0][-1] != EOS][:num_beams]
        if len(finished) >= num_beams:
            break
    best_beam = max(finished or beams, key=lambda beam: beam[1] / (len(beam[0]) - 1))
    return _until_end(best_beam[0][1:])


def generate_batch(captioner: Captioner, image_tokens: Tensor, text_tokens: Tensor | None) -> list[list[int]]:
    """Return the result of `generate` for each of B images, with one beam.

    Args:
        captioner: in evaluation mode.
        image_tokens: (B, I, image width).
        text_tokens: (B, W, text width), or None if it reads no text.
    """
    if captioner.embedding is None:
        hidden = captioner.decode(image_tokens, text_tokens)  # the head runs per sample: it has 32,000 logits per word
        return [_until_end(captioner.head(row).argmax(dim=-1).tolist()) for row in hidden]
    return [
        generate(captioner, image_tokens[n : n + 1], None if text_tokens is None else text_tokens[n : n + 1])
        for n in range(len(image_tokens))
    ]


def _until_end(tokens: list[int]) -> list[int]:
    words = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
    return [token for token in words if token not in {PAD, BOS}]
