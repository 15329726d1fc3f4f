"""The datasets of long captions and of several languages, in the layouts of their authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_world as world
import pytest
from bench_world import write_images

from benchmarks.tasks.data.caption_sets import CaptionSet, load_caption_set
from clips.data.formats import DatasetSpec, detect
from clips.errors import UserError

COUNT = 3
TEXTS = ["The first picture. It has a square.", "The second picture.", "The third picture, the last of all."]


def _load(path: Path, **asked: Any) -> CaptionSet:
    return load_caption_set(DatasetSpec(path=str(path), **asked))


def _urban1k(folder: Path) -> Path:
    write_images(folder / "Urban1k/image", COUNT, ".jpg")
    (folder / "Urban1k/caption").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"Urban1k/caption/{number}.txt").write_text(f"{text}\nA line that nobody measures on.\n")
    return folder / "Urban1k"


def _sharegpt4v(folder: Path) -> Path:
    write_images(folder / "data/sam/images", COUNT, ".jpg")
    asked = {"from": "human", "value": "Describe it.\n<image>"}
    rows = []
    for number, text in enumerate(TEXTS):
        said = {"from": "gpt", "value": text.replace(". ", ".\n")}
        rows.append({"id": str(number), "image": f"sam/images/{number}.jpg", "conversations": [asked, said]})
    return world.write_lines(folder / "share-captioner.json", [rows])


def _docci(folder: Path) -> Path:
    write_images(folder / "docci/images", COUNT + 1, ".jpg")
    rows = [
        {"example_id": f"x_{number}", "split": split, "image_file": f"{number}.jpg", "description": text}
        for number, (text, split) in enumerate([*[(text, "test") for text in TEXTS], ("More.", "train")])
    ]
    world.write_lines(folder / "docci/docci_descriptions.jsonlines", rows)
    return folder / "docci"


def _iiw(folder: Path) -> Path:
    write_images(folder / "IIW-400/images_aar", COUNT, ".jpg")
    rows = [{"IIW": TEXTS[n], "IIW-P5B": "By a machine.", "image/key": str(n), "objects": []} for n in range(COUNT)]
    world.write_lines(folder / "IIW-400/data.jsonl", rows)
    return folder / "IIW-400"


def _dci(folder: Path) -> Path:
    root = folder / "densely_captioned_images"
    write_images(root / "photos", COUNT + 1, ".jpg")
    for number in range(COUNT + 1):
        first, _, rest = [*TEXTS, "More. And more."][number].partition(" ")
        row = {"image": f"{number}.jpg", "short_caption": first, "extra_caption": rest, "mask_data": {}}
        world.write_lines(root / f"annotations/{number}.json", [row])
    splits = {"train": ["3.json"], "test": [f"{number}.json" for number in range(COUNT)]}
    (root / "splits.json").write_text(json.dumps(splits))
    return root


LONG = {"urban1k": _urban1k, "sharegpt4v": _sharegpt4v, "docci": _docci, "iiw": _iiw, "dci": _dci}


@pytest.mark.parametrize("name", LONG)
def test_long_captions(tmp_path, name):
    path = LONG[name](tmp_path)
    assert detect(DatasetSpec(path=str(path)), "captions") == name
    found = _load(path)
    texts = [text.replace("\n", " ") for text in found.texts] if name == "dci" else list(found.texts)
    assert texts == TEXTS
    assert [found.open(number).size for number in range(COUNT)] == [(64, 64)] * COUNT
    if name in {"docci", "dci"}:
        assert len(_load(path, split="all").texts) == COUNT + 1
        with pytest.raises(UserError, match=r"unknown split of .* 'valid' \(known: test, train\)"):
            _load(path, split="valid")


def test_the_file_of_a_layout_stands_for_its_directory(tmp_path):
    assert _load(_docci(tmp_path) / "docci_descriptions.jsonlines").hash == _load(tmp_path / "docci").hash
    assert _load(_iiw(tmp_path) / "data.jsonl").hash == _load(tmp_path / "IIW-400").hash


def test_the_first_thousand_of_sharegpt4v(tmp_path):
    path = _sharegpt4v(tmp_path)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], "image": f"{number}.jpg"} for number in range(1200)]))
    assert (len(_load(path).texts), len(_load(path, split="all").texts)) == (1000, 1200)
    with pytest.raises(UserError, match=r"has no split 'val' \(expected test, the first 1000, or all\)"):
        _load(path, split="val")


CAPTIONS = {"de": [["eins", "eine eins"], ["zwei"], ["drei"]], "en": [["one"], ["two"], ["three"]]}


def _xm3600(folder: Path) -> Path:
    write_images(folder / "xm3600/images", COUNT, ".jpg")
    rows = [
        {"image/key": str(number), "image/locale": "de"}
        | {language: {"caption": texts[number], "caption/tokenized": []} for language, texts in CAPTIONS.items()}
        for number in range(COUNT)
    ]
    world.write_lines(folder / "xm3600/captions.jsonl", rows)
    return folder / "xm3600"


def _flickr30k_200(folder: Path) -> Path:
    return _parallel(folder / "flickr30k-200", "filenames.txt", "{}.txt")


def _xtd10(folder: Path) -> Path:
    return _parallel(folder / "XTD10", "test_image_names.txt", "test_1kcaptions_{}.txt")


def _parallel(folder: Path, index: str, name: str) -> Path:
    write_images(folder / "images", COUNT, ".jpg")
    (folder / index).write_text("".join(f"{number}.jpg\n" for number in range(COUNT)))
    for language, texts in CAPTIONS.items():
        (folder / name.format(language)).write_text("".join(f"{group[0]}\n" for group in texts))
    return folder


@pytest.mark.parametrize(("name", "write"), [("xm3600", _xm3600), ("parallel", _flickr30k_200), ("parallel", _xtd10)])
def test_languages(tmp_path, name, write):
    path = write(tmp_path)
    assert detect(DatasetSpec(path=str(path)), "captions") == name
    assert _load(path, language="en").captions == CAPTIONS["en"]
    german = _load(path, language="de")
    assert [group[0] for group in german.captions] == ["eins", "zwei", "drei"]
    assert len(german.captions[0]) == (2 if name == "xm3600" else 1)
    assert german.open(2).size == (64, 64)
    with pytest.raises(UserError, match=r"language: expected one of those of .* \(de, en\), got none"):
        _load(path)
    with pytest.raises(UserError, match=r"unknown language of .* 'dee'; did you mean 'de'"):
        _load(path, language="dee")


def test_clip_benchmarks_own_file_of_a_language(tmp_path):
    """It holds the paths of the machine that wrote it."""
    content = {"image_paths": ["/elsewhere/images/1.jpg", "/elsewhere/images/0.jpg"], "annotations": ["zwei", "eins"]}
    write_images(tmp_path / "images", COUNT, ".jpg")
    file = tmp_path / "flickr30k_200-deu_Latn.json"
    file.write_text(json.dumps(content))
    found = _load(file)
    assert (list(found.images), found.texts) == (["1.jpg", "0.jpg"], ["zwei", "eins"])
    assert found.open(0).size == (64, 64)
    file.write_text(json.dumps(content | {"annotations": ["zwei"]}))
    with pytest.raises(UserError, match="expected as many annotations as image_paths"):
        _load(file)


def test_a_language_that_lacks_a_line(tmp_path):
    path = _flickr30k_200(tmp_path)
    (path / "de.txt").write_text("eins\nzwei\n")
    with pytest.raises(UserError, match=r"de\.txt: expected 3 captions, one for each line of filenames\.txt, got 2"):
        _load(path, language="de")
