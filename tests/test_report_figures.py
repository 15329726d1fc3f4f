"""Figures: colors of the page inside it, files of their own beside it, nothing of a name that is markup."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from colors import contrast
from matplotlib import figure as drawn
from report_study import make_study

from benchmarks.report import figure_export, palette
from benchmarks.report.figure import Figure, LegendEntry, PointLabel, plot_points, safe_file_name
from benchmarks.report.figure_export import draw_figure, render_inline_svg, render_pdf, render_svg
from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.learning_curves import Curve, draw_curves
from benchmarks.report.palette import light_palette
from benchmarks.report.report import build_report
from benchmarks.report.sections import report_figures
from benchmarks.report.table import Cell, Column

CURVE = Curve(name="clip", color=1, x=(0.0, 1.0, 2.0), y=(3.0, 2.0, 1.0))
FIGURE = Figure(
    name="curve",
    title="Loss <b>",
    alt='falls "fast" & <i>',
    plot=lambda axes, inks: draw_curves([CURVE], axes, inks),
    x_label="a <b> & $c$ \u202e",
    legend=(LegendEntry(color=1, label="row <x>"),),
    heads=("row", "loss"),
    rows=(("clip", "1"),),
)


def test_a_figure_of_the_page_takes_its_colors_and_escapes_all_text():
    svg = render_inline_svg(FIGURE)
    assert svg.startswith('<svg viewBox="')
    assert 'aria-label="falls &quot;fast&quot; &amp; &lt;i&gt;"' in svg
    assert "var(--series-1)" in svg
    assert "var(--ink-soft)" in svg
    assert not re.search(r"#0a0b\w\w", svg)
    assert "a &lt;b&gt; &amp; $c$ \ufffd" in svg
    assert "http" not in svg
    assert svg == render_inline_svg(FIGURE)
    ElementTree.fromstring(svg)


def test_ids_are_kept_where_they_are_used_only():
    svg = render_inline_svg(FIGURE)
    ids = re.findall(r'\sid="([^"]+)"', svg)
    assert ids
    assert {*ids} == {*re.findall(r'(?:href="|url\()#([\w.-]+)', svg)}
    other = render_inline_svg(dataclasses.replace(FIGURE, name="other"))
    assert not {*ids} & {*re.findall(r'\sid="([^"]+)"', other)}


def test_a_figure_as_a_file_is_complete_in_itself():
    svg = render_svg(FIGURE)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [child.text for child in root[:2]] == ["Loss <b>", 'falls "fast" & <i>']
    assert "var(--" not in svg
    assert light_palette().series(1) in svg
    assert "row &lt;x&gt;" in svg  # the legend
    assert render_pdf(FIGURE).startswith(b"%PDF")


def test_names_of_figures_are_fit_for_files():
    assert safe_file_name("forest", "../../etc", "a b/c|<d>") == "forest-etc-a-b-c-d"


def test_every_figure_of_the_page_can_be_had_by_name(tmp_path, monkeypatch):
    report = build_report(make_study(tmp_path, monkeypatch))
    found = report_figures(report)
    assert {"curves-encoder-contrastive-loss", "curves-llava-align"} <= {*found}
    for suffix, begin in (("svg", b"<svg"), ("pdf", b"%PDF")):
        files = REPORT_FORMATS[suffix].files(report)
        assert [*files] == [f"figures/{name}.{suffix}" for name in found]
        for content in files.values():
            assert (content.encode() if isinstance(content, str) else content).startswith(begin)
    figure = found["curves-llava-align"]
    assert figure.heads == ("row", "step", "first loss", "last loss", "lowest")
    assert figure.rows[0] == ("clip", "19", "5.00", "0.25", "0.25")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colors_have_the_contrast_of_wcag_aa(scheme):
    style = (Path(figure_export.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    colors = {name: ends[scheme] for name, *ends in pairs}
    for ground in ("paper", "sheet", "tint"):
        for text in ("ink", "ink-soft", "accent", "mutual_info", "loss"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for place in range(palette.SERIES_COLORS):
        assert contrast(colors[f"series-{place}"], colors["paper"]) >= 3


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
        legend=tuple(LegendEntry(color=place, label=f"{place + 1} a row") for place in range(12)),
        labels=tuple(PointLabel(x=x, y=y, text=str(place + 1)) for place, (x, y) in enumerate(points)),
        heads=("row",),
        rows=(),
    )


@pytest.mark.parametrize("legend", [False, True])
def test_no_label_lies_on_another_or_on_a_point(legend):
    sheet = draw_figure(_crowded(), light_palette(), legend=legend)
    sheet.draw_without_rendering()
    (axes,) = sheet.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in axes.texts if text.get_text()] == [str(number) for number in range(1, 13)]
    overlaps = [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
    points = axes.transData.transform(axes.lines[0].get_xydata())
    covered = [1 for box in boxes for point in points if box.contains(*point)]
    assert (overlaps, covered) == ([], [])
    inside = axes.get_window_extent()
    assert all(inside.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_points_have_strokes_for_their_intervals():
    column = Column(benchmark="gqa", metric="m", label="m", scale=100.0, higher_is_better=True)
    bare, whole = (Cell(row="a", column=column, value=50.0, ci_low=low, ci_high=low and 60.0) for low in (None, 40.0))
    axes = drawn.Figure().add_subplot()
    plot_points(axes, [(1.0, bare), (2.0, whole)], "black")
    (strokes,) = axes.collections
    assert [segment.tolist() for segment in strokes.get_segments()] == [[[2.0, 40.0], [2.0, 60.0]]]
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 50.0], [2.0, 50.0]]
