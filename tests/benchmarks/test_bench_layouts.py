"""Layouts of images with captions: each recognized by its files, each fault reported in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_world as world
import pandas as pd
import pytest
import torch
from bench_layouts import detected
from bench_reader import Reader, evaluate, write_images

from benchmarks.results.results import read_items
from benchmarks.tasks.data.caption_sets import CaptionSet, load_caption_set
from benchmarks.tasks.registry import configure
from clips.data.formats import DatasetSpec, read_dataset
from clips.data.lazy_images import FileImage
from clips.errors import UserError

COUNT = 3


def _load(path: Path, *, captions_per_image: int = 5, limit: int | None = None, **asked: Any) -> CaptionSet:
    source = DatasetSpec(path=str(path), **asked)
    return load_caption_set(source, captions_per_image=captions_per_image, limit=limit)


def _karpathy(folder: Path) -> Path:
    write_images(folder / "images" / "val2014", COUNT + 1)
    rows = [
        {
            "filename": f"{number}.png",
            "filepath": "val2014",
            "split": "test" if number < COUNT else "train",
            "sentences": [{"raw": text} for text in world.captions(number)],
        }
        for number in range(COUNT + 1)
    ]
    return world.write_lines(folder / "dataset.json", [{"images": rows}])


def _coco(folder: Path) -> Path:
    write_images(folder / "val2014", COUNT)
    notes = [{"image_id": n, "caption": world.captions(n)[k]} for k in range(3) for n in range(COUNT)]
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(COUNT)]
    return world.write_lines(folder / "coco_test_karpathy.json", [{"images": images, "annotations": notes}])


def _list(folder: Path) -> Path:
    write_images(folder / "val2014", COUNT)
    rows = [{"image": f"val2014/{number}.png", "caption": world.captions(number)} for number in range(COUNT)]
    return world.write_lines(folder / "coco_karpathy_test.json", [rows])


def _json_lines(folder: Path) -> Path:
    write_images(folder / "pictures", COUNT)
    rows = [{"image": f"pictures/{n}.png", "captions": world.captions(n)} for n in range(COUNT)]
    return world.write_lines(folder / "x.jsonl", rows)


def _text(folder: Path) -> Path:
    write_images(folder / "Images", COUNT)
    rows = [f"{n}.png,{text}\n" for n in range(COUNT) for text in world.captions(n)]
    (folder / "flickr30k_test_karpathy.txt").write_text("image,caption\n" + "".join(rows))
    return folder / "flickr30k_test_karpathy.txt"


def _token(folder: Path) -> Path:
    write_images(folder / "flickr30k-images", COUNT)
    rows = [f"{n}.png#{k}\t{text}\n" for n in range(COUNT) for k, text in enumerate(world.captions(n))]
    (folder / "results_20130124.token").write_text("".join(rows))
    return folder / "results_20130124.token"


def _csv(folder: Path, suffix: str = ".csv", separator: str = ",") -> Path:
    write_images(folder / "images", COUNT)
    rows = [{"image": f"{n}.png", "caption": text, "source": 'a, "b"\n'}
            for n in range(COUNT) for text in world.captions(n)]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / f"captions{suffix}", index=False, sep=separator)
    return folder / f"captions{suffix}"


def _tsv(folder: Path) -> Path:
    return _csv(folder, ".tsv", "\t")


def _parquet_file(folder: Path) -> Path:
    write_images(folder / "images", COUNT)
    rows = [{"image": f"{n}.png", "captions": world.captions(n)} for n in range(COUNT)]
    pd.DataFrame(rows).to_parquet(folder / "captions.parquet")
    return folder / "captions.parquet"


def _sample(number: int, stem: str) -> dict[str, bytes]:
    text = "\n".join(world.captions(number)).encode()
    return {f"{stem}{number}.png": world.png(world.draw_image(number)), f"{stem}{number}.txt": text}


def _clip_benchmark_shards(folder: Path) -> Path:
    """A shard an image, of which the last two are out of the alphabet's order."""
    for number, shard in enumerate((2, 9, 10)):
        world.write_tar(folder / f"wds/test/{shard}.tar", _sample(number, "deep/er/s000000"))
    (folder / "wds/test/nshards.txt").write_text(f"{COUNT}\n")
    return folder / "wds"


