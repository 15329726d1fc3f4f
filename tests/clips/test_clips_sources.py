"""Every format of training data: tables, Hub datasets, COCO's format, remote shards."""

from __future__ import annotations

import base64
import csv
import dataclasses
import errno
import http.server
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips_world
import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from clips_world import number_of, opened, rng
from serving import Quiet, address, serve

from clips.data import decode_image
from clips.data.formats import FORMATS, DatasetSpec, Format, read_dataset
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import ImageColumn, TableImage
from clips.data.parquet_rows import ParquetRows
from clips.data.remote_files import ShardCache, expand_brace_ranges, file_name
from clips.data.sources import Record, SourceConfig, open_source
from clips.errors import UserError
from clips.loader.data_config import DataConfig
from clips.loader.loader import TrainDataset, iterate_batches

COUNT = 6
TABLE = {"format": "table", "web_caption": "org_caption", "synthetic_caption": "re_caption"}


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(COUNT):
        (folder / f"{index}.png").write_bytes(clips_world.draw_image(index))
    return folder


def rows() -> pd.DataFrame:
    """Recap-DataComp-1B's columns, the images as paths."""
    return pd.DataFrame(
        {
            "url": [f"{index}.png" for index in range(COUNT)],
            "org_caption": [f"photo {index}" for index in range(COUNT)],
            "re_caption": [f"A photo. Number {index}." for index in range(COUNT)],
        }
    )


def write_table(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind in {"csv", "tsv"}:
        rows().to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)
    elif kind == "jsonl":
        rows().to_json(path, orient="records", lines=True)
    else:
        rows().to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_every_kind_read_alike(tmp_path: Path, image_dir: Path, kind: str):
    for path in (write_table(tmp_path, kind), tmp_path):  # a file, and a directory of tables
        source = opened(path, image_root=str(image_dir), **TABLE)
        samples = [source.read(index, rng()) for index in range(len(source))]
        assert [sample.image for sample in samples] == [clips_world.draw_image(index) for index in range(COUNT)]
        assert [sample.web for sample in samples] == [f"photo {index}" for index in range(COUNT)]
        assert [sample.synthetic for sample in samples] == [f"A photo. Number {index}." for index in range(COUNT)]
        assert source.describe()["samples"] == COUNT


@pytest.mark.parametrize(
    ("kind", "bad", "reason"),
    [
        *((kind, b"<!DOCTYPE html><p>Please log in.", "a web page") for kind in ("csv", "jsonl", "parquet")),
        *((kind, b"", "no content") for kind in ("csv", "jsonl", "parquet")),
        ("parquet", b"PAR1 and no end", "not a whole parquet file"),
    ],
)
def test_a_bad_download_of_a_table_is_named_and_not_kept(
    tmp_path: Path, image_dir: Path, monkeypatch, kind: str, bad: bytes, reason: str
):
    """The server states no ETag, so that ``datasets`` would find the page at this URL for good."""
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    (tmp_path / "remote").mkdir()
    table = write_table(tmp_path / "remote", kind)
    right = table.read_bytes()
    for server in serve(Quiet, tmp_path / "remote"):
        url = address(server, table.name)
        table.write_bytes(bad)
        with pytest.raises(UserError, match=rf"^{url}: .*{reason}"):
            opened(url, **TABLE, image_root=str(image_dir))
        table.write_bytes(right)
        source = opened(url, **TABLE, image_root=str(image_dir))
        assert [source.read(row, rng()).image for row in range(COUNT)] == list(
            map(clips_world.draw_image, range(COUNT))
        )


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_every_cell_of_a_csv_file_is_text_in_training_and_in_benchmarks(tmp_path: Path, kind: str):
    captions = ["NA", "null", "1984", "007", "nan"]
    frame = pd.DataFrame({"": range(5), "image": [f"{n}.png" for n in range(5)], "caption": captions, "year": captions})
    frame.to_csv(tmp_path / f"rows.{kind}", sep="\t" if kind == "tsv" else ",", index=False)
    path = str(tmp_path / f"rows.{kind}")
    source = opened(path, format="table", web_caption="caption", synthetic_caption="year")
    for name in captions:
        (tmp_path / f"{captions.index(name)}.png").write_bytes(clips_world.draw_image(0))
    assert [source.read(index, rng()).web for index in range(5)] == captions
    assert [source.read(index, rng()).synthetic for index in range(5)] == captions
    assert [record.captions for record in read_dataset(DatasetSpec(path=path), "captions").records] == [
        [caption] for caption in captions
    ]
    Path(path).write_text(Path(path).read_text().replace("007", "a dog"))
    assert read_webs(path, web_caption="caption")[3] == "a dog"  # no cached copy of the file as it was


def read_webs(path: Path | str, **fields: Any) -> list[str]:
    source = opened(path, format="table", synthetic_caption=None, **fields)
    return [source.read(index, rng()).web for index in range(len(source))]


