from __future__ import annotations

import json
import math
import tarfile
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
from clips.data.data_config import DataConfig
from clips.data.formats import DatasetSpec, read_dataset
from clips.data.formats.dataset_format import captions_of
from clips.data.loader import TrainDataset, iterate_batches, shared_memory
from clips.data.sources import InvalidSampleError, SourceConfig, open_source, sample_caption
from clips.data.tar_index import add_member, index_tar
from clips.errors import UserError
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
        assert f"{cut}: truncated or damaged; its first {len(source)} samples are used" in capsys.readouterr().err
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


def test_a_null_or_a_number_among_cocos_captions_is_one_invalid_sample(tmp_path: Path):
    notes = [(0, "a dog"), (0, None), (1, None), (2, "a cat"), (3, 5)]
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(5)]
    rows = [{"image_id": image, "caption": text} for image, text in notes]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": rows}))
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(clips_world.draw_image(number, kind="jpg"))
    source = opened(tmp_path / "coco.json", format="coco", image_root=str(tmp_path))
    assert len(source) == 4  # without the image that nobody described
    assert [source.read(number, rng()).web for number in (0, 2)] == ["a dog", "a cat"]
    for number, reason in ((1, "no sentences"), (3, "expected text as a caption, got a number")):
        with pytest.raises(InvalidSampleError, match=f"^{reason}$"):
            source.read(number, rng())


CLUTTER = [".DS_Store", "Thumbs.db", "README.md", "sha256sums", "__MACOSX/d/._0.jpg"]


@pytest.mark.parametrize("place", ["", "d/"])
def test_members_that_are_no_samples_are_not_counted(tmp_path: Path, place: str):
    """The library webdataset 1.0.2 gives 4 samples with an image here, and up to 12 others."""
    members = dict.fromkeys(CLUTTER, b"\0\5\26\7")
    for index in range(4):
        for extension, content in clips_world.sample(index).items():
            members[f"{place}._{index}.{extension}"] = b"\0\5\26\7"
            members[f"{place}{index}.{extension.upper()}"] = content
    clips_world.write_members(tmp_path / "0.TAR", members)
    (tmp_path / "._0.tar").write_bytes(b"\0\5\26\7")
    source = opened(tmp_path)
    assert len(source) == 4
    for index in range(4):
        assert source.read(index, rng()).web == clips_world.captions(index)["web_caption"]


def test_concatenated_tars_have_all_their_samples(tmp_path: Path):
    """Before: the samples of the first one, without a word."""
    folder = clips_world.write_shards(tmp_path / "data")
    tars = [path.read_bytes() for path in sorted(folder.iterdir())]
    (tmp_path / "all.tar").write_bytes(b"".join(tars))
    with tarfile.open(tmp_path / "all.tar", ignore_zeros=True) as tar:
        assert list(index_tar(tmp_path / "all.tar").members) == tar.getnames()
    one, several = opened(tmp_path / "all.tar"), opened(folder)
    assert [one.read(index, rng()) for index in range(21)] == [several.read(index, rng()) for index in range(21)]
    (tmp_path / "all.tar").write_bytes(tars[0] + b"no tar" * 100)
    with pytest.raises(UserError, match=r"all\.tar: expected a whole, uncompressed tar; .*\(invalid header\)"):
        index_tar(tmp_path / "all.tar")


def test_a_damaged_header_is_no_end_of_a_tar(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]):
    """Before: tarfile ended at it, and the samples behind were lost without a word."""
    content = bytearray((shards / "shard-00000.tar").read_bytes())
    offset, _ = index_tar(shards / "shard-00000.tar").members["000000004.png"]
    content[offset - 512 + 148] ^= 1  # of the checksum
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar: expected a whole, uncompressed tar; .*\(invalid header\)"):
        index_tar(tmp_path / "a.tar")
    assert len(opened(tmp_path)) == 3  # the one before the damage may be incomplete
    assert "a.tar: truncated or damaged; its first 3 samples are used" in capsys.readouterr().err


