"""Ranks and recalls from embeddings, in blocks, so that the whole similarity matrix is never held.

Letters: N pictures, M captions, D width.

Recall at K is CLIP_benchmark's: the share of queries with a right answer among the K most similar ones; for a
picture any of its captions is right. Answers as similar as the right one (within ``TIE``) are taken to come in
random order and the expected hit is counted, so that a model that cannot tell anything apart scores chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

TIE = 1e-6
CUTS = (1, 5, 10)
_BLOCK_CELLS = 16_000_000


@dataclass(frozen=True)
class Ranks:
    """Where the right answers stand for each of Q queries.

    Args:
        above: (Q,) wrong answers more similar than the best right one.
        tied: (Q,) answers as similar as the best right one, itself and other right ones included.
        right: (Q,) right ones among the tied.
        first: (Q,) index of a most similar answer.
    """

    above: np.ndarray
    tied: np.ndarray
    right: np.ndarray
    first: np.ndarray

    def hit(self, k: int) -> np.ndarray:
        """(Q,) probability that a right answer is among the first ``k``, ties in random order."""
        places = np.clip(k - self.above, 0, self.tied)
        miss = np.ones(len(self.above))
        wrong = self.tied - self.right
        for drawn in range(int(places.max(initial=0))):
            share = np.clip(wrong - drawn, 0, None) / np.maximum(self.tied - drawn, 1)
            miss = np.where(drawn < places, miss * share, miss)
        return 1.0 - miss

    def expected(self) -> np.ndarray:
        """(Q,) expected rank, counted from 1, of the first right answer."""
        return self.above + (self.tied + 1) / (self.right + 1)


def ranks(images: torch.Tensor, captions: torch.Tensor, owner: Sequence[int] | np.ndarray) -> tuple[Ranks, Ranks]:
    """Ranks of picture → caption and of caption → picture queries.

    Args:
        images: (N, D) unit vectors.
        captions: (M, D) unit vectors.
        owner: (M,) the picture that each caption belongs to, or (P, 2) all right pairs of a picture and a caption.
    """
    import torch

    pairs = np.asarray(owner)
    if pairs.ndim == 1:
        pairs = np.stack([pairs, np.arange(len(pairs))], axis=1)

    def right(queries: int, answers: int, count: int) -> Callable[[slice], torch.Tensor]:
        def of(rows: slice) -> torch.Tensor:
            here = pairs[(pairs[:, queries] >= rows.start) & (pairs[:, queries] < rows.stop)]
            mask = torch.zeros(rows.stop - rows.start, count, dtype=torch.bool)
            mask[here[:, queries] - rows.start, here[:, answers]] = True
            return mask.to(images.device)

        return of

    to_captions = _in_blocks(images, captions, right(0, 1, len(captions)))
    to_images = _in_blocks(captions, images, right(1, 0, len(images)))
    return to_captions, to_images


def _in_blocks(queries: torch.Tensor, answers: torch.Tensor, is_right: Callable[[slice], torch.Tensor]) -> Ranks:
    import torch

    size = max(1, _BLOCK_CELLS // max(1, len(answers)))
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        similarity = queries[rows] @ answers.T
        right = is_right(rows)
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        tied = (similarity - best).abs() <= TIE
        found = (
            (similarity > best + TIE).sum(dim=1),
            tied.sum(dim=1),
            (tied & right).sum(dim=1),
            similarity.argmax(dim=1),
        )
        for part, values in zip(parts, found, strict=True):
            part.append(values.cpu().numpy())
    return Ranks(*(np.concatenate(part) for part in parts))
