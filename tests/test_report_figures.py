"""Figures: colours of the page inside it, files of their own beside it, nothing of a name that is markup."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from colours import contrast
from report_study import make_study

from benchmarks.report import drawing
from benchmarks.report.curves import Curve, plot_curves
from benchmarks.report.drawing import inline_svg, light_inks, pdf, standalone_svg
from benchmarks.report.figure import Figure, Key, file_name
from benchmarks.report.figures import figures, report_figures
from benchmarks.report.model import build_report

CURVE = Curve(name="clip", colour=1, x=(0.0, 1.0, 2.0), y=(3.0, 2.0, 1.0))
FIGURE = Figure(
    name="curve",
    title="Loss <b>",
    alt='falls "fast" & <i>',
    plot=lambda axes, inks: plot_curves([CURVE], axes, inks),
    x_label="a <b> & $c$ \u202e",
    legend=(Key(colour=1, label="row <x>"),),
    heads=("row", "loss"),
    rows=(("clip", "1"),),
)


def test_a_figure_of_the_page_takes_its_colours_and_escapes_all_text():
    svg = inline_svg(FIGURE)
    assert svg.startswith('<svg viewBox="')
    assert 'aria-label="falls &quot;fast&quot; &amp; &lt;i&gt;"' in svg
    assert "var(--series-1)" in svg
    assert "var(--ink-soft)" in svg
    assert not re.search(r"#0a0b\w\w", svg)
    assert "a &lt;b&gt; &amp; $c$ \ufffd" in svg
    assert "http" not in svg
    assert svg == inline_svg(FIGURE)
    ElementTree.fromstring(svg)


def test_ids_are_kept_where_they_are_used_only():
    svg = inline_svg(FIGURE)
    ids = re.findall(r'\sid="([^"]+)"', svg)
    assert ids
    assert {*ids} == {*re.findall(r'(?:href="|url\()#([\w.-]+)', svg)}
    other = inline_svg(dataclasses.replace(FIGURE, name="other"))
    assert not {*ids} & {*re.findall(r'\sid="([^"]+)"', other)}


def test_a_figure_as_a_file_is_complete_in_itself():
    svg = standalone_svg(FIGURE)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [child.text for child in root[:2]] == ["Loss <b>", 'falls "fast" & <i>']
    assert "var(--" not in svg
    assert light_inks().series(1) in svg
    assert "row &lt;x&gt;" in svg  # the legend
    assert pdf(FIGURE).startswith(b"%PDF")


def test_names_of_figures_are_fit_for_files():
    assert file_name("forest", "../../etc", "a b/c|<d>") == "forest-etc-a-b-c-d"


def test_every_figure_of_the_page_can_be_had_by_name(tmp_path, monkeypatch):
    report = build_report(make_study(tmp_path, monkeypatch))
    found = figures(report)
    assert {"curves-encoder-contrastive-loss", "curves-llava-align"} <= {*found}
    for svg in found.values():
        ElementTree.fromstring(svg)
    figure = report_figures(report)["curves-llava-align"]
    assert figure.heads == ("row", "step", "first loss", "last loss", "lowest")
    assert figure.rows[0] == ("clip", "19", "5.00", "0.25", "0.25")
    with pytest.raises(KeyError):
        found["../nothing"]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    style = (Path(drawing.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    colours = {name: ends[scheme] for name, *ends in pairs}
    for ground in ("paper", "sheet", "tint"):
        for text in ("ink", "ink-soft", "accent", "gain", "loss"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for place in range(drawing.SERIES_COLOURS):
        assert contrast(colours[f"series-{place}"], colours["paper"]) >= 3
