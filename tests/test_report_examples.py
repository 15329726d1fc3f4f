"""The page's examples: their items and contents, and that no text or image of others can harm the page."""

from __future__ import annotations

import io
import re

import pandas as pd
from PIL import Image
from report_material import draw_image, items_table, put_result, put_results
from report_study import Page

from benchmarks.report import cards
from benchmarks.report.cards import Card, ImageDeduplicator, take_within_budget
from benchmarks.report.examples import answer_galleries, select_items
from benchmarks.report.load_results import limit_rows, read_source
from benchmarks.report.page import render_page
from benchmarks.report.report import build_report
from benchmarks.tasks.evaluation import hash_order

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
    assert shown["gqa"][0].expected == "yes (or 2 others)"


def test_the_page_shows_retrieved_images_and_embeds_each_image_once(tmp_path):
    for row, skill in {"clip": 0.4, "clips": 0.6}.items():
        put_result(tmp_path, row, "retrieval", items_table(skill, benchmark="retrieval", count=40))
    (shown,) = answer_galleries(read_source(tmp_path))
    assert {card.expected for card in shown.cards} == {"the left image"}
    right = [answer for card in shown.cards for answer in card.answers if answer.right]
    assert right
    assert all(answer.thumbnail and not answer.text for answer in right)
    page = render_page(build_report(tmp_path))
    written = re.findall('<image id="([^"]+)" href="data:image/jpeg;base64,([^"]+)"', page)
    assert len(written) == len({name for name, _ in written}) == len({content for _, content in written})
    repeated = re.findall('<use href="#([^"]+)"', page)
    assert len(repeated) >= len(right)  # as each is next to its own caption's image
    assert {*repeated} <= {name for name, _ in written}


def test_no_text_of_others_harms_the_page(tmp_path):
    text = HOSTILE
    items = items_table(0.5, benchmark="retrieval", count=40)
    put_result(tmp_path, "clip", "retrieval", items.assign(target=text))
    put_result(tmp_path, "clips", "retrieval", items.assign(image=text, question=text))
    items = items_table(0.5, benchmark="gqa").assign(question=text, prediction=text, target=text)
    put_result(tmp_path, "clip", "gqa", items)
    page = render_page(build_report(tmp_path))
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
    put_results(tmp_path)
    monkeypatch.setattr("benchmarks.report.examples.MAX_SECTION_BYTES", 30_000)
    page = render_page(build_report(tmp_path))
    assert "examples omitted to limit the page size" in page
