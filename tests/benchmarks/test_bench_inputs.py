"""Data that would silently make another number: other encodings, other kinds of images, ids that come twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_world as world
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import quick_of
from PIL import Image

from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.data.classification_sets import load_classification_set, log_skipped
from benchmarks.tasks.data.pair_sets import load_pair_set
from benchmarks.tasks.output_cache import AnswerCache
from clips.data.formats import DatasetSpec, detect
from clips.data.images import FORMATS, IMAGE_SUFFIXES, InvalidSampleError
from clips.data.sources import SourceConfig, open_source
from clips.errors import UserError

CAFE = "Un café noir"
LATIN = CAFE.encode("latin-1")


def load(data: Path, **more: str) -> list[list[str]]:
    return load_caption_set(DatasetSpec(path=str(data), **more)).captions


def save(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    world.draw_image(number).save(path)
    return path


def shard(path: Path, **members: bytes) -> Path:
    return world.write_tar(path, members)


def text(folder: Path, caption: bytes) -> Path:
    save(folder / "a.jpg")
    (folder / "captions.txt").write_bytes(b"image,caption\na.jpg,one\na.jpg," + caption + b"\n")
    return folder / "captions.txt"


def shards(folder: Path, caption: bytes) -> Path:
    shard(folder / "test/0.tar", **{"a.png": world.png(world.draw_image(0)), "a.txt": b"one\n" + caption})
    return folder


def urban1k(folder: Path, caption: bytes) -> Path:
    save(folder / "image/a.jpg")
    (folder / "caption").mkdir()
    (folder / "caption/a.txt").write_bytes(caption)
    return folder


def parallel(folder: Path, caption: bytes) -> Path:
    save(folder / "images/a.jpg")
    (folder / "filenames.txt").write_text("a.jpg\na.jpg\n")
    (folder / "fra.txt").write_bytes(b"one\n" + caption + b"\n")
    return folder


@pytest.mark.parametrize(
    ("write", "where", "more"),
    [
        (text, "captions.txt line 3: not UTF-8 text (invalid continuation byte at byte 36)", {}),
        (shards, "test/0.tar/a.txt line 2: not UTF-8 text (invalid continuation byte at byte 10)", {}),
        (urban1k, "caption/a.txt line 1: not UTF-8 text (invalid continuation byte at byte 6)", {}),
        (parallel, "fra.txt line 2: not UTF-8 text (invalid continuation byte at byte 10)", {"language": "fra"}),
    ],
)
def test_captions_in_another_encoding_are_rejected(tmp_path: Path, write, where: str, more: dict[str, str]) -> None:
    """Before: they were read as 'Un caf\N{REPLACEMENT CHARACTER} noir', at 23.3 instead of 54.3 % recall."""
    (tmp_path / "good").mkdir()
    assert CAFE in str(load(write(tmp_path / "good", CAFE.encode()), **more))
    (tmp_path / "bad").mkdir()
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "bad", LATIN), **more)
    assert f"{tmp_path / 'bad'}/{where}" in str(caught.value)
    assert "iconv" in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    assert load(urban1k(tmp_path, b"\xef\xbb\xbf" + CAFE.encode())) == [[CAFE]]


def test_a_damaged_cached_answer_is_generated_again(tmp_path: Path) -> None:
    """Before: it counted with a replacement character in it."""
    lines = [json.dumps(["1", CAFE], ensure_ascii=False).encode(), b'["2", "' + LATIN + b'"]', b'["3", "caf\xc3']
    (tmp_path / "0.jsonl").write_bytes(b"\n".join(lines))
    assert AnswerCache(tmp_path).known == {"1": CAFE}


def test_image_suffixes_are_those_of_the_decoded_formats() -> None:
    Image.init()
    assert {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize("suffix", quick_of(IMAGE_SUFFIXES, ".gif", ".bmp"))
def test_images_are_read_from_folders_shards_and_lists(tmp_path: Path, suffix: str) -> None:
    """Before: .bmp, .gif and others were passed over without a word."""
    for number, name in enumerate(("red", "blue")):
        save(tmp_path / f"classes/{name}/0.png", number)
        other = save(tmp_path / f"classes/{name}/1{suffix.upper()}", number)
    assert len(load_classification_set(str(tmp_path / "classes")).images) == 4
    members = {"0.png": world.png(world.draw_image(0)), "0.cls": b"0", f"1{suffix}": other.read_bytes(), "1.cls": b"1"}
    shard(tmp_path / "shards/0.tar", **members)
    (tmp_path / "shards/classnames.txt").write_text("red\nblue\n")
    assert len(load_classification_set(str(tmp_path / "shards")).images) == 2
    shard(tmp_path / "captions/0.tar", **{f"1{suffix}": other.read_bytes(), "1.txt": b"one"})
    assert load(tmp_path / "captions") == [["one"]]
    (tmp_path / "list.txt").write_text(f"classes/blue/1{suffix.upper()},one\n")
    found = load_caption_set(DatasetSpec(path=str(tmp_path / "list.txt")))
    assert found.captions == [["one"]]
    assert found.open(0).size == (64, 64)


def test_hidden_files_and_directories_are_no_classes_and_no_images(tmp_path: Path) -> None:
    """Before: .ipynb_checkpoints was a class, and macOS's files next to an image were images."""
    for number, name in enumerate(("red", "blue")):
        save(tmp_path / name / "0.png", number)
    save(tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png")
    (tmp_path / "red/._0.png").write_bytes(b"\0\5\x16\7")
    save(tmp_path / "__MACOSX/red/0.png")
    found = load_classification_set(str(tmp_path))
    assert (found.classes, found.images) == (["blue", "red"], ["blue/0.png", "red/0.png"])
    assert found.skipped == {}


def test_hidden_members_of_shards_are_no_images(tmp_path: Path) -> None:
    """Before: ._0.png was a benchmark image, of which no caption or class was found."""
    members = dict.fromkeys(("._0.PNG", "__MACOSX/0.png", ".DS_Store", "README.md"), b"\x00\x05\x16\x07")
    members |= {"0.PNG": world.png(world.draw_image(0)), "0.TXT": b"one", "0.CLS": b"0", "1.heic": b"x", "1.cls": b"0"}
    shard(tmp_path / "0.tar", **members)
    (tmp_path / "._0.tar").write_bytes(b"\0\5\x16\7")
    (tmp_path / "classnames.txt").write_text("red")
    assert load(tmp_path) == [["one"]]
    found = load_classification_set(str(tmp_path))
    assert (found.images, found.skipped) == (["0.tar/0.png"], {".heic": 1})


def _tar_text(folder: Path) -> tuple[Path, str]:
    jpg = world.png(world.draw_image(0))
    shard(folder / "0.tar", **{"a.PNG": jpg, "a.TXT": "\ufeffa dog\r\n\r\n&nbsp;\r\na cat".encode()})
    return folder, ".txt"


def _tar_json(folder: Path) -> tuple[Path, str]:
    row = {"captions": [{"raw": "a dog"}, None, "", "\u200b", ["a cat"]]}
    shard(folder / "0.tar", **{"a.png": world.png(world.draw_image(0)), "a.json": json.dumps(row).encode()})
    return folder, "captions"


def _lines(folder: Path) -> tuple[Path, str]:
    save(folder / "0.png")
    row = {"image": "0.png", "captions": ["a dog", None, "&nbsp;", {"raw": "a cat"}]}
    (folder / "x.jsonl").write_text("\ufeff" + json.dumps(row))
    return folder / "x.jsonl", "random_sentence"


def _table(folder: Path, **image: Any) -> tuple[Path, str]:
    columns = {"image": [["0.png"]], "captions": [["a dog", None, "", "a cat"]]} | image
    save(folder / "0.png")
    pd.DataFrame(columns).to_parquet(folder / "x.PARQUET")
    return folder / "x.PARQUET", "captions"


def _raw_table(folder: Path) -> tuple[Path, str]:
    return _table(folder, image=["0.png"], captions=[[{"raw": "a dog"}, {"raw": None}, {"raw": "a cat"}]])


def test_lines_of_a_text_file_are_captions_for_benchmarks_and_one_caption_for_training(tmp_path: Path) -> None:
    """As CLIP_benchmark and open_clip's training read them."""
    path, location = _tar_text(tmp_path)
    assert load(path) == [["a dog", "a cat"]]
    source = open_source(SourceConfig(path=str(path), web_caption=location, synthetic_caption=None))
    assert source.read(0, np.random.default_rng(0)).web == "a dog\r\n\r\n&nbsp;\r\na cat"


@pytest.mark.parametrize("write", [_tar_json, _lines, _table, _raw_table])
def test_training_and_benchmarks_read_the_same_captions_and_images(tmp_path: Path, write) -> None:
    """Before: training took objects with 'raw' as no captions."""
    path, location = write(tmp_path)
    (captions,) = load(path)
    assert captions == ["a dog", "a cat"]
    found = load_caption_set(DatasetSpec(path=str(path)))
    name = detect(DatasetSpec(path=str(path)), "captions")
    source = open_source(SourceConfig(format=name, path=str(path), web_caption=location, synthetic_caption=None))
    read = [source.read(0, np.random.default_rng(seed)) for seed in range(40)]
    assert {sample.web for sample in read} == {*captions}
    assert read[0].image == found.files[0].read() == world.png(world.draw_image(0))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "data/test.parquet"])
