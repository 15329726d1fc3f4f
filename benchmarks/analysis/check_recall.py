"""Recall against its definition and against CLIP_benchmark's own function, on the same embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.check_base import CheckFailedError, CheckSkippedError, VerifyConfig, expect_close
from benchmarks.tasks.encoders.recall import RECALL_KS, compute_ranks

if TYPE_CHECKING:
    import torch

_NUM_IMAGES, _WIDTH = 300, 32


def check_recall_by_definition(_: VerifyConfig) -> str:
    """Sort the results of every query and find the first correct one."""
    images, captions, owner = make_test_embeddings()
    to_captions, to_images = compute_ranks(images, captions, _pairs(owner))
    similarity = (images @ captions.T).numpy()
    correct = owner[None, :] == np.arange(_NUM_IMAGES)[:, None]
    for name, ranks, scores, positive in (
        ("I→T", to_captions, similarity, correct),
        ("T→I", to_images, similarity.T, correct.T),
    ):
        order = np.argsort(-scores, axis=1, kind="stable")
        first = np.take_along_axis(positive, order, axis=1).argmax(axis=1)
        for k in RECALL_KS:
            expect_close(float(ranks.hit(k).mean()), float((first < k).mean()), f"{name} R@{k}")
    return f"{2 * len(RECALL_KS)} recalls of {_NUM_IMAGES} images with {len(captions)} captions are equal"


def check_constant_model(_: VerifyConfig) -> str:
    """With equal similarities, the expected recall is chance: 1 in N for a caption."""
    import torch

    images, owner = torch.ones(50, 4) / 2, np.repeat(np.arange(50), 5)
    _captions, to_images = compute_ranks(images, images[owner], _pairs(owner))
    for k in RECALL_KS:
        expect_close(float(to_images.hit(k).mean()), k / 50, f"T→I R@{k} of a constant model")
    return "R@1, 5, 10 of 50 images are 2, 10, 20 %, for any order of them"


def check_clip_benchmark(_: VerifyConfig) -> str:
    """CLIP_benchmark's function on the same similarities, without ties, which it orders as ``topk`` does."""
    try:
        from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
    except ImportError:
        raise CheckSkippedError("CLIP_benchmark is not installed (pip install 'clips-suite[verify]')") from None
    import torch

    images, captions, owner = make_test_embeddings()
    to_captions, to_images = compute_ranks(images, captions, _pairs(owner))
    scores = captions @ images.T
    correct = torch.as_tensor(owner)[:, None] == torch.arange(_NUM_IMAGES)[None, :]
    for k in RECALL_KS:
        for ranks, expected in (
            (to_images, recall_at_k(scores, correct, k)),
            (to_captions, recall_at_k(scores.T, correct.T, k)),
        ):
            num_different = int((ranks.hit(k) != (expected > 0).numpy()).sum())
            if num_different:
                raise CheckFailedError(f"R@{k}: {num_different} of {len(expected)} queries differ")
    equal = torch.ones(_NUM_IMAGES, 4) / 2
    by_order = (recall_at_k(equal @ equal[owner].T, correct.T, 5) > 0).float().mean()
    chance = compute_ranks(equal, equal[owner], _pairs(owner))[0].hit(5).mean()
    return (
        f"all queries agree. If all similarities are equal, CLIP_benchmark's I→T R@5 is {by_order:.1%} and depends on "
        f"the order of the captions; the harness gives {chance:.1%}, which is chance"
    )


def make_test_embeddings() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Unit vectors of images and of one to five captions each, without ties, and each caption's image index."""
    import torch

    generator = torch.Generator().manual_seed(0)
    owner = np.repeat(np.arange(_NUM_IMAGES), 1 + np.arange(_NUM_IMAGES) % 5)
    images = torch.nn.functional.normalize(torch.randn(_NUM_IMAGES, _WIDTH, generator=generator), dim=1)
    noise = torch.randn(len(owner), _WIDTH, generator=generator) / _WIDTH**0.5
    return images, torch.nn.functional.normalize(images[owner] + 1.5 * noise, dim=1), owner


def _pairs(owner: np.ndarray) -> np.ndarray:
    """(M, 2) pairs of image and caption, from each caption's image (M,)."""
    return np.stack([owner, np.arange(len(owner))], axis=1)
