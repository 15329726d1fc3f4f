"""The pages of all items: what they hold, in a browser too, and that no text of others can harm them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_material import items_table, put_result, put_results
from report_study import Page
from test_report_browser import CHROMIUM
from test_report_gallery import HOSTILE

from benchmarks.report import item_pages
from benchmarks.report.html_page import item_page_files, render_page
from benchmarks.report.item_pages import all_items, item_page_paths
from benchmarks.report.load_results import read_source
from benchmarks.report.report import build_report


def data_of(text: str | bytes) -> Any:
    """The data of a file: the last argument of its call."""
    assert isinstance(text, str)
    inner = text[text.index("(") + 1 : text.rindex(")")]
    return json.loads(inner[inner.index("{") :])


def test_every_item_is_there_with_all_answers_and_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(item_pages, "ITEMS_PER_FILE", 50)
    put_results(tmp_path)
    other = items_table(0.5, benchmark="gqa", seed=2, count=130)  # ten items that the others lack
    put_result(tmp_path, "zoo", "gqa", other.assign(score=other["score"] * 0.25))
    files = item_page_files(build_report(tmp_path))
    assert [path for path in files if path.startswith("items/gqa")] == [
        *("items/gqa.html", "items/gqa/scores.js", "items/gqa/0.js", "items/gqa/1.js", "items/gqa/2.js")
    ]
    head = data_of(files["items/gqa/scores.js"])
    assert head["models"] == ["clip", "clips", "untrained", "zoo"]
    assert head["graded"]
    lines = [line for number in range(3) for line in data_of(files[f"items/gqa/{number}.js"])["items"]]
    tables = [dict(read_source(tmp_path).results("gqa"))[name] for name in head["models"]]
    by_item = [item_pages.read_items(result).set_index("item") for result in tables]
    assert len({line[0] for line in lines}) == len(lines) == len(head["category"]) == 130
    for place, (name, image, _, question, target, answers) in enumerate(lines):
        assert (image, question, target) == tuple(by_item[3].loc[name, ["image", "question", "target"]])
        for table, answer, scores in zip(by_item, answers, head["scores"], strict=True):
            known = name in table.index
            assert answer == (table.loc[name, "prediction"] if known else "")
            assert scores[place] == (100 * table.loc[name, "score"] if known else None)
    images = [*map(str, by_item[3].loc[[line[0] for line in lines], "image"])]
    assert images == [image for image in dict.fromkeys(images) for _ in range(2)]  # those of an image are together


def test_items_that_only_another_model_of_as_many_has_are_there(tmp_path):
    items = items_table(0.5, benchmark="gqa", count=20)
    renamed = items["item"].replace(items["item"].iloc[3], "of its own")
    for row, table in (("one", items), ("two", items.assign(item=renamed))):
        put_result(tmp_path, row, "gqa", table)
    lines = data_of(item_page_files(build_report(tmp_path))["items/gqa/0.js"])["items"]
    assert {line[0] for line in lines} == {*items["item"], "of its own"}
    assert [bool(answer) for answer in next(line for line in lines if line[0] == "of its own")[-1]] == [False, True]


@pytest.mark.parametrize(
    ("value", "text"),
    [("bell\x07", "bell�"), ("é\u202e", "é�"), ("x" * 2000, "x" * 999 + "…"), (None, ""), (math.nan, ""), (3, "3")],
)
def test_one_text_among_many_is_cleaned(value, text):
    found = item_pages._texts(pd.Series(["plain"] * 150 + [value] + ["plain"] * 150, dtype=object))
    assert found == ["plain"] * 150 + [text] + ["plain"] * 150


def test_images_are_limited_and_a_result_without_items_has_no_page(tmp_path, monkeypatch):
    put_results(tmp_path, {"clip": 0.4})
    table = items_table(0.4, benchmark="gqa")["thumbnail"].dropna()
    monkeypatch.setattr(item_pages, "MAX_IMAGE_BYTES", 4 * len(table.iloc[0]))
    (tmp_path / "clip" / "pope.items.parquet").unlink()
    found = dict(all_items(read_source(tmp_path)))
    assert {*found} == {*item_page_paths(read_source(tmp_path))} == {"retrieval", "gqa"}
    assert 0 < len(found["gqa"].thumbnails) < 5
    page = render_page(build_report(tmp_path))
    assert 'href="items/gqa.html"' in page
    assert 'href="items/pope.html"' not in page


def test_hostile_text_stays_text(tmp_path):
    items = items_table(0.4, benchmark="gqa").assign(question=HOSTILE, prediction=HOSTILE, image=HOSTILE)
    put_result(tmp_path, "clip", "gqa", items.assign(item=[f"{HOSTILE}{number}" for number in range(len(items))]))
    files = item_page_files(build_report(tmp_path))
    assert Page(str(files["items/gqa.html"])).tags.count("script") == 1
    for path in ("items/gqa/scores.js", "items/gqa/0.js"):
        text = files[path]
        assert isinstance(text, str)
        assert text.isascii()
        assert "\\u001b" not in text
        assert max(map(len, data_of(text).get("items", [[""]])[0][:5])) <= 1000


@pytest.mark.skipif(not CHROMIUM.is_file(), reason="chromium is not installed")
def test_items_are_filtered_searched_and_paged_in_a_browser(tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    put_results(tmp_path)
    for name, content in item_page_files(build_report(tmp_path)).items():
        (tmp_path / "report" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "report" / name).write_text(str(content), encoding="utf-8")
    scores = data_of((tmp_path / "report" / "items/gqa/scores.js").read_text(encoding="utf-8"))["scores"]
    lost = sum(clip == 0 and clips == 1 for clip, clips, _ in zip(*scores, strict=True))
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((tmp_path / "report" / "items" / "gqa.html").as_uri())
        page.wait_for_selector("article")
        assert page.locator("output").inner_text() == "120 of 120 items; page 1 of 6"
        page.locator("#next").click()
        page.get_by_text("page 2 of 6").wait_for()
        page.locator("#models select").nth(0).select_option("-1")
        page.locator("#models select").nth(1).select_option("1")
        page.get_by_text(f"{lost} of 120 items").wait_for()
        assert page.locator("article").first.locator("dd").all_inner_texts()[:2] == ["✗ no", "✓ yes"]
        page.locator("input[type=search]").fill("KITE nothing")
        page.get_by_text("0 of 120 items").wait_for()
        browser.close()
    assert said == []
