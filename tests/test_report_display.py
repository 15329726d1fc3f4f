"""Display names and groups of models, and the differences of all pairs, in every format of a report."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from report_material import items_table, put_result, put_results
from report_study import record_study
from study_material import SMALL

from benchmarks.cli import main
from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.report import Report, build_report
from benchmarks.report.row_selection import Selection
from benchmarks.results.statistics import holm_correction
from benchmarks.study.display import Display
from benchmarks.study.schema import parse_study
from clips.errors import UserError

MODELS = {"untrained": 0.05, "clip": 0.45, "dino": 0.5, "clips": 0.62}
NAMED = Display(
    models={"clip": "CLIP <b>L/14</b> & 100% $x_1$ | 中", "dino": "=DINO*v2*"},
    benchmarks={"pope": "POPE_adv #1 {x}", "gqa": "中文"},
    groups={"A & <i>B</i> | 100%": ("clip*",), "Self-supervised": ("dino",)},
)


def report(folder: Path, **settings: Any) -> Report:
    return build_report(put_results(folder, MODELS), **settings)


def render(built: Report, name: str) -> str:
    return str(next(iter(REPORT_FORMATS[name](built).values())))


def test_every_format_shows_the_names_escaped(tmp_path: Path) -> None:
    built = report(tmp_path, display=NAMED, baseline="untrained")
    page, markdown, latex = (render(built, name) for name in ("html", "markdown", "latex"))
    assert "<b>L/14" not in page
    assert "CLIP &lt;b&gt;L/14&lt;/b&gt; &amp; 100% $x_1$ | 中</span>" in page
    assert "| CLIP &lt;b&gt;L/14&lt;/b&gt; &amp; 100% \\$x\\_1\\$ \\| 中 " in markdown
    assert "=DINO\\*v2\\*" in markdown
    assert (
        r"CLIP \ensuremath{<}b\ensuremath{>}L/14\ensuremath{<}/b\ensuremath{>} \& 100\% \$x\_1\$ \textbar{} U+4E2D & "
        in latex
    )
    assert r"POPE\_adv \#1 \{x\} & " in latex
    for text in (page, markdown, latex):
        assert "pope accuracy" not in text
    assert "CLIP <b>L/14</b> & 100% $x_1$ | 中 beats untrained" in " ".join(built.sentences)
    figures = REPORT_FORMATS["svg"](built)
    assert "figures/forest-gqa-exact-match.svg" in figures
    assert "figures/forest-pope-accuracy.svg" in figures


def test_data_keep_the_names_of_the_results(tmp_path: Path) -> None:
    built = report(tmp_path, display=NAMED, baseline="dino")
    frame = pd.read_csv(io.StringIO(render(built, "csv")))
    plain = pd.read_csv(io.StringIO(render(report(tmp_path, baseline="dino"), "csv")))
    assert [*frame["model"].unique()] == ["untrained", "clip", "clips", "dino"]
    shown = dict(zip(frame["model"], frame["model_name"], strict=True))
    assert shown["clip"] == NAMED.models["clip"]
    assert shown["dino"] == "'=DINO*v2*"  # no formula in a spreadsheet
    assert dict(zip(frame["benchmark"], frame["benchmark_name"], strict=True))["gqa"] == "中文"
    assert frame["group"].isna().sum() == 4
    names = ["model_name", "benchmark_name", "group"]
    keys = ["model", "benchmark", "metric"]
    pd.testing.assert_frame_equal(
        frame.drop(columns=names).set_index(keys).sort_index(), plain.drop(columns=names).set_index(keys).sort_index()
    )
    wide = pd.read_csv(io.StringIO(render(built, "wide")))
    assert [*wide.columns[:4]] == ["model", "model_name", "group", "gqa/exact_match value"]
    assert [*wide["model"]] == ["untrained", "clip", "clips", "dino"]


def test_groups_have_headings_and_marks_over_the_whole_table(tmp_path: Path) -> None:
    built = report(tmp_path, display=NAMED)
    marks = {(cell.row, cell.column.benchmark, cell.column.metric): cell.mark for cell in report(tmp_path).table.scores}
    ids = {
        (built.source.model_id(cell.row), cell.column.key, cell.column.metric): cell.mark for cell in built.table.scores
    }
    assert ids == marks
    lines = render(built, "latex").splitlines()
    heading = r"A \& \ensuremath{<}i\ensuremath{>}B\ensuremath{<}/i\ensuremath{>} \textbar{} 100\%"
    start = lines.index(rf"\multicolumn{{7}}{{l}}{{\textit{{{heading}}}}} \\")
    assert lines[start - 1] == r"\midrule"
    assert [line.split(" ")[0] for line in lines[start - 2 : start + 5]] == [
        "untrained", r"\midrule", lines[start].split(" ")[0], "CLIP", "clips", r"\midrule",
        r"\multicolumn{7}{l}{\textit{Self-supervised}}",
    ]  # fmt: skip
    lines = [line for line in render(built, "markdown").splitlines() if line.startswith("| ")]
    starts = ("", "untrained ", r"**A &amp; &lt;i&gt;B&lt;/i&gt; \| 100%** ", "CLIP ", "clips ", "**Self-supervised** ")
    assert all(line.startswith(f"| {start}") for line, start in zip(lines, starts, strict=False))
    page = render(built, "html")
    assert page.count('<tr class="heading"><th scope="rowgroup" colspan="5">Self-supervised</th></tr>') == 1
    assert page.count('<tr class="heading"><th scope="rowgroup" colspan="4">Self-supervised</th></tr>') == 4
    selected = report(tmp_path, display=NAMED, selection=Selection(models=("dino", "clips"), benchmarks=("pope",)))
    assert [row.group for row in selected.table.rows] == ["A & <i>B</i> | 100%", "Self-supervised"]
    assert [column.benchmark for column in selected.table.columns] == ["POPE_adv #1 {x}"]


@pytest.mark.parametrize(
    ("display", "message"),
    [
        ({"models": {"clop": "CLIP"}}, "unknown name in 'display.models' 'clop'; did you mean 'clip"),
        ({"benchmarks": {"pop": "POPE"}}, "unknown name in 'display.benchmarks' 'pop'; did you mean 'pope'"),
        ({"groups": {"A": ["open*"]}}, "unknown name in 'display.groups' 'open*'"),
        ({"groups": {"A": ["clip"], "B": ["cl*"]}}, "display.groups: 'clip' is in 'A' and in 'B'; expected one group"),
        ({"models": {"clip": "clips"}}, "'clip' and 'clips' have the same display name 'clips'"),
        ({"benchmarks": {"gqa": "X", "pope": "X "}}, "'gqa' and 'pope' have the same display name 'X'"),
        ({"models": {"clip": " "}}, "display.models.clip: expected a text, got ' '"),
        ({"model": {}}, "unknown key 'display.model'"),
    ],
)
def test_a_wrong_name_is_one_line_and_status_2(
    display: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    put_results(tmp_path / "results", MODELS)
    file = tmp_path / "report.yaml"
    file.write_text(yaml.safe_dump({"directory": str(tmp_path / "results"), "display": display}))
    monkeypatch.setattr(sys, "argv", ["clips-bench", "report", "--config", str(file)])
    assert main() == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "results" / "report").exists()


STUDY: dict[str, Any] = {
    **SMALL,
    "seeds": [0, 1],
    "llms": {"tiny": "org/tiny", "large": "org/large"},
    "include": ["clip", "clips"],
    "display": {
        "models": {"clip": "CLIP", "clips + large": "CLIPS, large", "net": "not included"},
        "benchmarks": {"retrieval": "Flickr"},
        "groups": {"Trained": ["clips"], "Others": ["net", "clip"]},
    },
}


def test_a_study_names_encoders_or_rows_in_all_seeds(tmp_path: Path) -> None:
    record_study(yaml.safe_dump(STUDY, sort_keys=False), tmp_path / "out")
    for encoder, skill in {"clip": 0.4, "clips": 0.6}.items():
        for seed in (0, 1):
            items = items_table(skill + seed / 50, benchmark="retrieval")
            put_result(tmp_path / "out/results", f"{encoder}-s{seed}", "retrieval", items, digest=f"{encoder} {seed}")
    built = build_report(tmp_path / "out")
    assert [(row.name, row.group) for row in built.table.rows] == [
        ("clips + tiny", "Trained"), ("CLIPS, large", "Trained"), ("CLIP + tiny", "Others"), ("CLIP + large", "Others"),
    ]  # fmt: skip
    assert {row.name for row in built.source.rows if row.seed == 1} >= {"CLIPS, large (seed 1)"}
    assert built.table.columns[0].benchmark == "Flickr"
    assert {cell.delta.baseline for cell in built.table.scores if cell.delta} == {"CLIP + tiny", "CLIP + large"}
    frame = pd.read_csv(io.StringIO(render(built, "csv")))
    assert {*frame["model"]} == {"clip + tiny", "clip + large", "clips + tiny", "clips + large"}
    assert {*frame["baseline"].dropna()} == {"clip + tiny", "clip + large"}
    assert {*pd.read_csv(io.StringIO(render(built, "seeds")))["model"]} == {*frame["model"]}
    over = build_report(tmp_path / "out", display=Display(models={"clip": "OpenAI"}))
    assert [row.name for row in over.table.rows][2:] == ["OpenAI + tiny", "OpenAI + large"]


@pytest.mark.parametrize("display", [{"models": {"clop": "x"}}, {"models": {"net": "clip"}}, {"groups": {"A": ["x*"]}}])
def test_a_study_file_with_a_wrong_name_is_rejected(display: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"display\."):
        parse_study({**SMALL, "display": display})


def test_all_pairs_are_tested_in_the_family_of_the_table(tmp_path: Path) -> None:
    built = report(tmp_path, pairs="all", display=NAMED)
    frame = pd.read_csv(io.StringIO(render(built, "pairs")))
    assert len(frame) == 6 * 4
    assert set(frame["num_tests"]) == {24}
    assert holm_correction([*frame["p_value"]]) == pytest.approx([*frame["p_adjusted"]])
    assert (frame["significant"] == (frame["p_adjusted"] < 0.05)).all()
    assert (frame["difference"] >= 0).all()
    assert frame["ci_low"].le(frame["difference"]).all()
    values = {
        (built.source.model_id(cell.row), cell.column.key, cell.column.metric): cell.value
        for cell in built.table.scores
    }
    for line in frame.itertuples():
        gap = values[line.model, line.benchmark, line.metric] - values[line.other, line.benchmark, line.metric]
        assert line.difference == pytest.approx(gap)
    assert "all 24 tests (every pair of models) Holm-corrected together" in render(built, "markdown")


def test_without_the_option_only_the_baseline_is_compared(tmp_path: Path) -> None:
    built = report(tmp_path, baseline="clip")
    assert render(built, "pairs") == ""


def test_the_answer_names_the_best_average_also_with_a_baseline(tmp_path: Path) -> None:
    built = report(tmp_path, baseline="clip", display=NAMED)
    assert built.answer.startswith("clips beats CLIP")
    assert (
        "clips has the best average over 2 benchmarks of the LLaVA, 61.2 [55.1, 67.2], significantly above all others."
        in built.answer
    )
    two = report(tmp_path, baseline="clip", selection=Selection(models=("clip", "clips")))
    assert "average" not in two.answer