def _img2dataset(folder: Path) -> Path:
    """A JSON about the download next to each text, and a table of them next to the shard."""
    members: dict[str, bytes] = {}
    for number in range(COUNT):
        status = {f"00000000{number}.json": b'{"status": "success", "url": "x"}'}
        members |= _sample(number, "00000000") | status
    world.write_tar(folder / "00000.tar", members)
    pd.DataFrame({"url": ["x"] * COUNT, "status": ["success"] * COUNT}).to_parquet(folder / "00000.parquet")
    return folder


def _parquet(folder: Path) -> Path:
    columns = {"image": [*map(world.draw_image, range(COUNT))], "sentences": [*map(world.captions, range(COUNT))]}
    world.write_parquet(folder / "hub/data/test-00000-of-00001.parquet", columns)
    return folder / "hub"


def _saved(folder: Path) -> Path:
    import datasets

    rows = {"image": [{"bytes": world.png(world.draw_image(n)), "path": None} for n in range(COUNT)]}
    rows |= {f"caption_{k}": [world.captions(n)[k] for n in range(COUNT)] for k in range(3)}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": table}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


LAYOUT_OF: dict[str, list[Callable[[Path], Path]]] = {
    "karpathy": [_karpathy],
    "coco": [_coco],
    "list": [_list],
    "jsonl": [_json_lines],
    "flickr": [_text, _token],
    "table": [_csv, _tsv, _parquet_file],
    "webdataset": [_clip_benchmark_shards, _img2dataset],
    "datasets": [_parquet, _saved],
}


@pytest.mark.parametrize(("name", "write"), [(name, write) for name, writers in LAYOUT_OF.items() for write in writers])
def test_layouts_of_the_same_data_are_recognized_and_have_the_same_hash(tmp_path, name, write):
    path = write(tmp_path)
    assert detected(path) == {name}
    found = _load(path)
    assert found.captions == [world.captions(number) for number in range(COUNT)]
    for number in range(COUNT):
        assert found.open(number).tobytes() == world.draw_image(number).tobytes()
    assert found.hash == _load(_json_lines(tmp_path / "reference")).hash == _load(path, format=name).hash
    parted = write in {_karpathy, _clip_benchmark_shards, _parquet, _saved}
    assert found.split == ("test" if parted else "taken whole")


def test_splits(tmp_path):
    karpathy = _karpathy(tmp_path)
    assert list(_load(karpathy).images) == [f"val2014/{n}.png" for n in range(COUNT)]
    assert len(_load(karpathy, split="all").images) == COUNT + 1
    assert _load(karpathy, split="all").split == "all"
    with pytest.raises(UserError, match=r"unknown split of .* 'val' \(known: test, train\)"):
        _load(karpathy, split="val")
    shards = _clip_benchmark_shards(tmp_path)
    with pytest.raises(UserError, match=r"has no split 'train' \(expected \.tar shards in .*wds/train\)"):
        _load(shards, split="train")


def test_settings_that_a_format_lacks_are_rejected(tmp_path):
    with pytest.raises(UserError, match=r"language: .*dataset\.json: the format 'karpathy' has no such setting"):
        _load(_karpathy(tmp_path), language="de")
    with pytest.raises(UserError, match="unknown format of captions 'karpaty'; did you mean 'karpathy'"):
        _load(tmp_path / "dataset.json", format="karpaty")


def test_captions_of_several_images(tmp_path, monkeypatch):
    write_images(tmp_path, 4)
    rows = [
        {"caption": "thing3", "images": ["3.png"]},
        {"caption": "thing0", "images": ["0.png", "1.png"]},
        {"image": "2.png", "caption": "thing2"},
    ]
    file = world.write_lines(tmp_path / "x.jsonl", rows)
    found = _load(file)
    assert found.shared
    assert list(found.images) == ["3.png", "0.png", "1.png", "2.png"]
    assert (found.texts, found.pairs.tolist()) == (["thing3", "thing0", "thing2"], [[0, 0], [1, 1], [2, 1], [3, 2]])
    assert found.captions == [["thing3"], ["thing0"], ["thing0"], ["thing2"]]
    twice = [{"image": f"{n}.png", "caption": text} for n, text in ((3, "thing3"), (0, "thing0"), (1, "thing0"))]
    doubled = world.write_lines(tmp_path / "y.jsonl", [*twice, rows[2]])
    assert _load(doubled).hash != found.hash  # equal captions, but two of them
    assert len(_load(file, limit=3).pairs) == 3

    result = evaluate(monkeypatch, tmp_path, configure(name="x", task="retrieval", data=str(file)), pictures=4)
    assert result.metrics["t2i_r1"].value == 1  # image 0 answers "thing0", and 1 would be as right
    assert result.metrics["i2t_r1"].value == pytest.approx((3 + 1 / 3) / 4)  # 1 finds none of the three nearer
    assert (result.protocol["captions"], result.protocol["images_per_caption"]) == (3, "1 to 2")
    items = read_items(result).set_index("item")
    assert items.loc["t2i/0.png#0", "target"] == "0.png | 1.png"


