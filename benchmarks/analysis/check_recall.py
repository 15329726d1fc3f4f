"""Recall against its definition and against CLIP_benchmark's own function, on the same embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.check_base import CheckFailedError, CheckSkippedError, VerifyConfig, expect_close
from benchmarks.tasks.encoders.recall import RECALL_KS, compute_ranks

if TYPE_CHECKING:
    import torch

_PICTURES, _WIDTH = 300, 32


def check_recall_by_definition(_: VerifyConfig) -> str:
    """Sort every query's answers and search for the first right one."""
    images, captions, owner = make_test_embeddings()
    to_captions, to_images = compute_ranks(images, captions, _pairs(owner))
    similarity = (images @ captions.T).numpy()
    right = owner[None, :] == np.arange(_PICTURES)[:, None]
    for name, mine, scores, positive in (
        ("I→T", to_captions, similarity, right),
        ("T→I", to_images, similarity.T, right.T),
    ):
        order = np.argsort(-scores, axis=1, kind="stable")
        first = np.take_along_axis(positive, order, axis=1).argmax(axis=1)
        for cut in RECALL_KS:
            expect_close(float(mine.hit(cut).mean()), float((first < cut).mean()), f"{name} R@{cut}")
    return f"{2 * len(RECALL_KS)} recalls of {_PICTURES} images with {len(captions)} captions are equal"


def check_constant_model(_: VerifyConfig) -> str:
    """All answers tie: the expected hit is chance, 1 in N for a caption."""
    import torch

    images, owner = torch.ones(50, 4) / 2, np.repeat(np.arange(50), 5)
    _captions, to_images = compute_ranks(images, images[owner], _pairs(owner))
    for cut in RECALL_KS:
        expect_close(float(to_images.hit(cut).mean()), cut / 50, f"T→I R@{cut} of a constant model")
    return "R@1, 5, 10 of 50 images are 2, 10, 20 %, for any order of them"


def check_clip_benchmark(_: VerifyConfig) -> str:
    """Its own function on the same similarities without ties: it orders ties as ``topk`` does."""
    try:
        from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
    except ImportError:
        raise CheckSkippedError("CLIP_benchmark is not installed (pip install 'clips-suite[verify]')") from None
    import torch

    images, captions, owner = make_test_embeddings()
    to_captions, to_images = compute_ranks(images, captions, _pairs(owner))
    scores = captions @ images.T
    right = torch.as_tensor(owner)[:, None] == torch.arange(_PICTURES)[None, :]
    for cut in RECALL_KS:
        for mine, theirs in (
            (to_images, recall_at_k(scores, right, cut)),
            (to_captions, recall_at_k(scores.T, right.T, cut)),
        ):
            unlike = int((mine.hit(cut) != (theirs > 0).numpy()).sum())
            if unlike:
                raise CheckFailedError(f"R@{cut}: {unlike} of {len(theirs)} queries are judged otherwise")
    same = torch.ones(_PICTURES, 4) / 2
    by_order = (recall_at_k(same @ same[owner].T, right.T, 5) > 0).float().mean()
    chance = compute_ranks(same, same[owner], _pairs(owner))[0].hit(5).mean()
    return (
        f"every query is judged alike. Where all answers tie, its I→T R@5 is {by_order:.1%} by the order they come in, "
        f"ours {chance:.1%}, which is chance"
    )


def make_test_embeddings() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Unit vectors of images and of one to five captions each, and whose the captions are; no two ties."""
    import torch

    generator = torch.Generator().manual_seed(0)
    owner = np.repeat(np.arange(_PICTURES), 1 + np.arange(_PICTURES) % 5)
    images = torch.nn.functional.normalize(torch.randn(_PICTURES, _WIDTH, generator=generator), dim=1)
    noise = torch.randn(len(owner), _WIDTH, generator=generator) / _WIDTH**0.5
    return images, torch.nn.functional.normalize(images[owner] + 1.5 * noise, dim=1), owner


def _pairs(owner: np.ndarray) -> np.ndarray:
    """(M, 2) right pairs, where each caption has one image (M,)."""
    return np.stack([owner, np.arange(len(owner))], axis=1)