@pytest.mark.parametrize(
    "captions",
    [
        ["a dog", '"Welcome', "two cats", "a red car", 'he said yes"', "a bird"],
        ['"Home" sign on a wall', "a bird", 'a 5" screen', '"a" and "b"', '"""', '"'],
    ],
)
def test_a_quotation_mark_in_a_tsv_swallows_no_rows(tmp_path: Path, captions: list[str]):
    """Before: the six rows were three, one of them with the names of the files between, or "cannot be read"."""
    for number in range(len(captions)):
        (tmp_path / f"{number}.png").write_bytes(clips_world.draw_image(number))
    frame = pd.DataFrame({"image": [f"{number}.png" for number in range(len(captions))], "caption": captions})
    lines = ["image\tcaption", *("\t".join(row) for row in frame.itertuples(index=False))]
    (tmp_path / "plain.tsv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", newline="")
    assert read_webs(tmp_path / "plain.tsv", web_caption="caption") == captions
    found = read_dataset(DatasetSpec(path=str(tmp_path / "plain.tsv")), "captions").records
    assert [record.captions for record in found] == [[caption] for caption in captions]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):  # what pandas quotes is read as before
        for text in (captions[-1], "in two\nlines"):
            frame["caption"] = [*captions[:-1], text]
            frame.to_csv(tmp_path / "quoted.tsv", sep="\t", index=False, quoting=quoting)
            assert read_webs(tmp_path / "quoted.tsv", web_caption="caption") == list(frame["caption"])


