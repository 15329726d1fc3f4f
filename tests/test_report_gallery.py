"""The page's galleries: their items and contents, and that no text or image of others can harm the page."""

from __future__ import annotations

import io
import json
import re

import pandas as pd
import pytest
import torch
from bench_world import write_images, write_lines
from PIL import Image
from report_material import draw_image, items_table, put_result, put_results
from report_study import Page

from benchmarks.report.gallery import cards
from benchmarks.report.gallery.answer_examples import answer_galleries, select_items
from benchmarks.report.gallery.cards import Card, Gallery, ImageDeduplicator, limit_galleries, take_within_budget
from benchmarks.report.gallery.retrieval_examples import retrieval_galleries
from benchmarks.report.html_page import render_page
from benchmarks.report.load_results import limit_rows, read_source
from benchmarks.report.report import build_report
from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.encoders.recall import compute_ranks
from benchmarks.tasks.encoders.retrieval import items_of, with_top_results
from benchmarks.tasks.evaluation import hash_order
from clips.data.formats import DatasetSpec

HOSTILE = (
    "</p><script>alert(1)</script><img src=x onerror=alert(2)>"
    '" onload="alert(3)" x="'
    r"\input{/etc/passwd} $\frac{1}{0}$ & % # _"
    "\x1b[31mred\x1b]0;title\x07 \x9b2J"
    "\u202egnp.exe \u2066abc\u2069"
    "כלב על דשא {{ 7 * 7 }} {% raw %}" + "x" * 10_000 + " word" * 2000
)


def test_examples_are_chosen_by_their_hash_alone():
    names = [f"item {number}" for number in range(50)]
    order = hash_order(names)
    assert order != names
    assert sorted(order) == sorted(names)
    assert hash_order(reversed(names)) == order
    assert hash_order(names[:25]) == [name for name in order if name in names[:25]]


def test_examples_are_those_on_which_rows_differ_dealt_over_who_is_right():
    names = ["a1", "a2", "a3", "b1", "none", "both"]
    scores = pd.DataFrame({"a": [1, 1, 1, 0, 0, 1.0], "b": [0, 0, 0, 1, 0, 1.0]}, index=names)
    first, second, third = hash_order(["a1", "a2", "a3"])
    images = {name: name for name in names}
    assert select_items(scores, images, max_items=4) == [first, "b1", "none", "both"]
    assert select_items(scores.iloc[::-1], images, max_items=6) == [first, "b1", second, third, "none", "both"]
    assert select_items(scores, images | {"b1": first}, max_items=3) == [first, "none", "both"]


def test_a_benchmark_without_any_score_has_no_examples(tmp_path):
    """As of a judge that cannot be reached."""
    put_results(tmp_path)
    for row in ("clip", "clips"):
        put_result(tmp_path, row, "unjudged", items_table(0.5, benchmark="unjudged").assign(score=float("nan")))
    found = {gallery.benchmark for gallery in answer_galleries(limit_rows(read_source(tmp_path)))}
    assert "gqa" in found
    assert "unjudged" not in found


def test_row_against_row_shows_both_ways_in_equal_numbers(tmp_path):
    put_results(tmp_path, {"clip": 0.45, "clips": 0.62})
    source = limit_rows(read_source(tmp_path, baseline="clip"))
    for gallery in answer_galleries(source):
        tables = {
            row: pd.read_parquet(tmp_path / row / f"{gallery.benchmark}.items.parquet") for row in ("clip", "clips")
        }
        right = pd.DataFrame({row: table.set_index("item")["score"] for row, table in tables.items()})
        (pair,) = gallery.pairs
        assert (pair.first, pair.second) == ("clip", "clips")
        assert pair.second_better == ((right["clips"] == 1) & (right["clip"] == 0)).sum()
        assert pair.first_better == ((right["clips"] == 0) & (right["clip"] == 1)).sum()
        kinds = [tuple(answer.right for answer in example.answers) for example in pair.examples]
        most = min(3, pair.first_better, pair.second_better)
        assert kinds == [(True, False), (False, True)] * most
        assert most
        assert len({example.thumbnail.id for example in pair.examples if example.thumbnail}) == len(pair.examples)


def test_graded_items_show_their_score_and_others_right_or_wrong(tmp_path):
    items = items_table(0.5, benchmark="gqa").assign(target="yes | indeed | sure")
    put_result(tmp_path, "clip", "gqa", items)
    put_result(tmp_path, "clip", "pope", items.assign(score=items["score"] * 0.5))
    found = answer_galleries(read_source(tmp_path))
    assert {gallery.disagreements for gallery in found} == {None}  # a single model disagrees with no other
    shown = {gallery.benchmark: gallery.cards for gallery in found}
    assert {(answer.right, answer.score) for example in shown["gqa"] for answer in example.answers} == {
        (True, ""),
        (False, ""),
    }
    assert {answer.score for example in shown["pope"] for answer in example.answers} == {"0", "50"}  # as the column
    assert shown["gqa"][0].notes == (("expected", "yes (or 2 others)"),)


@pytest.fixture
def captions(tmp_path):
    """Thirty images of two captions each."""
    write_images(tmp_path / "images", 30)
    rows = [{"image": f"images/{n}.png", "captions": [f"thing {n}", f"object {n}"]} for n in range(30)]
    write_lines(tmp_path / "set.jsonl", rows)
    return load_caption_set(DatasetSpec(path=str(tmp_path / "set.jsonl")))


def _items(captions, images, texts):
    items = items_of(captions, compute_ranks(images, texts, captions.pairs), with_thumbnails=False)
    return with_top_results(items, captions, images, texts, most=4)


