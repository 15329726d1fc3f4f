"""``clips-bench prepare``: local data in the layout that lmms-eval's tasks read."""

from __future__ import annotations

import json
from pathlib import Path

import bench_world as world
import numpy as np
import pytest

from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.prepare_data import PrepareConfig, run_prepare
from clips.core.artifact import read_manifest
from clips.data.formats import DatasetSpec
from clips.data.formats.conversations import is_held_out
from clips.data.sources import SourceConfig, open_source
from clips.errors import UserError

SHARED = Path(__file__).resolve().parents[1] / "../shared"
GQA = Path(world.HUB) / "GQA"


def _cocoqa(folder: Path, photos: int = 20) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(photos):
        world.picture(number).save(folder / "images" / f"{number}.png")
        rows += [
            {"image": f"{number}.png", "question": f"what color, {k}", "answer": world.color(number), "type": "color"}
            for k in range(2)
        ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def _flickr8k(folder: Path, photos: int = 4) -> Path:
    (folder / "images").mkdir(parents=True)
    images = []
    for number in range(photos):
        world.picture(number).save(folder / "images" / f"{number}.jpg")
        sentences = [{"raw": text} for text in world.captions(number)]
        images.append({"filename": f"{number}.jpg", "split": "val", "sentences": sentences})
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return folder


def _read(path: Path) -> list[dict]:
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pylist()


def test_cocoqa_holds_exactly_the_held_back_photos(tmp_path):
    run_prepare(PrepareConfig(dataset="cocoqa", source=str(_cocoqa(tmp_path / "in")), output=str(tmp_path / "out")))
    held = [f"{number}.png" for number in range(20) if is_held_out(f"{number}.png")]
    assert 0 < len(held) < 20
    questions = _read(tmp_path / "out" / GQA / "testdev_balanced_instructions/testdev-00000-of-00001.parquet")
    assert [row["imageId"] for row in questions] == [name for name in held for _ in range(2)]
    assert len({row["id"] for row in questions}) == len(questions)
    pictures = _read(tmp_path / "out" / GQA / "testdev_balanced_images/testdev-00000-of-00001.parquet")
    assert [row["id"] for row in pictures] == held
    assert pictures[0]["image"]["bytes"] == (tmp_path / "in" / "images" / held[0]).read_bytes()
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["kind"], manifest["counts"]) == ("hub", {"pictures": len(held), "questions": len(questions)})


def test_flickr8k_keeps_every_caption(tmp_path):
    run_prepare(
        PrepareConfig(dataset="flickr8k", source=str(_flickr8k(tmp_path / "in")), output=str(tmp_path / "o"), limit=3)
    )
    rows = _read(tmp_path / "o" / world.HUB / "NoCaps/data/validation-00000-of-00001.parquet")
    assert [row["annotations_captions"] for row in rows] == [world.captions(number) for number in range(3)]
    assert [row["image_id"] for row in rows] == [0, 1, 2]


def test_coco_long_is_a_table_to_train_on_and_no_picture_of_it_is_tested(tmp_path):
    for name in ("coco_long", "coco_mini"):
        (tmp_path / name / "images").mkdir(parents=True)
    for number in range(4):
        world.picture(number).save(tmp_path / "coco_mini" / "images" / f"{number}.png")
    long = [
        {
            "image": f"../coco_mini/images/{number}.png",
            "coco_id": number,
            "human_captions": [f"picture {number}"] if number else [],
            "long_captions": [{"caption": "One. Two."}],
        }
        for number in range(3)
    ]
    mini = [
        {"image": f"images/{number}.png", "image_id": str(number), "captions": [f"number {number}"]}
        for number in (2, 3)
    ]
    (tmp_path / "coco_long" / "captions.jsonl").write_text("\n".join(map(json.dumps, long)))
    (tmp_path / "coco_mini" / "captions.jsonl").write_text("\n".join(map(json.dumps, mini)))
    out = tmp_path / "out"
    run_prepare(PrepareConfig(dataset="coco_long", source=str(tmp_path), output=str(out)))
    table = SourceConfig(
        format="table",
        path=str(out / "train.jsonl"),
        image_root=str(tmp_path),
        web_caption="long",
        synthetic_caption="long",
    )
    source = open_source(table)
    assert len(source) == 3
    assert source.read(0, np.random.default_rng(0)).synthetic == "One. Two."
    both = [json.loads(line) for line in (out / "both.jsonl").read_text().splitlines()]
    assert [row["human"] for row in both] == [["picture 1"], ["picture 2"]]
    tested = load_caption_set(DatasetSpec(path=str(out / "test.jsonl"), image_root=str(tmp_path / "coco_mini")))
    assert list(tested.images) == ["images/3.png"]
    assert tested.open(0).size == (64, 64)