def test_training_and_benchmarks_read_the_same_split(tmp_path: Path, name: str) -> None:
    """Before: training read the rows of all splits of a table, and no JSON lines without splits."""
    images = [f"{number}.png" for number in range(4)]
    frame = pd.DataFrame({"split": ["train", "val", "test", "train"], "image": images, "caption": [*"abcd"]})
    for image in images:
        save(tmp_path / image)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    writers = {".csv": "to_csv", ".jsonl": "to_json", ".parquet": "to_parquet"}
    options: dict[str, Any] = {".csv": {"index": False}, ".jsonl": {"orient": "records", "lines": True}}

    def read(split: str) -> tuple[list[str], list[list[str]]]:
        spec = DatasetSpec(path=str(path if path.parent == tmp_path else path.parent), split=split)
        kind = detect(spec, "captions")
        column = "random_sentence" if kind == "jsonl" else "caption"
        fields: dict[str, Any] = {"format": kind, "image_root": str(tmp_path), "web_caption": column}
        source = open_source(SourceConfig(path=spec.path, split=split, synthetic_caption=None, **fields))
        found = load(Path(spec.path), split=split, image_root=str(tmp_path))
        return [source.read(index, np.random.default_rng(0)).web for index in range(len(source))], found

    getattr(frame, writers[path.suffix])(path, **options.get(path.suffix, {}))
    assert read("train") == (["a", "d"], [["a"], ["d"]])
    assert read("test") == (["c"], [["c"]])
    if path.parent == tmp_path:
        assert read("train+val") == ([*"abd"], [["a"], ["b"], ["d"]])
    with pytest.raises(UserError, match="'dev'"):
        read("dev")
    if path.parent == tmp_path:
        getattr(frame.drop(columns="split"), writers[path.suffix])(path, **options.get(path.suffix, {}))
        assert read("train") == ([*"abcd"], [["a"], ["b"], ["c"], ["d"]])


