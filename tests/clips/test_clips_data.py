from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import clips_world
import numpy as np
import open_clip
import pytest
import torch
from clips_world import opened, rng

from clips.data import decode_image, open_image
from clips.data.formats.dataset_format import captions_of
from clips.data.formats.source import sample_caption
from clips.data.images import InvalidSampleError
from clips.data.sources import Sample, SourceConfig
from clips.errors import UserError
from clips.loader.data_config import DataConfig
from clips.loader.loader import SharedBatches, TrainDataset, iterate_batches
from clips.loader.sampler import step_positions
from clips.typed_data import from_plain


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def training_data(path: Path, batch_size: int = 1, **fields: object) -> TrainDataset:
    config = DataConfig(sources=(SourceConfig(path=str(path)),), **fields)
    return TrainDataset(config, size=16, seed=3, batch_size=batch_size, prepare=clips_world.number_of)


def first_batch(data: TrainDataset) -> dict[str, Any]:
    return next(iterate_batches(data, first_step=0, last_step=1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_batches_resume_exactly_from_any_step_with_any_number_of_workers(shards: Path, workers: int):
    whole = list(iterate_batches(training_data(shards, 5), first_step=0, last_step=8))
    rest = list(iterate_batches(training_data(shards, 5, num_workers=workers), first_step=5, last_step=8))
    assert (len(whole), len(rest)) == (8, 3)
    for expected, got in zip(whole[5:], rest, strict=True):
        for name in ("image", "number", "draw"):
            assert torch.equal(expected[name], got[name]), name
    assert sorted(torch.cat([batch["number"] for batch in whole])[:21].tolist()) == list(range(21))


def test_crops_and_draws_differ_between_epochs_and_samples(shards: Path):
    data = training_data(shards)
    stream = [data[position] for position in range(42)]
    assert len({int(sample["draw"]) for sample in stream}) == 42
    again = training_data(shards, cache_images=True)
    for _ in range(2):  # decoded, then from memory; see test_clips_images.py for JPEGs
        assert all(torch.equal(again[p]["image"], stream[p]["image"]) for p in (0, 20, 41))


@pytest.mark.parametrize(("part", "workers"), [(2, 1), (3, 2), (7, 2), (10, 2)])
def test_workers_share_a_batch(shards: Path, monkeypatch: pytest.MonkeyPatch, part: int, workers: int):
    """They read parts of it (or all), in fewer slots than batches, and write none over another."""
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(3)} | {"000000003": {"png": b"no picture"}}
    invalid = clips_world.write_shard(shards.parent / f"{part}-{workers}.tar", samples)
    for path, least_invalid in ((shards, 0), (invalid, 20)):
        alone = list(iterate_batches(training_data(path, 10), first_step=0, last_step=9))
        monkeypatch.setattr("clips.loader.loader._PART", part)
        data = training_data(path, 10, num_workers=workers)
        together = iterate_batches(data, first_step=0, last_step=9)
        slots = len(SharedBatches(data, [range(10)]).images)
        assert slots < 3 * workers + 1 if part < 10 else slots == 3 * workers + 1
        for number, (one, other) in enumerate(zip(alone, together, strict=True)):
            if number % 4 == 0:
                time.sleep(0.1)  # they write as far ahead as they may
            assert all(torch.equal(one[name], other[name]) for name in ("image", "number", "draw"))
            assert one["invalid_samples"] == other["invalid_samples"]
        assert sum(len(batch["invalid_samples"]) for batch in alone) >= least_invalid


def test_an_abandoned_stream_ends_its_thread(shards: Path):
    stream = iterate_batches(training_data(shards, 4), first_step=0, last_step=100)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data")]


@pytest.mark.parametrize("first", [b"{broken", b"{}", b"[]"])
def test_bad_samples_are_replaced_by_good_ones_and_named(tmp_path: Path, first: bytes):
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(7)}
    samples["000000000"]["json"] = first
    samples["000000001"]["png"] = b"not a picture"
    samples["000000002"] = {"png": clips_world.draw_image(2), "json": b'{"web_caption": " ", "synthetic_caption": ""}'}
    samples["000000004"]["json"] = b"{broken"
    samples["000000005"]["png"] = samples["000000005"]["png"][:400]
    data = training_data(clips_world.write_shard(tmp_path / "a.tar", samples).parent, 7)
    batch = first_batch(data)
    order = [data.order.at(position).index for position in range(7)]
    for index, expected in zip(batch["number"].tolist(), order, strict=True):
        assert index == expected if expected in (3, 6) else index in (3, 6)
    assert torch.equal(first_batch(data)["number"], batch["number"])
    assert len(batch["invalid_samples"]) == 5  # each once, though most are tried in place of another as well
    assert {name: reason for _, name, reason in batch["invalid_samples"]} == {
        "a.tar/000000000": "no caption 'web_caption'" if first == b"{}" else "broken JSON",
        "a.tar/000000001": "undecodable image",
        "a.tar/000000002": "no caption 'web_caption'",
        "a.tar/000000004": "broken JSON",
        "a.tar/000000005": "truncated image",
    }


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_nothing_but_bad_samples_stops(tmp_path: Path, workers: int):
    samples = {f"{i:09d}": {"png": b"x", "json": clips_world.sample(i)["json"]} for i in range(3)}
    data = training_data(clips_world.write_shard(tmp_path / "a.tar", samples), num_workers=workers)
    line = r"^data\.sources: 3 samples in a row cannot be used; a\.tar/\d*: undecodable image$"
    with pytest.raises(UserError, match=line):
        first_batch(data)


