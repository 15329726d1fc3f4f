"""Which sample comes when: whole epochs, buffers, stripes, mixtures, any number of processes."""

from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from generators import explore, sizes
from hypothesis import strategies as st

from clips.loader.sampler import SampleOrder, step_positions


def epochs_of(order: SampleOrder, count: int) -> list[list[int]]:
    size = len(order)
    return [[order.at(position).index for position in range(size * e, size * e + size)] for e in range(count)]


@pytest.mark.parametrize("batch_size", [1, 8])  # stripes
@pytest.mark.parametrize("buffer", [None, 1, 2, 5, 9])
def test_an_epoch_holds_every_sample_once_in_another_order_each_time(buffer: int | None, batch_size: int):
    blocks = [[7, 1, 4, 3], [3, 6]]  # 24 samples are whole steps
    epochs = epochs_of(SampleOrder(blocks, seed=5, buffer_shards=buffer, batch_size=batch_size), 3)
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != epochs_of(SampleOrder(blocks, seed=6, buffer_shards=buffer, batch_size=batch_size), 1)[0]
    assert {SampleOrder(blocks, seed=5, buffer_shards=buffer).at(position).epoch for position in (0, 23)} == {0}


MIXED = [[90] * 50, [60] * 70]


@pytest.mark.parametrize(("blocks", "weights"), [(MIXED, None), (MIXED, [3.0, 1.0])])
@pytest.mark.parametrize("machines", [1, 2, 3, 8])
def test_a_machine_needs_only_its_share_of_a_windows_shards(blocks, weights, machines: int):
    buffer, steps = 20, 40
    order = SampleOrder(blocks, weights, seed=4, buffer_shards=buffer, batch_size=48)
    ends = np.cumsum([size for source in blocks for size in source])
    for rank in range(machines):
        for step in range(steps):
            now, later = order.shards_near(step, steps, (rank / machines, (rank + 1) / machines))
            asked_for = {*now, *later}
            share = buffer / machines * (1 if weights else 1.5)  # of one sequence some shards are the smaller ones
            assert max(len(now), len(later)) <= (len(weights or [1])) * (share + 3)
            positions = step_positions(step, batch_size=48, rank=rank, world_size=machines)
            read = {int(np.searchsorted(ends, order.at(p).index, side="right")) for p in positions}
            assert read <= asked_for


def test_stripes_of_a_mixture_keep_to_its_weights_and_go_through_each_source():
    order = SampleOrder([[10] * 16, [10] * 12], [3.0, 1.0], seed=2, buffer_shards=4, batch_size=8)
    places = [order.at(position) for position in range(8 * 1000)]
    counts = [sum(place.index < 160 for place in places[start : start + 1000]) for start in range(0, 8000, 1000)]
    assert all(abs(count - 750) <= 10 for count in counts)
    assert sum(counts) == 6000
    read = Counter((place.epoch, place.index) for place in places)
    assert set(read.values()) == {1}
    assert all((0, index) in read for index in range(280))  # the first epoch of both


def test_a_stripe_is_shuffled_again_in_every_epoch():
    order = SampleOrder([[40] * 4], seed=0, buffer_shards=2, batch_size=4)
    stripe = [[order.at(160 * epoch + 4 * step).index for step in range(20)] for epoch in range(2)]
    assert stripe[0] != sorted(stripe[0])
    assert sorted(stripe[0]) != sorted(stripe[1])


