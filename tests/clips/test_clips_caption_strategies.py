from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from clips.method.caption_strategies import STRATEGIES, sentences

CAPTION = "A dog runs... It's big! \n The ball, red and round, flies. No end"


def test_sentences_are_cut_at_runs_of_stops_and_exclamation_marks():
    assert sentences(CAPTION) == ["A dog runs", "It's big", "The ball, red and round, flies", "No end"]
    assert sentences(" .!. ! ") == []
    assert sentences("Is it? Yes") == ["Is it? Yes"]


def test_sub_caption_draws_every_sentence_equally_often():
    rng = np.random.default_rng(0)
    counts = Counter(STRATEGIES["sub_caption"](CAPTION, rng, 4) for _ in range(4000))
    assert set(counts) == set(sentences(CAPTION))
    assert all(abs(count - 1000) < 120 for count in counts.values())  # four standard deviations


@pytest.mark.parametrize(
    ("name", "caption", "tokens", "expected"),
    [
        ("sub_caption", " ... ", 4, ""),
        ("sub_captions", " ... ", 4, ""),
        ("truncate", "red, blue and green", 4, "red, blue and"),
        ("truncate", "red, blue", 4, "red, blue"),
        ("full", CAPTION, 1, CAPTION),
        *((name, "Two dogs.", 4, "Two dogs.") for name in ("block", "random", "truncate", "full")),
    ],
)
def test_short_captions_and_captions_without_a_choice(name, caption, tokens, expected):
    assert STRATEGIES[name](caption, np.random.default_rng(0), tokens) == expected


def test_block_draws_every_contiguous_block():
    words = "a b c d e f"
    rng = np.random.default_rng(0)
    counts = Counter(STRATEGIES["block"](words, rng, 4) for _ in range(3000))
    assert set(counts) == {"a b c d", "b c d e", "c d e f"}
    assert min(counts.values()) > 850


def test_random_keeps_order_and_number_and_draws_every_token():
    words = "a b c d e f"
    rng = np.random.default_rng(0)
    drawn = [STRATEGIES["random"](words, rng, 4).split() for _ in range(600)]
    assert all(len(tokens) == 4 and tokens == sorted(tokens) for tokens in drawn)
    counts = Counter(token for tokens in drawn for token in tokens)
    assert set(counts) == set("abcdef")
    assert min(counts.values()) > 330  # 400 expected


@pytest.mark.parametrize("name", ["sub_captions", "block", "random", "truncate"])
def test_a_caption_of_just_the_maximum_is_kept(name):
    caption = "One two. Three four five"
    limit = 5 if name == "sub_captions" else 6  # which does not count the stops
    assert {STRATEGIES[name](caption, np.random.default_rng(seed), limit) for seed in range(20)} == {caption}


def test_sub_captions_are_whole_sentences_in_order_as_many_as_fit():
    long = "One two. Three four five. Six. Seven eight nine ten"
    pieces = sentences(long)
    rng = np.random.default_rng(0)
    drawn = [STRATEGIES["sub_captions"](long, rng, 5) for _ in range(2000)]
    for text in drawn:
        kept = sentences(text)
        assert [pieces.index(piece) for piece in kept] == sorted(pieces.index(piece) for piece in kept)
        assert sum(len(piece.split()) for piece in kept) <= 5
    assert {len(sentences(text)) for text in drawn} == {1, 2}
    firsts = Counter(STRATEGIES["sub_captions"](long, rng, 1) for _ in range(4000))
    assert set(firsts) == set(pieces)  # where none fits, one, each equally likely
    assert all(abs(count - 1000) < 120 for count in firsts.values())
    assert STRATEGIES["sub_captions"](long, rng, 100) == ". ".join(pieces)
