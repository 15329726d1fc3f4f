"""Figures: colours of the page inside it, files of their own beside it, nothing of a name that is markup."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from colours import contrast
from report_study import make_study

from benchmarks.report import drawing, inks
from benchmarks.report.curves import Curve, plot_curves
from benchmarks.report.drawing import drawn_on_sheet, inline_svg, pdf, standalone_svg
from benchmarks.report.figure import Figure, Key, Label, file_name
from benchmarks.report.formats import FORMATS
from benchmarks.report.inks import light_inks
from benchmarks.report.model import build_report
from benchmarks.report.sections import report_figures

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
    found = report_figures(report)
    assert {"curves-encoder-contrastive-loss", "curves-llava-align"} <= {*found}
    for suffix, begin in (("svg", b"<svg"), ("pdf", b"%PDF")):
        files = FORMATS[suffix].files(report)
        assert [*files] == [f"figures/{name}.{suffix}" for name in found]
        for content in files.values():
            assert (content.encode() if isinstance(content, str) else content).startswith(begin)
    figure = found["curves-llava-align"]
    assert figure.heads == ("row", "step", "first loss", "last loss", "lowest")
    assert figure.rows[0] == ("clip", "19", "5.00", "0.25", "0.25")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    style = (Path(drawing.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    colours = {name: ends[scheme] for name, *ends in pairs}
    for ground in ("paper", "sheet", "tint"):
        for text in ("ink", "ink-soft", "accent", "gain", "loss"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for place in range(inks.SERIES_COLOURS):
        assert contrast(colours[f"series-{place}"], colours["paper"]) >= 3


def _crowded() -> Figure:
    """Twelve points, most of them in a heap, and three at one place."""
    generator = np.random.default_rng(0)
    points = [*(0.01 * generator.normal(size=(8, 2)) + 0.5), *[np.full(2, 0.9)] * 3, np.zeros(2)]

    def plot(axes, inks):
        axes.plot(*zip(*points, strict=True), "o", color=inks["ink"], markersize=5)

    return Figure(
        name="crowded",
        title="crowded",
        alt="crowded",
        plot=plot,
        x_label="x",
        y_label="y",
        legend=tuple(Key(colour=place, label=f"{place + 1} a row") for place in range(12)),
        labels=tuple(Label(x=x, y=y, text=str(place + 1)) for place, (x, y) in enumerate(points)),
        heads=("row",),
        rows=(),
    )


@pytest.mark.parametrize("legend", [False, True])
def test_no_label_lies_on_another_or_on_a_point(legend):
    sheet = drawn_on_sheet(_crowded(), light_inks(), legend=legend)
    sheet.draw_without_rendering()
    (axes,) = sheet.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 12
    overlaps = [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
    points = axes.transData.transform(axes.lines[0].get_xydata())
    covered = [1 for box in boxes for point in points if box.contains(*point)]
    assert (overlaps, covered) == ([], [])
    inside = axes.get_window_extent()
    assert all(inside.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_labels_are_placed_the_same_every_time_in_every_format():
    for draw in (inline_svg, standalone_svg, pdf):
        assert draw(_crowded()) == draw(_crowded())
    assert all(f">{number}</text>" in inline_svg(_crowded()) for number in range(1, 13))