def test_a_name_given_twice_is_rejected(tmp_path: Path, shards: Path):
    """Before: the last one was used; webdataset ends with an error."""
    shard = (shards / "shard-00000.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(shard + shard)
    with pytest.raises(UserError, match=r"a\.tar: expected different names, got 000000000\.png twice$"):
        opened(tmp_path)
    jpg = clips_world.draw_image(0, kind="jpg")
    clips_world.write_members(tmp_path / "a.tar", {"0.jpg": jpg, "0.JPG": jpg})
    with pytest.raises(UserError, match=r"a\.tar: expected different names, got 0\.jpg twice$"):
        opened(tmp_path)


def test_hard_links_are_images(tmp_path: Path):
    """Before: invalid samples without an image, as for webdataset; GNU tar and tarfile extract them."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for index in range(3):
            add_member(tar, f"./{index}.json", clips_world.sample(index)["json"])
            member = tarfile.TarInfo(f"./{index}.png")
            if index:
                member.type, member.linkname = tarfile.LNKTYPE, "./0.png"
                tar.addfile(member)
            else:
                add_member(tar, member.name, clips_world.draw_image(0))
    source = opened(tmp_path)
    assert [source.read(index, rng()).image for index in range(3)] == [clips_world.draw_image(0)] * 3


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


def test_dots_in_the_name_of_a_sample_are_named(tmp_path: Path):
    files = clips_world.sample(0)
    clips_world.write_members(tmp_path / "a.tar", {"photo.1.png": files["png"], "photo.json": files["json"]})
    reason = r"no \.png, but \.1\.png: a sample's name ends at the first dot$"
    with pytest.raises(InvalidSampleError, match=f"^{reason}"):
        opened(tmp_path).read(0, rng())
    with pytest.raises(UserError, match=rf"a\.tar/photo: {reason}"):
        list(read_dataset(DatasetSpec(path=str(tmp_path)), "captions").records)


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


def test_cocos_training_split_has_a_second_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Before: train+restval was an unknown split, and train were 82,783 of the usual 113,287 images without a word."""
    splits = ["train", "restval", "val", "restval", "test"]
    rows = [
        {"filename": f"{index}.jpg", "split": split, "sentences": [{"raw": f"number {index}"}]}
        for index, split in enumerate(splits)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_bytes(clips_world.draw_image(index, kind="jpg"))
    fields = {"format": "karpathy", "image_root": str(tmp_path)}
    for split, indices in (("train+restval", [0, 1, 3]), ("restval", [1, 3]), ("all", range(5))):
        source = opened(tmp_path / "dataset_coco.json", split=split, **fields)
        assert [source.name(number) for number in range(len(source))] == [f"{index}.jpg" for index in indices]
    assert capsys.readouterr().err == ""
    assert len(opened(tmp_path / "dataset_coco.json", split="train", **fields)) == 1
    note = "split train has 1 images; the 2 of restval are usually trained on too: split: train+restval"
    assert note in capsys.readouterr().err
    with pytest.raises(UserError, match=r"unknown split of .* 'restvla'; did you mean 'restval'"):
        opened(tmp_path / "dataset_coco.json", split="train+restvla", **fields)


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
    ("fields", "message"),
    [
        ({"augment": {"crop_scale_min": 0}}, "augment.crop_scale_min: expected a number above 0 and up to 1, got 0"),
        ({"augment": {"gray_scale_prob": 2}}, "augment.gray_scale_prob: expected a number from 0 to 1, got 2"),
        ({"sources": []}, "sources: expected a list of 1 or more, each item a mapping of format, path, "),
        ({"sources": [{"path": "x", "weight": math.inf}]}, r"sources\[1\].weight: expected a finite number above 0"),
        ({"num_workers": -1}, "num_workers: expected an integer of at least 0, got -1"),
        ({"max_invalid_ratio": math.nan}, "max_invalid_ratio: expected a number from 0 to 1, got nan"),
    ],
)
def test_values_out_of_range_are_rejected(fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        from_plain(DataConfig, {"sources": [{"path": "x"}], **fields})
