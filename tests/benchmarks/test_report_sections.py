"""Sections of the page: scores by category, examples with their images, and figures."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from colors import contrast
from PIL import Image
from report_material import draw_image, edit, items_table, put_result, put_results
from report_study import Page, make_study

from benchmarks.report import examples, figures
from benchmarks.report.categories import category_figures, category_tables
from benchmarks.report.examples import (
    Card,
    ImageDeduplicator,
    answer_galleries,
    browser_data,
    select_items,
    take_within_budget,
)
from benchmarks.report.figures import Figure, LegendEntry, light_palette, render_inline_svg, render_pdf, render_svg
from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.load_results import read_source
from benchmarks.report.page import render_page, report_figures
from benchmarks.report.report import build_report
from benchmarks.report.table import Table
from benchmarks.results.item_scores import ItemScores
from benchmarks.study.study_record import RowRecord
from benchmarks.tasks.evaluation import hash_order
from benchmarks.tasks.mllm.items import items_table as answered

HOSTILE = (
    "</p><script>alert(1)</script><img src=x onerror=alert(2)>"
    '" onload="alert(3)" x="'
    r"\input{/etc/passwd} $\frac{1}{0}$ & % # _"
    "\x1b[31mred\x1b]0;title\x07 \x9b2J"
    "\u202egnp.exe \u2066abc\u2069"
    "כלב על דשא {{ 7 * 7 }} {% raw %}" + "x" * 10_000 + " word" * 2000
)


def with_kinds(skills: dict[str, float], count: int = 240) -> pd.DataFrame:
    """Items of which the better row is better on one kind alone."""
    parts = [items_table(skill, benchmark="pope", count=count) for skill in skills.values()]
    items = parts[0].copy()
    kinds = np.array([*skills])[np.arange(count) // 2 % len(skills)]
    for kind, part in zip(skills, parts, strict=True):
        for name in ("score", "hit", "hit5"):
            items.loc[kinds == kind, name] = part.loc[kinds == kind, name]
    return items.assign(category=kinds)


def kinds_of(results: Path, benchmarks: tuple[str, ...]) -> list[Table]:
    for benchmark in benchmarks:
        put_result(results, "clip", benchmark, with_kinds({"random": 0.5, "popular": 0.5}))
        put_result(results, "clips", benchmark, with_kinds({"random": 0.9, "popular": 0.5}))
    return category_tables(build_report(results, baseline="clip").source, ItemScores())


def test_a_benchmark_is_split_by_category_with_tested_differences(tmp_path):
    (table,) = kinds_of(tmp_path, ("pope",))
    items, cell = with_kinds({"random": 0.9, "popular": 0.5}), table.cell("clips", "pope", "random")
    assert cell.value == pytest.approx(100 * items[items["category"] == "random"]["hit"].mean())
    assert cell.ci_low < cell.value < cell.ci_high
    assert cell.delta.significant
    assert not table.cell("clips", "pope", "popular").delta.significant
    report = build_report(tmp_path, baseline="clip")
    (figure,) = category_figures(report.source, report.table, report.items).figures
    assert (figure.name, figure.headers) == ("kinds-pope", ("category", "items", "clip", "clips"))
    assert [row[:2] for row in figure.rows] == [("popular", "120"), ("random", "120")]
    assert "(▲ +" in figure.rows[1][3]
    assert "≈" in figure.rows[0][3]
    assert figure.alt.endswith("significantly different from the baseline: clips better on random.")
    tables = kinds_of(tmp_path / "two", ("pope", "gqa"))  # one family
    assert [each.comparisons for each in (table, *tables)] == [2, 4, 4]
    smallest = min(each.delta.p_adjusted for both in tables for each in both.scores if each.delta)
    assert 0 < smallest == pytest.approx(2 * min(each.delta.p_adjusted for each in table.scores if each.delta))


def test_a_category_counts_the_items_with_a_score_and_without_tests_says_nothing_of_them(tmp_path):
    """It counted all items, in the main table those with a score; and "none differs" of models that nobody compared."""
    for row in ("clip", "clips"):
        items = with_kinds({"random": 0.5, "popular": 0.5})
        items.loc[:99, ["hit", "score"]] = np.nan
        put_result(tmp_path, row, "gqa", items)
    report = build_report(tmp_path)
    (figure,) = category_figures(report.source, report.table, report.items).figures
    assert report.table.columns[0].items == "140"
    assert [row[:2] for row in figure.rows] == [("popular", "70"), ("random", "70")]
    assert figure.alt.endswith(" 2 categories, with intervals.")


def test_kinds_of_a_metric_without_a_direction_are_different_and_neither_better_nor_worse(tmp_path):
    for row, skill in (("clip", 0.5), ("clips", 0.9)):
        put_result(tmp_path, row, "pope", with_kinds({"random": skill, "popular": 0.5}), primary=("yes",))
    report = build_report(tmp_path, baseline="clip")
    (figure,) = category_figures(report.source, report.table, report.items).figures
    assert figure.alt.endswith("significantly different from the baseline: clips different on random.")
    assert [re.search(r"\((.) ", row[3])[1] for row in figure.rows] == ["≈", "≠"]
    assert render_svg(figure)


def test_kinds_of_several_seeds_are_means_with_tests_over_seeds(tmp_path):
    rows = []
    for seed in range(3):
        for encoder, skill in (("clip", 0.3), ("clips", 0.6 + 0.1 * seed)):
            items = items_table(skill, benchmark="pope", seed=seed)
            put_result(tmp_path, f"{encoder}-{seed}", "pope", items.assign(category=["a", "a", "b", "b"] * 30))
            baseline = None if encoder == "clip" else f"clip-{seed}"
            rows.append(RowRecord(name=f"{encoder}-{seed}", encoder=encoder, seed=seed, baseline=baseline))
    (table,) = category_tables(dataclasses.replace(read_source(tmp_path), rows=tuple(rows)), ItemScores())
    assert [row.name for row in table.rows] == ["clip-0", "clips-0"]
    cell = table.cell("clips-0", "pope", "a")
    assert len(cell.by_seed) == 3
    assert cell.value == pytest.approx(np.mean([*cell.by_seed.values()]))
    assert (cell.delta.baseline, table.comparisons) == ("clip-0", 2)


def test_gqas_kind_is_the_structure_of_the_question_and_others_their_own():
    def kind(**doc):
        sample = {"doc_id": 0, "doc": {"question": "q", **doc}, "filtered_resps": ["a"], "target": "a"}
        return answered([sample], {}, {}, "")["category"].tolist()

    types = {"structural": "verify", "semantic": "attr", "detailed": "verifyColor"}
    assert kind(types=types) == ["verify"]
    assert kind(category="random") == ["random"]
    assert kind(types=None, type="color") == ["color"]
    assert kind() == [""]


def test_examples_are_chosen_by_their_hash_alone():
    names = [f"item {number}" for number in range(50)]
    order = hash_order(names)
    assert order != names
    assert sorted(order) == sorted(names)
    assert hash_order(reversed(names)) == order
    assert hash_order(names[:25]) == [name for name in order if name in names[:25]]


def test_examples_are_items_on_which_rows_differ_as_often_as_they_do():
    """Alternating over the model that is right showed one that is right on 4 of 658 items in a third of the cards."""
    names = ["a1", "a2", "a3", "b1", "none", "both"]
    scores = pd.DataFrame({"a": [1, 1, 1, 0, 0, 1.0], "b": [0, 0, 0, 1, 0, 1.0]}, index=names)
    disputed = hash_order(names[:4])
    images = {name: name for name in names}
    assert select_items(scores, images, max_items=4) == [*disputed[:2], "none", "both"]
    assert select_items(scores.iloc[::-1], images, max_items=6) == [*disputed, "none", "both"]
    same = images | {disputed[1]: disputed[0]}
    assert select_items(scores, same, max_items=4) == [disputed[0], disputed[2], "none", "both"]
    without = scores.drop("both")  # no item that all models get right: two that they get wrong instead
    assert select_items(without, images, max_items=4) == [*disputed[:3], "none"]


def test_a_click_shows_items_of_every_model_those_in_dispute_first(tmp_path):
    put_results(tmp_path)
    for row in ("clip", "clips"):  # as of a judge that cannot be reached
        put_result(tmp_path, row, "unjudged", items_table(0.5, benchmark="unjudged").assign(score=float("nan")))
    source = read_source(tmp_path, baseline="clip")
    galleries = answer_galleries(source)
    data = browser_data(galleries, source)
    assert data["baselines"] == {"clips": "clip", "untrained": "clip"}
    assert {*data["benchmarks"]} == {"gqa", "pope", "retrieval"}
    for name, shown in data["benchmarks"].items():
        tables = {
            row: pd.read_parquet(tmp_path / row / f"{name}.items.parquet").set_index("item") for row in shown["rows"]
        }
        assert (shown["rows"], shown["items"]) == (("clip", "clips", "untrained"), 120)
        scores = pd.DataFrame({row: table["score"] for row, table in tables.items()})
        num_disputed = int((scores.nunique(axis=1) > 1).sum())
        disputed = [len({answer[2] for answer in card["answers"].values()}) > 1 for card in shown["cards"]]
        assert disputed == [True] * num_disputed + [False] * (120 - num_disputed)
        for row, table in tables.items():
            right = sum(card["answers"][row][2] for card in shown["cards"])
            assert right == table["score"].sum()
    images = {*data["images"]} | {image.id for each in galleries for card in each.cards for image in card.thumbnails}
    assert all(card["image"] in images for each in data["benchmarks"].values() for card in each["cards"])


def test_a_click_shows_200_items_unless_all_are_asked_for(tmp_path, monkeypatch):
    for place, benchmark in enumerate(("gqa", "pope")):
        items = items_table(0.5, benchmark=benchmark, count=260)
        items["image"] = [f"{benchmark}-{name}" for name in items["image"]]
        items["thumbnail"] = [draw_image(1000 * place + number) for number in range(260)]
        put_result(tmp_path, "clip", benchmark, items)
    monkeypatch.setattr(examples, "MAX_BROWSED_BYTES", 40_000)
    source = read_source(tmp_path)
    few, every = (
        browser_data(answer_galleries(source, every_item=choice), source, every_item=choice) for choice in (False, True)
    )
    assert sum(len(uri) for uri in few["images"].values()) <= 40_000
    for benchmark in ("gqa", "pope"):  # each has its share of the images
        some, all_of_them = (each["benchmarks"][benchmark]["cards"] for each in (few, every))
        assert (len(some), len(all_of_them)) == (200, 260)
        assert 5 < sum(bool(card["image"]) for card in some) < 200
        assert all(card["image"] for card in all_of_them)


def test_a_click_shows_answers_that_were_not_read(tmp_path):
    """50 of 1,000, of one model: of 200 by the hash of their names ten would be shown."""
    items = items_table(0.5, benchmark="gqa", count=1000)
    put_result(tmp_path, "clip", "gqa", items.assign(unread=[float(number % 20 == 0) for number in range(1000)]))
    (gallery,) = answer_galleries(read_source(tmp_path))
    assert [card.answers[0].unread for card in gallery.browsed] == [True] * 50 + [False] * 150


def test_an_image_without_room_has_its_name(tmp_path, monkeypatch):
    put_result(tmp_path, "clip", "retrieval", items_table(0.5, benchmark="retrieval"))
    monkeypatch.setattr(examples, "MAX_BROWSED_BYTES", 0)
    monkeypatch.setattr(examples, "MAX_SECTION_BYTES", 0)  # then there are no examples, but items
    source = read_source(tmp_path)
    data = browser_data(answer_galleries(source), source)
    answers = [card["answers"]["clip"] for card in data["benchmarks"]["retrieval"]["cards"]]
    assert len(answers) == 120
    assert all(text.startswith("image picture-") and not image for text, image, *_ in answers)


def test_graded_items_show_their_score_and_others_right_or_wrong(tmp_path):
    items = items_table(0.5, benchmark="gqa").assign(target="yes | indeed | sure")
    put_result(tmp_path, "clip", "gqa", items)
    put_result(tmp_path, "clip", "pope", items.assign(score=items["score"] * 0.5))
    put_result(tmp_path, "clip", "retrieval", items.assign(score=[0.5, *items["score"][1:]]))  # as of a tie
    edit(put_result(tmp_path, "clip", "points", items.assign(score=items["score"] * 0.5)), "exact_match", scale=1.0)
    shown = {gallery.benchmark: gallery.cards for gallery in answer_galleries(read_source(tmp_path))}
    answers = {
        name: {(each.right, each.score) for card in cards for each in card.answers} for name, cards in shown.items()
    }
    assert answers["gqa"] == {(True, ""), (False, "")}
    assert answers["pope"] == {(False, ""), (None, "50 %")}  # as the column
    assert answers["points"] == {(None, "0"), (None, "0.5")}
    assert answers["retrieval"] >= {(True, ""), (False, "")}
    assert shown["gqa"][0].expected == "yes (or 2 others)"


def test_of_an_error_metric_the_item_with_the_lower_score_is_right(tmp_path):
    for row, errors in (("careful", 0.2), ("sloppy", 0.6)):
        path = put_result(tmp_path, row, "gqa", items_table(errors, benchmark="gqa"))
        edit(path, "exact_match", higher_is_better=False)
    (gallery,) = answer_galleries(read_source(tmp_path, baseline="careful"))
    by_answer = {(each.text, each.right) for card in gallery.cards for each in card.answers}
    assert by_answer == {("yes", False), ("no", True)}  # the answer is yes where an error is counted


@pytest.mark.parametrize(("score", "text"), [(10.0, "1000"), (9.996, "1000"), (12.344, "1234"), (0.0436, "4.4")])
def test_scores_of_an_item_above_1000_have_no_exponent(tmp_path, score, text):
    items = items_table(0.5, benchmark="gqa").assign(score=score)
    edit(put_result(tmp_path, "clip", "gqa", items), "exact_match", aggregation="mean_of_scores")
    (gallery,) = answer_galleries(read_source(tmp_path))
    assert {each.score for card in gallery.cards for each in card.answers} == {text}


def test_retrieved_images_are_shown_and_every_image_is_on_the_page_once(tmp_path):
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
    items = items_table(0.5, benchmark="retrieval", count=40)
    put_result(tmp_path, "clip", "retrieval", items.assign(target=HOSTILE))
    put_result(tmp_path, "clips", "retrieval", items.assign(image=HOSTILE, question=HOSTILE))
    items = items_table(0.5, benchmark="gqa").assign(question=HOSTILE, prediction=HOSTILE, target=HOSTILE)
    put_result(tmp_path, "clip", "gqa", items)
    page = render_page(build_report(tmp_path))
    found = Page(page)
    assert found.tags.count("script") == 2  # one of them is data
    (stored,) = re.findall(r'<script type="application/json" id="items">(.*?)</script>', page, re.DOTALL)
    assert "</p><script>alert(1)</script>" in json.loads(stored)["benchmarks"]["gqa"]["cards"][0]["question"]
    assert not found.handlers
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert "{{ 7 * 7 }}" in page
    assert len(re.sub('base64,[^"]+', "", page)) < 250_000


def test_only_small_jpegs_become_images():
    assert examples.make_thumbnail(draw_image(1), "a").width == 96
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2)).save(stream, "JPEG")
    jpeg = b"\xff\xd8\xff"
    for content in (b"<svg onload=alert(1)>", jpeg + b"0" * 200_000, jpeg, stream.getvalue(), None):
        assert examples.make_thumbnail(content, "a") is None
    shown = examples.make_thumbnail(draw_image(1), '"><script>')
    assert 'aria-label="&#34;&gt;&lt;script&gt;"' in ImageDeduplicator().tag(shown)


def test_images_stay_within_their_part_of_the_page(tmp_path, monkeypatch):
    one, two = (Card(thumbnail=examples.make_thumbnail(draw_image(number), "a")) for number in (1, 2))
    room = sum(len(card.thumbnail.content) for card in (one, two)) * 4 // 3
    assert take_within_budget([one, one, two, one], room) == ((one, one, two, one), 0)
    assert take_within_budget([one, one, two, one], room - 10) == ((one, one), 2)
    put_results(tmp_path)
    monkeypatch.setattr("benchmarks.report.examples.MAX_SECTION_BYTES", 30_000)
    assert "examples omitted to limit the page size" in render_page(build_report(tmp_path))


FIGURE = Figure(
    **{"name": "curve", "title": "Loss <b>", "alt": 'falls "fast" & <i>', "x_label": "a <b> & $c$ \u202e"},
    plot=lambda axes, palette: axes.plot([3.0, 2.0, 1.0], color=palette.series(1)),
    legend=(LegendEntry(color=1, label="row <x>"),),
    headers=("row", "loss"),
    rows=(("clip", "1"),),
)


def test_a_figure_of_the_page_takes_its_colors_and_escapes_all_text():
    svg = render_inline_svg(FIGURE)
    assert svg.startswith('<svg viewBox="')
    assert 'aria-label="falls &quot;fast&quot; &amp; &lt;i&gt;"' in svg
    assert "var(--series-1)" in svg
    assert "var(--ink-soft)" in svg
    assert not [color for color in light_palette().colors.values() if color in svg]
    assert len({*light_palette().colors.values()}) == len(light_palette().colors)  # a color is one variable
    assert "row" not in svg  # the page has legends of its own
    assert "a &lt;b&gt; &amp; $c$ \ufffd" in svg
    assert "http" not in svg
    assert svg == render_inline_svg(FIGURE)
    ElementTree.fromstring(svg)


@pytest.mark.slow
def test_a_figure_as_a_file_is_complete_in_itself(tmp_path, monkeypatch):
    svg = render_svg(FIGURE)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [child.text for child in root[:2]] == ["Loss <b>", 'falls "fast" & <i>']
    assert "var(--" not in svg
    assert light_palette().series(1) in svg
    assert "row &lt;x&gt;" in svg  # the legend
    assert render_pdf(FIGURE).startswith(b"%PDF")
    report = build_report(make_study(tmp_path, monkeypatch))
    found = report_figures(report)
    assert "forest-pope-accuracy" in found
    for suffix in ("svg", "pdf"):
        assert [*REPORT_FORMATS[suffix](report)] == [f"figures/{name}.{suffix}" for name in found]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colors_have_the_contrast_of_wcag_aa(scheme):
    style = (Path(figures.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    colors = {name: ends[scheme] for name, *ends in pairs}
    for ground in ("paper", "sheet", "tint"):
        for text in ("ink", "ink-soft", "accent", "gain", "loss"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for place in range(figures.SERIES_COLORS):
        assert contrast(colors[f"series-{place}"], colors["paper"]) >= 3