def test_dates_in_json_lines_stay_text(tmp_path: Path):
    table = [{"image": "a.png", "caption": f"2020-01-0{day}", "taken": "2021-02-03T04:05:06Z"} for day in (1, 2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "a.png").write_bytes(clips_world.draw_image(0))
    source = opened(tmp_path / "rows.jsonl", format="table", web_caption="caption", synthetic_caption="taken")
    assert [source.read(index, rng()).web for index in (0, 1)] == ["2020-01-01", "2020-01-02"]
    assert source.read(0, rng()).synthetic == source.record(1).fields["taken"] == "2021-02-03T04:05:06Z"


def test_texts_that_are_json_stay_texts_in_a_column_of_several_types(tmp_path: Path, image_dir: Path):
    """``datasets`` reads the text "null" of such a column as None, "1.5" as a number."""
    cells = ["null", "1.5", "true", ["2021-03-04"], "a cup", {"raw": "a cup"}]
    lines = [json.dumps({"url": f"{index}.png", "caption": cell}) for index, cell in enumerate(cells)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = opened(tmp_path / "rows.jsonl", **{**TABLE, "web_caption": "caption", "synthetic_caption": None})
    source.image_root = image_dir
    read = [source.read(index, rng()).web for index in range(len(cells))]
    assert read == ["null", "1.5", "true", "2021-03-04", "a cup", "a cup"]


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("cc3m.tsv", "a dog\t0.png\na cat\t1.png\n", "table"),
        ("urls.csv", "0.png;a dog\n1.png;a cat\n", "table"),
        ("results.csv", "image| number| caption\n0.png| 0| a dog\n1.png| 0| a cat\n", "table"),
        ("windows.csv", "image,caption\n0.png,a dog\n1.png,a cat\n", "table"),
        ("token.txt", "0.png#0\ta dog\n99.png.1#0\tnothing\n1.png#0\ta cat\n", "flickr"),
        ("first.txt", "99.png.1#0\tnothing\n0.png#0\ta dog\n1.png#0\ta cat\n", "flickr"),
        (
            "results.csv",
            "image_name| number| comment\n0.png| 0| a dog\n9.png| 4   nothing\n1.png| 0| a cat\n",
            "flickr",
        ),
        ("headless.csv", "0.png| 0| a dog\n1.png| 0| a cat\n", "flickr"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_first_line_of_data_and_what_windows_calls_unicode(
    tmp_path: Path, image_dir: Path, capsys, name: str, content: str, form: str, encoding: str
):
    (tmp_path / name).write_bytes(content.encode(encoding))
    fields = {"web_caption": "caption"} if form == "table" else {}
    source = opened(tmp_path / name, format=form, image_root=str(image_dir), synthetic_caption=None, **fields)
    found = [source.read(index, rng()) for index in range(len(source))]
    assert [(each.image, each.web) for each in found] == [
        (clips_world.draw_image(0), "a dog"),
        (clips_world.draw_image(1), "a cat"),
    ]
    said = capsys.readouterr().err
    assert ("1 of 3 lines left out; the first is line" in said) == ("nothing" in content)
    assert ("has no header" in said) == (name in {"cc3m.tsv", "urls.csv"})


def test_parts_of_parquet_differ_in_what_is_not_read(tmp_path: Path, image_dir: Path, capsys):
    names, none = pa.array(["0.png", "1.png"]), pa.array([], pa.string())
    parts = [
        {"image": names, "caption": pa.nulls(2), "n": pa.array([1, 2])},
        {"image": none, "caption": none},
        {"caption": pa.array(["a dog", "a cat"]), "n": pa.array(["x", "y"]), "image": names},
        {"image": names, "caption": pa.array(["a cup", "a box"], pa.large_string()), "n": pa.array([[1], [2]])},
    ]
    for number, part in enumerate(parts):
        pq.write_table(pa.table(part), tmp_path / f"part-{number}.parquet")
    source = opened(tmp_path, format="table", web_caption="caption", synthetic_caption=None, image_root=str(image_dir))
    assert [source.read(index, rng()).web for index in range(2, 6)] == ["a dog", "a cat", "a cup", "a box"]
    for index in range(2):
        with pytest.raises(InvalidSampleError, match="no caption 'caption'"):
            source.read(index, rng())
    assert "column 'n' is not read: its parts have the types int64, string, list<" in capsys.readouterr().err


def test_parts_with_paths_and_with_bytes_are_not_mixed(tmp_path: Path, capsys):
    """Before: the letters of a path were the bytes of an image."""
    for number, image in enumerate((pa.array(["0.png"]), pa.array([clips_world.draw_image(0)], pa.binary()))):
        pq.write_table(pa.table({"image": image, "caption": ["a dog"]}), tmp_path / f"part-{number}.parquet")
    with pytest.raises(UserError, match="no column of images"):
        opened(tmp_path, format="table", web_caption="caption", synthetic_caption=None, image_root=str(tmp_path))
    assert "column 'image' is not read: its parts have the types string, binary" in capsys.readouterr().err


def test_a_lone_surrogate_in_json_lines_is_a_question_mark(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Before: the file was refused ("The surrogate pair in string is invalid")."""
    (tmp_path / "0.png").write_bytes(clips_world.draw_image(0))
    captions = [r"smile \ud83d", r"\ude00 again", r"\ud83d\ude00", "2021-01-01"]
    rows = [f'{{"image": "0.png", "caption": "{text}"}}\n' for text in captions]
    (tmp_path / "x.jsonl").write_text("".join(rows))
    assert read_webs(tmp_path / "x.jsonl", web_caption="caption") == ["smile ?", "? again", "😀", "2021-01-01"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "more", ["", ', "n": "\\ud83d"', ', "n": 1e999', ', "n": 1, "n": 1'], ids=["plain", "emoji", "infinite", "twice"]
)
def test_one_line_of_json_is_one_sample(tmp_path: Path, more: str):
    """Before: pandas, which reads a single line that pyarrow does not, made a sample of each of its captions."""
    (tmp_path / "0.png").write_bytes(clips_world.draw_image(0))
    (tmp_path / "x.jsonl").write_text(f'{{"image": "0.png", "caption": ["a", "b", "c"]{more}}}\n')
    (web,) = read_webs(tmp_path / "x.jsonl", web_caption="caption")
    assert web in {"a", "b", "c"}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("E:\\AI\\0.png", r"missing image \(a Windows path, expected / instead of \\\)"),
        (base64.b64encode(clips_world.draw_image(0)).decode(), "an image as base64 text, expected its bytes, path or"),
        ("data:image/png;base64,iVBORw0KGgo=", "an image as base64 text"),
        (["0.png", "1.png"], "several images, expected one"),
        ([], "no image"),
    ],
)
def test_images_that_cannot_be_read_say_what_they_are(tmp_path: Path, image: str | list[str], reason: str):
    pd.DataFrame({"image": [image, image], "caption": "a dog"}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InvalidSampleError, match=f"^{reason}"):
        read_webs(tmp_path / "x.parquet", web_caption="caption")


def test_an_invalid_image_of_a_table_is_named_by_row_and_file(tmp_path: Path):
    (tmp_path / "torn.png").write_bytes(clips_world.draw_image(0)[:60])
    rows = [{"image": name, "caption": "a dog"} for name in ("torn.png", "data:image/png;base64,iVBORw0KGgo=")]
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    source = opened(tmp_path / "x.csv", format="table", web_caption="caption", synthetic_caption=None)
    assert [source.name(index) for index in (0, 1)] == [f"{tmp_path}/x.csv row 0 (torn.png)", f"{tmp_path}/x.csv row 1"]
    image = TableImage(ImageColumn(rows, "image", "x.csv", tmp_path), 0)
    with pytest.raises(UserError, match=r"^x\.csv row 0 image \(torn\.png\): truncated image$"):
        image.open()
    (tmp_path / "torn.png").unlink()
    with pytest.raises(UserError, match=r"^x\.csv row 0 image \(torn\.png\): missing image; paths in the table are "):
        image.open()


@pytest.mark.parametrize("stream", [False, True])
def test_a_caption_of_parquet_that_is_not_utf8_is_one_invalid_sample(tmp_path: Path, stream: bool):
    """Before: a traceback, again at each resume."""
    values = [b"a dog", b"caf\xe9", b"a cat"]
    texts = pa.array(values, pa.binary()).view(pa.string())  # as writers that check nothing
    pq.write_table(pa.table({"image": ["0.png"] * 3, "caption": texts}), tmp_path / "x.parquet")
    (tmp_path / "0.png").write_bytes(clips_world.draw_image(0))
    fields = {"format": "table", "cache_dir": str(tmp_path / "cache"), "web_caption": "caption"}
    source = opened(tmp_path / "x.parquet", streaming=stream, synthetic_caption=None, **fields)
    assert [source.read(index, rng()).web for index in (0, 2)] == ["a dog", "a cat"]
    with pytest.raises(InvalidSampleError, match=r"^not UTF-8 text \(unexpected end of data\)$"):
        source.read(1, rng())
    with pytest.raises(UserError, match=r"x\.parquet row 1: caption: expected UTF-8 text \('utf-8' codec can't decode"):
        list(read_dataset(DatasetSpec(path=str(tmp_path / "x.parquet")), "captions").records)


def test_tables_of_one_name_size_and_time_are_not_taken_for_each_other(tmp_path: Path, monkeypatch):
    for caption in ("a cat", "a dog"):
        (tmp_path / caption).mkdir()
        (tmp_path / caption / "rows.csv").write_text(f"image,caption\n0.png,{caption}\n")
        os.utime(tmp_path / caption / "rows.csv", (1000, 1000))
        monkeypatch.chdir(tmp_path / caption)
        assert [record.captions for record in read_dataset(DatasetSpec(path="rows.csv"), "captions").records] == [
            [caption]
        ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "directory of parquet", "training", "streamed training"])
def test_a_table_replaced_with_the_old_time_is_read_again(tmp_path: Path, kind: str):
    """As `rsync --times` and `cp -p` replace it."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"test.{kind if kind in {'csv', 'jsonl'} else 'parquet'}"
    read: list[str] = []
    for caption in ("a cat", "a dog"):
        frame = pd.DataFrame({"image": ["0.png"], "caption": [caption]})
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        elif path.suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_parquet(path)
        os.utime(path, (1000, 1000))
        if kind.endswith("training"):
            (tmp_path / "data/0.png").write_bytes(clips_world.draw_image(0))
            read += read_webs(path, web_caption="caption", cache_dir=str(tmp_path), streaming="streamed" in kind)
        else:
            where, form = (path.parent, "datasets") if kind.startswith("directory") else (path, "table")
            (record,) = read_dataset(DatasetSpec(path=str(where), format=form), "captions").records
            read += record.captions
    assert read == ["a cat", "a dog"]


def test_a_table_may_contain_images_and_lists_of_captions(tmp_path: Path):
    frame = rows().assign(
        image=[clips_world.draw_image(index) for index in range(COUNT)],
        several=[[f"first of {index}", f"second of {index}"] for index in range(COUNT)],
        written=[f"['first of {index}', 'second of {index}']" for index in range(COUNT)],  # as pandas does to CSV
    )
    frame.loc[2, "image"] = None
    frame.loc[3, "org_caption"] = None
    frame.to_parquet(tmp_path / "rows.parquet")
    fields = {**TABLE, "path": str(tmp_path / "rows.parquet")}
    for column in ("written", "several"):
        source = open_source(SourceConfig(**{**fields, "synthetic_caption": column}))
        drawn = {source.read(1, rng(seed)).synthetic for seed in range(20)}
        assert drawn == {"first of 1", "second of 1"}
    assert source.read(1, rng()).image == clips_world.draw_image(1)
    alone = source.read(3, rng())
    assert (alone.web, alone.synthetic in {"first of 3", "second of 3"}) == ("", True)
    source = open_source(SourceConfig(**{**fields, "synthetic_caption": None}))
    for index, reason in ((2, "no image"), (3, "no caption 'org_caption'")):
        with pytest.raises(InvalidSampleError, match=reason):
            source.read(index, rng())


def test_saved_datasets_of_the_hub(tmp_path: Path, image_dir: Path):
    columns = {"image": [str(image_dir / f"{index}.png") for index in range(COUNT)], "text": rows()["org_caption"]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select(range(2))}).save_to_disk(tmp_path / "both")
    config = {"format": "datasets", "web_caption": "text", "synthetic_caption": None}
    assert len(opened(tmp_path / "one", **config)) == COUNT
    test = opened(tmp_path / "both", split="test", **config)
    assert len(test) == 2
    assert test.read(1, rng()).image == clips_world.draw_image(1)
    assert test.read(1, rng()).synthetic == ""
    assert len(opened(tmp_path / "both", split="all", **config)) == COUNT + 2
    assert len(opened(tmp_path / "both", split="test+train", **config)) == COUNT + 2
    with pytest.raises(UserError, match=r"unknown split of .*both 'tets'; did you mean 'test'"):
        opened(tmp_path / "both", split="tets", **config)


def streamed_rows(folder: Path) -> Path:
    """23 rows in two parquet files in the hub's layout, five rows a group, with a column that is not used."""
    frame = pd.DataFrame(
        {
            "jpg": [{"bytes": clips_world.draw_image(index), "path": f"{index}.png"} for index in range(23)],
            "text": [f"photo {index}" for index in range(23)],
            "re_caption": [[f"A photo. Number {index}.", f"Photo {index}."] for index in range(23)],
            "heavy": [np.random.default_rng(index).bytes(20_000) for index in range(23)],
        }
    )
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((frame[:13], frame[13:])):
        part.to_parquet(folder / "data" / f"train-{number:05d}-of-00002.parquet", row_group_size=5)
    return folder


class Ranges(Quiet):
    """Serves parts of files, as object stores do, and keeps how large they were."""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1]
        self.server.seen.append(len(part))  # type: ignore[attr-defined]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def parquet_server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    yield from serve(Ranges, streamed_rows(tmp_path / "hub"))


STREAM = {"format": "datasets", "web_caption": "text", "synthetic_caption": "re_caption", "streaming": True}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "directory", "saved"])
def test_the_hash_of_a_table_is_that_of_its_content(tmp_path: Path, image_dir: Path, kind: str):
    """A copy has another time and inode."""

    def written(name: str, captions: str) -> str:
        path, table = tmp_path / name / "rows", rows().assign(org_caption=[f"{captions} {n}" for n in range(COUNT)])
        path.mkdir(parents=True)
        if kind == "saved":
            datasets.Dataset.from_pandas(table).save_to_disk(path)
        elif kind == "csv":
            table.to_csv(path / "train.csv", index=False)
        elif kind == "jsonl":
            table.to_json(path / "train.jsonl", orient="records", lines=True)
        else:
            table.to_parquet(path / "train.parquet")
        form = "datasets" if kind in {"directory", "saved"} else "table"
        return str(opened(path, image_root=str(image_dir), **{**TABLE, "format": form}).describe()["hash"])

    first = written("first", "photo")
    shutil.copytree(tmp_path / "first", tmp_path / "copy", copy_function=shutil.copyfile)
    form = "datasets" if kind in {"directory", "saved"} else "table"
    copied = opened(tmp_path / "copy" / "rows", image_root=str(image_dir), **{**TABLE, "format": form})
    assert copied.describe()["hash"] == first != written("other", "image")