def test_a_selected_caption_keeps_its_images(tmp_path):
    """Else an answer that is right would count as wrong."""
    write_images(tmp_path, 2)
    rows = [{"image": "0.png", "captions": ["a", "b"]}, {"images": ["0.png", "1.png"], "caption": "both"}]
    found = _load(world.write_lines(tmp_path / "x.jsonl", rows), captions_per_image=2)
    assert (found.texts, found.pairs.tolist()) == (["a", "b", "both"], [[0, 0], [0, 1], [0, 2], [1, 2]])


def test_a_repeated_image_is_one_with_all_its_captions(tmp_path):
    write_images(tmp_path, 4)
    rows = [{"image": f"{n}.png", "captions": [world.captions(n)[k]]} for k in range(3) for n in range(4)]
    found = _load(world.write_lines(tmp_path / "one-caption-a-line.jsonl", rows))
    assert list(found.images) == [f"{n}.png" for n in range(4)]
    assert found.captions == [world.captions(n) for n in range(4)]
    cut = _load(tmp_path / "one-caption-a-line.jsonl", limit=2, captions_per_image=2)
    assert cut.captions == [world.captions(n)[:2] for n in range(2)]


def test_rows_that_store_the_same_image_are_one(tmp_path, monkeypatch):
    """A data set with a row for each caption stores its image as often; each copy had a single right caption."""
    rows = [(n, text) for n in range(4) for text in (f"thing{n}", f"a thing{n}", f"see thing{n}")]
    columns = {"image": [world.draw_image(n) for n, _ in rows], "caption": [text for _, text in rows]}
    world.write_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", columns)
    benchmark = configure(name="x", task="retrieval", data=str(tmp_path / "hub"))
    result = evaluate(monkeypatch, tmp_path, benchmark, pictures=4)
    assert {name: result.metrics[name].value for name in ("t2i_r1", "i2t_r1")} == {"t2i_r1": 1, "i2t_r1": 1}
    assert [result.protocol[name] for name in ("images", "captions", "captions_per_image")] == [4, 12, "3"]
    raw = {"image": [world.png(image) for image in columns["image"]], "caption": columns["caption"]}
    pd.DataFrame(raw).to_parquet(tmp_path / "raw.parquet")
    assert _load(tmp_path / "raw.parquet").hash == _load(tmp_path / "hub").hash


def test_fewer_captions_than_asked_for_are_stated(tmp_path, monkeypatch):
    write_images(tmp_path, 2)
    rows = [{"image": "0.png", "captions": ["thing0", "a thing0"]}, {"image": "1.png", "captions": ["thing1"]}]
    file = world.write_lines(tmp_path / "x.jsonl", rows)
    result = evaluate(monkeypatch, tmp_path, configure(name="x", task="retrieval", data=str(file)), pictures=2)
    assert result.protocol["captions_per_image"] == "1 to 2"
    assert result.metrics["mean_r1"].value == 1


def test_data_are_read_and_hashed_once_until_a_file_changes(tmp_path, monkeypatch):
    read: list[str] = []
    plain = FileImage.read
    monkeypatch.setattr(FileImage, "read", lambda self: read.append(self.reference) or plain(self))
    file = _json_lines(tmp_path)
    benchmark = configure(name="x", task="retrieval", data=str(file))
    assert _load(file).hash == _load(file).hash
    assert len(read) == COUNT
    assert _load(file) is _load(file)
    evaluate(monkeypatch, tmp_path, benchmark, pictures=COUNT)
    assert len(read) == 3 * COUNT  # hashed above, embedded, made small for the report
    world.write_lines(file, [{"image": "pictures/0.png", "captions": ["another"]}])
    assert _load(file).texts == ["another"]