@pytest.mark.parametrize("there", [20, 0])
def test_missing_samples_of_a_shard_are_replaced_by_many_others(tmp_path: Path, there: int):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(40, there or 1, 40))
    if not there:
        (folder / "shard-00001.tar").write_bytes(b"no tar at all")
    clips_world.write_sizes(folder, (40, 300, 40))
    for window in (None, 1):
        data = training_data(folder, shuffle_buffer_shards=window)
        read = (data.__getitems__(range(start, start + 20)) for start in range(0, 380, 20))
        seen = Counter(sample["number"].item() for batch in read for sample in batch)
        assert sum(seen.values()) == 380
        assert len(seen) == 80 + there
        assert max(seen.values()) < 4 * 380 / (80 + there)  # no sample stands in for all


def test_a_missing_shard_counts_for_no_more_than_it_is(tmp_path: Path):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(16,) * 16)
    clips_world.write_sizes(folder, (16,) * 16)
    missing = int(training_data(folder, 16, shuffle_buffer_shards=16).order.at(0).index) // 16
    (folder / f"shard-{missing:05d}.tar").write_bytes(b"no tar at all")
    bad = [
        batch["invalid_samples"]
        for batch in iterate_batches(training_data(folder, 16, shuffle_buffer_shards=16), first_step=0, last_step=16)
    ]
    named = [entry for entries in bad for entry in entries]
    assert len(named) == len(set(named)) == 16  # each once, none for having been tried in another's place
    assert all(len(entries) <= 2 for entries in bad)