def test_a_dataset_in_the_hub_layout_is_streamed(tmp_path: Path):
    hub = streamed_rows(tmp_path / "hub")
    fields = {**STREAM, "cache_dir": str(tmp_path / "cache")}
    copied, source = opened(hub, **{**fields, "streaming": False}), opened(hub, **fields)
    assert len(source) == len(copied) == 23
    assert source.blocks == [5, 5, 3, 5, 5]
    assert not list((tmp_path / "cache").glob("*.arrow"))  # nothing is copied before it is needed
    for index in range(23):
        assert source.read(index, rng()) == copied.read(index, rng())
    drawn = {source.read(7, rng(seed)).synthetic for seed in range(20)}
    assert drawn == {"A photo. Number 7.", "Photo 7."}
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 5
    assert pickle.loads(pickle.dumps(source)).read(20, rng()) == copied.read(20, rng())
    assert source.describe() == opened(hub, **fields).describe()
    record = {"jpg": "20.png", "text": "photo 20", "re_caption": ["A photo. Number 20.", "Photo 20."]}
    assert source.record(20) == Record("000000020", record, reference="20.png")


def test_a_broken_row_group_costs_its_rows_only(tmp_path: Path):
    hub = streamed_rows(tmp_path / "hub")
    file = hub / "data" / "train-00000-of-00002.parquet"
    group = pq.ParquetFile(file).metadata.row_group(1)
    content = bytearray(file.read_bytes())
    for column in range(group.num_columns):
        start = group.column(column).dictionary_page_offset or group.column(column).data_page_offset
        content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    source = opened(hub, **STREAM, cache_dir=str(tmp_path / "cache"))
    for index in range(5, 10):
        with pytest.raises(InvalidSampleError, match="row group 1 is broken"):
            source.read(index, rng())
    assert [source.read(index, rng()).web for index in (4, 10)] == ["photo 4", "photo 10"]


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOSPC])
@pytest.mark.parametrize("place", ["pyarrow.OSFile", "clips.core.durable.replace"])
def test_rows_of_a_local_file_are_read_without_their_copy(tmp_path: Path, monkeypatch, capsys, place: str, number: int):
    """Before: the run ended, or its rows counted as invalid, though the file can be read."""
    hub = streamed_rows(tmp_path / "hub")
    fields = {**STREAM, "cache_dir": str(tmp_path / "cache")}
    expected = [opened(hub, **fields).read(index, rng()) for index in (0, 22)]
    unwritable = {**fields, "cache_dir": str(tmp_path / "other")}

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, failing)
    monkeypatch.setattr("clips.data.remote_files.time.sleep", lambda pause: pytest.fail(f"waited {pause} s"))
    source = opened(hub, **unwritable)
    assert [source.read(index, rng()) for index in (0, 22)] == expected
    assert capsys.readouterr().err.count("other: no copy of a row group can be written (") == 1
    assert not list((tmp_path / "other").glob("[!.]*.arrow*"))


