"""Images of a benchmark are found in training data also after changes of their files, and others are not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import bench_classes as classes
import bench_world as world
import numpy as np
import pandas as pd
import pytest
from families import quick_of
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.analysis.contamination import (
    BITS,
    MAX_HAMMING_DISTANCE,
    ContaminationConfig,
    benchmark_images,
    find_duplicates,
    hash_image,
    near_pairs,
    run_contamination,
)
from clips.data.sources.source import SourceConfig


def texture(number: int) -> Image.Image:
    """An image of soft spots, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def encoded(picture: Image.Image, kind: str = "PNG", **more: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **more)
    return stream.getvalue()


def hamming_distance(first: Image.Image, second: Image.Image) -> int:
    one, other = (hash_image(picture.convert("RGB")).bits[None] for picture in (first, second))
    ((_, _, bits),) = near_pairs(one, other, BITS)
    return bits


def cut(picture: Image.Image, share: float) -> Image.Image:
    """``share`` of width and height cut off, half on each side."""
    x, y = round(picture.width * share / 2), round(picture.height * share / 2)
    return picture.crop((x, y, picture.width - x, picture.height - y))


CHANGES = {
    "saved again": lambda picture: Image.open(io.BytesIO(encoded(picture, "JPEG", quality=40))),
    "halved": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "squashed": lambda picture: picture.resize((192, 192)),
    "brightened": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    "2 % cut off": lambda picture: cut(picture, 0.02),
    "5 % cut off": lambda picture: cut(picture, 0.05),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_reencoded_file_is_the_same_image(change):
    assert all(
        hamming_distance(texture(number), CHANGES[change](texture(number))) <= MAX_HAMMING_DISTANCE
        for number in range(10)
    )


def test_different_images_are_far_apart():
    hashes = np.array([hash_image(texture(number)).bits for number in range(60)])
    pairs = [pair for pair in near_pairs(hashes, hashes, MAX_HAMMING_DISTANCE) if pair[0] != pair[1]]
    assert pairs == []


@pytest.mark.parametrize("change", quick_of(["saved again", "halved", "5 % cut off"], "5 % cut off"))
def test_real_photos(change, shared):
    files = sorted((shared / "data/flickr8k/images").iterdir())[:120]
    photos = [Image.open(file).convert("RGB") for file in files]
    hashes = np.array([hash_image(photo).bits for photo in photos])
    changed = np.array([hash_image(CHANGES[change](photo).convert("RGB")).bits for photo in photos])
    pairs = [(row, column) for row, column, _ in near_pairs(hashes, changed, MAX_HAMMING_DISTANCE)]
    assert {row for row, column in pairs if row != column} == set()
    assert len(pairs) >= 0.97 * len(photos)


def test_blocks_find_what_a_loop_finds(monkeypatch):
    monkeypatch.setattr("benchmarks.analysis.contamination._MAX_CHUNK_PAIRS", 50)
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 2**63, (count, 4), dtype=np.uint64) for count in (23, 17))
    naive = [
        (row, column, bits)
        for row in range(23)
        for column in range(17)
        if (bits := sum(int(a ^ b).bit_count() for a, b in zip(first[row], second[column], strict=True))) <= 120
    ]
    assert 5 < len(naive) < 200
    assert [*near_pairs(first, second, 120)] == naive


def test_exact_and_near_duplicates_are_counted_by_benchmark_image():
    picture = encoded(texture(1))
    small = encoded(CHANGES["halved"](texture(2)))
    found = find_duplicates(
        [("a", picture), ("again", encoded(texture(1), "BMP")), ("b", small), ("c", encoded(texture(3))), ("d", b"no")],
        [("x", picture), ("y", encoded(texture(2))), ("z", encoded(texture(4)))],
    )
    assert (found.training, found.benchmark, found.exact, found.near) == (4, 3, 1, 1)
    assert [(pair.training, pair.benchmark, pair.exact) for pair in found.pairs] == [
        ("a", "x", True),
        ("again", "x", True),
        ("b", "y", False),
    ]
    assert found.unreadable == ["d"]


def test_images_of_one_color_match_only_if_equal():
    grey, black = (encoded(Image.new("RGB", (64, 64), color)) for color in ("grey", "black"))
    found = find_duplicates([("grey", grey)], [("grey too", grey), ("black", black)])
    assert [(pair.benchmark, pair.exact) for pair in found.pairs] == [("grey too", True)]


def training_table(folder: Path, pictures: list[Image.Image]) -> SourceConfig:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    rows = [json.dumps({"image": f"{number}.png", "web_caption": "x"}) for number in range(len(pictures))]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return SourceConfig(format="table", path=str(folder / "rows.jsonl"), synthetic_caption=None)


def test_the_command_reads_sources_of_training_and_writes_the_pairs(tmp_path, capsys):
    source = training_table(tmp_path / "train", [texture(7), world.draw_image(2).resize((128, 128)), texture(8)])
    shards = world.write_shards(tmp_path / "shards", 4)
    for name in ("pairs.csv", "pairs.json"):
        output = str(tmp_path / name)
        run_contamination(ContaminationConfig(training=[source], benchmark=str(shards), output=output))
    said = capsys.readouterr().out
    assert "training    3 images" in said
    assert "near        1 (25.00%) more differ" in said
    (pair,) = json.loads((tmp_path / "pairs.json").read_text())["pairs"]
    assert pair["benchmark"] == "shard-00000.tar/000000002.png"
    assert pair["training"].endswith("rows.jsonl row 1")
    assert pd.read_csv(tmp_path / "pairs.csv").to_dict("records") == [pair]


def test_images_are_found_in_every_layout_of_a_benchmark(tmp_path):
    hub = world.write_hub(tmp_path / "hub", 3)
    pope = [*benchmark_images(str(hub / world.HUB / "POPE"))]
    assert [name for name, _ in pope][:2] == [f"test-00000-of-00001.parquet row {row} image" for row in (0, 1)]
    assert len(pope) == 6
    assert len([*benchmark_images(str(hub))]) > 12  # all tasks below a data root
    world.draw_image(0).save(tmp_path / "0.png")
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "0.png", "captions": ["x"]}))
    assert [name for name, _ in benchmark_images(str(tmp_path / "set.jsonl"))] == ["0.png"]
    world.write_shards(tmp_path / "wds/test", 2, shards=1)
    (tmp_path / "wds/test/shard-00000.parquet").write_bytes(b"of img2dataset, no pictures in it")
    (tmp_path / "urban/caption").mkdir(parents=True)
    (tmp_path / "urban/caption/7.txt").write_text("x")
    (tmp_path / "urban/image").mkdir()
    world.draw_image(0).save(tmp_path / "urban/image/7.jpg")
    for folder, names in (("wds", ["000000000.png", "000000001.png"]), ("urban", ["7.jpg"])):
        assert [Path(name).name for name, _ in benchmark_images(str(tmp_path / folder))] == names
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "0.png", "captions": {"de": ["x"]}}))
    assert [name for name, _ in benchmark_images(str(tmp_path / "set.jsonl"), language="de")] == ["0.png"]
    for write in (classes.write_wds, classes.write_folders):  # images with classes, not captions
        found = dict(benchmark_images(str(write(tmp_path / write.__name__, 8))))
        assert len(found) == 8
        assert world.png(world.draw_image(0)) in found.values()
