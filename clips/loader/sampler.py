"""The sample order: pure functions of the seed, so that a run can resume from any step on any world size.

Training reads one endless stream of positions 0, 1, 2, … Step s of global batch B reads positions s·B … (s+1)·B − 1,
cut into equal, consecutive slices, one per process. `SampleOrder` computes the sample at a position without iterating
over earlier ones.

With a buffer (`data.shuffle_buffer_shards`), a batch is cut into up to 256 equal stripes and the buffer's samples into
as many parts, and each stripe reads one part. A node reads some of the stripes and therefore needs only the shards of
their parts. The stripes do not depend on the number of processes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ORDER, _SAMPLE, _MIXTURE = 0, 1, 2  # separate streams of random numbers
_CYCLE = 1000  # after this number of samples of a stripe a mixture of up to 31 sources matches its weights
_MAX_STRIPES = 256  # one for each of 8 processes on 32 nodes
MIXTURE_ORDER = 2
"""The version of the order of mixtures; raise it with any change of it, so that no run resumes in another order."""


@dataclass(frozen=True)
class SamplePosition:
    """The sample at a position: its index, and the number of completed passes over its source."""

    index: int
    epoch: int


class SampleOrder:
    """The order of one source or several, from the sample counts of the shards of each (``blocks``).

    Without weights the sources are one sequence; each sample occurs once per epoch, in a new order. With weights, each
    source is a separate stream. After every 1,000 samples of a stripe (without stripes: every 1,000 positions) its
    count is its share of all samples so far, rounded to an integer; the most frequent source gets the rest. Each stripe
    rounds at another fraction: the sum of all stripes differs from a share by at most 1/2, that of the most frequent of
    n sources by at most (n - 1)/2. From 32 sources on, n² samples take the place of the 1,000.

    ``buffer_shards`` are shuffled together; None shuffles all samples of an epoch, which takes 8 bytes each. The order
    depends on ``batch_size``, the positions of one step over all processes, only with a buffer.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
        *,
        seed: int,
        buffer_shards: int | None = None,
        batch_size: int = 1,
    ) -> None:
        self.seed, self.buffer_shards, self.batch_size = seed, buffer_shards, batch_size
        self.stripes = math.gcd(batch_size, _MAX_STRIPES) if buffer_shards else 1
        self._width = batch_size // self.stripes  # of a stripe: positions of a step
        self.samples = sum(map(sum, blocks))
        if weights is None:
            blocks = [[size for source in blocks for size in source]]
        self._streams = [
            _Stream(sizes, (seed, number), buffer_shards, self.stripes, batch_size)
            for number, sizes in enumerate(blocks)
        ]
        self._starts = np.cumsum([0, *(stream.size for stream in self._streams)])
        self._first_blocks = np.cumsum([0, *(len(stream.blocks) for stream in self._streams)])
        self._mixture = _Mixture(weights or [1.0], seed, self.stripes)

    @property
    def part(self) -> int:
        """The approximate number of samples in a stripe's part of a buffer; without buffers, of all samples."""
        count = sum(len(stream.blocks) for stream in self._streams)
        return int(self.samples * min(1, (self.buffer_shards or count) / count)) // self.stripes

    @property
    def is_mixture(self) -> bool:
        """Whether samples of several weighted sources alternate."""
        return len(self._streams) > 1

    def __len__(self) -> int:
        return self.samples

    def at(self, position: int, *, ahead: int = 0) -> SamplePosition:
        """The sample at ``position``, or ``ahead`` samples further in the same source's stream."""
        step, in_batch = divmod(position, self.batch_size)
        stripe, in_stripe = divmod(in_batch, self._width)
        number = step * self._width + in_stripe
        source, count = self._mixture.at(stripe, number) if self.is_mixture else (0, number)
        inner = self._streams[source].at(count * self.stripes + stripe + ahead)
        return SamplePosition(inner.index + int(self._starts[source]), inner.epoch)

    def shards_near(self, step: int, last: int, share: tuple[float, float] = (0, 1)) -> tuple[list[int], list[int]]:
        """The shards (indices over all sources) of the buffers read at ``step``, and of the next ones before ``last``.

        Only for an order with ``buffer_shards``. ``share`` is the slice of each batch: start and end as ratios, 0 … 1.
        """
        now: list[int] = []
        later: list[int] = []
        stripes = range(math.floor(share[0] * self.stripes), math.ceil(share[1] * self.stripes))
        for source, (stream, first) in enumerate(zip(self._streams, self._first_blocks, strict=False)):
            start = self._counts(source, stripes, step * self._width).min()
            end = self._counts(source, stripes, last * self._width).max()
            for shards, blocks in zip((now, later), stream.buffers_from(int(start), int(end), stripes), strict=True):
                shards += [int(first) + block for block in blocks]
        return now, later

    def _counts(self, source: int, stripes: range, number: int) -> np.ndarray:
        if not self.is_mixture:
            return np.full(len(stripes), number)
        return self._mixture.counts(source, stripes, number)

    def generator(self, sample: SamplePosition) -> np.random.Generator:
        """Random numbers for captions and augmentation, the same for the same sample in the same epoch."""
        return np.random.default_rng([_SAMPLE, self.seed, sample.epoch, sample.index])


