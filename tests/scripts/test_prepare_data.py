"""``scripts/studies/prepare_data.py``: local data as the shipped studies need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_world as world
import numpy as np
import pytest
from script_modules import load_script

from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.data.classification_sets import load_classification_set
from clips.core.artifact import read_manifest
from clips.data.formats import DatasetSpec
from clips.data.formats.conversations import is_held_out
from clips.errors import UserError

GQA = Path(world.HUB) / "GQA"
script = load_script("studies/prepare_data.py")
describe_data = load_script("studies/describe_data.py")


def _cocoqa(folder: Path, photos: int = 20) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = [
        {"image": f"{number}.png", "question": f"what color, {k}", "answer": world.color(number), "type": "color"}
        for number in range(photos)
        for k in range(2)
    ]
    world.write_images(folder / "images", photos)
    world.write_lines(folder / "questions.jsonl", rows)
    return folder


def _flickr8k(folder: Path, photos: int = 4) -> Path:
    world.write_images(folder / "images", photos, ".jpg")
    images = []
    for number in range(photos):
        sentences = [{"raw": text} for text in world.captions(number)]
        images.append({"filename": f"{number}.jpg", "split": "val", "sentences": sentences})
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return folder


def _read(path: Path) -> list[dict]:
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pylist()


def _prepare(what: str, source: Path, output: Path, **more: Any) -> Path:
    script.run_prepare(script.PrepareConfig(dataset=what, source=str(source), output=str(output), **more))
    return output


def test_cocoqa_has_exactly_the_held_out_photos(tmp_path):
    source = _cocoqa(tmp_path / "in")
    out = _prepare("cocoqa", source, tmp_path / "out")
    held = [f"{number}.png" for number in range(20) if is_held_out(f"{number}.png")]
    assert 0 < len(held) < 20
    file = GQA / "testdev_balanced_instructions/testdev-00000-of-00001.parquet"
    questions = _read(out / file)
    assert [row["imageId"] for row in questions] == [name for name in held for _ in range(2)]
    assert len({row["id"] for row in questions}) == len(questions)
    pictures = _read(out / GQA / "testdev_balanced_images/testdev-00000-of-00001.parquet")
    assert [row["id"] for row in pictures] == held
    assert pictures[0]["image"]["bytes"] == (source / "images" / held[0]).read_bytes()
    manifest = read_manifest(out)
    assert (manifest["kind"], manifest["counts"]) == ("hub", {"images": len(held), "questions": len(questions)})


def test_every_sixth_training_photo_is_held_out(tmp_path):
    source = tmp_path / "in"
    world.write_images(source / "images", 16)
    rows = [
        {"filename": f"{n}.png", "split": "train" if n < 14 else "val", "sentences": [{"raw": f"photo {n}"}]}
        for n in range(16)
    ]
    (source / "dataset_mine.json").write_text(json.dumps({"images": rows}))
    out = _prepare("noisy_web", source, tmp_path / "out") / "dataset_held_out.json"
    found = {}
    for split in ("train", "held_out", "val"):
        spec = DatasetSpec(path=str(out), format="karpathy", split=split, image_root=str(source / "images"))
        found[split] = [name.removesuffix(".png") for name in load_caption_set(spec).images]
    assert found["held_out"] == ["5", "11"]
    assert found["train"] == [str(n) for n in range(14) if n not in (5, 11)]
    assert found["val"] == ["14", "15"]
    (source / "dataset_mine.json").write_text("[]")
    with pytest.raises(UserError, match="expected Karpathy's format"):
        _prepare("noisy_web", source, tmp_path / "other")


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_long_caption_has_every_form_and_photos_of_tests_are_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "_NUM_TEST", 3)
    monkeypatch.setattr(script, "_NUM_TUNE", 2)
    fits = "A dog. On a road! Two cars"
    rows = [
        {
            "image": f"images/{n}.png",
            "coco_id": n,
            "human_captions": [f"human {n}"] if n < 8 else [],
            "long_captions": [{"caption": "word " * 158}, *([{"caption": f"{n}. {fits}"}] if n else [])],
        }
        for n in range(12)
    ]
    (tmp_path / "coco_long").mkdir()
    world.write_lines(tmp_path / "coco_long/captions.jsonl", rows)
    out = _prepare("caption_lengths", tmp_path, tmp_path / "out")
    tables = {path.stem: _lines(path) for path in out.glob("*.jsonl")}
    names = {name: [row["image"] for row in found] for name, found in tables.items()}
    assert names["test_short"] == names["test_long"]
    assert names["tune_short"] == names["tune_long"]
    assert [len(names[name]) for name in ("test_long", "tune_long", "train")] == [3, 2, 6]  # photo 0 has none that fits
    together = [*names["test_long"], *names["tune_long"], *names["train"]]
    assert sorted(together) == sorted(f"coco_long/images/{n}.png" for n in range(1, 12))
    for row in tables["train"]:
        pieces = row["whole"].split(". ")
        assert pieces == [pieces[0], "A dog", "On a road", "Two cars"]
        assert row["sentence"] in pieces
        assert len({*row["shuffled"]}) > 5
        assert all(sorted(text.split(". ")) == sorted(pieces) for text in row["shuffled"])
    assert len({row["sentence"].isdigit() for row in tables["train"]}) == 2
    assert tables["test_short"][0]["captions"][0].startswith("human")
    assert all(caption.endswith(fits) for row in tables["test_long"] for caption in row["captions"])
    monkeypatch.setattr(script, "_NUM_TUNE", 4)
    with pytest.raises(UserError, match="more than 7 photos with short and long captions, got 7"):
        _prepare("caption_lengths", tmp_path, tmp_path / "few")


def test_web_captions_of_other_photos(tmp_path):
    rows = [
        {"filename": f"{n}.png", "split": "train", "sentences": [{"raw": f"{n} text {k} ."} for k in range(5)]}
        for n in range(240)
    ]
    world.write_images(tmp_path / "in/images", 1)
    (tmp_path / "in/dataset_mine.json").write_text(json.dumps({"images": rows}))
    out = _prepare("noisy_web", tmp_path / "in", tmp_path / "out")
    train = _lines(out / "train.jsonl")
    held = [row["filename"] for row in json.loads((out / "dataset_held_out.json").read_text())["images"]
            if row["split"] == "held_out"]  # fmt: skip
    assert (len(train), len(held)) == (200, 40)
    assert not {row["image"] for row in train} & {*held}
    own = [row["image"].removesuffix(".png") for row in train]

    def strangers(column: str) -> set[tuple[int, int]]:
        return {
            (n, k) for n, row in enumerate(train) for k, text in enumerate(row[column]) if text.split()[0] != own[n]
        }

    assert strangers("web_0") == set()
    assert 200 < len(strangers("web_25")) < 300  # of 1,000
    assert 440 < len(strangers("web_50")) < 560
    assert strangers("web_25") < strangers("web_50")
    assert not {text.split()[0] for row in train for text in row["web_50"]} & {
        name.removesuffix(".png") for name in held
    }
    for row, name in zip(train, own, strict=True):
        assert sorted(row["web_0"]) == [f"{name} text {k}" for k in range(5)]
        assert row["synthetic"] == ". ".join(row["web_0"][1:])
        assert all(row[f"second_{noise}"] == row[f"web_{noise}"][1:] for noise in (0, 25, 50))


def test_photos_of_one_object_become_the_splits_of_a_probe(tmp_path, shared):
    source = shared / "data/cocoqa"
    out = _prepare("cocoqa_classes", source, tmp_path / "out")
    train, test = (load_classification_set(str(out), split=split) for split in ("train", "test"))
    assert list(train.classes) == list(test.classes)
    assert {"bus", "elephant", "giraffe"} <= {*train.classes}
    assert not {"bu", "elephants", "giraffes"} & {*train.classes}
    counts = np.bincount(train.targets), np.bincount(test.targets)
    assert (counts[1] == (counts[0] + counts[1] + 1) // 2).all()
    assert (counts[0] + counts[1]).min() >= 12
    assert not {*test.images} & {*train.images}
    with pytest.raises(UserError, match="expected 12 photos with questions of type object and one answer"):
        _prepare("cocoqa_classes", _cocoqa(tmp_path / "colors"), tmp_path / "few")


def test_the_facts_of_the_page_are_counted_in_the_prepared_data(tmp_path, capsys, monkeypatch):
    lengths = tmp_path / "lengths"
    lengths.mkdir()
    rows = [
        {"image": "0.png", "whole": "a dog. two cars pass by", "sentence": "a dog"},  # 7 tokens with the full stop
        {"image": "1.png", "whole": "a. b. c", "sentence": "c"},
    ]
    world.write_lines(lengths / "train.jsonl", rows)
    for split in ("test", "tune"):
        for length, text in (("short", "a dog"), ("long", "a dog on a road")):
            queries = [{"image": "2.png", "captions": [text] * 7}, {"image": "3.png", "captions": [text]}]
            world.write_lines(lengths / f"{split}_{length}.jsonl", queries[: 1 if split == "tune" else 2])
    found = dict(describe_data.describe(lengths))
    assert (found["fewest sentences of a caption"], found["most sentences of a caption"]) == (2, 3)
    assert (found["fewest tokens"], found["median tokens"], found["most tokens"]) == (5, 6, 7)
    share = found["mean share of the fixed sentence in a caption's tokens, per cent"]
    assert share == pytest.approx(100 * (2 / 7 + 1 / 5) / 2)
    assert (found["test photos with short queries"], found["tune photos with short queries"]) == (2, 1)
    assert (found["long test queries"], found["median tokens of long test queries"]) == (6, 5)
    web = tmp_path / "web"
    web.mkdir()
    captions = ["a dog", "word " * 29, "word " * 30, "a cat"]  # a context of 32 has room for 29 tokens
    world.write_lines(web / "train.jsonl", [{"web_0": captions, "web_25": [*captions[:3], "other"],
                                             "web_50": ["other", *captions[1:3], "other"]}])  # fmt: skip
    images = [{"split": split} for split in ("train", "held_out", "held_out", "val")]
    (web / "dataset_held_out.json").write_text(json.dumps({"images": images}))
    found = dict(describe_data.describe(web))
    assert [found[f"{what} photos"] for what in ("training", "test")] == [1, 2]
    assert (found["photos that tune"], found["web captions of a photo"]) == (1, 4)
    assert found["web captions that the context cuts, per cent"] == 25
    assert [found[f"web captions of another photo at {noise} % noise, per cent"] for noise in (25, 50)] == [25, 50]
    monkeypatch.setattr("sys.argv", ["describe_data.py", str(web)])
    assert describe_data.main() == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["data,fact,value", f"{web},training photos,1"]
    monkeypatch.setattr("sys.argv", ["describe_data.py", str(tmp_path)])
    assert describe_data.main() == 2
    assert "expected the output of prepare_data.py" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::SyntaxWarning")
def test_lmms_eval_reads_what_was_written(tmp_path):
    from benchmarks.tasks.mllm.offline_tasks import load_task

    gqa = load_task("gqa", "gqa", _prepare("cocoqa", _cocoqa(tmp_path / "q"), tmp_path / "questions"),
                    "lmms-lab-encoder/GQA")  # fmt: skip
    assert gqa.eval_docs[0]["image"].size == (64, 64)
    assert gqa.eval_docs[0]["type"] == "color"
    photos = _flickr8k(tmp_path / "c")
    for limit in (None, 3):
        data = _prepare("flickr8k", photos, tmp_path / f"c{limit}", limit=limit)
        captions = load_task("nocaps_val", "nocaps", data, "lmms-lab-encoder/NoCaps").eval_docs
        assert captions["annotations_captions"] == [world.captions(number) for number in range(limit or 4)]


def test_a_broken_image_leaves_no_output(tmp_path):
    source = _flickr8k(tmp_path / "in")
    (source / "images" / "2.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2\.jpg: undecodable image"):
        _prepare("flickr8k", source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_real_data(tmp_path, shared):
    """A fifth of COCO-QA's photos is held out, and none of them is in both splits."""
    counts = read_manifest(_prepare("cocoqa", shared / "data/cocoqa", tmp_path / "out"))["counts"]
    assert 400 < counts["images"] < 550
    assert counts["questions"] > counts["images"]