def test_equal_captions_and_images_tie_also_where_vectors_depend_on_their_batch(tmp_path, monkeypatch):
    """As in bf16, where the position in a batch changes a vector by more than a tie."""

    class Drifting(Reader):
        def _drift(self, vectors: torch.Tensor) -> torch.Tensor:
            vectors[:, -1] += torch.arange(1, len(vectors) + 1) * 0.1
            return vectors

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return self._drift(super().encode_image(pixels))

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return self._drift(super().encode_text(tokens))

    write_images(tmp_path, 2)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    names = ["0.png", "copy.png", "1.png"]
    rows = [{"image": name, "caption": text} for name, text in zip(names, ("thing0", "thing0", "thing1"), strict=True)]
    data = world.write_lines(tmp_path / "x.jsonl", rows)
    benchmark = configure(name="x", task="retrieval", data=str(data))
    encoder = Drifting(2).use(monkeypatch, tmp_path)
    result = world.measure(tmp_path / "results", benchmark, encoder=encoder)
    for direction in ("t2i", "i2t"):  # one of two that are alike, and a third that is right
        assert result.metrics[f"{direction}_r1"].value == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"image": "a.png", "captions": []}', r"a\.png: expected a caption, got none"),
        ('{"image": "a.png", "captions": ["\\u200b", " "]}', r"a\.png: expected a caption, got none"),
        ('{"image": "a.png", "captions": ["b", 1984]}', r"a\.png: expected text as a caption, got a number"),
        ('{"image": 3, "captions": ["a"]}', r"x\.jsonl line 1: image: expected a string, got 3"),
        ('{"image": "a.png"}', r"x\.jsonl line 1: expected the key 'captions'"),
        (b'{"image": "caf\xe9.png", "captions": ["a"]}', r"x\.jsonl line 1: not valid JSON"),
        ('{"image": "a.png", "captions": {"de": ["a"]}}', r"language: expected one of those of .* \(de\), got none"),
    ],
)
def test_faults_of_a_line(tmp_path, content, said):
    (tmp_path / "x.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        _load(tmp_path / "x.jsonl")


def test_faults_of_files(tmp_path):
    karpathy, shards, hub = _karpathy(tmp_path), _clip_benchmark_shards(tmp_path), _parquet(tmp_path)
    with pytest.raises(UserError, match=r"images: expected captions in tar .*, found none; docs/data-formats\.md "):
        _load(tmp_path / "images")
    (tmp_path / "y.txt").write_text("image,caption\nnothing\n")
    with pytest.raises(UserError, match=r"y\.txt line 2: expected an image and a caption, got 'nothing'"):
        _load(tmp_path / "y.txt")
    (tmp_path / "images/val2014/1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"val2014/1\.png: undecodable image"):
        _load(karpathy).open(1)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"0\.png: no such image \(set image_root"):
        _ = _load(karpathy).hash
    (shards / "test/9.tar").unlink()
    with pytest.raises(UserError, match=r"test: expected 3 shards, as nshards\.txt says, found 2"):
        _load(shards)
    whole = next(hub.rglob("*.parquet"))
    (hub / "data/test-00001-of-00002.parquet").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"data/test-00001-of-00002\.parquet: not a whole parquet file"):
        _load(hub)


def test_columns_of_a_table(tmp_path):
    write_images(tmp_path, 2)
    file = tmp_path / "rows.csv"
    file.write_text('picture,web,long\n0.png,"a ""dog"", running",\n1.png,a cat,"A cat.\nOn a mat."\n', "utf-8-sig")
    found = _load(file, image_column="picture", caption_columns=("web", "long"))
    assert found.captions == [['a "dog", running'], ["a cat", "A cat.\nOn a mat."]]
    with pytest.raises(UserError, match=r"rows\.csv: no column of images \(columns: picture, web, long\)"):
        _load(file)
    wrong = {
        "\n0.png,a dog\n1.png": r"rows\.csv line 3: expected 2 cells, as in the header",
        ",caption\n0.png,a,b": "several columns are called 'caption'",
        '\n0.png,"a\n1.png,b': "line 2: can",
        "\n0.png,": "row 0: caption: expected a caption",
        "\n,a dog": "row 0: image: expected the name of an image file, got none",
        "\n": r"rows\.csv: no rows",
    }
    for text, problem in wrong.items():
        file.write_text(f"image,caption{text}\n")
        with pytest.raises(UserError, match=problem):
            _load(file)
    world.write_parquet(tmp_path / "two.parquet", {"image": [world.draw_image(0)], "caption": ["a dog"]})
    assert _load(tmp_path / "two.parquet").open(0).tobytes() == world.draw_image(0).tobytes()