def test_a_buffer_reads_few_shards_at_a_time():
    order = SampleOrder([[10] * 20], seed=0, buffer_shards=4)
    shards = [order.at(position).index // 10 for position in range(200)]
    buffers = [set(shards[start : start + 40]) for start in range(0, 200, 40)]
    assert [len(buffer) for buffer in buffers] == [4] * 5
    assert set().union(*buffers) == set(range(20))
    assert shards[:40] != sorted(shards[:40])  # shuffled within the buffer as well


def test_equal_sources_and_epochs_have_orders_of_their_own():
    for buffer in (None, 1):
        order = SampleOrder([[50], [50]], [1.0, 1.0], seed=1, buffer_shards=buffer)
        places = [order.at(position) for position in range(1000)]
        passes = {
            (source, epoch): tuple(p.index % 50 for p in places if (p.index // 50, p.epoch) == (source, epoch))
            for source in range(2)
            for epoch in range(10)
        }
        assert len(set(passes.values())) == 20
        sources = [place.index // 50 for place in places]
        assert sources[:500] != sources[500:]


def test_each_step_of_a_mixture_is_near_its_weights():
    """The stripes do not read the same source at once."""
    order = SampleOrder([[1000] * 8, [1000] * 8], [3.0, 1.0], seed=0, buffer_shards=4, batch_size=64)
    for step in range(0, 3000, 60):
        first = sum(order.at(64 * step + place).index < 8000 for place in range(64))
        assert abs(first - 48) < 5 * (64 * 0.75 * 0.25) ** 0.5


def test_the_shards_of_a_step_of_a_mixture_are_asked_for_before():
    """Also where some stripes have reached a source's next buffer, and others have not."""
    batch, last = 16, 150
    order = SampleOrder([[40] * 24, [40] * 24], [3.0, 1.0], seed=0, buffer_shards=8, batch_size=batch)
    for step in range(last):
        now, later = order.shards_near(step, last)
        read = {order.at(position).index // 40 for position in step_positions(step, batch_size=batch)}
        assert read <= {*now, *later}


def test_stripes_round_a_share_at_different_fractions():
    order = SampleOrder([[300] * 4, [300] * 4], [1.0, 2.0], seed=0, buffer_shards=2, batch_size=8)
    counts = Counter(order.at(position).index < 1200 for position in range(8 * 1000))
    assert abs(counts[True] - 8000 / 3) <= 1 / 2


@pytest.mark.parametrize(("blocks", "weights"), [([[3] * 7, [2] * 4], None), ([[3] * 7, [2] * 4], [1.0, 2.0])])
def test_the_blocks_near_a_position_are_those_read_there_and_next(blocks, weights):
    order = SampleOrder(blocks, weights, seed=4, buffer_shards=2)
    ends = np.cumsum([size for source in blocks for size in source])
    read = [int(np.searchsorted(ends, order.at(position).index, side="right")) for position in range(3000)]
    for position in (0, 20, 40) if weights is None else (0, 1000, 2000):
        now, later = order.shards_near(position, 3000)
        assert read[position] in now
        assert all(1 <= len(found) <= 2 * len(blocks if weights else [1]) for found in (now, later))
    if weights is None:
        now, later = order.shards_near(0, 3000)
        change = next(position for position in range(30) if read[position] not in now)
        assert read[change] in later
        assert order.shards_near(0, change) == (now, [])
        assert order.shards_near(change, 3000)[0] == later


def test_a_mixture_keeps_to_its_weights_and_goes_through_each_source():
    order = SampleOrder([[30], [500], [7]], [3.0, 1.0, 1.0], seed=1)
    places = [order.at(position) for position in range(2000)]
    sources = [0 if place.index < 30 else 1 if place.index < 530 else 2 for place in places]
    for cycle in (sources[:1000], sources[1000:]):
        assert Counter(cycle) == {0: 600, 1: 200, 2: 200}
    small = [place for place, source in zip(places, sources, strict=True) if source == 2]
    for epoch in range(len(small) // 7):
        part = small[7 * epoch : 7 * epoch + 7]
        assert sorted(place.index for place in part) == list(range(530, 537))
        assert {place.epoch for place in part} == {epoch}
    again = SampleOrder([[30], [500], [7]], [3.0, 1.0, 1.0], seed=1)
    assert again.at(1777) == places[1777]  # without having been through those before


def counts_of(order: SampleOrder, sizes: list[int], positions: range) -> list[int]:
    ends = np.cumsum(sizes)
    sources = [int(np.searchsorted(ends, order.at(position).index, side="right")) for position in positions]
    return [sources.count(number) for number in range(len(sizes))]


def test_weights_that_do_not_divide_a_cycle_are_kept_in_the_long_run():
    order = SampleOrder([[1]] * 3, [1, 1, 1], seed=0)
    assert counts_of(order, [1] * 3, range(3000)) == [1000] * 3
    assert sorted(counts_of(order, [1] * 3, range(1000))) == [333, 333, 334]
    order = SampleOrder([[5000], [5000]], [1.0, 4999.0], seed=0)  # less than a sample in a thousand
    assert [counts_of(order, [5000] * 2, range(n, n + 5000)) for n in (0, 5000)] == [[1, 4999]] * 2
    assert SampleOrder([[5000], [5000]], [1.0, 4999.0], seed=0).at(4999) == order.at(4999)  # on its own as well
    assert counts_of(SampleOrder([[1], [1]], [1, 1e6], seed=0), [1, 1], range(1000)) == [0, 1000]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_each_of_many_weights_is_kept(batch_size: int):
    weights = [5e-4, 0.02, 0.3, 3e-3, 0.25, 0.4265]
    order = SampleOrder(
        [[10] * 5] * 6, weights, seed=3, buffer_shards=2 if batch_size > 1 else None, batch_size=batch_size
    )
    places = [order.at(position) for position in range(1000 * max(4, batch_size))]
    counts = Counter(place.index // 50 for place in places)
    assert [counts[source] for source in range(6)] == pytest.approx([len(places) * w for w in weights], abs=2)
    rare = [(place.epoch, place.index) for place in places if place.index < 50]
    assert len(set(rare)) == len(rare)


@sizes
def test_every_source_of_a_mixture_has_its_share_and_is_read_whole(examples: int):
    """At each end of a cycle, whatever the weights; the reference are exact fractions of what the config states."""

    def check(data: st.DataObject) -> None:
        exponents = data.draw(st.lists(st.floats(-4, 3), min_size=2, max_size=12), label="exponents of weights")
        weights = [10**exponent for exponent in exponents]
        blocks = [data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6)) for _ in weights]
        stripes = data.draw(st.sampled_from([1, 2]), label="stripes")
        buffer = 2 if stripes > 1 else data.draw(st.sampled_from([None, 1, 3]), label="buffer")
        order = SampleOrder(
            blocks, weights, seed=data.draw(st.integers(0, 9)), buffer_shards=buffer, batch_size=stripes
        )
        ends = np.cumsum([sum(sizes) for sizes in blocks])
        places = [order.at(position) for position in range(2000)]
        sources = np.searchsorted(ends, [place.index for place in places], side="right")
        total, most = sum(map(Fraction, weights)), weights.index(max(weights))
        for end in range(1000 * stripes, len(places) + 1, 1000 * stripes):
            for number, weight in enumerate(weights):
                error = abs(np.count_nonzero(sources[:end] == number) - Fraction(weight) / total * end)
                assert error <= (len(weights) - 1 if number == most else 1) / 2 + 1e-6, (number, end)
        assert len(set(places)) == len(places)
        for number in range(len(weights)) if stripes == 1 else ():
            read = [place for place, source in zip(places, sources, strict=True) if source == number]
            size = sum(blocks[number])
            for epoch, start in enumerate(range(0, len(read), size)):
                part = read[start : start + size]
                assert len({place.index for place in part}) == len(part)
                assert {place.epoch for place in part} == {epoch}

    explore(check, examples)


def test_no_source_of_very_many_goes_back():
    """In 1,000 samples, 126 of these sources would round up at once to 8 each: more than there are."""
    order = SampleOrder([[3000]] * 127, [7.1] * 126 + [105.4], seed=0)
    places = [order.at(position) for position in range(127**2 + 5000)]
    assert len(set(places)) == len(places)
    counts = Counter(place.index // 3000 for place in places[: 127**2])
    assert [counts[number] for number in range(126)] == pytest.approx([127**2 * 7.1 / 1000] * 126, abs=0.5)


def test_readers_get_the_order_as_it_is():
    order = SampleOrder([[9] * 3, [4] * 5], [0.1, 0.7], seed=3, buffer_shards=2, batch_size=8)
    order.at(5)
    sent = pickle.loads(pickle.dumps(order))
    assert [sent.at(position) for position in range(3000)] == [order.at(position) for position in range(3000)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_reads_the_same_samples_at_any_world_size(world_size: int):
    for step in (0, 1, 7):
        parts = [step_positions(step, batch_size=8, rank=r, world_size=world_size) for r in range(world_size)]
        assert [position for part in parts for position in part] == list(range(8 * step, 8 * step + 8))
