"""Ranks and recalls against hand-computed matrices, a naive loop and CLIP_benchmark's definition."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.results.measure import ItemTable, with_gallery
from benchmarks.results.noise import TrainingNoise, difference_estimate, metric_estimate
from benchmarks.results.result_types import BLOCKER
from benchmarks.results.statistics import image_scores, scores_interval
from benchmarks.tasks.encoders import recall
from benchmarks.tasks.encoders.recall import RetrievalRanks, compute_ranks
from benchmarks.tasks.encoders.retrieval import items_of
from benchmarks.tasks.evaluation import MetricSpec, compute_metric
from clips.parallel.distributed import DistributedContext


def _from_similarity(similarity: np.ndarray, owner: list[int]) -> tuple[RetrievalRanks, RetrievalRanks]:
    """Ranks for a given (images, captions) matrix, through embeddings that produce it."""
    images = torch.eye(len(similarity), dtype=torch.float64)
    return compute_ranks(images, torch.as_tensor(similarity.T, dtype=torch.float64), _pairs(owner))


def _pairs(owner: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(owner), np.arange(len(owner))], axis=1)


def test_by_hand():
    similarity = np.array(
        [
            [0.9, 0.1, 0.8, 0.2],  # captions 0 and 1 are its own: best own rank 1
            [0.5, 0.6, 0.4, 0.3],  # caption 2: rank 3
            [0.1, 0.2, 0.3, 0.9],  # caption 3: rank 1
        ]
    )
    to_captions, to_images = _from_similarity(similarity, [0, 0, 1, 2])
    assert to_captions.expected().tolist() == [1, 3, 1]
    assert to_captions.hit(1).tolist() == [1, 0, 1]
    assert to_captions.hit(5).tolist() == [1, 1, 1]
    assert to_captions.first.tolist() == [0, 1, 3]
    # caption 0: image 0 first; 1: 0.1 is third; 2: 0.4 is second; 3: first
    assert to_images.expected().tolist() == [1, 3, 2, 1]
    assert to_images.hit(1).tolist() == [1, 0, 0, 1]
    assert to_images.first.tolist() == [0, 1, 0, 2]


def test_ties_count_their_expected_hit():
    """Ten answers, three more similar, four tied of which two are right."""
    found = RetrievalRanks(np.array([3]), np.array([4]), np.array([2]), np.array([0]))
    orders = list(permutations([True, True, False, False]))
    for k in (1, 3, 4, 5, 6, 7, 10):
        expected = np.mean([any(order[: max(0, k - 3)]) for order in orders])
        assert found.hit(k)[0] == pytest.approx(expected), k
    assert found.expected()[0] == pytest.approx(3 + np.mean([order.index(True) + 1 for order in orders]))


def test_a_constant_model_scores_chance():
    n, per = 40, 5
    images = torch.nn.functional.normalize(torch.ones(n, 7), dim=1)
    captions = torch.nn.functional.normalize(torch.ones(n * per, 7), dim=1)
    to_captions, to_images = compute_ranks(images, captions, _pairs(np.repeat(np.arange(n), per)))
    for k in (1, 5, 10):
        assert to_images.hit(k).mean() == pytest.approx(k / n)
        miss = np.prod([(n * per - per - i) / (n * per - i) for i in range(k)])
        assert to_captions.hit(k).mean() == pytest.approx(1 - miss)
    assert np.median(to_images.expected()) == pytest.approx((n + 1) / 2)


def _clip_benchmark_recall(scores: torch.Tensor, positive_pairs: torch.Tensor, k: int) -> torch.Tensor:
    """CLIP_benchmark's definition, again: the ratio of a query's positives in its top k, then whether any."""
    top = torch.topk(scores, k, dim=1).indices
    hits = torch.gather(positive_pairs, 1, top).sum(1)
    return (hits > 0).float()


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_clip_benchmark_and_with_a_naive_loop(seed, monkeypatch):
    monkeypatch.setattr(recall, "_TILE", (7, 9))  # many small tiles
    generator = torch.Generator().manual_seed(seed)
    counts = [1 + (number % 5) for number in range(30)]
    owner = np.repeat(np.arange(30), counts)
    images = torch.nn.functional.normalize(torch.randn(30, 16, generator=generator), dim=1)
    captions = torch.nn.functional.normalize(
        images[owner] + 0.8 * torch.randn(len(owner), 16, generator=generator), dim=1
    )
    to_captions, to_images = compute_ranks(images, captions, _pairs(owner))
    similarity = images @ captions.T
    belongs = torch.as_tensor(owner)[None, :] == torch.arange(30)[:, None]
    for k in (1, 5, 10):
        np.testing.assert_allclose(to_captions.hit(k), _clip_benchmark_recall(similarity, belongs, k).numpy())
        np.testing.assert_allclose(to_images.hit(k), _clip_benchmark_recall(similarity.T, belongs.T, k).numpy())
    for image in range(30):
        order = similarity[image].argsort(descending=True).tolist()
        assert to_captions.expected()[image] == 1 + min(order.index(c) for c in np.flatnonzero(owner == image))
    for caption, image in enumerate(owner):
        order = similarity[:, caption].argsort(descending=True).tolist()
        assert to_images.expected()[caption] == 1 + order.index(image)


def test_each_strip_of_images_is_counted_by_one_process(monkeypatch):
    monkeypatch.setattr(recall, "_TILE", (4, 9))  # eight strips for three processes
    vectors = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    images, captions, pairs = vectors[:30], vectors[30:], _pairs(np.arange(30))
    alone, counted = compute_ranks(images, captions, pairs), list[recall.Queries]()
    monkeypatch.setattr(recall.Queries, "all_reduce", lambda self: counted.append(self))
    for rank in range(3):
        compute_ranks(images, captions, pairs, DistributedContext(rank=rank, count=3))
    for side, ranks in enumerate(alone):
        assert sum(part.above for part in counted[side::2]).tolist() == ranks.above.tolist()


def test_processes_have_the_ranks_of_one_and_the_first_of_equal_answers(monkeypatch):
    monkeypatch.setattr(recall, "_TILE", (4, 9))
    generator, count = np.random.default_rng(0), 3
    numbers = [torch.from_numpy(generator.integers(-1, 2, (30, 4))).float() for _ in range(2)]  # exact, with many ties
    slots, barrier = dict[int, torch.Tensor](), threading.Barrier(count, timeout=60)

    def all_reduce(tensor: torch.Tensor, op: Any = torch.distributed.ReduceOp.SUM) -> None:
        slots[threading.get_ident()] = tensor.clone()
        barrier.wait()
        reduce = {"SUM": torch.sum, "MAX": torch.amax, "MIN": torch.amin}[op.name]
        found = reduce(torch.stack([*slots.values()]), dim=0)
        barrier.wait()
        tensor.copy_(found)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    alone = compute_ranks(*numbers, _pairs(np.arange(30)))
    with ThreadPoolExecutor(count) as pool:
        processes = [DistributedContext(rank=rank, count=count) for rank in range(count)]
        shared = [*pool.map(lambda own: compute_ranks(*numbers, _pairs(np.arange(30)), own), processes)]
    similarity = (numbers[0] @ numbers[1].T).numpy()
    for side, ranks in enumerate(alone):
        assert ranks.first.tolist() == similarity.argmax(axis=1 - side).tolist()
        for found in shared:
            assert all(np.array_equal(value, vars(ranks)[name]) for name, value in vars(found[side]).items())


def test_any_image_of_a_caption_is_correct():
    similarity = np.array([[0.9, 0.3], [0.8, 0.1], [0.5, 0.7]])
    pairs = np.array([[0, 1], [1, 0], [2, 0], [2, 1]])  # caption 0 tells of images 1 and 2, caption 1 of 0 and 2
    images, captions = torch.eye(3, dtype=torch.float64), torch.as_tensor(similarity.T)
    to_captions, to_images = compute_ranks(images, captions, pairs)
    assert to_images.expected().tolist() == [2, 1]
    assert to_captions.expected().tolist() == [2, 1, 1]


def test_a_query_without_a_correct_answer_is_rejected():
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        compute_ranks(torch.eye(2), torch.eye(2), np.array([[0, 0], [0, 1]]))


def _items(images: torch.Tensor, captions: torch.Tensor, owner: np.ndarray) -> pd.DataFrame:
    known: Any = SimpleNamespace(
        images=[f"{place}.jpg" for place in range(len(images))],
        image_hashes=[f"{place:064x}" for place in range(len(images))],
        texts=[f"caption {place}" for place in range(len(captions))],
        captions=[[f"of {place}"] for place in range(len(images))],
        first_image_of_caption=owner,
        pairs=_pairs(owner),
    )
    return items_of(known, compute_ranks(images, captions, known.pairs), with_thumbnails=False)


@pytest.mark.parametrize("tied", [False, True])
def test_without_the_image_that_blocks_it_a_query_is_a_hit(tied):
    generator = torch.Generator().manual_seed(0)
    owner = np.repeat(np.arange(40), 2)
    images, captions = (torch.nn.functional.normalize(torch.randn(count, 6, generator=generator) + shift)
                        for count, shift in ((40, 0), (80, 0)))  # fmt: skip
    captions = torch.nn.functional.normalize(captions + images[owner])
    if tied:  # a wrong answer as similar as the right one remains when the blocking image is gone
        images, captions = (4 * images).round(), (4 * captions).round()
    found = _items(images, captions, owner)
    hits = found["i2t_r1"].fillna(found["t2i_r1"])
    assert found.loc[hits > 0, BLOCKER].isna().all()
    assert 5 < found[BLOCKER].notna().sum() < 60
    for place, blocker in enumerate(found[BLOCKER]):
        if isinstance(blocker, str):
            gone = int(blocker.removesuffix(".jpg"))
            kept, texts = np.arange(40) != gone, owner != gone
            others = _items(images[kept], captions[texts], owner[texts] - (owner[texts] > gone))
            query = np.flatnonzero([*kept, *texts]).tolist().index(place)
            assert (others["i2t_r1"].fillna(others["t2i_r1"]))[query] == 1


T2I_R1 = ("t2i_r1",)


def test_a_query_that_an_image_blocks_counts_in_both_clusters():
    """The variance is that of two-way clusters, written out: pairs of queries that share an image in either role."""
    generator, count = np.random.default_rng(0), 30
    names, models, errors = np.array([f"{place:02d}" for place in range(count)], dtype=object), [], []
    for _ in range(2):
        hit = generator.random(count) < 0.5
        blocker = np.where(hit | (generator.random(count) < 0.7), -1, generator.integers(0, 9, count))
        frame = pd.DataFrame({"image": names, "t2i_r1": hit.astype(float)})
        frame[BLOCKER] = [names[place] if place >= 0 else None for place in blocker]
        table = ItemTable(frame, names, np.arange(count), names)
        scores = image_scores("mean", [{"x": hit.astype(float)}], ("x",), names, items=names)
        models.append(with_gallery(scores, T2I_R1, [table]))
        of_pair = np.zeros((count, count))
        of_pair[np.flatnonzero(blocker >= 0), blocker[blocker >= 0]] = 1
        errors.append((hit - hit.mean(), of_pair))
    own, pairs = errors[0][0] - errors[1][0], errors[0][1] - errors[1][1]
    influence = own - pairs.sum(axis=0)
    expected = max(((influence - influence.mean()) ** 2).sum() - (pairs**2).sum(), (own**2).sum())
    assert difference_estimate(*models, TrainingNoise()).image_variance == pytest.approx(
        expected / count**2 * count / (count - 1)
    )


def test_the_interval_in_a_file_counts_images_as_answers():
    """A report's did, so that of one result there were two intervals."""
    generator, count = np.random.default_rng(1), 60
    names, hit = np.array([f"{place:02d}" for place in range(count)], dtype=object), generator.random(count) < 0.5
    frame = pd.DataFrame({"item": names, "image": names, "t2i_r1": hit.astype(float)})
    frame[BLOCKER] = np.where(hit, None, names[generator.integers(0, 5, count)])
    stored = compute_metric(frame.sample(frac=1, random_state=0), MetricSpec(label="R@1", columns=T2I_R1))
    alone = image_scores("mean", [{"t2i_r1": frame["t2i_r1"].to_numpy()}], T2I_R1, names, items=names)
    both = with_gallery(alone, T2I_R1, [ItemTable(frame, names, np.arange(count), names)])
    narrow, wide = (scores_interval(each, TrainingNoise()) for each in (alone, both))
    assert (stored.ci_low, stored.ci_high) == pytest.approx((wide.low, wide.high))
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)