def test_columns_of_a_dataset(tmp_path):
    columns = {
        "photo": [world.png(world.draw_image(n)) for n in range(2)],
        "de": ["eins", "zwei"],
        "en": ["one", "two"],
    }
    world.write_parquet(tmp_path / "hub/test.parquet", columns)
    found = _load(tmp_path / "hub", image_column="photo", caption_columns=("en", "de"))
    assert found.captions == [["one", "eins"], ["two", "zwei"]]
    assert found.open(1).tobytes() == world.draw_image(1).tobytes()
    write_images(tmp_path / "names", 2)
    world.write_parquet(
        tmp_path / "names/test.parquet",
        {"image": ["1.png", str(tmp_path / "names/0.png"), "1.png"], "text": ["one", "two", "three"]},
    )
    named = _load(tmp_path / "names")
    assert named.captions == [["one", "three"], ["two"]]  # rows of one image are merged
    assert [named.open(n).tobytes() for n in range(2)] == [world.draw_image(n).tobytes() for n in (1, 0)]
    for asked, said in (
        ({}, r"hub: no column of images \(columns: de, en, photo\)"),
        ({"image_column": "picture"}, "unknown column for image_column in .*hub 'picture'"),
        ({"image_column": "photo"}, r"hub, such as \[de\] \(it has: de, en, photo\)"),
        ({"image_column": "photo", "caption_columns": ("fr",)}, "unknown column for caption_columns in .* 'fr'"),
        ({"split": "val"}, r"hub: cannot be read as a dataset \(Unknown split \"val\""),
    ):
        with pytest.raises(UserError, match=said):
            _load(tmp_path / "hub", **asked)


def test_quotes_of_kaggles_captions_are_those_of_csv(tmp_path):
    """CLIP_benchmark's file has the same header, but commas and quotes as they come: it splits a line at ``.jpg,``."""
    write_images(tmp_path, 2, ".jpg")
    texts = ["A dog , running .", '"Stop" says a sign', 'He said "stop"']
    kaggle = pd.DataFrame({"image": ["0.jpg", "0.jpg", "1.jpg"], "caption": texts})
    kaggle.loc[0, "caption"] = "A dog, running ."
    (tmp_path / "captions.txt").write_text(kaggle.to_csv(index=False))
    assert '"A dog, running ."' in (tmp_path / "captions.txt").read_text()
    assert _load(tmp_path / "captions.txt").captions == [["A dog, running .", texts[1]], texts[2:]]
    for last in ('1.jpg,He said "stop"', "1.jpg,one, two", '1.jpg,"one" and "two"'):
        lines = ["0.jpg,A dog , running .", '0.jpg,"Stop" says a sign', last]
        (tmp_path / "captions.txt").write_text("\n".join(["image,caption", *lines, ""]))
        expected = [line.split(".jpg,")[1] for line in lines]
        assert _load(tmp_path / "captions.txt").captions == [expected[:2], expected[2:]]


SPLITS = ("train", "test", "val", "test", "train")


def _with_column(folder: Path, kind: str) -> Path:
    """Five images in one file, whose column says the split of each, as Flickr30K's on the Hub and its CSV do."""
    write_images(folder, len(SPLITS))
    names = [f"{number}.png" for number in range(len(SPLITS))]
    captions = [[f"first of {number}", f"second of {number}"] for number in range(len(SPLITS))]
    frame = pd.DataFrame({"raw": captions, "filename": names, "split": SPLITS})
    if kind == "jsonl":
        rows = zip(names, captions, SPLITS, strict=True)
        lines = [{"image": name, "captions": texts, "split": split} for name, texts, split in rows]
        return world.write_lines(folder / "rows.jsonl", lines)
    if kind == "csv":
        frame["raw"] = frame["raw"].map(json.dumps)  # as in flickr_annotations_30k.csv
        frame.to_csv(folder / "rows.csv", index=False)
        return folder / "rows.csv"
    if kind == "pandas":
        frame.to_csv(folder / "rows.csv", index=False)  # lists in Python's notation
        return folder / "rows.csv"
    if kind == "parquet":
        frame.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    pictures = [world.draw_image(number) for number in range(len(SPLITS))]
    columns = {"image": pictures, "caption": captions, "split": list(SPLITS)}
    world.write_parquet(folder / "hub/data/test-00000-of-00001.parquet", columns)
    return folder / "hub"


