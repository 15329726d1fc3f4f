"""The words of statistics are links to what they mean, and the page explains all that it uses."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from report_material import items_table, put_result
from report_study import make_study

from benchmarks.report.glossary import GLOSSARY, Glossary
from benchmarks.report.html_page import render_page
from benchmarks.report.report import build_report


def explained(page: str) -> set[str]:
    return {*re.findall(r'<div id="word-([\w-]+)">', page)}


def visible_text(page: str) -> str:
    """What a reader sees of a page, but for its glossary and what the study itself says."""
    body = page[page.index("<body>") : page.index('<details class="section" id="words"')]
    body = re.sub(r"<(script|style|pre|svg|dl)\b.*?</\1>", " ", body, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", body))


def test_the_first_of_each_word_is_a_link_and_all_else_is_text():
    glossary = Glossary()
    linked = str(glossary.link("<b> an interval & Spearman's ρ, an interval; chance"))
    assert linked == (
        '&lt;b&gt; an <a class="word" href="#word-interval">interval</a> &amp; '
        '<a class="word" href="#word-spearman">Spearman&#39;s ρ</a>, an interval; '
        '<a class="word" href="#word-chance">chance</a>'
    )
    assert {"interval", "spearman", "chance"} <= {word.id for word in glossary.used}
    assert "pareto" not in {word.id for word in glossary.used}


def test_measures_are_explained_where_they_head_columns_and_are_no_links():
    glossary = Glossary()
    assert "href" not in str(glossary.link("retrieval T→I R@5 and nocaps CIDEr"))
    assert [word.id for word in glossary.used] == ["recall", "cider"]


def test_a_word_that_explains_another_is_explained_too():
    glossary = Glossary()
    glossary.link("by a permutation test")
    assert {"permutation", "p"} <= {word.id for word in glossary.used}
    glossary = Glossary()
    glossary.look_up("AUC")
    assert [word.id for word in glossary.used] == ["interval", "chance", "auc"]  # chance by AUC, the interval by chance


@pytest.fixture(scope="module", params=["study", "many"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("glossary")
    if request.param == "study":
        with pytest.MonkeyPatch.context() as patch:
            return render_page(build_report(make_study(folder, patch)))
    for row, skill in {"a": 0.2, "b": 0.3, "c": 0.5, "d": 0.6, "e": 0.8}.items():
        for benchmark in ("retrieval", "gqa"):
            put_result(folder, row, benchmark, items_table(skill, benchmark=benchmark))
    return render_page(build_report(folder))


def test_all_words_of_statistics_on_a_page_are_explained_there(page):
    text = visible_text(page)
    used = {word.id for word in GLOSSARY if re.search(word.pattern, text)}
    assert {"interval", "p"} <= used
    assert used <= explained(page)
    assert {*re.findall(r'href="#word-([\w-]+)"', page)} <= explained(page)
    assert explained(page) < {word.id for word in GLOSSARY}  # and no others
