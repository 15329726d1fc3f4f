from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import clips_world
import numpy as np
import pytest
import torch
from clips_world import opened, rng

from clips.data import decode_image, open_image
from clips.data.data_config import AugmentConfig, DataConfig
from clips.data.loader import TrainDataset, iterate_batches, shared_memory
from clips.data.sources import InvalidSampleError, SourceConfig, open_source
from clips.data.tar_index import index_tar
from clips.errors import UserError


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


def test_workers_write_no_batch_over_another(shards: Path):
    """Their memory is used again and again; what was given out stays until the next is asked for."""
    steps = {"first_step": 0, "last_step": 24}
    alone = list(iterate_batches(training_data(shards, 3), **steps))
    together = iterate_batches(training_data(shards, 3, num_workers=2), **steps)
    for number, one in enumerate(alone):
        other = next(together)
        if number % 8 == 0:
            time.sleep(0.1)  # they write as far ahead as they may
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["number"], other["number"])


@pytest.mark.parametrize(("part", "workers"), [(2, 1), (3, 2), (7, 2)])
def test_workers_share_a_batch(shards: Path, monkeypatch: pytest.MonkeyPatch, part: int, workers: int):
    """They read parts of it, in fewer slots than batches, and the batches are the same."""
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(3)} | {"000000003": {"png": b"no picture"}}
    invalid = clips_world.write_shard(shards.parent / f"{part}-{workers}.tar", samples)
    for path, least_invalid in ((shards, 0), (invalid, 20)):
        alone = list(iterate_batches(training_data(path, 10), first_step=0, last_step=9))
        monkeypatch.setattr("clips.data.loader._PART", part)
        data = training_data(path, 10, num_workers=workers)
        together = iterate_batches(data, first_step=0, last_step=9)
        assert shared_memory(workers, 10, 16) < (3 * workers + 1) * 10 * 3 * 16 * 16
        for number, (one, other) in enumerate(zip(alone, together, strict=True)):
            if number % 4 == 0:
                time.sleep(0.1)  # they write as far ahead as they may
            assert all(torch.equal(one[name], other[name]) for name in ("image", "number", "draw"))
            assert one["invalid_samples"] == other["invalid_samples"]
        assert sum(len(batch["invalid_samples"]) for batch in alone) >= least_invalid


def test_dates_in_json_lines_stay_text(tmp_path: Path):
    rows = [{"image": "a.png", "caption": f"2020-01-0{day}", "taken": "2021-02-03T04:05:06Z"} for day in (1, 2)]
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.png").write_bytes(clips_world.draw_image(0))
    source = opened(table, format="table", web_caption="caption", synthetic_caption="taken")
    assert [source.read(index, rng()).web for index in (0, 1)] == ["2020-01-01", "2020-01-02"]
    assert source.read(0, rng()).synthetic == "2021-02-03T04:05:06Z"
    assert source.record(1).fields["taken"] == "2021-02-03T04:05:06Z"


def test_an_abandoned_stream_ends_its_thread(shards: Path):
    stream = iterate_batches(training_data(shards, 4), first_step=0, last_step=100)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data")]


def test_bad_samples_are_replaced_by_the_next_good_one_and_named(tmp_path: Path):
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(6)}
    samples["000000001"]["png"] = b"not a picture"
    samples["000000002"] = {"png": clips_world.draw_image(2), "json": b'{"web_caption": " ", "synthetic_caption": ""}'}
    samples["000000004"]["json"] = b"{broken"
    samples["000000005"]["png"] = samples["000000005"]["png"][:400]
    data = training_data(clips_world.write_shard(tmp_path / "a.tar", samples).parent, 6)
    batch = first_batch(data)
    order = [data.order.at(position).index for position in range(6)]
    for index, expected in zip(batch["number"].tolist(), order, strict=True):
        assert index == expected if expected in (0, 3) else index in (0, 3)
    assert torch.equal(first_batch(data)["number"], batch["number"])
    assert {name: reason for _, name, reason in batch["invalid_samples"]} == {
        "a.tar/000000001": "undecodable image",
        "a.tar/000000002": "no caption 'web_caption'",
        "a.tar/000000004": "broken JSON",
        "a.tar/000000005": "truncated image",
    }


@pytest.mark.parametrize("first", [b"{broken", b"{}", b"[]"])
def test_a_bad_first_sample_is_one_bad_sample(tmp_path: Path, first: bytes):
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(3)}
    samples["000000000"]["json"] = first
    data = training_data(clips_world.write_shard(tmp_path / "a.tar", samples), 3)
    assert {name for _, name, _ in first_batch(data)["invalid_samples"]} == {"a.tar/000000000"}


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


def test_a_shard_here_that_sizes_json_does_not_know_is_counted(tmp_path: Path):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(3, 4))
    (folder / "sizes.json").write_text(json.dumps({"shard-00000.tar": 3}), encoding="utf-8")
    assert len(training_data(folder)) == 7
    with pytest.raises(UserError, match=r"number of samples in shard-00001\.tar; `clips data index` counts them"):
        opened(folder, shard_sizes=str(folder / "sizes.json"))


def test_one_unreadable_shard_of_many_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(2,) * 60)
    (folder / "shard-00007.tar").write_bytes(b"")
    assert len(training_data(folder)) == 118
    assert "shard-00007.tar: expected a" in capsys.readouterr().err
    (folder / "shard-00008.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00008\.tar"):
        training_data(folder)