@pytest.mark.parametrize("kind", ["hub", "csv", "pandas", "parquet", "jsonl"])
def test_a_column_says_the_split_of_each_row(tmp_path, kind):
    path = _with_column(tmp_path, kind)
    found = {}
    for split in ("test", "val", "train", "all"):
        read = _load(path, split=split)
        assert read.split == split
        found[split] = [int(texts[0].split()[-1]) for texts in read.captions]
        assert [texts[1] for texts in read.captions] == [f"second of {number}" for number in found[split]]
        for place, number in enumerate(found[split]):
            assert read.open(place).tobytes() == world.draw_image(number).tobytes()
    assert found == {"test": [1, 3], "val": [2], "train": [0, 4], "all": [0, 1, 2, 3, 4]}
    with pytest.raises(UserError, match=r"'dev' \(known: .*test, train, val\)|Unknown split \"dev\"|split .*'dev'"):
        _load(path, split="dev")


def test_splits_may_be_numbers(tmp_path):
    """As a column of folds has them; in a CSV they are texts."""
    frame = pd.DataFrame({"image": ["0.png", "1.png"], "caption": ["a dog", "a cat"], "split": [0, 1]})
    frame.to_parquet(tmp_path / "rows.parquet")
    for number, text in enumerate(frame["caption"]):
        found = read_dataset(DatasetSpec(path=str(tmp_path / "rows.parquet"), split=str(number)), "captions")
        assert [record.captions for record in found.records] == [[text]]
    with pytest.raises(UserError, match=r"'2'.*\(known: 0, 1, all\)"):
        list(read_dataset(DatasetSpec(path=str(tmp_path / "rows.parquet"), split="2"), "captions").records)


def test_a_split_is_asked_only_of_rows_that_state_one(tmp_path):
    write_images(tmp_path / "images", 1)
    (tmp_path / "rows.csv").write_text("image,caption\n0.png,a dog\n")
    world.write_lines(tmp_path / "rows.jsonl", [{"image": "images/0.png", "caption": "a dog"}])
    for name, expected in (("rows.csv", "expected a column 'split'"), ("rows.jsonl", "expected 'split' in each line")):
        assert _load(tmp_path / name, split="all").texts == ["a dog"]
        with pytest.raises(UserError, match=rf"split: .*{name}: {expected}"):
            _load(tmp_path / name, split="val")
    columns = {"image": [world.draw_image(0)], "caption": ["a dog"], "split": ["val"]}
    world.write_parquet(tmp_path / "hub/data/validation-00000-of-00001.parquet", columns)
    assert _load(tmp_path / "hub", split="validation").texts == ["a dog"]  # the same split by another name
    (tmp_path / "rows.csv").write_text("image,caption,split\n0.png,a dog,train\n")
    with pytest.raises(UserError, match=r"unknown split in the column of .*rows\.csv 'test'.*\(known: all, train\)"):
        _load(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ('["a dog", "it\'s a \\"dog\\""]', ["a dog", 'it\'s a "dog"']),
        ("""['a dog', "it's a dog",]""", ["a dog", "it's a dog"]),
        ("[laughter]", ["[laughter]"]),
        ("['a' was written] on a wall", ["['a' was written] on a wall"]),
        ("['a dog' 'a cat']", None),  # NumPy's notation: Python would join both
        ("['a dog', 1]", None),
        ('["a dog", null]', ["a dog"]),
        ("['a dog', None]", ["a dog"]),
        ("['Exit' in green]", ["['Exit' in green]"]),
        ("['a dog\n' 'a cat']", None),
        ("['a', ['b']]", None),
    ],
)
def test_lists_of_captions_written_as_text_are_read_or_rejected(tmp_path, cell, captions):
    write_images(tmp_path, 1)
    pd.DataFrame({"image": ["0.png"], "captions": [cell]}).to_csv(tmp_path / "rows.csv", index=False)
    if captions is None:
        with pytest.raises(UserError, match=r"row 0: captions: expected captions, got a list written as text"):
            _load(tmp_path / "rows.csv")
    else:
        assert _load(tmp_path / "rows.csv").texts == captions


def test_real_captions(shared):
    """COCO's 5,000 test images, some with six captions, of which five an image are kept; Flickr8k as it comes."""
    file = shared / "data/coco_karpathy_test_captions.json"
    whole = list(json.loads(file.read_bytes()))
    found = _load(file)
    assert (len(found.images), len(found.texts)) == (5000, 25000)
    assert found.captions[7] == whole[7]["caption"][:5]
    assert len(_load(file, captions_per_image=100).texts) == sum(len(row["caption"]) for row in whole)
    found = _load(shared / "data/flickr8k/dataset_flickr8k.json", split="val", limit=20)
    assert (len(found.images), len(found.texts), found.shared) == (20, 100, False)
    assert found.open(3).size == (192, 192)
