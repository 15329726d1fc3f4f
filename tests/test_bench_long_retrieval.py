"""Retrieval by long captions and in several languages, with an encoder whose every answer is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import bench_world as world
import pytest
from bench_reader import evaluate, write_pictures

from benchmarks.results.results import read_items
from benchmarks.results.statistics import aggregate as formula
from benchmarks.tasks.encoders.long_retrieval import truncate_words
from benchmarks.tasks.run_config import BenchmarkConfig
from clips.errors import UserError

PICTURES = 4


def _caption(number: int, place: int, words: int) -> str:
    """``words`` words, the telling one at ``place``, counted from 1."""
    return " ".join([*["filler"] * (place - 1), f"thing{number}", *[f"end{n}" for n in range(words - place)]])


@pytest.fixture
def long(tmp_path: Path) -> BenchmarkConfig:
    """Captions that tell their picture by the 2nd, 10th, 20th and 40th word; all but the second have 50."""
    write_pictures(tmp_path / "images", PICTURES)
    places = [(2, 50), (10, 12), (20, 50), (40, 50)]
    rows = [
        {"image": f"images/{number}.png", "caption": _caption(number, place, words)}
        for number, (place, words) in enumerate(places)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return BenchmarkConfig(
        name="long", task="long_retrieval", data=str(tmp_path / "long.jsonl"), word_limits=(4, 16, 32, 64)
    )


def test_the_curve_by_hand(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, long, pictures=PICTURES)
    for direction in ("t2i", "i2t"):
        found = {words: result.metrics[f"{direction}_r1_w{words}"].value for words in (4, 16, 32, 64)}
        # who is not told apart is found by chance: a text without a thing is as far from all pictures, and a picture
        # whose captions say nothing of it as far from all texts
        assert found == pytest.approx({4: (1 + 3 / 4) / 4, 16: (2 + 2 / 4) / 4, 32: (3 + 1 / 4) / 4, 64: 1.0})
        assert result.metrics[f"{direction}_r1"].value == 1
    assert result.metrics["mean_r1_w16"].value == pytest.approx((2 + 2 / 4) / 4)
    assert result.metrics["t2i_r5_w4"].value == 1  # five of four
    assert list(result.primary) == ["t2i_r1", "i2t_r1", "mean_r1"]
    assert result.protocol["words_kept"] == "4, 16, 32, 64"
    assert result.protocol["mean_words"] == 40.5


def test_a_tower_that_reads_thirty_words(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, long, pictures=PICTURES, context=30)
    assert result.metrics["t2i_r1"].value == pytest.approx((3 + 1 / 4) / 4)
    assert result.metrics["t2i_r1_w64"].value == result.metrics["t2i_r1_w32"].value  # the curve stands still
    assert result.metrics["captions_truncated"].value == 3 / 4
    assert result.metrics["captions_truncated"].higher_is_better is None
    assert result.protocol["input_context_length"] == 30
    assert evaluate(monkeypatch, tmp_path, long, pictures=PICTURES).metrics["captions_truncated"].value == 0


def test_recall_by_how_long_captions_are(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, long, pictures=PICTURES, context=30)
    for direction in ("t2i", "i2t"):
        assert result.metrics[f"{direction}_r1_of_5_to_16"].value == 1
        assert result.metrics[f"{direction}_r1_of_33_to_64"].value == pytest.approx((2 + 1 / 4) / 3)
        assert result.metrics[f"{direction}_r1_of_33_to_64"].n == 3
        assert f"{direction}_r1_of_1_to_4" not in result.metrics  # nothing to measure on


def test_bins_begin_and_end_where_they_say(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, dataclasses.replace(long, word_limits=(11, 50)), pictures=PICTURES)
    assert {name: metric.n for name, metric in result.metrics.items() if name.startswith("t2i_r1_of")} == {
        "t2i_r1_of_12_to_50": 4
    }
    result = evaluate(monkeypatch, tmp_path, dataclasses.replace(long, word_limits=(12, 49)), pictures=PICTURES)
    assert {name: metric.n for name, metric in result.metrics.items() if name.startswith("i2t_r1_of")} == {
        "i2t_r1_of_1_to_12": 1,
        "i2t_r1_of_50_up": 3,
    }


def test_every_metric_follows_from_the_items(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, long, pictures=PICTURES, context=30)
    items = read_items(result)
    assert items["item"].is_unique
    for metric in result.metrics.values():
        columns = {name: items[name].to_numpy() for name in metric.columns}
        assert formula(metric.aggregation, columns, metric.columns) == pytest.approx(metric.value)


@pytest.mark.parametrize(
    ("text", "words", "cut"),
    [("one  two\nthree", 2, "one two"), ("one  two\nthree", 3, "one  two\nthree"), ("one ", 8, "one ")],
)
def test_a_text_that_is_short_enough_stays_as_it_is(text, words, cut):
    assert truncate_words(text, words) == cut


@pytest.mark.parametrize("words", [(), (8, 4), (4, 4), (0, 4)])
def test_points_of_the_curve_must_grow(words):
    with pytest.raises(UserError, match=r"benchmarks\.word_limits: expected growing numbers above 0"):
        BenchmarkConfig(name="long", data=".", word_limits=words)


# ------------------------------------------------------------------------------------------ several languages


def _languages(folder: Path, captions: dict[str, list[list[str]]]) -> Path:
    """XM3600's layout."""
    (folder / "images").mkdir(parents=True)
    for number in range(PICTURES):  # lossless whatever the name says: the reader knows pictures bit by bit
        (folder / f"images/{number}.jpg").write_bytes(world.png(world.picture(number)))
    rows = [
        {"image/key": str(number)} | {language: {"caption": texts[number]} for language, texts in captions.items()}
        for number in range(PICTURES)
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def languages(tmp_path: Path) -> Path:
    """German has two right captions a picture; in French those of two pictures are exchanged."""
    german = [[f"thing{n}", f"das ist thing{n}"] for n in range(PICTURES)]
    french = [[f"thing{n}"] for n in (1, 0, 2, 3)]
    return _languages(tmp_path / "xm3600", {"de": german, "fr": french})


def test_each_language_and_their_mean(tmp_path, monkeypatch, languages):
    config = BenchmarkConfig(name="xm", task="multilingual_retrieval", data=str(languages), languages=("de", "fr"))
    result = evaluate(monkeypatch, tmp_path, config, pictures=PICTURES)
    values = {name: metric.value for name, metric in result.metrics.items()}
    for direction in ("t2i", "i2t"):
        assert values[f"{direction}_r1_de"] == 1
        assert values[f"{direction}_r1_fr"] == 1 / 2
        assert values[f"{direction}_r1"] == 3 / 4  # German's eight captions weigh as much as French's four
    assert values["mean_r1"] == 3 / 4
    assert result.metrics["t2i_r1"].ci_low < 3 / 4 < result.metrics["t2i_r1"].ci_high
    assert (result.metrics["t2i_r1_de"].n, result.metrics["t2i_r1_fr"].n) == (8, 4)
    stated = result.protocol
    assert (stated["languages"], stated["captions"], stated["captions_per_picture"]) == ("de, fr", 12, "de 2, fr 1")
    items = read_items(result)
    assert items["item"].is_unique
    assert items["thumbnail"].notna().sum() == PICTURES
    for metric in result.metrics.values():
        columns = {name: items[name].to_numpy() for name in metric.columns}
        assert formula(metric.aggregation, columns, metric.columns) == pytest.approx(metric.value)


def test_one_language_by_itself(tmp_path, monkeypatch, languages):
    def result(language: str) -> Any:
        config = BenchmarkConfig(name=language, task="retrieval", data=str(languages), language=language)
        return evaluate(monkeypatch, tmp_path, config, pictures=PICTURES)

    german, french = result("de"), result("fr")
    assert (german.metrics["t2i_r1"].value, french.metrics["t2i_r1"].value) == (1, 1 / 2)
    assert (german.protocol["language"], french.protocol["language"]) == ("de", "fr")
    assert german.fingerprint != french.fingerprint
