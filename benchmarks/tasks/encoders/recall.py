"""Ranks and recalls from embeddings, tile by tile, so that the full similarity matrix is never in memory.

Letters: N images, M captions, D width, P matching image–caption pairs, Q queries.

Recall at K is CLIP_benchmark's: the ratio of queries with a right answer among the K most similar ones; for an image
any of its captions is right. Answers as similar as the right one (within ``TIE_TOLERANCE``) count as tied in random
order, and the expected hit is used, so that a model with constant similarities gets the chance level.

Every tile of similarities serves both directions. The similarity of each query's best right answer is computed before
the first tile, so that a tile only needs counting: the entries above that value, and the entries tied with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clips.commandline.progress import Progress

if TYPE_CHECKING:
    import torch

    from clips.parallel.distributed import DistributedContext

TIE_TOLERANCE = 1e-6
RECALL_KS = (1, 5, 10)
_TILE = (512, 2048)  # images × captions: 4 MB of similarities, which fit into a core's cache; GPUs use larger tiles
_GPU_TILE = (8192, 32768)


@dataclass(frozen=True)
class RetrievalRanks:
    """Ranks of the right answers of each of Q queries."""

    above: np.ndarray  # (Q,) number of wrong answers more similar than the best right one
    tied: np.ndarray  # (Q,) number of answers as similar as the best right one, including right ones
    right: np.ndarray  # (Q,) number of right answers among the tied
    first: np.ndarray  # (Q,) index of a most similar answer

    def hit(self, k: int) -> np.ndarray:
        """(Q,) probability that a right answer is among the first ``k``, ties in random order."""
        slots = np.clip(k - self.above, 0, self.tied)  # of the first k, filled from the tied answers
        miss = np.ones(len(self.above))
        wrong = self.tied - self.right
        for draw in range(int(slots.max(initial=0))):
            probability = np.clip(wrong - draw, 0, None) / np.maximum(self.tied - draw, 1)
            miss = np.where(draw < slots, miss * probability, miss)
        return 1.0 - miss

    def expected(self) -> np.ndarray:
        """(Q,) expected rank, counted from 1, of the first right answer."""
        return self.above + (self.tied + 1) / (self.right + 1)


def compute_ranks(
    images: torch.Tensor, captions: torch.Tensor, pairs: np.ndarray, processes: DistributedContext | None = None
) -> tuple[RetrievalRanks, RetrievalRanks]:
    """Ranks of image → caption and of caption → image queries.

    Args:
        images: (N, D) unit vectors.
        captions: (M, D) unit vectors.
        pairs: (P, 2) indices of every matching image and caption. Each image and each caption needs at least one.
        processes: the processes that share the work; all need the same vectors, and all get the ranks.

    Raises ValueError: an image or a caption without a right answer.
    """
    import torch

    right = torch.as_tensor(np.asarray(pairs), device=images.device)
    similarities = _pair_similarities(images, captions, right)
    queries = [
        Queries.of(len(side), right[:, column], similarities, images.device)
        for column, side in enumerate((images, captions))
    ]
    rank, count = (0, 1) if processes is None else (processes.rank, processes.count)
    with Progress("comparing images and captions", len(images) // count, "images") as progress:
        height, width = _GPU_TILE if images.is_cuda else _TILE
        for top in range(rank * height, len(images), count * height):  # every ``count``-th strip of images
            rows = slice(top, min(top + height, len(images)))
            for left in range(0, len(captions), width):
                columns = slice(left, min(left + width, len(captions)))
                similarity = images[rows] @ captions[columns].T
                queries[0].count(similarity, rows, left)
                queries[1].count(similarity.T, columns, top)
            progress.advance(rows.stop - top)
    if count > 1:
        for side in queries:
            side.all_reduce()
    return queries[0].ranks(), queries[1].ranks()


def _pair_similarities(images: torch.Tensor, captions: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """(P,) similarity of each matching pair."""
    import torch

    similarities = torch.empty(len(pairs), dtype=images.dtype, device=images.device)
    size = min(len(pairs), 512)  # pairs per chunk, written into the same buffer: new buffers would add up
    left, right = (torch.empty(size, images.shape[1], dtype=images.dtype, device=images.device) for _ in range(2))
    for start in range(0, len(pairs), size):
        block = pairs[start : start + size]
        first, second = left[: len(block)], right[: len(block)]
        torch.index_select(images, 0, block[:, 0], out=first)
        torch.index_select(captions, 0, block[:, 1], out=second)
        torch.sum(first.mul_(second), dim=1, out=similarities[start : start + size])
    return similarities


@dataclass
class Queries:
    """One direction's counts, growing tile by tile."""

    best: torch.Tensor  # (Q,) similarity of the best right answer
    right: torch.Tensor  # (Q,) right answers tied with it, itself included
    above: torch.Tensor  # (Q,) answers above it so far
    reached: torch.Tensor  # (Q,) answers above it or tied with it so far
    highest: torch.Tensor  # (Q,) the highest similarity so far
    first: torch.Tensor  # (Q,) the index of that answer

    @staticmethod
    def of(count: int, queries: torch.Tensor, similarities: torch.Tensor, device: torch.device) -> Queries:
        """Counters of Q queries before the first tile, from the query and the similarity (P,) of each matching pair."""
        import torch

        lowest = torch.full((count,), -torch.inf, dtype=similarities.dtype, device=device)
        best = lowest.scatter_reduce(0, queries, similarities, "amax")
        if not bool(best.isfinite().all()):
            raise ValueError(f"query {int(best.isfinite().logical_not().nonzero()[0])} has no right answer")
        none = torch.zeros(count, dtype=torch.int64, device=device)
        right = none.scatter_add(0, queries, (similarities >= best[queries] - TIE_TOLERANCE).long())
        return Queries(best, right, none.clone(), none.clone(), lowest.clone(), none.clone())

    def count(self, similarity: torch.Tensor, mine: slice, start: int) -> None:
        """Count a (q, a) tile of similarities of the queries ``mine`` and the answers from ``start``."""
        import torch

        best = self.best[mine, None]
        self.above[mine] += _count(similarity > best + TIE_TOLERANCE)
        self.reached[mine] += _count(similarity >= best - TIE_TOLERANCE)
        highest, index = similarity.max(dim=1)
        better = highest > self.highest[mine]
        self.highest[mine] = torch.where(better, highest, self.highest[mine])
        self.first[mine] = torch.where(better, index + start, self.first[mine])

    def all_reduce(self) -> None:
        """Sum the counters over all processes."""
        import torch
        import torch.distributed as dist

        dist.all_reduce(self.above)
        dist.all_reduce(self.reached)
        highest = self.highest.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        none = torch.full_like(self.first, torch.iinfo(self.first.dtype).max)
        self.first = torch.where(self.highest == highest, self.first, none)
        dist.all_reduce(self.first, dist.ReduceOp.MIN)

    def ranks(self) -> RetrievalRanks:
        """The ranks when all tiles are counted."""
        import torch

        tied = torch.maximum(self.reached - self.above, self.right)  # rounding may exclude the right answer itself
        return RetrievalRanks(*(counts.cpu().numpy() for counts in (self.above, tied, self.right, self.first)))


def _count(mask: torch.Tensor) -> torch.Tensor:
    """(q,) number of true values per row; summed as bytes, which is several times faster than as booleans."""
    import torch

    return mask.view(torch.uint8).sum(dim=1, dtype=torch.int32)