def test_a_single_hit_whose_image_blocks_another_query_has_a_variance():
    """Its influences in both roles cancel, and the score varies over the images all the same."""
    names, hit = np.array([f"{place:02d}" for place in range(40)], dtype=object), np.zeros(40)
    hit[3] = 1
    frame = pd.DataFrame({"image": names, "t2i_r1": hit, BLOCKER: [None] * 40})
    scores = image_scores("mean", [{"x": hit}], ("x",), names, items=names)
    alone = metric_estimate(scores, TrainingNoise()).image_variance
    frame.loc[7, BLOCKER] = names[3]
    both = with_gallery(scores, T2I_R1, [ItemTable(frame, names, np.arange(40), names)])
    assert np.ptp(both.influence) < 1e-9
    assert metric_estimate(both, TrainingNoise()).image_variance == pytest.approx(alone)
    assert alone > 0


def test_rounding_errors_of_blockers_are_no_variance():
    """No seed has a hit, and each has other blockers: their influences do not cancel exactly in the mean."""
    names, none = np.array([f"{place:02d}" for place in range(40)], dtype=object), np.zeros(40)
    generator = np.random.default_rng(0)
    frames = [pd.DataFrame({"image": names, "t2i_r1": none, BLOCKER: generator.choice(names, 40)}) for _ in range(3)]
    tables = [ItemTable(frame, names, np.arange(40), names) for frame in frames]
    scores = with_gallery(image_scores("mean", [{"x": none}] * 3, ("x",), names, items=names), T2I_R1, tables)
    assert np.ptp(scores.without_gallery) > 0
    assert metric_estimate(dataclasses.replace(scores, largest=1.0), TrainingNoise()).image_variance == 0
