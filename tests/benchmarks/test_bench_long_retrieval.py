"""Retrieval by long captions and in several languages, with an encoder whose every answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import bench_world as world
import pytest
from bench_reader import evaluate, write_images

from benchmarks.tasks.encoders.long_retrieval import truncate_words, truncated_by_tokenizer
from benchmarks.tasks.registry import BenchmarkConfig, configure

PICTURES = 4


def _caption(number: int, place: int, words: int) -> str:
    """``words`` words, the telling one at ``place``, counted from 1."""
    return " ".join([*["filler"] * (place - 1), f"thing{number}", *[f"end{n}" for n in range(words - place)]])


@pytest.fixture
def long(tmp_path: Path) -> BenchmarkConfig:
    """Captions that tell their image by the 2nd, 10th, 20th and 40th word; all but the second have 50."""
    write_images(tmp_path / "images", PICTURES)
    places = [(2, 50), (10, 12), (20, 50), (40, 50)]
    rows = [
        {"image": f"images/{number}.png", "caption": _caption(number, place, words)}
        for number, (place, words) in enumerate(places)
    ]
    world.write_lines(tmp_path / "long.jsonl", rows)
    return configure(name="long", task="long_retrieval", data=str(tmp_path / "long.jsonl"), word_limits=(4, 16, 32, 64))


def test_the_curve_by_hand(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, long, pictures=PICTURES)
    for direction in ("t2i", "i2t"):
        found = {words: result.metrics[f"{direction}_r1_w{words}"].value for words in (4, 16, 32, 64)}
        # by chance: a text without a thing is as far from all images, an image whose captions omit it from all texts
        assert found == pytest.approx({4: (1 + 3 / 4) / 4, 16: (2 + 2 / 4) / 4, 32: (3 + 1 / 4) / 4, 64: 1.0})
        assert result.metrics[f"{direction}_r1"].value == 1
    assert result.metrics["mean_r1_w16"].value == pytest.approx((2 + 2 / 4) / 4)
    assert result.metrics["t2i_r5_w4"].value == 1  # five of four
    assert list(result.primary) == ["t2i_r1", "i2t_r1", "mean_r1"]
    assert result.protocol["word_limits"] == "4, 16, 32, 64"
    assert result.protocol["mean_words"] == 40.5


def test_a_tower_that_reads_thirty_words(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, long, pictures=PICTURES, context=30)
    assert result.metrics["t2i_r1"].value == pytest.approx((3 + 1 / 4) / 4)
    assert result.metrics["t2i_r1_w64"].value == result.metrics["t2i_r1_w32"].value  # the curve is constant
    assert result.metrics["captions_truncated"].value == 3 / 4
    assert result.metrics["captions_truncated"].higher_is_better is None
    assert result.protocol["input_context_length"] == 30
    assert evaluate(monkeypatch, tmp_path, long, pictures=PICTURES).metrics["captions_truncated"].value == 0


WORDS = ("a dog", "犬が走っている", "สุนัขวิ่งในสวน", "Hundehütte", "don't", "🐕", "...")


def _open_clips() -> tuple[object, Callable[[str], int], int]:
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    return tokenizer, lambda text: len(tokenizer.encode(text)) + 2, 77


def _clips() -> tuple[object, Callable[[str], int], int]:
    from clips.model.tokenizer import ClipsTokenizer, wordpiece

    count = wordpiece().encode
    return ClipsTokenizer(80), lambda text: len(count(text, add_special_tokens=False).ids) + 3, 80


def _padded_with_the_end_token() -> tuple[object, Callable[[str], int], int]:
    """As SigLIP's tokenizer, whose rows do not show where a text ends."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    raw = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="</s>")

    def tokenize(texts: list[str], context_length: int = 64) -> object:
        return fast(
            texts, padding="max_length", truncation=True, max_length=context_length, return_tensors="pt"
        ).input_ids

    return tokenize, lambda text: len(text) + 1, 64


@pytest.mark.slow
@pytest.mark.parametrize("world", [_open_clips, _clips, _padded_with_the_end_token])
@pytest.mark.parametrize("separator", [" ", ""])
def test_captions_are_truncated_as_their_number_of_tokens_says(world, separator):
    """Around the edge, in languages with and without spaces; the number is the tokenizer's own, without a limit."""
    tokenizer, count, context = world()
    texts = [separator.join([word] * number) + end for word in WORDS for number in range(1, 90) for end in ("", "!")]
    expected = [float(count(text) > context) for text in texts]
    assert 0.1 < sum(expected) / len(texts) < 0.9
    assert {context, context + 1} <= set(map(count, texts))
    assert truncated_by_tokenizer(texts, tokenizer).tolist() == expected


def test_recall_by_caption_length(tmp_path, monkeypatch, long):
    result = evaluate(monkeypatch, tmp_path, long, pictures=PICTURES, context=30)
    for direction in ("t2i", "i2t"):
        assert result.metrics[f"{direction}_r1_of_5_to_16"].value == 1
        assert result.metrics[f"{direction}_r1_of_33_to_64"].value == pytest.approx((2 + 1 / 4) / 3)
        assert result.metrics[f"{direction}_r1_of_33_to_64"].n == 3
        assert f"{direction}_r1_of_1_to_4" not in result.metrics  # nothing to measure on
    world.check_formulas(result)


@pytest.mark.parametrize(("words", "bins"), [((11, 50), {"12_to_50": 4}), ((12, 49), {"1_to_12": 1, "50_up": 3})])
def test_bins_include_their_bounds(tmp_path, monkeypatch, long, words, bins):
    result = evaluate(monkeypatch, tmp_path, dataclasses.replace(long, word_limits=words), pictures=PICTURES)
    for way in ("t2i", "i2t"):
        found = {name: metric.n for name, metric in result.metrics.items() if name.startswith(f"{way}_r1_of")}
        assert found == {f"{way}_r1_of_{name}": n for name, n in bins.items()}


@pytest.mark.parametrize(
    ("text", "words", "cut"),
    [("one  two\nthree", 2, "one two"), ("one  two\nthree", 3, "one  two\nthree"), ("one ", 8, "one ")],
)
def test_a_text_that_is_short_enough_stays_as_it_is(text, words, cut):
    assert truncate_words(text, words) == cut


def _languages(folder: Path, captions: dict[str, list[list[str]]]) -> Path:
    """XM3600's layout."""
    (folder / "images").mkdir(parents=True)
    for number in range(PICTURES):  # lossless under any name: the reader knows images bit by bit
        (folder / f"images/{number}.jpg").write_bytes(world.png(world.draw_image(number)))
    rows = [
        {"image/key": str(number)} | {language: {"caption": texts[number]} for language, texts in captions.items()}
        for number in range(PICTURES)
    ]
    world.write_lines(folder / "captions.jsonl", rows)
    return folder


@pytest.fixture
def languages(tmp_path: Path) -> Path:
    """German has two right captions an image; in French those of two images are exchanged."""
    german = [[f"thing{n}", f"das ist thing{n}"] for n in range(PICTURES)]
    french = [[f"thing{n}"] for n in (1, 0, 2, 3)]
    return _languages(tmp_path / "xm3600", {"de": german, "fr": french})


def test_each_language_and_their_mean(tmp_path, monkeypatch, languages):
    config = configure(name="xm", task="multilingual_retrieval", data=str(languages), languages=("de", "fr"))
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
    assert (stated["languages"], stated["captions"], stated["captions_per_image"]) == ("de, fr", 12, "de 2, fr 1")
    assert world.check_formulas(result)["thumbnail"].notna().sum() == PICTURES