def test_of_a_cut_tar_the_samples_before_the_cut_are_used(tmp_path, shards, capsys):
    whole = (shards / "shard-00000.tar").read_bytes()
    index = index_tar(shards / "shard-00000.tar")
    offset, size = index.members["000000004.png"]
    cut = tmp_path / "cut.tar"
    # in the image, after it, in its header
    for length in (offset + size // 2, offset + -(-size // 512) * 512, offset - 200):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut.tar: expected a whole"):
            index_tar(cut)
        source, expected = opened(cut), opened(shards)
        assert f"{cut}: truncated; its first {len(source)} samples are used" in capsys.readouterr().err
        assert len(source) in (3, 4)  # the one before the cut may be whole, but who can tell
        for place in range(len(source)):
            assert source.read(place, rng()) == expected.read(place, rng())
    first = index.members["000000000.png"][0]
    for length in (first + 20, 0):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut.tar: expected a whole"):
            opened(cut)


def test_a_file_that_is_no_tar_is_rejected_before_training(tmp_path: Path):
    (tmp_path / "zip.tar").write_bytes(b"PK\3\4" + b"\0" * 2000)
    with pytest.raises(UserError, match=r"zip.tar: expected a whole, uncompressed tar"):
        index_tar(tmp_path / "zip.tar")
    (tmp_path / "folder" / "x.tar").mkdir(parents=True)
    with pytest.raises(UserError, match=r"x.tar: expected an uncompressed tar \(Is a directory\)"):
        opened(tmp_path / "folder")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "nowhere"}, "nowhere: no such file or directory"),
        ({"path": "."}, r"expected \.tar shards in this directory, found none"),
        ({"web_caption": "web_captoin"}, "source field web_caption 'web_captoin'; did you mean 'web_caption'"),
        ({"synthetic_caption": ".txt"}, r"'synthetic_caption' expects a \.txt file \(found \.png, \.json\)"),
        ({"format": "karpaty", "path": "x"}, "unknown format of a data source 'karpaty'; did you mean 'karpathy'"),
    ],
)
def test_a_wrong_source_is_named_before_training(shards, tmp_path, monkeypatch, fields, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(SourceConfig(**{"path": str(shards), **fields}))


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


def karpathy_file(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    images = []
    for index, split in enumerate(["train", "val", "train"]):
        name = f"{index}.jpg"
        (tmp_path / "images" / name).write_bytes(clips_world.draw_image(index, kind="jpg"))
        sentences = [{"raw": f"Sentence {letter} of {index} ."} for letter in "abc"]
        images.append({"filename": name, "split": split, "sentences": sentences})
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return path


def test_karpathy_layout(tmp_path: Path):
    path = str(karpathy_file(tmp_path))
    first = {"format": "karpathy", "web_caption": "first_sentence", "synthetic_caption": "other_sentences"}
    source = opened(path, **first)
    assert len(source) == 2
    read = source.read(1, rng())
    assert read.web == "Sentence a of 2 ."
    assert read.synthetic == "Sentence b of 2. Sentence c of 2."
    assert decode_image(read.image).size == (40, 32)
    drawn = opened(path, **{**first, "web_caption": "random_sentence"})
    for seed in range(20):
        read = drawn.read(0, rng(seed))
        assert read.web.removesuffix(" .") + "." not in read.synthetic
        assert read.synthetic.count(".") == 2
    everything = opened(path, **{**first, "synthetic_caption": "all_sentences"})
    assert everything.read(0, rng()).synthetic.count(".") == 3
    (tmp_path / "images" / "2.jpg").unlink()
    with pytest.raises(InvalidSampleError, match="missing image"):
        source.read(1, rng())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "trian"}, "unknown split of .*dataset.json 'trian'; did you mean 'train'"),
        ({"web_caption": "web_caption"}, "unknown 'web_caption' of a karpathy data source 'web_caption'"),
        ({"image_root": "nowhere"}, "image_root: nowhere: expected the directory"),
        ({"path": "images/0.jpg", "image_root": "images"}, "0.jpg: not valid JSON"),
    ],
)
def test_a_wrong_karpathy_source_is_named(tmp_path, monkeypatch, fields, message):
    monkeypatch.chdir(tmp_path)
    usual = {"format": "karpathy", "web_caption": "first_sentence", "synthetic_caption": "all_sentences"}
    given = {"path": str(karpathy_file(tmp_path)), **usual, **fields}
    with pytest.raises(UserError, match=message):
        open_source(SourceConfig(**given))


def test_real_shard_and_real_photos(shared: Path):
    web = opened(shared / "data" / "cc12m_32.tar", web_caption=".txt", synthetic_caption="caption")
    assert len(web) == 32
    read = web.read(0, rng())
    assert read.web == read.synthetic
    path = str(shared / "data" / "flickr8k" / "dataset_flickr8k.json")
    photos = opened(path, format="karpathy", web_caption="random_sentence", synthetic_caption="other_sentences")
    assert len(photos) == 6000
    assert decode_image(photos.read(5, rng()).image).size == (192, 192)


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
    ("fields", "field"),
    [
        ({"augment": {"crop_scale_min": 0}}, "data.augment.crop_scale_min"),
        ({"augment": {"gray_scale_prob": 2}}, "data.augment.gray_scale_prob"),
        ({"sources": ()}, "data.sources"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"max_invalid_ratio": 2}, "data.max_invalid_ratio"),
    ],
)
def test_configs_check_themselves(fields: dict[str, Any], field: str):
    with pytest.raises(UserError, match=field):
        DataConfig(
            **{"sources": (SourceConfig(path="x"),), **fields, "augment": AugmentConfig(**fields.get("augment", {}))}
        )
