"""The page in a headless Chromium: what it does, how it fits, what can be read and reached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_material import SKILLS, items_table, put_failure, put_result, put_results
from report_study import make_study

from benchmarks.report.page import render_page
from benchmarks.report.report import build_report
from benchmarks.study.study_record import Display

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"needs a Chromium at {CHROMIUM}")
LONG_NAME = "a-model-" + "of-a-very-long-name-" * 6


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of five rows: one of a long name, one that failed and was measured otherwise."""
    directory = tmp_path_factory.mktemp("browser")
    results = put_results(directory / "results", SKILLS | {LONG_NAME: 0.3})
    reason = "out of memory <img src=x onerror=alert(1)>" + " /a/path/of/many" + "/folders" * 30
    put_failure(results, "broken", "pope", reason)
    put_result(results, "broken", "gqa", items_table(0.5, benchmark="gqa", seed=2), protocol={"prompt": "other"})
    file = directory / "index.html"
    grouped = Display(groups={"Trained": ("clip*",)})
    file.write_text(render_page(build_report(results, baseline="clip", display=grouped)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study, which has sections that bare results have not."""
    directory = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        output = make_study(directory, patch)
    file = directory / "index.html"
    file.write_text(render_page(build_report(output)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """What the console said and what the page asked for, over the whole module."""
    return []


@pytest.fixture(scope="module")
def opened(browser, file, complaints) -> Iterator[Any]:
    """One page for all tests; each loads it again, which is fast."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(5000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield page
    page.close()


@pytest.fixture
def page(opened, file, complaints) -> Any:
    opened.set_viewport_size({"width": 1440, "height": 900})
    opened.emulate_media(media="screen", color_scheme="light")
    opened.goto(file.as_uri())
    yield opened
    asked = [
        each
        for each in complaints
        if not re.match(r"data:image/jpeg|file://.*/(browser|study|leaderboard)0/index.html", each)
    ]
    complaints.clear()
    assert asked == []


def shown_rows(page) -> list[str]:
    return page.locator("table.main tbody tr:visible th .row").all_inner_texts()


def test_the_table_sorts_by_a_column_and_says_so(page):
    before = shown_rows(page)
    assert page.locator("table.main tr.heading").all_inner_texts() == ["Trained"]
    head = page.locator("tr.headers th").nth(2)  # pope, which one row failed
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("table.main tr.heading").count() == 0  # the order is that of all models
    assert shown_rows(page) == ["clips", "clip", LONG_NAME, "untrained", "broken"]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert shown_rows(page) == ["untrained", LONG_NAME, "clip", "clips", "broken"]
    page.locator("tr.headers th").nth(0).get_by_role("button").click()
    assert shown_rows(page) == sorted(before)
    assert page.locator("tr.headers th").nth(0).get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") is None


def test_rows_and_columns_can_be_chosen(page):
    page.get_by_text("Filter models and columns").click()
    assert len(shown_rows(page)) == 5
    page.get_by_label("Models with").fill("CLIP s")
    assert shown_rows(page) == ["clips"]
    assert page.locator("#filter output").inner_text() == "1 of 5 models"
    assert page.locator("table.main tr.heading").is_visible()
    page.get_by_label("Models with").fill("untrained")
    assert not page.locator("table.main tr.heading").is_visible()
    page.get_by_label("Models with").fill("CLIP s")
    headers = page.locator("tr.groups th:visible")
    assert headers.all_inner_texts() == ["gqa", "pope", "retrieval"]
    cells = page.locator("table.main tbody tr:visible td:visible").count()
    page.get_by_role("checkbox", name="pope").uncheck()
    assert headers.all_inner_texts() == ["gqa", "retrieval"]
    assert page.locator("table.main tbody tr:visible td:visible").count() == cells - 1
    page.get_by_label("Models with").fill("nothing of that name")
    assert shown_rows(page) == []


@pytest.fixture(scope="module")
def leaderboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of eight models on twelve benchmarks."""
    directory = tmp_path_factory.mktemp("leaderboard")
    for model in range(8):
        for benchmark in range(12):
            items = items_table(0.2 + 0.08 * model, benchmark="gqa", seed=benchmark)
            put_result(
                directory / "results", f"model-{model}", f"a_benchmark_{benchmark}", items, digest=f"{model}" * 64
            )
    file = directory / "index.html"
    file.write_text(render_page(build_report(directory / "results")), encoding="utf-8")
    return file


def test_a_leaderboard_is_sorted_by_its_average_and_as_wide_as_the_window(page, leaderboard):
    page.goto(leaderboard.as_uri())
    assert shown_rows(page) == [f"model-{place}" for place in range(7, -1, -1)]
    head = page.locator("tr.headers th").nth(1)
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("td.average .rank").all_inner_texts() == [f"rank {place}" for place in range(1, 9)]
    region = page.locator(".wide.scroll")
    page.set_viewport_size({"width": 1920, "height": 900})
    assert region.evaluate("each => each.getBoundingClientRect().width") > 1800
    assert region.evaluate("each => each.scrollWidth <= each.clientWidth")  # no cell is cut
    page.set_viewport_size({"width": 1000, "height": 900})
    page.locator(".wide.scroll.more").wait_for(state="attached")  # its edge fades while there is more
    region.evaluate("each => each.scrollTo(9999, 0)")
    page.locator(".wide.scroll:not(.more)").wait_for(state="attached")


def test_a_leaderboards_cells_show_their_intervals_on_demand(page, leaderboard):
    page.goto(leaderboard.as_uri())
    cell = page.locator("table.main tbody td").nth(1)
    assert not cell.locator(".interval").is_visible()
    assert cell.get_attribute("title").startswith("95 % interval ")
    page.get_by_label("Intervals in the cells").check()
    assert cell.locator(".interval").is_visible()
    assert cell.locator(".whisker").is_visible()


def test_a_phone_jumps_to_a_metric(page, leaderboard):
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(leaderboard.as_uri())
    page.get_by_text("Jump to a metric").click()
    links = page.locator(".jump a")
    assert links.count() == 12
    links.nth(11).click()
    assert -1 <= page.locator("#metric-11").bounding_box()["y"] < 400


def test_a_click_on_a_number_shows_its_items_next_to_the_baselines(page, file):
    number = page.locator("table.main tr[data-row=clips] .value button").nth(0)  # gqa
    number.click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading").inner_text() == "gqa"
    assert dialog.get_by_label("next to").input_value() == "clip"
    items = [pd.read_parquet(file.parent / f"results/{row}/gqa.items.parquet") for row in ("clips", "clip")]
    one, two = (each.set_index("item")["score"] for each in items)
    assert "120 of 120 items here, 120 in the benchmark" in dialog.locator("output").inner_text()
    first = dialog.locator("article").first.locator("dd")
    assert sorted(each[0] for each in first.all_inner_texts()) == ["✓", "✗"]  # a disagreement
    for choice, count in (("disagree", (one != two).sum()), ("wrong", (one == 0).sum()), ("unread", 0)):
        dialog.get_by_label("Show").select_option(choice)
        assert dialog.locator("output").inner_text().startswith(f"{count} of 120 items")
    dialog.get_by_label("Show").select_option("all")
    dialog.get_by_role("button", name="Show more").click()
    assert dialog.locator("article").count() == 48
    dialog.get_by_label("next to").select_option("untrained")
    assert dialog.locator("article").first.locator("dt").all_inner_texts() == ["clips", "untrained"]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert number.evaluate("each => each === document.activeElement")


def test_arrow_keys_move_between_the_numbers(page):
    numbers = page.locator("table.main .value button")
    assert page.locator("table.main .value button[tabindex='0']").count() == 1
    numbers.first.focus()
    focused = "document.activeElement.getAttribute('aria-label').split(', ')[1]"
    first, second, third = shown_rows(page)[:3]
    assert page.evaluate(focused) == f"items of {first} on gqa"
    for key, label in (
        ("ArrowRight", f"items of {first} on pope"),
        ("ArrowDown", f"items of {third} on pope"),  # the second one failed there
        ("ArrowLeft", f"items of {third} on gqa"),
        ("ArrowUp", f"items of {second} on gqa"),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == label
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    page.get_by_text("Filter models and columns").click()
    page.get_by_role("checkbox", name="gqa").uncheck()  # with the only stop of the tab key
    stop = page.locator("table.main .value button[tabindex='0']")
    assert stop.count() == 1
    assert stop.is_visible()
    stop.focus()
    page.keyboard.press("ArrowLeft")  # to gqa, which is hidden
    assert stop.is_visible()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.offsetParent !== null")


@pytest.mark.parametrize(("which", "width"), [("results", 360), ("results", 1440), ("study", 768)])
def test_nothing_sticks_out_to_the_side(page, file, study_file, width, which):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto({"results": file, "study": study_file}[which].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".narrow").is_visible() == (width == 360)
    assert page.locator(".wide").is_visible() == (width != 360)


def test_tables_behind_figures_and_of_all_metrics_are_seen_whole(page, study_file):
    page.goto(study_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    tables = page.locator("figure .scroll")
    assert tables.count() > 3
    assert tables.evaluate_all("all => all.every(each => each.scrollWidth <= each.clientWidth)")
    rights = """row => [...row.cells].map(cell => cell.getBoundingClientRect().right)"""
    lines = page.locator("#all-metrics tr:not(.group)")
    assert len({tuple(lines.nth(place).evaluate(rights)) for place in range(lines.count())}) == 1


def test_the_keyboard_reaches_everything_and_focus_is_seen(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        style = page.evaluate("""() => {
            const at = document.activeElement;
            const seen = at.matches('.scheme input') ? at.nextElementSibling : at;
            const style = getComputedStyle(seen);
            return [at.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
        }""")
        if style[0] != "BODY":
            reached.append(style[0])
            assert style[1] != "none", style
            assert style[2] >= 1, style
    assert {"A", "BUTTON", "SUMMARY", "DIV"} <= {*reached}


def test_scripts_are_needed_for_sorting_and_filtering_only(browser, file):
    page = browser.new_page(java_script_enabled=False)
    page.goto(file.as_uri())
    assert page.locator("#filter").is_hidden()
    assert page.locator("tr.headers button").count() == 0
    assert page.locator("table.main tbody tr[data-row]").count() == 5
    page.locator("summary", has_text="All metrics").click()
    assert page.get_by_role("table", name="All metrics of all models").is_visible()
    page.locator("label", has_text="dark").click()
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(21, 23, 26)"
    page.close()


def test_a_link_into_a_folded_section_opens_it_and_print_opens_the_notes(page):
    assert not page.locator("#all-metrics table").is_visible()
    page.locator("nav a[href='#all-metrics']").click()
    page.locator("#all-metrics table").wait_for(state="visible")
    folded = page.locator("details:not([open])").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#results details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded


def test_print_shows_the_table_and_its_notes_in_black_on_white(page):
    page.set_viewport_size({"width": 360, "height": 800})
    page.evaluate("document.querySelector('#all-metrics').open = false")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(255, 255, 255)"
    shown = {place: page.locator(place).is_visible() for place in ("nav", "#filter", ".wide", ".narrow")}
    assert shown == {"nav": False, "#filter": False, ".wide": True, ".narrow": False}
    assert page.locator("#results .notes").is_visible()
    assert not page.locator("#all-metrics").is_visible()
    page.evaluate("document.querySelector('.wide').classList.add('vast')")  # wider than any paper
    assert [page.locator(place).is_visible() for place in (".wide", ".narrow")] == [False, True]


@pytest.mark.parametrize(
    ("which", "scheme", "width"),
    [
        ("results", "light", 1440),
        ("study", "dark", 360),
        ("leaderboard", "dark", 1440),
        pytest.param("study", "dark", 1440, marks=pytest.mark.slow),
        pytest.param("results", "light", 360, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_violation(page, file, study_file, leaderboard, which, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto({"results": file, "study": study_file, "leaderboard": leaderboard}[which].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    if which == "leaderboard":  # and of the items behind a number
        page.locator("table.main .value button").first.click()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = axe.run(page, options={"runOnly": {"type": "tag", "values": tags}})
    passed = {rule["id"] for rule in found.response["passes"]}
    assert {"color-contrast", "scrollable-region-focusable", "heading-order"} <= passed
    assert found.violations_count == 0, found.generate_report()