def read_with_valid(data: TrainDataset, valid: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the samples of the ``valid`` shards be read, and no others; a caption ends with the sample's shard."""
    (source,) = data.parts
    starts = np.cumsum([0, *source.blocks])

    def read(index: int, rng: np.random.Generator) -> Sample:
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        if shard not in valid:
            raise InvalidSampleError("missing shard")
        return Sample(image=clips_world.draw_image(0), web=f"shard {shard}", synthetic="")

    monkeypatch.setattr(source, "read", read)


def test_a_sample_is_replaced_by_one_of_the_shards_that_its_machine_has(tmp_path: Path, monkeypatch):
    """Or of those that all machines have now; from far away only if all these are missing."""
    captions = clips_world.sample(0)["json"]
    for shard in range(24):
        samples = {f"{index:09d}": {"png": b"x", "json": captions} for index in range(40)}
        clips_world.write_shard(tmp_path / "data" / f"{shard:05d}.tar", samples)
    data = training_data(tmp_path / "data", 4, shuffle_buffer_shards=8)
    everything, machines, last = set(range(24)), 4, 10**6

    def shards(step: int, share: tuple[float, float]) -> set[int]:
        now, later = data.order.shards_near(step, last, share)
        return {*now, *later}

    def replacement(position: int, valid: set[int]) -> int:
        read_with_valid(data, valid, monkeypatch)
        return int(data[position]["number"])

    for step in range(0, 160, 10):
        for machine, position in enumerate(step_positions(step, batch_size=4)):
            missing = data.order.at(position).index // 40
            own = shards(step, (machine / machines, (machine + 1) / machines))
            near = shards(step, (0, 1))
            assert replacement(position, everything - {missing}) in own
            assert replacement(position, everything - own) in near
    far = everything - shards(0, (0, 1))
    assert far
    assert replacement(0, far) in far


def test_a_shard_here_that_sizes_json_does_not_know_is_counted(tmp_path: Path):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(3, 4))
    (folder / "sizes.json").write_text(json.dumps({"shard-00000.tar": 3}), encoding="utf-8")
    assert len(training_data(folder)) == 7
    with pytest.raises(UserError, match=r"number of samples in shard-00001\.tar; `clips data index` counts them"):
        opened(folder, shard_sizes=str(folder / "sizes.json"))


def test_captions_come_from_keys_lists_and_text_files(tmp_path: Path):
    files = {"jpg": clips_world.draw_image(0, kind="jpg"), "txt": b" as text \n", "json": clips_world.sample(0)["json"]}
    path = str(clips_world.write_shard(tmp_path / "a.tar", {"x/1.b": files}))  # the key ends at the first dot
    with pytest.raises(UserError, match=r"expects a \.txt file"):
        opened(path, web_caption=".txt")
    path = str(clips_world.write_shard(tmp_path / "b.tar", {"x/1": files}))
    source = opened(path, web_caption=".txt", synthetic_caption=None)
    read = source.read(0, rng())
    assert (read.web, read.synthetic, source.name(0)) == ("as text", "", "b.tar/x/1")
    drawn = opened(path, web_caption="captions")
    assert {drawn.read(0, rng(seed)).web for seed in range(60)} == {f"sentence {number} of 0" for number in range(5)}


def test_a_text_file_of_several_lines_is_one_caption_as_for_open_clip(tmp_path: Path):
    """Alt texts have line breaks, and captions of language models paragraphs."""
    text = "A red car.\n\nTwo trees.\r\n"
    path = clips_world.write_shard(tmp_path / "a.tar", {"1": {"png": clips_world.draw_image(0), "txt": text.encode()}})
    source = opened(path, web_caption=".txt", synthetic_caption=None)
    (web,) = {source.read(0, rng(seed)).web for seed in range(20)}
    tokens = open_clip.get_tokenizer("ViT-B-32")
    assert torch.equal(tokens(web), tokens(text))
    assert "trees" in web


def test_a_sample_without_a_synthetic_caption_has_none(tmp_path: Path):
    texts = (b'{"web_caption": "a", "synthetic_caption": "A b. C d."}', b'{"web_caption": "b"}')
    samples = {str(number): {"png": clips_world.draw_image(number), "json": text} for number, text in enumerate(texts)}
    source = opened(clips_world.write_shard(tmp_path / "data" / "a.tar", samples).parent)
    assert [source.read(index, rng()).synthetic for index in range(2)] == ["A b. C d.", ""]


