"""Batches for training: samples in a fixed order, read ahead, bad ones replaced and reported."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import math
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clips.core.artifact import MANIFEST
from clips.data.augment import augment, min_decode_size
from clips.data.data_config import DataConfig
from clips.data.images import BadImageError, decode_image
from clips.data.invalid_samples import Invalid
from clips.data.prefetch import start_prefetcher
from clips.data.sampler import SampleOrder, SamplePosition, step_positions
from clips.data.sources import BadSampleError, Sample, Source, open_source, shard_lengths
from clips.errors import UserError, error_reason

_READ_AHEAD = 3  # batches
_APART = ("bad", "image")  # of a sample, what is not simply stacked
_NEAR = 256  # places: most of them lie in the same shards
_REPLACEMENT = 3  # a stream of random numbers, beside those of clips.data.sampler
_TOGETHER = 32  # samples: more would only take more memory

Prepare = Callable[[str, str, np.random.Generator], dict[str, torch.Tensor]]


class ConcatSource:
    """Several sources as one sequence."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _locate(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number], index - int(self.ends[number] - len(self.sources[number]))

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        source, place = self._locate(index)
        return source.read(place, rng)

    def name(self, index: int) -> str:
        """See `Source`."""
        source, place = self._locate(index)
        return source.name(place)


class TrainDataset(torch.utils.data.Dataset):
    """Training samples by their position in the endless stream of `clips.data.sampler`."""

    def __init__(self, config: DataConfig, *, size: int, seed: int, batch_size: int, prepare: Prepare) -> None:
        self.config, self.size, self.seed, self.prepare = config, size, seed, prepare
        self.parts = [open_source(source) for source in config.sources]
        self.sources = ConcatSource(self.parts)
        weights = [source.weight for source in config.sources if source.weight is not None]
        blocks = [shard_lengths(part) for part in self.parts]
        self.order = SampleOrder(
            blocks, weights or None, seed=seed, window=config.shuffle_buffer_shards, batch_size=batch_size
        )
        self.cache: dict[int, Any] | None = {} if config.cache_images else None

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self.sources)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The tensors at ``position`` ("image" uint8 (3, size, size), and those of the recipe), and "bad".

        "bad" lists the `Invalid` samples; each is replaced by the next one in the source.
        """
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The samples at ``positions``, as torch's loader asks for those of a batch."""
        return [
            sample
            for start in range(0, len(positions), _TOGETHER)
            for sample in self._together(positions[start : start + _TOGETHER])
        ]

    def _together(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The samples at ``positions``, each kind of work done for all of them before the next.

        A picture's decoding drives everything else out of the processor's caches: texts prepared between two pictures
        take three times as long.
        """
        places = [self.order.at(position) for position in positions]
        rngs = [self.order.generator(place) for place in places]
        samples = [_or_none(self.sources.read, place.index, rng) for place, rng in zip(places, rngs, strict=True)]
        images = [
            sample and _or_none(self._image, place, sample, rng)
            for place, sample, rng in zip(places, samples, rngs, strict=True)
        ]
        texts = [
            self.prepare(sample.web, sample.synthetic, rng) if sample else {}
            for sample, rng in zip(samples, rngs, strict=True)
        ]
        return [
            self._next_good(position) if image is None else {"image": image, **text, "bad": []}
            for position, image, text in zip(positions, images, texts, strict=True)
        ]

    def _next_good(self, position: int) -> dict[str, Any]:
        """The sample at ``position``, or another one drawn for it: what a shard lacks is replaced by many others."""
        bad: list[Invalid] = []
        for ahead in _places_ahead(len(self), self.order, np.random.default_rng([_REPLACEMENT, self.seed, position])):
            place = self.order.at(position, ahead=ahead)
            rng = self.order.generator(place)
            try:
                sample = self.sources.read(place.index, rng)
                image = self._image(place, sample, rng)
                texts = self.prepare(sample.web, sample.synthetic, rng)
                return {"image": image, **texts, "bad": bad[:1]}  # the others are counted at their own places
            except (BadSampleError, BadImageError) as error:
                bad.append((place.index, self.sources.name(place.index), str(error)))
        raise UserError(f"data.sources: {len(bad)} samples in a row cannot be used; {bad[0][1]}: {bad[0][2]}")

    def _image(self, place: SamplePosition, sample: Sample, rng: np.random.Generator) -> torch.Tensor:
        image = self.cache.get(place.index) if self.cache is not None else None
        if image is None:
            image = decode_image(sample.image, at_least=min_decode_size(self.size, self.config.augment))
            if self.cache is not None:
                self.cache[place.index] = image
        return augment(image, self.size, self.config.augment, rng)

    def parents(self) -> dict[str, str]:
        """The artifacts of ours among the sources: name → directory."""
        paths = [Path(source.path) for source in self.config.sources]
        found = [path for path in paths if (path / MANIFEST).is_file()]
        return {
            path.name if len(found) == 1 else f"{number} {path.name}": str(path) for number, path in enumerate(found)
        }

    def describe(self) -> list[dict[str, Any]]:
        """What the manifest says of the sources."""
        return [source.describe() for source in self.parts]


def _places_ahead(count: int, order: SampleOrder, rng: np.random.Generator) -> Iterator[int]:
    """How far on in a stream of ``count`` samples a replacement is looked for.

    In the shards that this machine has, then in those of the same window, then anywhere.
    """
    yield 0
    if count <= 2 * _NEAR:
        yield from rng.permutation(np.arange(1, count)).tolist()
    else:
        near = min(_NEAR, max(2, order.part))
        yield from (order.lanes * rng.integers(1, near, size=_NEAR // 16)).tolist()
        yield from rng.integers(1, _NEAR, size=_NEAR // 4).tolist()
        yield from rng.integers(1, count, size=4 * _NEAR).tolist()


def _or_none(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` gives, None where the sample is bad."""
    try:
        return work(*arguments)
    except (BadSampleError, BadImageError):
        return None


def collate(samples: list[dict[str, Any]], pictures: torch.Tensor | None = None) -> dict[str, Any]:
    """Stack the tensors of a batch, the images into ``pictures`` if given; the lists of bad samples become one.

    Images and ``pictures`` have their channels last in memory.
    """
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name not in _APART}
    if "image" in samples[0]:
        rows = [sample["image"].permute(1, 2, 0) for sample in samples]
        out = None if pictures is None else pictures.permute(0, 2, 3, 1)
        stacked["image"] = torch.stack(rows, out=out).permute(0, 3, 1, 2)
    return {**stacked, "bad": [entry for sample in samples for entry in sample["bad"]]}