def test_all_of_cocoqa_is_all_of_it(tmp_path):
    source = _cocoqa(tmp_path / "in")
    asked = [json.loads(line) for line in (source / "questions.jsonl").read_text().splitlines()]
    run_prepare(PrepareConfig(dataset="cocoqa", source=str(source), output=str(tmp_path / "all"), split="all"))
    run_prepare(PrepareConfig(dataset="cocoqa", source=str(source), output=str(tmp_path / "held"), split="held_out"))
    file = f"{world.HUB}/GQA/testdev_balanced_instructions/testdev-00000-of-00001.parquet"
    rows, held = (_read(tmp_path / name / file) for name in ("all", "held"))
    assert [(row["imageId"], row["question"]) for row in rows] == [(row["image"], row["question"]) for row in asked]
    assert 0 < len(held) < len(rows)
    assert all(is_held_out(row["imageId"]) for row in held)


def test_mmvet_is_whole(tmp_path, shared):
    run_prepare(PrepareConfig(dataset="mmvet", source=str(shared / "data/mmvet"), output=str(tmp_path / "out")))
    rows = _read(tmp_path / "out" / world.HUB / "MMVet/data/test-00000-of-00001.parquet")
    assert (len(rows), len({row["question_id"] for row in rows})) == (218, 218)
    assert rows[0]["capability"] == "ocr,math"  # as lmms-eval's scorer splits it
    assert rows[0]["image"]["bytes"] == (shared / "data/mmvet/images/v1_0.jpg").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::SyntaxWarning")
def test_lmms_eval_reads_what_was_written(tmp_path):
    from benchmarks.tasks.mllm.offline_tasks import load_task

    run_prepare(
        PrepareConfig(dataset="cocoqa", source=str(_cocoqa(tmp_path / "q")), output=str(tmp_path / "questions"))
    )
    run_prepare(
        PrepareConfig(dataset="karpathy", source=str(_flickr8k(tmp_path / "c")), output=str(tmp_path / "captions"))
    )
    gqa = load_task("gqa", "gqa", tmp_path / "questions")
    assert gqa.eval_docs[0]["image"].size == (64, 64)
    assert gqa.eval_docs[0]["type"] == "color"
    captions = load_task("nocaps_val", "nocaps", tmp_path / "captions")
    assert captions.eval_docs[2]["annotations_captions"] == world.captions(2)


def test_a_broken_picture_leaves_nothing_behind(tmp_path):
    source = _flickr8k(tmp_path / "in")
    (source / "images" / "2.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2\.jpg: undecodable picture"):
        run_prepare(PrepareConfig(dataset="flickr8k", source=str(source), output=str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"what": "cocoa"}, "unknown data set 'cocoa'; did you mean 'cocoqa'"),
        ({"source": "nowhere"}, r"nowhere/questions.jsonl: no such file"),
        ({"what": "flickr8k", "source": "nowhere"}, r"nowhere: no such file or directory"),
        ({"what": "mmvet", "split": "val"}, "split: mmvet has none, got 'val'"),
        ({"source": "number"}, r"number/questions\.jsonl line 1: image: expected a text, got 7"),
        ({"source": "latin"}, r"latin/questions\.jsonl line 1: not valid JSON \('utf-8' codec"),
    ],
)
def test_what_cannot_be_converted(tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    for name, image in (("number", b"7"), ("latin", b'"caf\xe9.png"')):
        Path(name).mkdir()
        Path(name, "questions.jsonl").write_bytes(b'{"image": %s, "question": "what", "answer": "a"}' % image)
    with pytest.raises(UserError, match=said):
        run_prepare(PrepareConfig(**{"what": "cocoqa", "source": "x", "output": "out"} | changes))
    assert not Path("out").exists()


def test_the_real_data(tmp_path):
    """A fifth of COCO-QA's photos is held back, and none of them is split between the sides."""
    if not (SHARED / "data/cocoqa").is_dir():
        pytest.skip("../shared is not here")
    run_prepare(PrepareConfig(dataset="cocoqa", source=str(SHARED / "data/cocoqa"), output=str(tmp_path / "out")))
    counts = read_manifest(tmp_path / "out")["counts"]
    assert 400 < counts["pictures"] < 550
    assert counts["questions"] > counts["pictures"]