class _Stream:
    """Each sample of a sequence of shards once per epoch; positions are assigned to the stripes round-robin."""

    def __init__(
        self, blocks: Sequence[int], seed: tuple[int, int], buffer_shards: int | None, stripes: int, batch_size: int
    ) -> None:
        self.blocks = np.asarray(blocks, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.blocks)[:-1]])
        self.size = int(self.blocks.sum())
        self.seed = seed
        self.buffer_shards, self.stripes, self.batch_size = buffer_shards, stripes, batch_size
        # DataLoader workers get the stream without these caches.
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)
        buffers = (
            0 if buffer_shards is None else batch_size * len(self.blocks) // max(1, buffer_shards * self.size)
        )  # in a batch
        self._shuffled = functools.lru_cache(maxsize=4 + buffers)(self._shuffle)
        self._permuted = functools.lru_cache(maxsize=2)(functools.partial(_permutation, self.size, *self.seed))

    def __reduce__(self) -> tuple[type[_Stream], tuple[list[int], tuple[int, int], int | None, int, int]]:
        return _Stream, (self.blocks.tolist(), self.seed, self.buffer_shards, self.stripes, self.batch_size)

    def at(self, position: int) -> SamplePosition:
        epoch, offset = divmod(position, self.size)
        if self.buffer_shards is None:
            return SamplePosition(int(self._permuted(epoch)[offset]), epoch)
        buffer, start, _ = self._buffer_at(epoch, offset)
        return SamplePosition(int(self._shuffled(epoch, buffer)[offset - start]), epoch)

    def buffers_from(self, count: int, end: int, stripes: range) -> tuple[list[int], list[int]]:
        """The shards of ``stripes`` in the buffer of their sample ``count``, and in the next one.

        The latter is empty if it begins after their sample ``end``.
        """
        epoch, offset = divmod(count * self.stripes + stripes.start, self.size)
        buffer, _, stop = self._buffer_at(epoch, offset)
        following = (epoch, buffer + 1) if stop < self.size else (epoch + 1, 0)
        is_read = epoch * self.size + stop < end * self.stripes
        return self._blocks_of(epoch, buffer, stripes), self._blocks_of(*following, stripes) if is_read else []

    def _buffer_at(self, epoch: int, offset: int) -> tuple[int, int, int]:
        """The index of the buffer that contains ``offset``, and its start and end within the epoch."""
        _, ends = self._plan(epoch)
        buffer = int(np.searchsorted(ends, offset, side="right"))
        return buffer, int(ends[buffer - 1]) if buffer else 0, int(ends[buffer])

    def _blocks_of(self, epoch: int, buffer: int, stripes: range | None = None) -> list[int]:
        """The shards of a buffer, or those that contain the parts of ``stripes``."""
        order, ends = self._plan(epoch)
        assert self.buffer_shards is not None
        blocks = order[buffer * self.buffer_shards : (buffer + 1) * self.buffer_shards]
        if stripes is not None:
            parts = self._parts(epoch, int(ends[buffer - 1]) if buffer else 0, int(ends[buffer]))
            block_ends = np.cumsum(self.blocks[blocks])
            first, last = parts[stripes.start], parts[stripes.stop]
            blocks = blocks[(block_ends > first) & (block_ends - self.blocks[blocks] < last)]
        return [int(block) for block in blocks]

    def _parts(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """The start of each stripe's part among the samples of a buffer, and the end of the last part."""
        first, last = epoch * self.size + start, epoch * self.size + stop
        stripes = np.arange(self.stripes)
        return np.concatenate(
            [[0], np.cumsum((last - stripes - 1) // self.stripes - (first - stripes - 1) // self.stripes)]
        )

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in this epoch's order, and the end of each buffer in samples."""
        order = _permutation(len(self.blocks), *self.seed, epoch)
        ends = np.cumsum(self.blocks[order])
        assert self.buffer_shards is not None
        count, size = len(order), self.buffer_shards
        last = np.arange(size - 1, count + size - 1, size).clip(max=count - 1)
        return order, ends[last]

    def _shuffle(self, epoch: int, buffer: int) -> np.ndarray:
        """The samples of a buffer in order: each stripe's part shuffled separately, and the stripes interleaved."""
        blocks = self._blocks_of(epoch, buffer)
        samples = np.concatenate([self.starts[block] + np.arange(self.blocks[block]) for block in blocks])
        _, ends = self._plan(epoch)
        stop = int(ends[buffer])
        start, rng = stop - len(samples), np.random.default_rng([_ORDER, *self.seed, epoch, buffer])
        parts = self._parts(epoch, start, stop)
        shuffled = np.empty_like(samples)
        for stripe in range(self.stripes):
            first = (stripe - epoch * self.size - start) % self.stripes
            shuffled[first :: self.stripes] = rng.permutation(samples[parts[stripe] : parts[stripe + 1]])
        return shuffled


def _permutation(size: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([_ORDER, seed, epoch, *([stream] if stream else [])]).permutation(size)
    return order.astype(np.int32) if size < 2**31 else order  # every worker holds it in memory


class _Mixture:
    """The source of each sample of a stripe, in proportions that are exact in the long run."""

    def __init__(self, weights: Sequence[float], seed: int, stripes: int) -> None:
        self.weights, self.seed, self.stripes = list(weights), seed, stripes
        # Of n² samples the most frequent of n sources has at least n. The others, rounded up, take fewer of these: its
        # count never shrinks.
        self.cycle = max(_CYCLE, len(weights) ** 2)
        self._sources = functools.lru_cache(maxsize=4)(self._assign)
        self._totals = functools.lru_cache(maxsize=8)(self._count)

    def __reduce__(self) -> tuple[type[_Mixture], tuple[list[float], int, int]]:
        return _Mixture, (self.weights, self.seed, self.stripes)  # without the caches

    def at(self, stripe: int, number: int) -> tuple[int, int]:
        """The source of sample ``number`` of ``stripe``, and the number of earlier samples from it in the stripe."""
        cycle, offset = divmod(number, self.cycle)
        assigned = self._sources(cycle)[stripe]
        source = int(assigned[offset])
        return source, int(self._totals(cycle)[source, stripe]) + int(np.count_nonzero(assigned[:offset] == source))

    def counts(self, source: int, stripes: range, number: int) -> np.ndarray:
        """How many of each stripe's first ``number`` samples are from ``source``."""
        cycle, offset = divmod(number, self.cycle)
        rows = slice(stripes.start, stripes.stop)
        assigned = self._sources(cycle)[rows, :offset]
        return self._totals(cycle)[source, rows] + (assigned == source).sum(axis=1)

    def _count(self, cycle: int) -> np.ndarray:
        """The number of samples from each source in each stripe before ``cycle``, (sources, stripes)."""
        # Each share of all samples so far is rounded, so that no error adds up, and the most frequent source gets the
        # rest. The stripes round up at evenly spaced thresholds, so that their sum is rounded as well.
        shares = np.array(self.weights) / max(self.weights)  # whose sum is finite
        shares /= math.fsum(shares)  # exact, and so the same in every version of Python
        thresholds = (np.arange(self.stripes) + 0.5) / self.stripes
        before = cycle * self.cycle
        counts = np.floor(shares[:, None] * before + thresholds).astype(np.int64)
        counts[np.argmax(shares)] += before - counts.sum(axis=0)
        return counts

    def _assign(self, cycle: int) -> np.ndarray:
        """The sources of a cycle's samples, (stripes, samples)."""
        # A cycle has as many samples from each source as the counts grow, in random order. All stripes have the same
        # order, each from another offset: then few steps of all stripes together match the weights, too.
        ends = np.cumsum(self._totals(cycle + 1) - self._totals(cycle), axis=0)  # (sources, stripes)
        slots = np.random.default_rng([_MIXTURE, self.seed, cycle]).permutation(np.arange(self.cycle))
        offsets = np.arange(self.stripes) * self.cycle // self.stripes
        slots = slots[(offsets[:, None] + np.arange(self.cycle)) % self.cycle]
        assigned = np.zeros(slots.shape, dtype=np.int16)
        for end in ends[:-1]:
            assigned += slots >= end[:, None]
        return assigned


def evenly(count: int, num_selected: int) -> np.ndarray:
    """Indices of ``num_selected`` evenly spaced items of ``count``, from the first to the last; 0 selects all."""
    return np.linspace(0, count - 1, min(num_selected or count, count)).round().astype(int)


def step_positions(step: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The positions that process ``rank`` reads in ``step``; ``batch_size`` is the global one."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return range(start, start + share)
