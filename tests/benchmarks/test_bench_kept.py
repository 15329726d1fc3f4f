"""Outputs of a model are cached: interrupted evaluations resume, and other benchmarks find them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_world as world
import pytest
import torch

from benchmarks.tasks import output_cache as module
from benchmarks.tasks.encoders import embedding
from benchmarks.tasks.output_cache import AnswerCache, EmbeddingCache, cache_key, run_on_main
from clips.core.artifact import library_versions
from clips.core.cache import tensor_cache
from clips.errors import UserError
from clips.parallel import distributed
from clips.parallel.distributed import DistributedContext

BATCHES = [[4, 0], [1, 3], [2]]


class Tower:
    """Gives each item a vector of its number, and counts; stops at ``until``."""

    def __init__(self, until: int | None = None, problem: type[BaseException] = KeyboardInterrupt) -> None:
        self.seen: list[int] = []
        self.until, self.problem = until, problem

    def __call__(self, batches: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        for batch in batches:
            if self.until in batch:
                raise self.problem("stopped")
            self.seen += batch
            yield torch.tensor([[float(item), 1.0] for item in batch])


EXPECTED = torch.tensor([[float(item), 1.0] for item in range(5)])


def kept(folder: Path, **changes) -> EmbeddingCache:
    return EmbeddingCache(**{"folder": folder, "key": "k", **changes})


def whole(folder: Path, key: str = "k") -> Path:
    return tensor_cache(folder).path(key)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, UserError, RuntimeError])
def test_an_interrupted_evaluation_resumes_after_the_last_batch(tmp_path, problem):
    first, second, third = Tower(until=2, problem=problem), Tower(), Tower()
    with pytest.raises(problem):
        kept(tmp_path).collect(BATCHES, first)
    assert first.seen == [4, 0, 1, 3]
    torch.testing.assert_close(kept(tmp_path).collect(BATCHES, second), EXPECTED)
    assert second.seen == [2]
    torch.testing.assert_close(kept(tmp_path).collect([[0, 1, 2, 3, 4]], third), EXPECTED)  # whole: any batches do
    assert third.seen == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [whole(tmp_path)]


def test_a_faster_run_that_has_merged_the_batches(tmp_path):
    def overtaken(batches: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        first, *others = Tower()(batches)
        yield first
        kept(tmp_path).collect(BATCHES, Tower())  # which removes the first batch
        yield from others

    torch.testing.assert_close(kept(tmp_path).collect(BATCHES, overtaken), EXPECTED)


def test_batches_of_another_size_are_not_mixed_with_cached_ones(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path).collect(BATCHES, Tower(until=1))
    torch.testing.assert_close(kept(tmp_path).collect([[0, 1, 2], [3, 4]], Tower()), EXPECTED)


def test_overwrite_computes_them_again(tmp_path):
    kept(tmp_path).collect(BATCHES, Tower())
    tensor_cache(tmp_path).put("k", torch.zeros(5, 2))
    assert kept(tmp_path).collect(BATCHES, Tower()).sum() == 0
    torch.testing.assert_close(kept(tmp_path, overwrite=True).collect(BATCHES, Tower()), EXPECTED)


def test_another_code_version_finds_nothing(monkeypatch):
    before = cache_key(model="a")
    monkeypatch.setattr(module, "CODE_VERSION", module.CODE_VERSION + 1)
    assert cache_key(model="a") != before


HERE = threading.local()


@pytest.fixture
def two(monkeypatch) -> Callable[[Callable[[DistributedContext], Any]], list[Any]]:
    """Does work as two processes would, each in a thread; what they find, or what they raise."""
    meeting, values = threading.Barrier(2, timeout=10), [None, None]

    def gather(value):
        values[HERE.rank] = value
        meeting.wait()
        found = list(values)
        meeting.wait()
        return found

    def one(work, rank):
        HERE.rank = rank
        try:
            return work(DistributedContext(rank=rank, count=2))
        except Exception as error:
            return error

    def from_main(work):
        found = None
        if HERE.rank == 0:
            try:
                found = work(), None
            except Exception as error:
                found = None, error
        result, error = gather(found)[0]
        if error is not None:
            raise error
        return result

    monkeypatch.setattr("clips.parallel.distributed.all_gather_objects", gather)
    monkeypatch.setattr("clips.parallel.distributed.from_main", from_main)
    with ThreadPoolExecutor(2) as pool:
        yield lambda work: list(pool.map(lambda rank: one(work, rank), range(2)))


def test_processes_send_each_other_their_new_answers_alone(two, tmp_path, monkeypatch):
    AnswerCache(tmp_path).add({f"old {number}": "a" for number in range(100)})
    gather, sent = distributed.all_gather_objects, []
    monkeypatch.setattr(distributed, "all_gather_objects", lambda value: sent.append(value) or gather(value))

    def answer(processes):
        cache = AnswerCache(tmp_path, processes)
        for question in ("first", "second"):
            cache.add({f"{question} {processes.rank}": "b"})
            cache.share(processes)
        return cache.known

    found = two(answer)
    assert found[0] == found[1]
    assert len(found[0]) == 104
    assert sorted(map(len, sent)) == [1] * 4


def test_two_processes_share_the_batches(two, tmp_path):
    towers = [Tower(), Tower()]
    found = two(lambda processes: kept(tmp_path, processes=processes).collect(BATCHES, towers[processes.rank]))
    assert [tower.seen for tower in towers] == [[4, 0, 2], [1, 3]]
    for each in found:
        torch.testing.assert_close(each, EXPECTED)


def test_an_error_of_the_first_process_is_raised_by_both(two):
    def find():
        raise UserError("no such file")

    found = two(lambda processes: run_on_main(processes, find))
    assert [(type(error), str(error)) for error in found] == [(UserError, "no such file")] * 2


def test_vectors_are_those_of_a_model_on_a_device_with_its_libraries(tmp_path, monkeypatch):
    encoder = world.dual_encoder(None, None, input_resolution=32)
    row = SimpleNamespace(
        record=lambda part: {"hash": f"of the {part}"},
        config=SimpleNamespace(output=str(tmp_path), overwrite=False),
        processes=DistributedContext(),
    )

    def key(part: str = "tower", *, of=encoder, **content: str) -> str:
        return embedding.embedding_cache(row, of, part, **content or {"images": "a"}).key

    keys = [key(), key(part="encoder"), key(images="b"), key(texts="a")]
    keys.append(key(of=dataclasses.replace(encoder, device="cuda")))
    assert key() == keys[0]
    for name in ("timm", "pillow", "tokenizers"):  # the last two decode, resize and tokenize
        monkeypatch.setattr(embedding, "library_versions", lambda name=name: library_versions() | {name: "another"})
        keys.append(key())
    assert len(set(keys)) == len(keys)


def test_answers_are_stored_as_soon_as_they_are_added(tmp_path):
    answers = AnswerCache(tmp_path / "k")
    answers.add({"1": "a dog", "2": "eine\nZeile, \u2028 und „mehr“"})
    answers.add({"3": ""})
    known = {"1": "a dog", "2": "eine\nZeile, \u2028 und „mehr“", "3": ""}
    assert AnswerCache(tmp_path / "k").known == answers.known == known
    assert AnswerCache(tmp_path / "k", overwrite=True).known == {}
    assert AnswerCache(tmp_path / "k").known == {}


@pytest.mark.parametrize("cut", [1, 2, 9, 14, 17])
def test_a_truncated_line_is_generated_again_and_costs_no_other(tmp_path, cut):
    answers = AnswerCache(tmp_path / "k")
    answers.add({"1": "a dog"})
    answers.add({"2": "a cat"})
    (file,) = (tmp_path / "k").iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    later = AnswerCache(tmp_path / "k")
    assert later.known["1"] == "a dog"
    assert later.known.get("2", "a cat") == "a cat"
    later.add({"3": "a bird"})
    assert AnswerCache(tmp_path / "k").known | {"2": "a cat"} == {"1": "a dog", "2": "a cat", "3": "a bird"}