def test_names_that_are_not_utf8_are_names(tmp_path: Path):
    samples = {"caf\udce9": clips_world.sample(0), "tea": clips_world.sample(1)}
    clips_world.write_shard(tmp_path / "data" / "a.tar", samples)
    source = opened(tmp_path / "data")
    assert source.name(0) == "a.tar/caf\\xe9"
    assert source.read(0, rng()).image == clips_world.draw_image(0)


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        (["a dog", None, "", " ", float("nan"), "a cat"], ["a dog", "a cat"]),
        (np.array(["a dog", None], dtype=object), ["a dog"]),  # as pandas writes it to parquet
        ([{"raw": "a dog", "sentid": 3}, {"raw": None}], ["a dog"]),
        ([["a dog"]], ["a dog"]),
        (["\u200b", "\u2060\u200d", "\xa0", "&nbsp;", "&#8203; ", "\ufeff", "\0", "\u202e"], []),
        ("\ufeffa dog", ["a dog"]),
        (["&amp;", "🙂", "狗"], ["&amp;", "🙂", "狗"]),
        (float("nan"), []),
        (None, []),
        ([1984], "a number"),
        (2.5, "a number"),
        (True, "bool"),
        ({"text": "a dog"}, "an object"),
        ([b"a dog"], "bytes"),
    ],
)
def test_what_is_a_caption(value: Any, captions: list[str] | str):
    """Before: of 50 samples with [caption, null], 31 were trained with an empty text."""
    if isinstance(captions, str):
        with pytest.raises(InvalidSampleError, match=f"^web: expected text as a caption, got {captions}$"):
            sample_caption(value, "web", rng())
    else:
        assert captions_of(value) == captions
        assert {sample_caption(value, "web", rng(seed)) for seed in range(50)} == set(captions or [""])


@pytest.mark.parametrize("sizes", [True, False])
def test_the_first_shard_may_be_empty_or_without_captions(tmp_path: Path, sizes: bool):
    """Before: "expects key 'web_caption' in a .json file; none"."""
    folder = clips_world.write_shards(tmp_path / "data", sizes=(0, 1, 3))
    clips_world.write_shard(folder / "shard-00001.tar", {"0": {"png": clips_world.draw_image(0)}})
    if sizes:
        clips_world.write_sizes(folder, (0, 1, 3))
    source = opened(folder)
    assert (len(source), source.read(1, rng()).web) == (4, clips_world.captions(1)["web_caption"])
    with pytest.raises(UserError, match=r"source field web_caption 'web_captoin'; did you mean 'web_caption'"):
        opened(folder, web_caption="web_captoin")
    empty = clips_world.write_shards(tmp_path / "empty", sizes=(0, 0))
    with pytest.raises(UserError, match="empty: no samples"):
        opened(empty)


def test_image_references_lead_to_files_and_tar_members(shards: Path, tmp_path: Path):
    member = open_image(shards, "shard-00001.tar/000000010.png")
    assert np.array_equal(np.array(member), np.array(decode_image(clips_world.draw_image(10))))
    (shards / "file").write_text("x")
    (tmp_path / "a.jpg").write_bytes(clips_world.draw_image(3, kind="jpg"))
    assert open_image(tmp_path, "a.jpg").size == (40, 32)
    for reference, message in (
        ("shard-00001.tar/000000000.png", "no such image"),
        ("shard-00009.tar/000000000.png", "no such file"),
        ("nothing.png", "no such image"),
        ("../train/shard-00001.tar/000000010.png", "expected a path inside"),
        ("/etc/passwd", "expected a path inside"),
        ("shard-00001.tar/000000010.json", "undecodable image"),
        ("shard-00001.tar", "undecodable image"),
        ("shard-00001.tar//x.png", "no such image"),
        ("shard-00001.tarx/x.png", "no such image"),
        ("file/x.png", "no such image"),
        ("n" * 300, "no such image"),
        ("a\0b", "no such image"),
    ):
        with pytest.raises(UserError, match=message):
            open_image(shards, reference)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": []}, "sources: expected a list of 1 or more, each item a mapping of format, path, "),
        ({"sources": [{"path": "x", "weight": math.inf}]}, r"sources\[1\].weight: expected a finite number above 0"),
        ({"sources": [{"format": "datasets", "path": "hub", "streaming": True}]}, "shuffle_buffer_shards: expected a"),
    ],
)
def test_values_out_of_range_are_rejected(fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        from_plain(DataConfig, {"sources": [{"path": "x"}], **fields})