def test_a_local_file_is_streamed_with_an_unwritable_cache(tmp_path: Path):
    hub = streamed_rows(tmp_path / "hub")
    source = opened(hub, **STREAM, cache_dir="/proc/nothing")
    assert source.read(22, rng()).web == "photo 22"


def test_a_local_file_that_cannot_be_read_for_a_while_is_waited_for(tmp_path: Path, monkeypatch):
    source = opened(streamed_rows(tmp_path / "hub"), **STREAM, cache_dir=str(tmp_path / "cache"))
    read, left = ParquetRows.read_batches, [3]

    def failing(self: ParquetRows, file: str, group: int) -> Iterator[Any]:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, file, group)

    pauses: list[float] = []
    monkeypatch.setattr(ParquetRows, "read_batches", failing)
    monkeypatch.setattr("clips.data.remote_files.time.sleep", pauses.append)
    assert source.read(0, rng()).web == "photo 0"
    assert pauses == [1.0]
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


def test_row_groups_without_rows_are_no_blocks_to_read(tmp_path: Path):
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for texts in (["a", "b"], [], ["c"]):
            writer.write_table(pa.table({"text": texts}, schema=schema))
    rows = ParquetRows([str(tmp_path / "a.parquet")], ShardCache(tmp_path / "cache", 1e9))
    assert (rows.blocks, rows.groups) == ([2, 1], [(0, 0, 2), (0, 2, 1)])
    assert [rows[index]["text"] for index in range(len(rows))] == ["a", "b", "c"]


def test_images_inside_of_other_files_cannot_be_listed(tmp_path: Path, monkeypatch):
    """Before: a bare AssertionError."""
    clips_world.write_shards(tmp_path / "train")
    monkeypatch.setitem(FORMATS, "list", Format(takes=("split",), captions=FORMATS["webdataset"].captions))
    with pytest.raises(UserError, match=r"0\.tar/000000000\.png: expected a file of the image alone, .* 'format' list"):
        opened(tmp_path, format="list")


def test_only_the_needed_remote_parts_are_downloaded(parquet_server, tmp_path: Path):
    path = address(parquet_server, "data/train-{00000..00001}-of-00002.parquet")
    cache = tmp_path / "cache"
    limit = 3 * 5 * len(clips_world.draw_image(0)) * 1.4  # bytes of about three groups
    fields = {**STREAM, "format": "table", "path": path, "cache_dir": str(cache), "max_cache_gb": limit / 1e9}
    source = open_source(SourceConfig(**fields))
    before = len(parquet_server.seen)
    assert source.read(12, rng()).image == clips_world.draw_image(12)
    footer, group = parquet_server.seen[before:]
    assert (footer, group < 20_000) == (65_536, True)  # the three rows have 60,000 bytes more in another column
    config = DataConfig(sources=(SourceConfig(**fields),), shuffle_buffer_shards=2, num_workers=2)
    data = TrainDataset(config, size=8, seed=0, batch_size=4, prepare=number_of)
    found = [batch["number"] for batch in iterate_batches(data, first_step=0, last_step=6)]
    assert sorted(torch.cat(found)[:23].tolist()) == list(range(23))
    kept = [file.stat().st_size for file in cache.glob("*.arrow")]
    assert max(kept) < sum(kept) <= limit
    again = open_source(SourceConfig(**fields))
    assert len(again) == 23