def iterate_batches(
    data: TrainDataset, *, first_step: int, last_step: int, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, Any]]:
    """This process's part of the global batches of steps ``first_step`` … ``last_step - 1``, in order.

    The pictures of a batch may lie in memory that is used again when the next batch is asked for.
    """
    plan = [
        step_positions(step, batch_size=data.order.batch_size, rank=rank, world_size=world_size)
        for step in range(first_step, last_step)
    ]
    found = _from_workers(_SharedBatches(data, plan)) if data.config.num_workers and plan else _read_ahead(data, plan)
    with contextlib.closing(found), start_prefetcher(data.order, data.parts, last_step, rank, world_size) as fetcher:
        for step in range(first_step, last_step):  # the readers' processes are there before the fetcher's threads
            if fetcher:
                fetcher.reach(step)
            yield next(found)


class _SharedBatches(torch.utils.data.Dataset):
    """The batches of a plan without their images, which lie in ``pictures``, (slots, batch, 3, size, size) uint8.

    All processes share that memory, and it is used again and again: fresh pages for each batch cost the system more
    time than filling them. The loader never has as many batches under way as there are slots.
    """

    def __init__(self, data: TrainDataset, plan: list[range]) -> None:
        self.data, self.plan = data, plan
        slots = data.config.num_workers * _READ_AHEAD + 1
        shape = (slots, len(plan[0]), data.size, data.size, 3)
        try:
            self.pictures = torch.empty(shape, dtype=torch.uint8).share_memory_().permute(0, 1, 4, 2, 3)
        except RuntimeError as error:
            raise UserError(
                f"data.num_workers: {data.config.num_workers} expect {math.prod(shape) / 1e9:.2g} GB of shared memory "
                f"in each process ({error_reason(error)}); docker has --shm-size, "
                "Kubernetes an emptyDir with medium: Memory"
            ) from None

    def __len__(self) -> int:
        return len(self.plan)

    def slot(self, number: int) -> torch.Tensor:
        """Where the images of batch ``number`` lie."""
        return self.pictures[number % len(self.pictures)]

    def __getitem__(self, number: int) -> dict[str, Any]:
        batch = collate(self.data.__getitems__(self.plan[number]), self.slot(number))
        del batch["image"]
        return batch


def _from_workers(shared: _SharedBatches) -> Generator[dict[str, Any]]:
    """The batches in order; the workers are started here and now."""
    loader = torch.utils.data.DataLoader(
        shared,
        batch_size=None,
        num_workers=shared.data.config.num_workers,
        collate_fn=_as_it_is,
        prefetch_factor=_READ_AHEAD,
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
    )
    return _with_images(shared, iter(loader))


def _with_images(shared: _SharedBatches, rest: Iterator[dict[str, Any]]) -> Generator[dict[str, Any]]:
    on_gpu = torch.cuda.is_available()
    try:
        for number, batch in enumerate(rest):
            images = shared.slot(number)
            yield {"image": images.pin_memory() if on_gpu else images, **batch}
    except UserError as error:  # torch makes a worker's traceback the message
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None


def _as_it_is(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def worker_death_as_user_error() -> Iterator[None]:
    """Say in one line that a worker died; torch raises it wherever the process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"data.num_workers: a process that reads data died ({error_reason(error)}), as it does for want of memory; "
            "the same command goes on from the last checkpoint"
        ) from None


def _begin_worker(_: int) -> None:
    """One thread each; signals are the training's to answer, which needs its readers until it has saved.

    Schedulers send SIGTERM to every process of a job, terminals send Ctrl-C to every one in the foreground.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_stuck_workers() -> None:
    """Those that did not end when told to; multiprocessing would send them SIGTERM and wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take them for accidents
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _read_ahead(data: TrainDataset, plan: list[range]) -> Generator[dict[str, Any]]:
    def load(positions: range) -> dict[str, Any]:
        return collate(data.__getitems__(positions))

    executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
    try:
        pending = [executor.submit(load, positions) for positions in plan[:_READ_AHEAD]]
        for positions in plan[_READ_AHEAD:]:
            yield pending.pop(0).result()
            pending.append(executor.submit(load, positions))
        for future in pending:
            yield future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
