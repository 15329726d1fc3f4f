"""Caption scorers: what each image adds, and the tokenizer with and without Java."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks.results.statistics import aggregate
from benchmarks.tasks.evaluation import compute_metric
from benchmarks.tasks.mllm import caption_metrics as captioning
from benchmarks.tasks.mllm.caption_metrics import patched_caption_scorers, ptb_tokenize
from benchmarks.tasks.mllm.task_metrics import bleu_columns, caption_metrics

SHARED = Path(__file__).resolve().parents[2] / "../shared"
HAND = [
    'A man (in red) said: "don\'t!" He left.',
    "Two dogs, one black; one white...",
    "It's 3.5 m long, isn't it?",
    "",
    "Mr. Smith's R.V. is at 5 p.m. in the U.S.",
    "naïve café – 50% off & more",
]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
needs_java = pytest.mark.skipif(not captioning.is_java_available(), reason="there is no java here")


def _bare(lines: list[str]) -> list[str]:
    """Tokens as the metrics see them: without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    return [" ".join(token for token in line.split() if token not in PUNCTUATIONS) for line in lines]


@needs_java
def test_tokens_equal_the_upstream_tokenizer_s():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = {number: [{"caption": text}] for number, text in enumerate(HAND)}
    upstream = PTBTokenizer().tokenize(captions)
    with patched_caption_scorers():
        ours = PTBTokenizer().tokenize(captions)
    assert ours == upstream


@needs_java
def test_odd_line_breaks_do_not_shift_captions():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = ["one\rtwo", "three\u2028four\x0bfive", "six\n", "seven"]
    with patched_caption_scorers():
        found = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    assert [found[number] for number in range(4)] == [["one two"], ["three four five"], ["six"], ["seven"]]


@needs_java
def test_the_imitation_agrees_on_real_captions():
    file = SHARED / "data/coco_karpathy_test_captions.json"
    if not file.is_file():
        pytest.skip("../shared is not here")
    captions = [text for row in json.loads(file.read_text())[:400] for text in row["caption"]]
    java = _bare(ptb_tokenize(captions))
    imitated = _bare([captioning.python_tokens(text) for text in captions])
    differing = [pair for pair in zip(java, imitated, strict=True) if pair[0] != pair[1]]
    assert len(differing) <= len(captions) / 500, differing[:5]


def test_the_imitation_by_hand():
    assert _bare([captioning.python_tokens(text) for text in HAND[:4]]) == [
        "a man -lrb- in red -rrb- said do n't he left",
        "two dogs one black one white",
        "it 's 3.5 m long is n't it",
        "",
    ]


def test_image_scores_add_up_to_the_corpus_score(monkeypatch):
    """BLEU from summed counts, CIDEr and ROUGE-L from means, equal pycocoevalcap's corpus values."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    generator = np.random.default_rng(0)
    words = "a the dog cat red blue runs sits on grass with one ball".split()  # noqa: SIM905
    sentence = lambda: " ".join(generator.choice(words, generator.integers(4, 9)))  # noqa: E731
    gts = {number: [sentence() for _ in range(5)] for number in range(20)}
    res = {number: [gts[number][0] if number % 3 else sentence()] for number in gts}
    with patched_caption_scorers() as scores, contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(gts, res)
        cider, _ = Cider().compute_score(gts, res)
        rouge, _ = Rouge().compute_score(gts, res)
    assert np.mean(list(scores.cider.values())) == pytest.approx(cider)
    assert np.mean(list(scores.rouge.values())) == pytest.approx(rouge)
    counts = np.array([scores.bleu[number] for number in gts])
    names = [f"bleu_{what}{n}" for what in ("matched", "possible") for n in range(1, 5)]
    columns = {name: counts[:, place] for place, name in enumerate([*names, "length", "reference_length"])}
    for n in range(1, 5):
        assert aggregate("bleu", columns, bleu_columns(n)) == pytest.approx(bleu[n - 1])
    assert bleu[3] > 0.3


@needs_java
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # PTBTokenizer
def test_images_of_textcaps_have_ids_of_letters(tmp_path):
    from lmms_eval.tasks.textcaps.utils import textcaps_cider

    said = ["a red ball", "two dogs on grass", "a cat"]
    right = [["a red ball", "the ball"], ["a dog on grass"], ["a cat sits", "cat"]]
    ids = ["4be9b549bc8081b1", "0011223344556677", "e8b3a2ffd2e8aa10"]
    rows = [{"image_id": id, "pred": text, "answer": texts} for id, text, texts in zip(ids, said, right, strict=True)]
    upstream = textcaps_cider(rows, SimpleNamespace(output_path=str(tmp_path)))
    with patched_caption_scorers() as scores:
        assert textcaps_cider(rows, SimpleNamespace(output_path=str(tmp_path))) == upstream
    assert sorted(scores.cider) == sorted(ids)
    assert np.mean([*scores.cider.values()]) == pytest.approx(upstream)


def test_cider_is_no_share_of_which_nought_would_have_an_interval():
    names = [str(number) for number in range(6)]
    items = pd.DataFrame({"item": names, "image": names, "cider": np.zeros(6), "rouge": np.zeros(6)})
    found = {name: compute_metric(items, caption_metrics()[name]) for name in ("CIDEr", "ROUGE_L")}
    assert (found["CIDEr"].value, found["CIDEr"].ci_low, found["CIDEr"].ci_high) == (0, None, None)
    assert found["ROUGE_L"].ci_high == pytest.approx(0.39, abs=0.001)
