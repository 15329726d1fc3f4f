from __future__ import annotations

import contextlib
import json
import pickle
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clips.errors import UserError
from clips.model.tokenizer import (
    MAX_CHARS_PER_TOKEN,
    VOCAB_SIZE,
    ClipsTokenizer,
    OpenClipTokenizer,
    clean_text,
    require_rows,
    tokenizer_text_cfg,
    unknown_tokens,
    wordpiece,
)

AWKWARD = [
    "",
    " ",
    "a",
    "A man's dog — isn't it? (yes!) 3.5 km/h",
    "Ünïcödé, naïve café, ΑΒΓ, русский текст, 日本語の説明, عربى",
    "emoji 🐶🚗 and ZWJ 👨‍👩‍👧, soft­hyphen, zero​width",
    "tabs\tand\nnew\r\nlines   and  spaces",
    "HTML &amp; entities &lt;b&gt; &amp;amp; &eacute;",
    "<b>escaped twice &amp;amp; &amp;lt;</b>",
    "broken encoding: cafÃ© â€œquotedâ€\x9d",
    "[CLS] [SEP] [PAD] [unused0] [UNK] [MASK] tokens in a text",
    "supercalifragilisticexpialidocious" * 8,
    "one two three four five six seven eight nine ten " * 20,
    "\x00\x07control\x1b[31m characters\x7f",
    "ﬁne ligatures and ｆｕｌｌ ｗｉｄｔｈ",
]


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Stock open_clip's tokenizer, made from the files that ours writes."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("encoder")
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": tokenizer_text_cfg(24)}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    ClipsTokenizer(24).save(folder)
    return open_clip.get_tokenizer(f"local-dir:{folder}")


def test_unknown_tokens_are_counted_as_stock_open_clip_has_them(tmp_path, stock):
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": tokenizer_text_cfg(24)}})
    )
    ClipsTokenizer(24).save(tmp_path)
    known, texts = ["a red car", ""], ["ភាសា ខ្មែរ a", "中文 a", "a red car", "", "[UNK] [CLS]"]
    for tokenizer in (ClipsTokenizer(24), OpenClipTokenizer(tmp_path, 24, VOCAB_SIZE)):
        assert tokenizer.count_unknown(known) == (0, 3)
        rows = stock(texts)
        words = rows[(rows != 0) & (rows != 1) & (rows != 2) & (rows != 101)]
        assert tokenizer.count_unknown(texts) == (int((words == 100).sum()), len(words))
        assert tokenizer.count_unknown(texts[:1]) == (2, 3)
    assert unknown_tokens(4, 100) == "4.0% of the tokens of captions are unknown to the tokenizer"
    assert unknown_tokens(5, 100).startswith("5.0% of the tokens of captions are unknown to the tokenizer; ")


def test_row_by_hand():
    assert ClipsTokenizer(8)("A red CAR").tolist() == [[1, 1037, 2417, 2482, 2, 0, 0, 101]]


def test_empty_and_too_long_texts():
    rows = ClipsTokenizer(6)(["", "red red red red red red red"])
    assert rows.tolist() == [[1, 2, 0, 0, 0, 101], [1, 2417, 2417, 2417, 2, 101]]


def test_special_tokens_texts_in_a_caption_are_words(stock):
    for name in ("PAD", "CLS", "SEP", "MASK", "UNK", "unused0", "unused1"):
        text = f"a [{name}] sign"
        word = wordpiece().encode(name.lower(), add_special_tokens=False).ids
        expected = [1, 1037, 1031, *word, 1033, 3696, 2]  # begin, "a", "[", …, "]", "sign", end
        row = ClipsTokenizer(24)(text)
        assert row[0, : len(expected)].tolist() == expected
        assert torch.equal(row, stock([text]))
        assert ClipsTokenizer().decode(row[0]) == f"a [ {name.lower()} ] sign"


def test_target_has_no_class_token_and_keeps_its_end_when_cut():
    rows = ClipsTokenizer(6).encode_target(["a red car", "red red red red red red"], length=5)
    assert rows.tolist() == [[1, 1037, 2417, 2482, 2], [1, 2417, 2417, 2417, 2]]


def test_equal_to_stock_open_clip_on_awkward_texts(stock):
    assert torch.equal(ClipsTokenizer(24)(AWKWARD), stock(AWKWARD))


def test_long_runs_of_spaces_hide_no_words(stock):
    texts = [f"{' ' * 5000}red car", f"red{' ' * 400}car{chr(10) * 3000}dog", ("word" + " " * 400) * 10]
    assert torch.equal(ClipsTokenizer(24)(texts), stock(texts))


def test_another_tokenizer_gets_no_more_text_than_its_context_can_hold(tmp_path, monkeypatch):
    class Recorder:
        encoder: ClassVar = {"a": 0}
        lengths: ClassVar = list[int]()

        def __call__(self, texts: list[str]) -> torch.Tensor:
            self.lengths += map(len, texts)
            return torch.zeros(len(texts), 24, dtype=torch.int64)

    monkeypatch.setattr("open_clip.get_tokenizer", lambda *_, **__: Recorder())
    tokenizer = OpenClipTokenizer(tmp_path, 24, 1)
    tokenizer(["a" * 10**6, "a car"])
    tokenizer.count_unknown(["a " * 10**6])
    assert max(Recorder.lengths) <= 24 * MAX_CHARS_PER_TOKEN


@pytest.mark.parametrize(("rows", "fits"), [(30_522, True), (30_521, False)])
def test_a_table_of_embeddings_has_a_row_for_each_token(rows, fits):
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="ids up to 30521, expected ids below"):
        require_rows(ClipsTokenizer(), rows, "model")


def test_equal_to_stock_open_clip_on_real_captions(stock, shared):
    lines = (shared / "data/capsfusion_5k.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)[kind] for line in lines[:1000] for kind in ("web", "fused")]
    rows = json.loads((shared / "data/coco_karpathy_test_captions.json").read_text(encoding="utf-8"))
    texts += str(rows)[:200_000].split(".")
    assert torch.equal(ClipsTokenizer(24)(texts), stock(texts))


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40) | st.text(alphabet=" .,'aBΣς́ſ[CLS]#日\u2028\x1c\xad", max_size=30))
def test_word_by_word_is_the_whole_text(text):
    whole = wordpiece().encode(clean_text(text), add_special_tokens=False).ids
    assert ClipsTokenizer().encode_target(text, 200)[0].tolist()[: len(whole) + 2] == [1, *whole, 2]


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40) | st.text(alphabet="ab \n\r\t\x0b\x1c\x00\x7f&;", max_size=20))
def test_cleaning_is_open_clips(text):
    from open_clip.tokenizer import get_clean_fn

    assert clean_text(text) == get_clean_fn("whitespace")(text)


def test_decode_gives_the_words_back():
    tokenizer = ClipsTokenizer(40)
    text = "a large red car stands on the left of two dogs."
    assert tokenizer.decode(tokenizer.encode_target(text, 64)[0]) == text
    assert tokenizer.decode([1, 1037, 31_999, 2, 2417]) == "a"


def test_vocabulary_is_berts(shared):
    assert wordpiece().get_vocab_size() == 30_522
    lines = (shared / "models/bert-base-uncased/vocab.txt").read_text(encoding="utf-8").splitlines()
    assert [wordpiece().id_to_token(index) for index in range(30_522)] == lines


def test_travels_to_worker_processes():
    tokenizer = pickle.loads(pickle.dumps(ClipsTokenizer(12)))
    assert torch.equal(tokenizer("a red car"), ClipsTokenizer(12)("a red car"))
