"""Batches for training: samples in a fixed order, read ahead; invalid samples are replaced and reported.

The way of a sample: `SampleOrder` says which is next, its `Source` reads bytes and captions, `read_crop` decodes the
image, the recipe's ``prepare`` tokenizes the captions, `collate` stacks them, `copy_ahead` brings them to the GPU.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import itertools
import math
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clips.commandline.signals import STOP_SIGNALS
from clips.core.artifact import MANIFEST
from clips.core.identity import digest
from clips.core.parent_death import end_stuck_workers
from clips.data.formats.webdataset import MANY_SHARDS
from clips.data.images import InvalidImageError, InvalidSampleError
from clips.data.sources import Sample, Source, open_source
from clips.errors import UserError, error_reason
from clips.loader.augment import read_crop
from clips.loader.data_config import DataConfig
from clips.loader.invalid_samples import Invalid
from clips.loader.prefetch import start_prefetching
from clips.loader.sampler import MIXTURE_ORDER, SampleOrder, SamplePosition, evenly, step_positions

_READ_AHEAD = 3  # parts of a batch for each worker; without workers batches
_PART = 64  # samples of a batch that one worker reads: few, so that a batch comes soon and takes little shared memory
_NEARBY = 256  # positions that are mostly in the same shards
_REPLACEMENT = 3  # random number stream, in addition to those of clips.loader.sampler
_CHUNK = 32  # samples; more would only take more memory
_SOME, _SOME_BLOCKS = 256, 4  # samples, and blocks of a source, whose captions are looked at before training

DEFAULT_BUFFER = 100
"""Of more than `MANY_SHARDS` shards so many are shuffled together, if the config has no number."""
IN_BUFFERS = " in buffers of "
"""In the hashes of sources in this order, which earlier versions did not have."""

Batch = dict[str, Any]
Prepare = Callable[[str, str, np.random.Generator], dict[str, Any]]


class TrainDataset(torch.utils.data.Dataset):
    """Training samples by their position in the endless stream of `clips.loader.sampler`.

    ``seed`` is that of the order and of each sample's random numbers, ``batch_size`` the number of samples per step of
    all processes. ``prepare`` makes fields of a sample from its captions. ``parts`` are the sources, if they are open.
    ``default_buffer`` is the shuffle buffer of many shards where the config has none; None for all of them together, as
    in earlier versions.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        size: int,
        seed: int,
        batch_size: int,
        prepare: Prepare,
        parts: Sequence[Source] | None = None,
        default_buffer: int | None = DEFAULT_BUFFER,
    ) -> None:
        self.config, self.size, self.seed, self.prepare = config, size, seed, prepare
        self.parts = [open_source(source) for source in config.sources] if parts is None else list(parts)
        self.default_buffer = default_buffer if sum(len(part.blocks) for part in self.parts) > MANY_SHARDS else None
        buffer = config.shuffle_buffer_shards or self.default_buffer
        for part in self.parts:
            part.hold(buffer)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        weights = [source.weight for source in config.sources if source.weight is not None]
        blocks = [part.blocks for part in self.parts]
        self.order = SampleOrder(blocks, weights or None, seed=seed, buffer_shards=buffer, batch_size=batch_size)
        self.cache: dict[int, dict[int, Any]] | None = {} if config.cache_images else None

    def __len__(self) -> int:
        """Samples in one epoch."""
        return int(self.starts[-1])

    def _locate(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[number], index - int(self.starts[number])

    def _read(self, location: SamplePosition, rng: np.random.Generator) -> Sample:
        source, index = self._locate(location.index)
        return source.read(index, rng)

    def name(self, index: int) -> str:
        """The location of a sample, by its index in all sources, for messages."""
        source, local_index = self._locate(index)
        return source.name(local_index)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The fields at ``position``: "image" uint8, see `augment`, and those of the recipe.

        "invalid_samples" lists `Invalid` samples, which are replaced by others of the source.
        """
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The samples at ``positions``, for torch's DataLoader."""
        return [
            sample
            for start in range(0, len(positions), _CHUNK)
            for sample in self._load_chunk(positions[start : start + _CHUNK])
        ]

    def _load_chunk(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The samples at ``positions``: all are read, then all decoded, then all tokenized."""
        # Decoding an image evicts the processor's caches: interleaved with it, tokenization takes three times as long.
        locations = [self.order.at(position) for position in positions]
        rngs = [self.order.generator(location) for location in locations]
        samples = [_none_if_invalid(self._read, location, rng) for location, rng in zip(locations, rngs, strict=True)]
        images = [
            sample and _none_if_invalid(self._image, location, sample, rng)
            for location, sample, rng in zip(locations, samples, rngs, strict=True)
        ]
        texts = [
            self.prepare(sample.web, sample.synthetic, rng) if sample else {}
            for sample, rng in zip(samples, rngs, strict=True)
        ]
        return [
            self._first_valid(position) if image is None else {"image": image, **text, "invalid_samples": []}
            for position, image, text in zip(positions, images, texts, strict=True)
        ]

    def _first_valid(self, position: int) -> dict[str, Any]:
        """The sample at ``position``, or a replacement; a missing shard is replaced by samples of many others."""
        invalid: list[Invalid] = []
        for ahead in self._replacement_distances(position):
            location = self.order.at(position, ahead=ahead)
            rng = self.order.generator(location)
            try:
                sample = self._read(location, rng)
                image = self._image(location, sample, rng)
                texts = self.prepare(sample.web, sample.synthetic, rng)
                # the others are reported at their own positions
                return {"image": image, **texts, "invalid_samples": invalid[:1]}
            except (InvalidSampleError, InvalidImageError) as error:
                invalid.append((location.index, self.name(location.index), str(error)))
        raise UserError(
            f"data.sources: {len(invalid)} samples in a row cannot be used; {invalid[0][1]}: {invalid[0][2]}"
        )

    def _replacement_distances(self, position: int) -> Iterator[int]:
        """Distances to try for a replacement: first in the node's own shards, then in the buffer, then anywhere."""
        count, rng = len(self), np.random.default_rng([_REPLACEMENT, self.seed, position])
        yield 0
        if count <= 2 * _NEARBY:
            yield from rng.permutation(np.arange(1, count)).tolist()
        else:
            near = min(_NEARBY, max(2, self.order.part))
            yield from (self.order.stripes * rng.integers(1, near, size=_NEARBY // 16)).tolist()
            yield from rng.integers(1, _NEARBY, size=_NEARBY // 4).tolist()
            yield from rng.integers(1, count, size=4 * _NEARBY).tolist()

    def _image(self, location: SamplePosition, sample: Sample, rng: np.random.Generator) -> torch.Tensor:
        decoded = None if self.cache is None else self.cache.setdefault(location.index, {})
        return read_crop(sample.image, self.size, self.config.augment, rng, decoded)

    def some_captions(self) -> list[str]:
        """Captions of up to `_SOME` samples, evenly spaced in a few shards of each source, of which most may be far."""
        texts = list[str]()
        for source in self.parts:
            ends = np.cumsum(source.blocks)
            blocks = np.flatnonzero(source.blocks)
            blocks = blocks[evenly(len(blocks), 1 if source.is_remote else _SOME_BLOCKS)]
            places = np.concatenate([np.arange(ends[block] - source.blocks[block], ends[block]) for block in blocks])
            for index in places[evenly(len(places), max(1, _SOME // len(self.parts)))].tolist():
                with contextlib.suppress(InvalidSampleError):
                    texts += filter(None, source.captions(index, np.random.default_rng([self.seed, index])))
        return texts

    def parents(self) -> dict[str, str]:
        """The artifacts of this suite among the sources: name → directory."""
        paths = [Path(source.path) for source in self.config.sources]
        artifacts = [path for path in paths if (path / MANIFEST).is_file()]
        return {
            path.name if len(artifacts) == 1 else f"{number} {path.name}": str(path)
            for number, path in enumerate(artifacts)
        }

    def describe(self) -> list[dict[str, Any]]:
        """The manifest entries of the sources."""
        return [source.describe() for source in self.parts]

    def hashes(self) -> dict[str, str]:
        """Hashes of the sources' contents, wherever they lie: order and samples of a run depend on them.

        Those of a mixture, and of very many shards, state their order, by which a run of another version is another
        run.
        """
        order = f" in order {MIXTURE_ORDER} of mixtures" if self.order.is_mixture else ""
        if self.config.shuffle_buffer_shards is None and self.default_buffer:
            order += f"{IN_BUFFERS}{self.default_buffer} shards"
        described = {
            f"data.sources[{number}]": digest({name: value for name, value in source.items() if name != "path"}) + order
            for number, source in enumerate(self.describe())
        }
        contents = {f"data.sources[{number}].content": part.contents() for number, part in enumerate(self.parts)}
        return described | {name: content for name, content in contents.items() if content}


def _none_if_invalid(load: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return load(*arguments)
    except (InvalidSampleError, InvalidImageError):
        return None


def collate(samples: list[dict[str, Any]], images: torch.Tensor | None = None) -> dict[str, Any]:
    """Stack the tensors of a batch, the images into ``images`` if given; concatenate the lists of invalid samples.

    Images are in channels-last memory format. Texts and files are lists.
    """
    stacked: dict[str, Any] = {}
    for name in [name for name in samples[0] if name not in ("invalid_samples", "image")]:
        values = [sample[name] for sample in samples]
        stacked[name] = torch.stack(values) if isinstance(values[0], torch.Tensor) else values
    if "image" in samples[0]:
        rows = [sample["image"].permute(1, 2, 0) for sample in samples]
        out = None if images is None else images.permute(0, 2, 3, 1)
        stacked["image"] = torch.stack(rows, out=out).permute(0, 3, 1, 2)
    return {**stacked, "invalid_samples": [entry for sample in samples for entry in sample["invalid_samples"]]}


def iterate_batches(
    data: TrainDataset, *, first_step: int, last_step: int, rank: int = 0, world_size: int = 1
) -> Generator[dict[str, Any]]:
    """This process's part of the global batches of steps ``first_step`` … ``last_step - 1``, in order.

    The images of a batch may be in memory that the next batch reuses.
    """
    plan = [
        step_positions(step, batch_size=data.order.batch_size, rank=rank, world_size=world_size)
        for step in range(first_step, last_step)
    ]
    use_workers = data.config.num_workers and plan
    batches = _from_workers(SharedBatches(data, plan)) if use_workers else _read_ahead(data, plan)
    prefetching = start_prefetching(data.order, data.parts, last_step, rank, world_size)
    with contextlib.closing(batches), prefetching as reach:  # which starts after the workers
        for step in range(first_step, last_step):
            reach(step)
            yield next(batches)


class SharedBatches(torch.utils.data.Dataset):
    """The parts of a plan's batches without their images, which are in ``images``, (slots, batch, …) uint8.

    All processes share ``images`` and reuse it: fresh pages for each batch take longer than filling them. The loader
    always has parts of fewer batches in flight than there are slots.
    """

    def __init__(self, data: TrainDataset, plan: list[range]) -> None:
        self.data, self.plan = data, plan
        self.parts = math.ceil(len(plan[0]) / _PART)
        slots = math.ceil(data.config.num_workers * _READ_AHEAD / self.parts) + 1
        shape = (slots, len(plan[0]), data.size, data.size, 3)
        try:
            self.images = torch.empty(shape, dtype=torch.uint8).share_memory_().permute(0, 1, 4, 2, 3)
        except RuntimeError as error:
            raise UserError(
                f"data.num_workers: {data.config.num_workers} need {math.prod(shape) / 1e9:.2g} GB of shared memory "
                f"in each process ({error_reason(error)}); docker has --shm-size, "
                "Kubernetes an emptyDir with medium: Memory"
            ) from None

    def __len__(self) -> int:
        return len(self.plan) * self.parts

    def slot(self, index: int) -> torch.Tensor:
        """The slot with the images of batch ``index``."""
        return self.images[index % len(self.images)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, part = divmod(index, self.parts)
        positions = self.plan[step]
        rows = slice(len(positions) * part // self.parts, len(positions) * (part + 1) // self.parts)
        batch = collate(self.data.__getitems__(positions[rows]), self.slot(step)[rows])
        del batch["image"]
        return batch


def _from_workers(shared: SharedBatches) -> Generator[dict[str, Any]]:
    """The batches in order; starts the workers immediately."""
    loader = torch.utils.data.DataLoader(
        shared,
        batch_size=None,
        num_workers=shared.data.config.num_workers,
        collate_fn=_identity,
        prefetch_factor=_READ_AHEAD,
        worker_init_fn=_begin_worker,
    )
    parts = iter(loader)

    def batches() -> Generator[dict[str, Any]]:
        with worker_errors_as_user_errors("data.num_workers"):
            for index in range(len(shared.plan)):
                pieces = [next(parts) for _ in range(shared.parts)]
                batch: dict[str, Any] = {"image": shared.slot(index)}
                for name, value in pieces[0].items():
                    values = [part[name] for part in pieces]
                    joined = torch.cat(values) if isinstance(value, torch.Tensor) else list(itertools.chain(*values))
                    batch[name] = value if len(pieces) == 1 else joined
                yield batch

    return batches()


def _identity(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def worker_errors_as_user_errors(field: str) -> Iterator[None]:
    """Report in one line a DataLoader worker that died or raised a UserError, to which torch adds its traceback.

    ``field`` is the setting of the number of workers.
    """
    try:
        yield
    except UserError as error:
        if not str(error).startswith("Caught UserError in DataLoader worker"):
            raise
        raise UserError(str(error).rpartition("\nclips.errors.UserError: ")[2].strip()) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"{field}: a DataLoader worker died ({error_reason(error)}), probably out of memory; "
            "the same command resumes from the last checkpoint"
        ) from None


def _begin_worker(_: int) -> None:
    """Use one thread, and ignore signals: schedulers and terminals send them to all processes of a job, but training
    needs its workers until it has saved."""
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


atexit.register(end_stuck_workers)


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


def copy_ahead(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The batches, for a GPU with "image" on it and other tensors in pinned memory; for a CPU ``batches`` itself."""
    return _copy_ahead(batches, device) if device.type == "cuda" else batches


def _copy_ahead(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """Read, pin and copy the next batch in a thread, on a stream of its own, while the consumer has the current one."""
    stream = torch.cuda.Stream(device)

    def load() -> tuple[Batch, torch.cuda.Event] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        pinned = {name: each.pin_memory() if isinstance(each, torch.Tensor) else each for name, each in batch.items()}
        with torch.cuda.stream(stream):
            image = pinned["image"].to(device, non_blocking=True)
            return {**pinned, "image": image}, stream.record_event()  # the batch's own memory can be reused now

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