def capsfusion_table(folder: Path, image_dir: Path) -> Path:
    """CapsFusion-120M's columns; image 3 has no fused caption, image 5 no synthetic one at all."""
    folder.mkdir()
    frame = pd.DataFrame(
        {
            "image_url": [(image_dir / f"{index}.png").as_uri() for index in range(COUNT)],
            "laion_2b": [f"raw {index}" for index in range(COUNT)],
            "laion_coco": [f"a photo of {index}" if index != 5 else "" for index in range(COUNT)],
            "capsfusion": [f"A raw photo of {index}." if index not in {3, 5} else None for index in range(COUNT)],
        }
    )
    frame.to_parquet(folder / "capsfusion_1.parquet")
    return folder


@pytest.mark.parametrize("stream", [False, True])
def test_capsfusions_own_columns_are_its_formats_defaults(tmp_path: Path, image_dir: Path, stream: bool):
    path, cache = str(capsfusion_table(tmp_path / "table", image_dir)), str(tmp_path / "cache")
    source = opened(path, format="capsfusion", image_root=str(image_dir), streaming=stream, cache_dir=cache)
    found = [source.read(4, rng(seed)) for seed in range(40)]
    assert {sample.web for sample in found} == {"raw 4"}
    fused = [sample.synthetic for sample in found].count("A raw photo of 4.")
    assert [sample.synthetic for sample in found].count("a photo of 4") == 40 - fused
    assert 10 < fused < 30
    assert found[0].image == clips_world.draw_image(4)
    assert {source.read(3, rng(seed)).synthetic for seed in range(9)} == {"a photo of 3"}
    assert source.read(5, rng()).synthetic == ""


def test_real_capsfusion_captions(tmp_path: Path, image_dir: Path, shared: Path):
    rows = [json.loads(line) for line in (shared / "data" / "capsfusion_5k.jsonl").read_text().splitlines()[:COUNT]]
    lines = [json.dumps({"image_url": f"{index}.png", **row}) + "\n" for index, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    fields = {"format": "table", "web_caption": "web", "synthetic_caption": ("short_synthetic", "fused")}
    source = opened(tmp_path / "rows.jsonl", image_root=str(image_dir), **fields)
    synthetic = {source.read(1, rng(seed)).synthetic for seed in range(20)}
    assert synthetic == {rows[1]["fused"].strip(), rows[1]["short_synthetic"].strip()}
    assert source.read(1, rng()).web == rows[1]["web"].strip()


def test_several_synthetic_captions_of_shards(tmp_path: Path):
    text = b'{"laion_2b": "raw", "laion_coco": ["a", "b"], "capsfusion": "c"}'
    folder = clips_world.write_shard(tmp_path / "data" / "a.tar", {"0": {**clips_world.sample(0), "json": text}}).parent
    source = opened(folder, web_caption="laion_2b", synthetic_caption=("laion_coco", "capsfusion"))
    assert {source.read(0, rng(seed)).synthetic for seed in range(30)} == {"a", "b", "c"}
    with pytest.raises(UserError, match=r"unknown key for data source field synthetic_caption 'caps'; did you mean"):
        opened(folder, web_caption="laion_2b", synthetic_caption=("laion_coco", "caps"))


def test_ranges_of_names():
    assert expand_brace_ranges("a/{8..11}.tar") == ["a/8.tar", "a/9.tar", "a/10.tar", "a/11.tar"]
    assert expand_brace_ranges("{00..01}/{1..2}") == ["00/1", "00/2", "01/1", "01/2"]
    assert expand_brace_ranges("plain.tar") == ["plain.tar"]
    for text in ("{02..00}", "{0..02}", "{00..101}", "{3..1}", "{08..8}"):
        command = ["bash", "-c", f"printf '%s\\n' s-{text}"]
        assert expand_brace_ranges(f"s-{text}") == subprocess.check_output(command, text=True).split()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/00.tar", "00.tar"),
        ("a/what?.tar", "what?.tar"),
        ("https://host/a/00.tar?token=b/c", "00.tar"),
        ("https://host/get/?id=00", "?id=00"),
        ("s3://bucket/my shard.tar", "my shard.tar"),
        ("pipe:aws s3 cp s3://bucket/00.tar -", "00.tar"),
        ("pipe:curl -s 'https://host/00.tar?token=b/c'", "00.tar"),
    ],
)
def test_names_of_files_have_no_token(path: str, name: str):
    assert file_name(path) == name


def test_sources_are_mixed_by_weight(tmp_path: Path, image_dir: Path):
    shards = clips_world.write_shards(tmp_path / "shards", sizes=(9, 7, 5))
    table = SourceConfig(path=str(write_table(tmp_path, "jsonl")), image_root=str(image_dir), **TABLE, weight=1)
    sources = (SourceConfig(path=str(shards), weight=3), table)

    def prepare(web: str, synthetic: str, rng: np.random.Generator) -> dict[str, object]:
        return {"web": web}

    data = TrainDataset(DataConfig(sources=sources), size=16, seed=0, batch_size=1, prepare=prepare)  # type: ignore[arg-type]
    web = [data[position]["web"] for position in range(200)]
    assert sum(text.startswith("photo ") for text in web) == pytest.approx(50, abs=15)
    with pytest.raises(UserError, match="expected a weight for each source or for none"):
        DataConfig(sources=(sources[0], dataclasses.replace(table, weight=None)))


