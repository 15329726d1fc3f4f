"""Figures: colors of the page, files next to it, names escaped."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from colors import contrast
from report_study import make_study

from benchmarks.report import figures
from benchmarks.report.figures import Figure, LegendEntry, light_palette, render_inline_svg, render_pdf, render_svg
from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.page import report_figures
from benchmarks.report.report import build_report

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


def test_a_figure_as_a_file_is_complete_in_itself():
    svg = render_svg(FIGURE)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [child.text for child in root[:2]] == ["Loss <b>", 'falls "fast" & <i>']
    assert "var(--" not in svg
    assert light_palette().series(1) in svg
    assert "row &lt;x&gt;" in svg  # the legend
    assert render_pdf(FIGURE).startswith(b"%PDF")


def test_every_figure_of_the_page_can_be_had_by_name(tmp_path, monkeypatch):
    report = build_report(make_study(tmp_path, monkeypatch))
    found = report_figures(report)
    assert "forest-pope-accuracy" in found
    for suffix, begin in (("svg", b"<svg"), ("pdf", b"%PDF")):
        files = REPORT_FORMATS[suffix](report)
        assert [*files] == [f"figures/{name}.{suffix}" for name in found]
        for content in files.values():
            assert (content.encode() if isinstance(content, str) else content).startswith(begin)


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