def test_queries_are_shown_with_the_images_they_find(captions):
    images = torch.eye(30)
    texts = images[captions.first_image_of_caption]
    blind = texts.roll(2, dims=0)  # each caption finds the next image's neighbor before its own
    perfect, wrong = _items(captions, images, texts), _items(captions, images, blind)
    kept = perfect["found"].notna()
    assert kept.tolist() == wrong["found"].notna().tolist()  # the lot does not depend on the row
    assert perfect[kept]["direction"].value_counts().to_dict() == {"i2t": 4, "t2i": 4}
    assert perfect.loc[kept & (perfect["direction"] == "t2i"), "image"].is_unique
    for items, hit in ((perfect, True), (wrong, False)):
        shown = {name for name, content in zip(items["image"], items["thumbnail"], strict=True) if content}
        for row in items[kept].itertuples():
            found = json.loads(row.found)
            assert len(found) == 5
            assert found[0]["similarity"] == 1.0
            assert found[0]["right"] is hit
            if row.direction == "t2i":
                assert found[0]["answer"] == row.prediction
                assert {row.image, *(each["answer"] for each in found)} <= shown
            else:
                assert {each["answer"] for each in found[:2]} <= set(captions.texts)
                assert found[1]["right"] is hit
        assert len(shown) < 30


def _retrieval(tmp_path, row, found, **columns):
    items = items_table(0.5, benchmark="retrieval", count=40).assign(found=None, t2i_rank=3.0, **columns)
    items.loc[:9, "found"] = pd.Series([found] * 10, dtype=object)
    put_result(tmp_path, row, "retrieval", items)


def test_the_page_marks_the_correct_answer_in_words_and_embeds_each_image_once(tmp_path):
    answers = [{"answer": f"picture-{n}", "similarity": 0.5 - n / 10, "right": n == 2} for n in range(5)]
    for row in ("clip", "clips"):
        _retrieval(tmp_path, row, json.dumps(answers))
    (shown,) = retrieval_galleries(read_source(tmp_path))
    assert shown.items == 10
    assert [(each.score, each.right) for each in shown.cards[0].found[0].answers] == [
        ("0.50", False), ("0.40", False), ("0.30", True), ("0.20", False), ("0.10", False)]  # fmt: skip
    page = render_page(build_report(tmp_path))
    assert page.count("✓ right") == 2 * len(shown.cards)
    assert page.count("correct result at rank 3") == 2 * len(shown.cards)
    assert len(re.findall("<use href=", page)) > 20
    written = re.findall('<image id="([^"]+)" href="data:image/jpeg;base64,([^"]+)"', page)
    assert len(written) == len({name for name, _ in written}) == len({content for _, content in written})
    assert set(re.findall('<use href="#([^"]+)"', page)) <= {name for name, _ in written}


def test_no_text_of_others_harms_the_page(tmp_path):
    text = HOSTILE
    answers = json.dumps([{"answer": text, "similarity": 0.5, "right": True}])
    _retrieval(tmp_path, "clip", answers, target=text)
    _retrieval(tmp_path, "clips", answers, image=text, question=text)
    items = items_table(0.5, benchmark="gqa").assign(question=text, prediction=text, target=text)
    put_result(tmp_path, "clip", "gqa", items)
    page = render_page(build_report(tmp_path))
    assert 'id="retrieval-examples"' in page
    found = Page(page)
    assert found.tags.count("script") == 1
    assert not found.handlers
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert "{{ 7 * 7 }}" in page
    assert len(re.sub('base64,[^"]+', "", page)) < 250_000


def test_only_small_jpegs_become_images():
    assert cards.make_thumbnail(draw_image(1), "a").width == 96
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2)).save(stream, "JPEG")
    jpeg = b"\xff\xd8\xff"
    for content in (b"<svg onload=alert(1)>", jpeg + b"0" * 200_000, jpeg, stream.getvalue(), None):
        assert cards.make_thumbnail(content, "a") is None
    shown = cards.make_thumbnail(draw_image(1), '"><script>')
    assert '"&gt;&lt;script&gt;"' not in ImageDeduplicator().tag(shown)
    assert 'aria-label="&#34;&gt;&lt;script&gt;"' in ImageDeduplicator().tag(shown)


def test_images_stay_within_their_part_of_the_page(tmp_path, monkeypatch):
    one, two = (Card(thumbnail=cards.make_thumbnail(draw_image(number), "a")) for number in (1, 2))
    sizes = [len(card.thumbnail.content) for card in (one, two)]
    room = sum(sizes) * 4 // 3
    assert take_within_budget([one, one, two, one], room) == ((one, one, two, one), 0)
    assert take_within_budget([one, one, two, one], room - 10) == ((one, one), 2)
    gallery = Gallery(benchmark="captions", cards=(two, two), items=9)
    monkeypatch.setattr(cards, "MAX_SECTION_BYTES", 2 * sizes[1] * 4 // 3)
    first, second = limit_galleries([gallery, None, gallery])
    assert (len(first.cards), first.left_out, second.left_out) == (2, 0, 0)
    monkeypatch.setattr(cards, "MAX_SECTION_BYTES", 2 * sizes[1])
    assert [(each.cards, each.left_out) for each in limit_galleries([gallery, gallery])] == [((), 2)] * 2
    put_results(tmp_path)
    monkeypatch.setattr("benchmarks.report.gallery.answer_examples.MAX_SECTION_BYTES", 30_000)
    page = render_page(build_report(tmp_path))
    assert "examples omitted to limit the page size" in page
