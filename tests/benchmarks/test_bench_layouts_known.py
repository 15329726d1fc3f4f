"""The datasets of long captions and of several languages, in the layouts of their authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_layouts import CAPTIONS, COUNT, LONG, TEXTS, detected, docci, flickr30k_200, iiw, sharegpt4v, xm3600, xtd10
from bench_world import write_images

from benchmarks.tasks.data.caption_sets import CaptionSet, load_caption_set
from clips.data.formats import DatasetSpec
from clips.errors import UserError


def _load(path: Path, **asked: Any) -> CaptionSet:
    return load_caption_set(DatasetSpec(path=str(path), **asked))


@pytest.mark.parametrize("name", LONG)
def test_long_captions(tmp_path, name):
    path = LONG[name](tmp_path)
    assert detected(path) == {name}
    found = _load(path)
    texts = [text.replace("\n", " ") for text in found.texts] if name == "dci" else list(found.texts)
    assert texts == TEXTS
    assert [found.open(number).size for number in range(COUNT)] == [(64, 64)] * COUNT
    if name in {"docci", "dci"}:
        assert len(_load(path, split="all").texts) == COUNT + 1
        with pytest.raises(UserError, match=r"unknown split of .* 'valid' \(known: test, train\)"):
            _load(path, split="valid")


def test_the_file_of_a_layout_stands_for_its_directory(tmp_path):
    assert _load(docci(tmp_path) / "docci_descriptions.jsonlines").hash == _load(tmp_path / "docci").hash
    assert _load(iiw(tmp_path) / "data.jsonl").hash == _load(tmp_path / "IIW-400").hash


def test_the_first_thousand_of_sharegpt4v(tmp_path):
    path = sharegpt4v(tmp_path)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], "image": f"{number}.jpg"} for number in range(1200)]))
    assert (len(_load(path).texts), len(_load(path, split="all").texts)) == (1000, 1200)
    with pytest.raises(UserError, match=r"has no split 'val' \(expected test, the first 1000, or all\)"):
        _load(path, split="val")


@pytest.mark.parametrize(("name", "write"), [("xm3600", xm3600), ("parallel", flickr30k_200), ("parallel", xtd10)])
def test_languages(tmp_path, name, write):
    path = write(tmp_path)
    assert detected(path) == {name}
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
    path = flickr30k_200(tmp_path)
    (path / "de.txt").write_text("eins\nzwei\n")
    with pytest.raises(UserError, match=r"de\.txt: expected 3 captions, one for each line of filenames\.txt, got 2"):
        _load(path, language="de")
