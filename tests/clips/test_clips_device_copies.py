"""Copies of batches ahead of the step, with a fake GPU whose copies and events are recorded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch

from clips.errors import UserError
from clips.loader.loader import copy_ahead

CUDA = torch.device("cuda", 0)


class Image(torch.Tensor):
    """Images whose copies are ordinary tensors of the CPU."""

    def pin_memory(self, *_: Any) -> Any:
        return self.clone().as_subclass(Image)

    def to(self, device: torch.device, non_blocking: bool = False) -> Any:
        assert (device, non_blocking) == (CUDA, True)
        LOG.append(f"copy {int(self[0])} on {CURRENT[0]}")
        return self

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        LOG.append(f"{int(self[0])} belongs to {stream}")


LOG: list[str] = []
CURRENT = ["main"]


class Stream:
    def __init__(self, name: object) -> None:
        self.name = "side" if name == CUDA else name

    def __str__(self) -> str:
        return str(self.name)

    def record_event(self) -> int:
        return len(LOG)

    def wait_event(self, event: int) -> None:
        LOG.append(f"{self} waits for {LOG[event - 1]}")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        CURRENT[0] = str(stream)
        yield
        CURRENT[0] = "main"

    LOG.clear()
    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", on)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream("main"))
    return LOG


def reused_memory(count: int, threads: list[str], error: Exception | None = None) -> Generator[dict[str, Any]]:
    """Batches whose images are in the same memory, as in the loader's shared slots."""
    images = torch.zeros(3)
    try:
        for number in range(count):
            threads.append(threading.current_thread().name)
            yield {"image": images.fill_(number).as_subclass(Image), "invalid_samples": [number]}
        if error is not None:
            raise error
    finally:
        threads.append("closed")


def test_a_cpu_gets_the_stream_itself():
    batches = reused_memory(1, [])
    assert copy_ahead(batches, torch.device("cpu")) is batches


def test_the_next_batch_is_copied_while_the_current_one_is_used(gpu: list[str]):
    threads: list[str] = []
    copied = copy_ahead(reused_memory(4, threads), CUDA)
    for number, batch in enumerate(copied):
        for _ in range(2000):  # until the thread has read the next batch into the same memory
            if len(threads) >= number + 2:
                break
            time.sleep(0.001)
        assert batch["image"].tolist() == [number] * 3
        assert batch["invalid_samples"] == [number]
    assert threads[0] == threading.current_thread().name
    assert all(name.startswith("data") for name in threads[1:4])
    for number in range(4):
        copy = f"copy {number} on side"
        used = [gpu.index(copy), gpu.index(f"main waits for {copy}"), gpu.index(f"{number} belongs to main")]
        assert used == sorted(used)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data")]
    assert [len(list(copy_ahead(reused_memory(count, []), CUDA))) for count in (0, 1)] == [0, 1]


def test_an_error_of_the_data_reaches_the_consumer_after_the_batches_before_it(gpu: list[str]):
    copied = copy_ahead(reused_memory(2, threads := [], UserError("data: broken")), CUDA)
    assert [int(next(copied)["image"][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(UserError, match="data: broken"):
        next(copied)
    assert threads[-1] == "closed"


def test_an_abandoned_stream_closes_its_source_and_ends_its_thread(gpu: list[str]):
    copied = copy_ahead(reused_memory(100, threads := []), CUDA)
    next(copied)
    copied.close()
    assert threads[-1] == "closed"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data")]
