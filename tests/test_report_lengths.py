"""The report's curve of recall against the length of captions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bench_reader import evaluate, write_pictures

from benchmarks.report.caption_length_figures import length_curves, length_figures
from benchmarks.report.html_page import render_page
from benchmarks.report.report import build_report
from benchmarks.tasks.encoders.long_retrieval import metric_suffix
from benchmarks.tasks.run_config import BenchmarkConfig

PICTURES = 4


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows that read 10 words and all of them, of captions that tell their picture by the 3rd, 6th, 12th, 24th word."""
    write_pictures(tmp_path / "images", PICTURES)
    captions = [" ".join([*["word"] * (place - 1), f"thing{n}", "end"]) for n, place in enumerate((3, 6, 12, 24))]
    rows = [{"image": f"images/{number}.png", "caption": text} for number, text in enumerate(captions)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row, context, words in (("short", 10, (4, 8, 16)), ("whole", 100, (4, 8, 16)), ("other", 100, (8,))):
        data = str(tmp_path / "long.jsonl")
        config = BenchmarkConfig(name="docci", task="long_retrieval", data=data, word_limits=words)
        evaluate(monkeypatch, tmp_path, config, pictures=PICTURES, context=context, row=row)
    return tmp_path / "results"


def test_a_curve_for_each_row_and_direction(results):
    report = build_report(results)
    drawn = length_figures(report)
    assert [figure.title for figure in drawn.figures] == ["docci: T→I R@1", "docci: I→T R@1"]
    assert drawn.figures[0].heads == ("words", "4", "8", "16", "whole", "cut off")
    labels = ("4", "8", "16", "whole")
    metrics = {label: "t2i_r1" if label == "whole" else f"t2i_r1{metric_suffix(int(label))}" for label in labels}
    curves = {curve.name: curve for curve in length_curves(report.details, "docci", metrics)}
    values = {name: {label: cell.value for label, cell in curve.points.items()} for name, curve in curves.items()}
    found = [100 * share for share in ((1 + 3 / 4) / 4, (2 + 2 / 4) / 4, (3 + 1 / 4) / 4, 1)]
    assert values["whole"] == pytest.approx(dict(zip(labels, found, strict=True)))
    assert values["short"] == pytest.approx(dict(zip(labels, [*found[:2], found[1], found[1]], strict=True)))
    assert list(values["other"]) == ["8", "whole"]
    assert (curves["short"].cut_off.value, curves["whole"].cut_off.value) == (50, 0)
    assert {name for name, curve in curves.items() if curve.protocol_differences} == {"other"}  # two are alike


def test_the_page_has_the_figure_and_its_numbers(results):
    page = render_page(build_report(results))
    section = page[page.index('<section id="lengths"') :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 2
    assert "short: 50 % cut off" in section
    rows = re.findall(r"<tr>.*?</tr>", section, re.DOTALL)
    (whole,) = [row for row in rows[: len(rows) // 2] if '<th scope="row">whole' in row]
    numbers = re.findall(r"<td>([\d.]+)", whole)
    assert numbers == ["43.8", "62.5", "81.2", "100.0", "0"]