def test_images_outside_the_class_folders_are_counted(tmp_path: Path, capsys) -> None:
    """Before: an image that was not put into the folder of its class was dropped without a word."""
    for number, name in enumerate(("red", "blue")):
        save(tmp_path / "test" / name / "0.png", number)
    for number, name in enumerate(("1.png", "2.PNG")):
        save(tmp_path / "test" / name, number)
    for name in ("3.heic", "classnames.txt", ".DS_Store"):
        (tmp_path / "test" / name).write_text("blue\nred\n")
    found = load_classification_set(str(tmp_path))
    assert found.images == ["blue/0.png", "red/0.png"]
    assert found.skipped == {".png next to the class directories": 2, ".heic next to the class directories": 1}
    log_skipped(found)
    assert f"{tmp_path}/test: skipped 2 .png next to the class directories, 1 .heic next to" in capsys.readouterr().err


def test_a_duplicate_image_id_in_coco_is_rejected(tmp_path: Path) -> None:
    """Before: the first of the two images was lost, its captions went to the second."""
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}]
    notes = [{"image_id": 7, "caption": "one"}, {"image_id": 7, "caption": "two"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": notes}))
    with pytest.raises(UserError, match=r"coco\.json: images: expected different ids, got 7 twice \(a\.jpg, b\.jpg\)$"):
        load(tmp_path / "coco.json")
    with pytest.raises(UserError, match=r"coco\.json: images: expected different ids, got 7 twice"):
        open_source(SourceConfig(format="coco", path=str(tmp_path / "coco.json"), image_root=str(tmp_path)))


@pytest.mark.parametrize("number", [77, "7"])
def test_a_caption_of_no_image_in_coco_is_named(tmp_path: Path, number: int | str) -> None:
    """Before: "an image or annotation lacks 77"."""
    rows = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": number, "caption": "one"}]}
    (tmp_path / "coco.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=rf"annotations: expected the id of one of the images .*, got {number!r}$"):
        load(tmp_path / "coco.json")


def test_a_sample_whose_caption_is_in_another_encoding_is_invalid_for_training(tmp_path: Path) -> None:
    """Before: a model was trained on replacement characters."""
    png = world.png(world.draw_image(0))
    members = {"0.png": png, "0.txt": CAFE.encode(), "1.gif": png, "1.txt": LATIN}
    shard(tmp_path / "0.tar", **members)
    source = open_source(SourceConfig(path=str(tmp_path), web_caption=".txt", synthetic_caption=None))
    assert source.read(0, np.random.default_rng(0)).web == CAFE
    with pytest.raises(InvalidSampleError, match=r"^\.txt is not UTF-8 text \(unexpected end of data|invalid"):
        source.read(1, np.random.default_rng(0))


def _latin(*texts: bytes) -> Any:
    """A column of text as writers of parquet leave it, which check nothing."""
    return pa.array(texts, pa.binary()).view(pa.string())


def test_text_of_a_table_that_is_not_utf8_is_named(tmp_path):
    """Before: tracebacks, and for captions a line without row and column."""
    image = {"bytes": world.png(world.draw_image(0)), "path": None}
    pictures = pa.array([image, image], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    good, bad = [b"a cat", b"a dog"], [b"a cat", b"caf\xe9"]
    tables = {
        "winoground": {"image_0": pictures, "image_1": pictures, "caption_0": _latin(*good), "caption_1": _latin(*bad)},
        "tags": {
            "image_0": pictures,
            "image_1": pictures,
            "caption_0": _latin(*good),
            "caption_1": _latin(*good),
            "collapsed_tag": _latin(*bad),
        },
        "classes": {"image": pictures, "label": _latin(*bad)},
        "split": {"image": pictures, "caption": _latin(*good), "split": _latin(*bad)},
        "names": {"image": _latin(*bad), "caption": _latin(*good)},
    }
    for name, columns in tables.items():
        table, folder = pa.table(columns), tmp_path / name / "data"
        folder.mkdir(parents=True)
        images = {each: {"_type": "Image"} for each in table.column_names if each.startswith("image")}
        texts = {each: {"dtype": "string", "_type": "Value"} for each in table.column_names if each not in images}
        if name != "names":
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": images | texts}})})
        pq.write_table(table, folder / "test-00000-of-00001.parquet")
    read: dict[str, Callable[[str], Any]] = {
        "winoground": lambda path: load_pair_set(path, "winoground"),
        "tags": lambda path: load_pair_set(path, "winoground"),
        "classes": load_classification_set,
        "split": lambda path: load_caption_set(DatasetSpec(path=path), captions_per_image=1),
        "names": lambda path: load_caption_set(DatasetSpec(path=path), captions_per_image=1),
    }
    column = {
        "winoground": "caption_1",
        "tags": "collapsed_tag",
        "classes": "label",
        "split": "split",
        "names": "image",
    }
    for name, load in read.items():
        with pytest.raises(UserError) as caught:
            load(str(tmp_path / name))
        said = f"{tmp_path / name} row 1: {column[name]}: expected UTF-8 text ('utf-8' codec can't decode byte 0xe9"
        assert str(caught.value).startswith(said)