@pytest.fixture(scope="module")
def karpathy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of the splits train, restval, val, restval, train with three sentences each."""
    folder = tmp_path_factory.mktemp("karpathy")
    (folder / "images").mkdir()
    rows = []
    for index, split in enumerate(["train", "restval", "val", "restval", "train"]):
        (folder / "images" / f"{index}.jpg").write_bytes(clips_world.draw_image(index, kind="jpg"))
        sentences = [{"raw": f"Sentence {letter} of {index} ."} for letter in "abc"]
        rows.append({"filename": f"{index}.jpg", "split": split, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    return folder


def test_karpathy_layout_and_its_splits(karpathy: Path, capsys: pytest.CaptureFixture[str]):
    """Before: train+restval was an unknown split, and train were 82,783 of the usual 113,287 images without a word."""
    path, chosen = karpathy / "dataset_coco.json", {"format": "karpathy", "web_caption": "first_sentence"}
    for split, indices in (("train+restval", [0, 1, 3, 4]), ("restval", [1, 3]), ("all", range(5))):
        source = opened(path, split=split, **chosen)
        assert [source.name(number) for number in range(len(source))] == [f"{index}.jpg" for index in indices]
    assert capsys.readouterr().err == ""
    source = opened(path, **chosen)
    note = "split train has 2 images; the 2 of restval are usually trained on too: split: train+restval"
    assert note in capsys.readouterr().err
    read = source.read(1, rng())
    assert (len(source), read.web, read.synthetic) == (2, "Sentence a of 4 .", "Sentence b of 4. Sentence c of 4.")
    assert decode_image(read.image).size == (40, 32)
    drawn = opened(path, **{**chosen, "web_caption": "random_sentence"})
    for seed in range(20):
        read = drawn.read(0, rng(seed))
        assert read.web.removesuffix(" .") + "." not in read.synthetic
        assert read.synthetic.count(".") == 2
    assert opened(path, **chosen, synthetic_caption="all_sentences").read(0, rng()).synthetic.count(".") == 3
    (karpathy / "images" / "4.jpg").unlink()
    with pytest.raises(InvalidSampleError, match="missing image"):
        source.read(1, rng())


def test_cocos_own_layout(tmp_path: Path, image_dir: Path):
    """An image that nobody described is none; a null or a number among the captions is one invalid sample."""
    said = [(index, f" caption {number} of {index} ") for index in (0, 2) for number in range(5)]
    said += [(0, None), (3, None), (4, 5)]
    images = [{"id": 10 + index, "file_name": f"{index}.png"} for index in range(5)]
    annotations = [{"image_id": 10 + index, "caption": caption} for index, caption in said]
    path = tmp_path / "captions_train2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    source = opened(path, format="coco", image_root=str(image_dir), web_caption="first_sentence")
    assert len(source) == 4
    sample = source.read(1, rng())
    assert sample.image == clips_world.draw_image(2)
    assert sample.web == "caption 0 of 2"
    assert sample.synthetic == " ".join(f"caption {number} of 2." for number in range(1, 5))
    for number, reason in ((2, "no sentences"), (3, "expected text as a caption, got a number")):
        with pytest.raises(InvalidSampleError, match=f"^{reason}$"):
            source.read(number, rng())


@pytest.mark.parametrize("kind", ["flickr", "list", "jsonl"])
def test_rows_of_one_caption_are_read_as_karpathys_json_of_the_same_captions(tmp_path: Path, image_dir: Path, kind):
    """Before: each row was a sample with its own caption alone, so that recipe clips had no synthetic captions."""
    said = {f"{index}.png": [f"Caption {number} of {index}." for number in range(3)] for index in range(4)}
    rows = [(name, caption) for number in range(3) for name, caption in ((name, said[name][number]) for name in said)]
    objects = [{"image": name, "caption": caption} for name, caption in rows]
    content = {
        "flickr": "".join(f"{name}#{number // 4}\t{caption}\n" for number, (name, caption) in enumerate(rows)),
        "list": json.dumps(objects),
        "jsonl": "".join(json.dumps(row) + "\n" for row in objects),
    }
    path = tmp_path / {"flickr": "results.token", "list": "rows.json", "jsonl": "rows.jsonl"}[kind]
    path.write_text(content[kind], encoding="utf-8")
    sentences = {name: [{"raw": caption} for caption in captions] for name, captions in said.items()}
    images = [{"filename": name, "split": "train", "sentences": each} for name, each in sentences.items()]
    (tmp_path / "dataset_x.json").write_text(json.dumps({"images": images}), encoding="utf-8")
    expected = opened(tmp_path / "dataset_x.json", format="karpathy", image_root=str(image_dir), web_caption="auto")
    found = opened(path, format=kind, image_root=str(image_dir), web_caption="auto")
    assert [found.read(number, rng(number)) for number in range(len(found))] == [
        expected.read(number, rng(number)) for number in range(4)
    ]


def test_real_shard_and_real_photos(shared: Path):
    web = opened(shared / "data" / "cc12m_32.tar", web_caption=".txt", synthetic_caption="caption")
    assert len(web) == 32
    read = web.read(0, rng())
    assert read.web == read.synthetic
    path = str(shared / "data" / "flickr8k" / "dataset_flickr8k.json")
    photos = opened(path, format="karpathy", web_caption="random_sentence", synthetic_caption="other_sentences")
    assert len(photos) == 6000
    assert decode_image(photos.read(5, rng()).image).size == (192, 192)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of sources, most of them with a fault."""
    folder = tmp_path_factory.mktemp("wrong")
    clips_world.write_shards(folder / "train")
    streamed_rows(folder / "hub")
    write_table(folder, "csv")
    rows().drop(columns="url").to_json(folder / "captions.jsonl", orient="records", lines=True)
    rows().to_csv(folder / "part0.csv", index=False)
    (folder / "empty").mkdir()
    files = {
        "rows.xls": "",
        "broken.parquet": "PAR1 nothing",
        "short.csv": "url,org_caption,re_caption\n0.png,a,b\n1.png,a\n",
        "part1.csv": "url,title\n0.png,a\n",
        "tabs.csv": "url\torg_caption\n0.png",
        "semicolons.csv": "url;org_caption\n0.png",
        "commas.TSV": "url,org_caption\n0.png",
        "null.jsonl": 'null\n{"url": "a.png", "org_caption": "a cup"}\n',
        "later.jsonl": '{"url": "a.png", "org_caption": "a cup"}\n null \n',
        "dataset.json": '{"images": [{"filename": "0.png", "split": "train", "sentences": []}]}',
        "coco.json": '{"images": []}',
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


KARPATHY = {"format": "karpathy", "path": "dataset.json", "image_root": ".", "web_caption": "first_sentence"}
KARPATHY["synthetic_caption"] = "all_sentences"
SHARDS = {"format": "webdataset", "web_caption": "web_caption", "synthetic_caption": "synthetic_caption"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**SHARDS, "path": "nowhere"}, "nowhere: no such file or directory"),
        ({**SHARDS, "path": "empty"}, r"expected \.tar shards in this directory, found none"),
        ({**SHARDS, "path": "train", "web_caption": "web_captoin"}, "web_caption 'web_captoin'; did you mean 'web_cap"),
        ({**SHARDS, "path": "train", "synthetic_caption": ".txt"}, r"expects a \.txt file \(found \.png, \.json\)"),
        ({**SHARDS, "path": "captions.jsonl"}, r"captions.jsonl: expected tar shards.* format: table"),
        ({"path": "x", "format": "karpaty"}, "unknown format of a data source 'karpaty'; did you mean 'karpathy'"),
        ({"path": "x", "format": "xm3600"}, "unknown format of a data source 'xm3600'"),
        ({"path": "rows.csv", "format": "csv"}, "^format: csv files are read by format: table$"),
        ({"path": "rows.csv", "synthetic_caption": "long"}, "'long'.*; synthetic_caption: null if there is none$"),
        ({"path": "gone.csv"}, "gone.csv: no such file or directory"),
        ({"path": "rows.xls"}, "expected a file that ends in .csv, .tsv, .jsonl, .parquet"),
        ({"path": "rows.csv", "web_caption": "org_captoin"}, "did you mean 'org_caption'"),
        ({"path": "rows.csv", "image_column": "picture"}, "unknown column for image_column in rows.csv 'picture'"),
        ({"path": "broken.parquet"}, "broken.parquet: not a whole parquet file"),
        ({"path": "short.csv"}, "short.csv line 3: expected 3 cells, as in the header, got 2"),
        ({"path": "part{0..1}.csv"}, "part1.csv: expected the columns url, org_caption, re_caption, found url, title"),
        ({"path": "empty"}, "expected files that end in"),
        ({"path": "captions.jsonl"}, r"captions alone have to be joined with paths of their images"),
        ({"path": "tabs.csv"}, r"tabs\.csv line 2: expected 2 cells, as in the header, got 1$"),
        ({"path": "semicolons.csv"}, r"semicolons\.csv line 2: expected 2 cells"),
        ({"path": "commas.TSV"}, r"commas\.TSV line 2: expected 2 cells"),
        ({"path": "null.jsonl"}, r"null\.jsonl line 1: expected a JSON object, got null"),  # would end the process
        ({"path": "later.jsonl"}, r"later\.jsonl line 2: expected a JSON object, got null"),
        ({**KARPATHY, "split": "trian"}, "unknown split of .*dataset.json 'trian'; did you mean 'train'"),
        ({**KARPATHY, "split": "train+restvla"}, "unknown split of .* 'restvla'"),
        ({**KARPATHY, "web_caption": "caption"}, "unknown 'web_caption' of a karpathy data source 'caption'"),
        ({**KARPATHY, "synthetic_caption": ("other_sentences", "all_sentences")}, "expected one of other_sentences"),
        ({**KARPATHY, "synthetic_caption": "caption"}, "unknown 'synthetic_caption' of a karpathy data source"),
        ({**KARPATHY, "image_root": "nowhere"}, "image_root: nowhere: expected the directory"),
        ({**KARPATHY, "path": "train/shard-00000.tar"}, "shard-00000.tar: not valid JSON"),
        ({**KARPATHY, "path": "coco.json", "format": "coco"}, "expected COCO's format"),
        ({**STREAM, "path": "hub", "split": "tets"}, "unknown split of .*hub 'tets'"),
        ({**STREAM, "path": "hub", "web_caption": "txt"}, "web_caption in hub 'txt'; did you mean 'text'"),
        ({**STREAM, "path": "rows.csv", "format": "table"}, "'streaming' expects .parquet files, found rows"),
        ({**STREAM, "path": "broken.parquet", "format": "table"}, "broken.parquet: cannot be read as a dataset"),
    ],
)
def test_a_wrong_source_is_named_before_training(
    wrong: Path, tmp_path: Path, monkeypatch, fields: dict[str, Any], message
):
    monkeypatch.chdir(wrong)
    with pytest.raises(UserError, match=message) as raised:
        open_source(SourceConfig(**{**TABLE, "cache_dir": str(tmp_path), **fields}))
    assert "\n" not in str(raised.value)
