"""Copies of batches to a GPU while it computes the step before."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Generator
from typing import Any

import torch

Batch = dict[str, Any]


def copy_ahead(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The batches, for a GPU with "image" on it and other tensors in pinned memory; for a CPU ``batches`` itself."""
    return _copy_ahead(batches, device) if device.type == "cuda" else batches


def _copy_ahead(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """Read, pin and copy the next batch in a thread, on a stream of its own, while the consumer has the current one."""
    stream = torch.cuda.Stream(device)

    def load() -> tuple[Batch, torch.cuda.Event] | None:
        batch = next(batches, None)
        return None if batch is None else _copy(batch, device, stream)

    with (
        contextlib.closing(batches),
        concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="data") as executor,
    ):
        ready = load()  # in this thread, from which workers should be forked
        while ready is not None:
            following = executor.submit(load)
            batch, copied = ready
            consumer = torch.cuda.current_stream(device)
            consumer.wait_event(copied)
            batch["image"].record_stream(consumer)  # its memory is not reused before the consumer's kernels have run
            yield batch
            ready = following.result()


def _copy(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    """A batch with its image on ``device``, and the event of the copy; the batch's own memory can be reused."""
    pinned = {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with torch.cuda.stream(stream):
        image = pinned["image"].to(device, non_blocking=True)
        return {**pinned, "image": image}, stream.record_event()
