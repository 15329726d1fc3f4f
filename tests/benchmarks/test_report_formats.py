"""The formats of a report: the same numbers in all, names escaped, LaTeX that compiles, tables that fit."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from report_material import edit, items_table, put_failure, put_hits, put_result, put_results, rendered
from report_study import record_study
from rich.console import Console
from study_material import SMALL

from benchmarks.cli import main
from benchmarks.report import measures
from benchmarks.report.formats import REPORT_FORMATS
from benchmarks.report.latex import latex_text, render_latex
from benchmarks.report.measures import Measure
from benchmarks.report.report import LatexStyle, Report, Selection, build_report
from benchmarks.report.table import Cell, Column
from benchmarks.report.text_table import print_frame, print_report
from benchmarks.results.formatting import decimals_needed, difference_ci_text, format_number
from benchmarks.results.statistics import holm_correction
from benchmarks.study.schema import parse_study
from benchmarks.study.study_record import Display
from clips.errors import UserError

NASTY = r"a&b % $c$ #d _e_ {f} ~g ^h \input{/etc/passwd} <i> |j| ünïß Łódź α→β −3 Привет 中文 😀" + "\x1b[31m\u202e\x07"
TEX = shutil.which("pdflatex") and shutil.which("kpsewhich")
MODELS = {"untrained": 0.05, "clip": 0.45, "dino": 0.5, "clips": 0.62}
NAMED = Display(
    models={"clip": "CLIP <b>L/14</b> & 100% $x_1$ | 中", "dino": "=DINO*v2*"},
    benchmarks={"pope": "POPE_adv #1 {x}", "gqa": "中文"},
    groups={"A & <i>B</i> | 100%": ("clip*",), "Self-supervised": ("dino",)},
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_results(tmp_path_factory.mktemp("formats"), MODELS)


@pytest.fixture(scope="module")
def named(results: Path) -> Report:
    return build_report(results, display=NAMED, baseline="untrained")


def frame_of(report: Report, name: str = "csv") -> pd.DataFrame:
    return pd.read_csv(io.StringIO(rendered(report, name)))


def test_all_formats_print_the_same_numbers(results):
    report = build_report(results, baseline="clip")
    texts = {name: rendered(report, name) for name in ("html", "markdown", "latex")}
    lines = frame_of(report).set_index(["model", "benchmark", "metric"])
    wide = frame_of(report, "wide").set_index("model")
    assert [*wide.index] == [row.name for row in report.table.rows]
    for cell in report.table.scores:
        line, delta, metric = lines.loc[cell.row, cell.column.benchmark, cell.column.metric], cell.delta, cell.column
        numbers = {"value": cell.value, "ci_low": cell.ci_low, "ci_high": cell.ci_high, "n": cell.n}
        if delta:
            numbers |= {"delta": delta.value, "delta_ci_low": delta.ci_low, "delta_ci_high": delta.ci_high}
            numbers |= {"p_value": delta.p_value, "p_adjusted": delta.p_adjusted}
            numbers |= {"min_detectable_difference": delta.min_detectable}
            assert line.baseline == "clip"
        assert {name: line[name] for name in numbers} == numbers
        place = f"{metric.benchmark}/{metric.metric}"
        assert {name: wide.loc[cell.row, f"{place} {name}"] for name in numbers} == numbers
        assert line.isna()["delta"] == (delta is None)
        assert line.mark == cell.mark or (pd.isna(line.mark) and not cell.mark)
        shown = format_number(cell.value, 1)
        for name, best in {"html": shown, "markdown": f"**{shown}**", "latex": rf"\textbf{{{shown}}}"}.items():
            assert (best if cell.mark == "best" else shown) in texts[name]
    assert texts["html"].count('<span class="tag">baseline</span>') == 1


def test_an_entry_of_measures_is_in_all_formats(results, monkeypatch) -> None:
    images = Measure(
        name="images",
        value=lambda cell: cell.results[0].metrics[cell.metric].clusters if cell.n else None,
        text=lambda cell: f"({cell.results[0].metrics[cell.metric].clusters} images)" if cell.n else "",
        heading="images of {cell.column.benchmark}",
    )
    monkeypatch.setattr(measures, "MEASURES", (*measures.MEASURES, images))
    report = build_report(results, baseline="clip", latex=LatexStyle(intervals="inline"))
    assert {*frame_of(report)["images"]} == {60}
    assert {*frame_of(report, "wide")["pope/accuracy images"]} == {60}
    cell = report.table.cell("clips", "pope", "accuracy")
    assert 'title="images of pope">(60 images)</span>' in rendered(report, "html")
    assert f"**{cell.number}** {cell.margin} (60 images)" in rendered(report, "markdown")
    assert r" {\scriptsize (60 images)}" in rendered(report, "latex")
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=300))
    assert f"{cell.number} {cell.margin} (60 images)" in stream.getvalue()


def test_data_keep_the_names_of_the_results(results, named) -> None:
    frame, plain = frame_of(named), frame_of(build_report(results, baseline="untrained"))
    assert [*frame["model"].unique()] == ["untrained", "clip", "clips", "dino"]
    shown = dict(zip(frame["model"], frame["model_name"], strict=True))
    assert shown["clip"] == NAMED.models["clip"]
    assert shown["dino"] == "'=DINO*v2*"  # no formula in a spreadsheet
    assert dict(zip(frame["benchmark"], frame["benchmark_name"], strict=True))["gqa"] == "中文"
    names, keys = ["model_name", "benchmark_name", "group"], ["model", "benchmark", "metric"]
    pd.testing.assert_frame_equal(
        frame.drop(columns=names).set_index(keys).sort_index(), plain.drop(columns=names).set_index(keys).sort_index()
    )
    assert [*frame_of(named, "wide").columns[:4]] == ["model", "model_name", "group", "gqa/exact_match value"]


def test_every_format_shows_the_names_escaped(named: Report) -> None:
    page, markdown, latex = (rendered(named, name) for name in ("html", "markdown", "latex"))
    assert "<b>L/14" not in page
    assert "CLIP &lt;b&gt;L/14&lt;/b&gt; &amp; 100% $x_1$ | 中</span>" in page
    assert "| CLIP &lt;b&gt;L/14&lt;/b&gt; &amp; 100% \\$x\\_1\\$ \\| 中 " in markdown
    assert "=DINO\\*v2\\*" in markdown
    name = r"CLIP \ensuremath{<}b\ensuremath{>}L/14\ensuremath{<}/b\ensuremath{>} \& 100\% \$x\_1\$ \textbar{} U+4E2D"
    assert f"{name} & " in latex
    assert r"POPE\_adv \#1 \{x\} & " in latex
    assert not any("pope accuracy" in text for text in (page, markdown, latex))
    assert "CLIP <b>L/14</b> & 100% $x_1$ | 中 beats untrained" in " ".join(named.sentences)
    assert {"figures/forest-gqa-exact-match.svg", "figures/forest-pope-accuracy.svg"} <= {*REPORT_FORMATS["svg"](named)}


def test_groups_have_headings_and_marks_over_the_whole_table(results, named) -> None:
    plain = build_report(results, baseline="untrained")
    marks = {(cell.row, cell.column.key, cell.column.metric): cell.mark for cell in plain.table.scores}
    own = {(named.source.model_id(each.row), each.column.key, each.column.metric): each for each in named.table.scores}
    assert {place: cell.mark for place, cell in own.items()} == marks
    lines = rendered(named, "latex").splitlines()
    heading = r"A \& \ensuremath{<}i\ensuremath{>}B\ensuremath{<}/i\ensuremath{>} \textbar{} 100\%"
    start = lines.index(rf"\multicolumn{{7}}{{l}}{{\textit{{{heading}}}}} \\")
    assert [line.split(" ")[0] for line in lines[start - 2 : start + 5]] == [
        "untrained", r"\midrule", lines[start].split(" ")[0], "CLIP", "clips", r"\midrule",
        r"\multicolumn{7}{l}{\textit{Self-supervised}}",
    ]  # fmt: skip
    lines = [line for line in rendered(named, "markdown").splitlines() if line.startswith("| ")]
    starts = ("", "untrained ", r"**A &amp; &lt;i&gt;B&lt;/i&gt; \| 100%** ", "CLIP ", "clips ", "**Self-supervised** ")
    assert all(line.startswith(f"| {start}") for line, start in zip(lines, starts, strict=False))
    page = rendered(named, "html")
    assert page.count('<tr class="heading"><th scope="rowgroup" colspan="6">Self-supervised</th></tr>') == 1
    assert page.count('<tr class="heading"><th scope="rowgroup" colspan="4">Self-supervised</th></tr>') == 4
    selection = Selection(models=("dino", "clips"), benchmarks=("pope",))
    selected = build_report(results, display=NAMED, selection=selection)
    assert [row.group for row in selected.table.rows] == ["A & <i>B</i> | 100%", "Self-supervised"]
    assert [column.benchmark for column in selected.table.columns] == ["POPE_adv #1 {x}"]


def test_all_pairs_are_tested_in_the_family_of_the_table(results, named) -> None:
    built = build_report(results, pairs="all", display=NAMED)
    frame = frame_of(built, "pairs")
    assert len(frame) == 6 * 4
    assert set(frame["num_tests"]) == {24}
    assert holm_correction([*frame["p_value"]]) == pytest.approx([*frame["p_adjusted"]])
    assert (frame["significant"] == (frame["p_adjusted"] < 0.05)).all()
    assert (frame["difference"] >= 0).all()
    assert frame["ci_low"].le(frame["difference"]).all()
    values = frame_of(built).set_index(["model", "benchmark", "metric"])["value"]
    for line in frame.itertuples():
        gap = values[line.model, line.benchmark, line.metric] - values[line.other, line.benchmark, line.metric]
        assert line.difference == pytest.approx(gap)
    assert "all 24 tests (every pair of models) Holm-corrected together" in rendered(built, "markdown")
    assert rendered(named, "pairs") == ""  # without the option


def test_the_tidy_table_states_the_size_of_a_models_input(tmp_path: Path) -> None:
    for row, resolution, tokens in (("small", 64, {"input_tokens": 16}), ("large", 96, {})):
        stated = {"input_resolution": resolution, **tokens}
        put_result(tmp_path, row, "pope", items_table(0.5, benchmark="pope"), protocol=stated)
    report = build_report(tmp_path)
    frame = frame_of(report).set_index("model")
    assert frame["resolution"].to_dict() == {"small": 64, "large": 96}
    assert frame["tokens"].dropna().to_dict() == {"small": 16}
    assert "resolution" not in rendered(report, "wide")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report whose names, title and reasons are as bad as they come, with a gap and a large negative number."""
    folder = put_results(tmp_path_factory.mktemp("nasty"))
    put_failure(folder, "clip", "pope", NASTY)
    for row in ("untrained", "clips", "clip"):
        edit(folder / row / "gqa.json", "exact_match", scale=99.0)
    unlike = {"value": -12.345, "ci_low": -13.0, "ci_high": 5.0, "label": NASTY, "aggregation": None, "columns": []}
    edit(folder / "clip/gqa.json", "exact_match", **unlike)  # its items would tell otherwise
    built = build_report(folder, baseline="untrained", display=Display(models={"clips": NASTY}))
    return dataclasses.replace(built, answer=NASTY, source=dataclasses.replace(built.source, title=NASTY))


def test_nothing_in_a_table_is_a_command_or_formula_of_others(nasty: Report, tmp_path: Path) -> None:
    text = rendered(nasty, "latex")
    assert "\\input" not in "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert r"$-$1\,222.2" in text
    lines = [line for line in rendered(nasty, "markdown").splitlines() if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in lines}) == 1
    assert "<i>" not in "".join(lines)
    frame = frame_of(nasty)
    assert len(frame) == 12
    assert set(frame["value"].isna() == frame["missing"].notna()) == {True}
    assert frame["missing"].notna().sum() == 1
    assert (frame["significant"].dropna() == (frame["p_adjusted"].dropna() < 0.05)).all()
    put_result(tmp_path, "=cmd()", "gqa", items_table(0.5, benchmark="gqa"))
    formula = build_report(tmp_path)
    assert '\n"\'=cmd()",' in rendered(formula, "csv")
    assert '\n"\'=cmd()",' in rendered(formula, "wide")


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"a&b_c#d%e$f{g}", r"a\&b\_c\#d\%e\$f\{g\}"),
        (r"x\y~z^", r"x{\textbackslash}y{\textasciitilde}z{\textasciicircum}"),
        ("T→I ↓ −3|4", r"T$\rightarrow$I $\downarrow$ $-$3\textbar{}4"),
        ("1\u202f234", r"1\,234"),
        ("é\nα", r"\'e \ensuremath{\alpha}"),
        ("中Я", "U+4E2DU+042F"),
        ("\x1b[1m", "?[1m"),
    ],
)
def test_text_is_what_latex_prints(text: str, latex: str) -> None:
    assert latex_text(text) == latex


def compiled(table: str, folder: Path, options: str = "", geometry: str = "margin=0.75in") -> str:
    """What pdflatex says of an article with ``table`` in it."""
    if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        pytest.skip("needs booktabs")
    (folder / "table.tex").write_text(table, encoding="utf-8")
    begin = rf"\documentclass[{options}]{{article}}\usepackage[{geometry}]{{geometry}}\usepackage{{booktabs,graphicx}}"
    document = begin + r"\begin{document}\input{table}\end{document}"
    (folder / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def many_columns(tmp_path: Path, count: int) -> Report:
    """Three models on benchmarks with long names; the second is not significantly below the third."""
    for number in range(count):
        for row, skill in {"low": 0.1, "same": 0.6, "top": 0.61}.items():
            name = f"a_benchmark_{number}"
            put_result(tmp_path, row, name, items_table(skill, benchmark=name, seed=number))
    return build_report(tmp_path)


def styled(report: Report, **style: Any) -> str:
    return render_latex(dataclasses.replace(report, latex=LatexStyle(**style)))


@pytest.mark.skipif(not TEX, reason="needs pdflatex")
@pytest.mark.parametrize("count", [2, 4, 14])
def test_a_latex_table_compiles_and_is_not_wider_than_its_float(count: int, nasty: Report, tmp_path: Path) -> None:
    report = many_columns(tmp_path, count)
    for intervals in ("inline", "none"):
        wide = styled(report, intervals=intervals)
        assert "Overfull" not in compiled(wide, tmp_path, "twocolumn")
        assert "Overfull" not in compiled(wide, tmp_path, geometry="textwidth=345pt")  # it shrinks
    assert "undefined" not in compiled(rendered(nasty, "latex"), tmp_path).casefold()


def test_a_table_of_any_width_is_one_float(tmp_path: Path) -> None:
    for count in (1, 14):
        text = styled(many_columns(tmp_path / str(count), count))
        assert text.count(r"\begin{table") == text.count(r"\begin{table*}") == 1
        assert text.count(r"\pm") == 3 * count
        assert "^{+" not in text


def test_a_latex_table_has_no_average_over_columns_that_it_omits(tmp_path: Path) -> None:
    names = [column.benchmark for column in many_columns(tmp_path, 3).table.columns]
    some, every = (
        render_latex(build_report(tmp_path, selection=Selection(benchmarks=tuple(shown))))
        for shown in (names[:2], names)
    )
    assert "average" in every
    assert "mean rank" in every
    assert "& average" not in some
    assert "mean rank" not in some


def test_a_caption_names_the_table_and_a_comment_its_result(results: Path) -> None:
    report = build_report(results)
    text = rendered(report, "latex")
    (caption,) = re.findall(r"\\caption\{(.*)\}", text)
    assert caption.startswith(f"{report.source.title}. Best (bold): ")
    assert caption.endswith(". With 95 \\% intervals over images.")
    assert "average" not in caption
    assert f"\n% {report.verdict} {report.answer}\n" in text
    assert "% Best (bold)" not in text  # which is not what bold means with marks of ranks
    assert text.startswith(r"% Needs \usepackage{booktabs,graphicx},")


def test_a_caption_explains_the_signs_of_its_table(results: Path, tmp_path: Path) -> None:
    assert "ranked apart" not in rendered(build_report(results), "latex")
    put_results(tmp_path)
    put_result(tmp_path, "odd", "gqa", items_table(0.5, benchmark="gqa", seed=2), protocol={"prompt": "other"})
    text = rendered(build_report(tmp_path), "latex")
    (caption,) = re.findall(r"\\caption\{(.*)\}", text)
    sign = caption[: caption.index(": under other settings than the column's, and ranked apart.")].rsplit(" ", 1)[1]
    (row,) = (line for line in text.splitlines() if line.startswith("odd & "))
    assert sign
    assert sign in row


def test_marks_by_rank_are_those_of_the_field(tmp_path: Path) -> None:
    report = many_columns(tmp_path, 2)
    text = styled(report, marks="ranks", intervals="none")
    marks = {1: r"\textbf{%s}", 2: r"\underline{%s}$^{\approx}$", 3: "%s"}
    for place, row in enumerate(row.name for row in report.table.rows):
        (line,) = (line for line in text.splitlines() if line.startswith(f"{row} & "))
        expected = []
        for column in report.table.columns:
            own = report.table.cells(column)[place].value
            rank = 1 + sum(cell.value > own for cell in report.table.cells(column))
            expected.append(marks[rank] % f"{own:.1f}")
        assert [each.strip() for each in line.split("&")][1:3] == expected
    assert "Bold: best; underlined: second best" in text
    assert report.overall[0].ranks["low"].value == 3
    assert "mean rank" in text


def test_benchmarks_stand_above_their_metrics(results: Path) -> None:
    lines = rendered(build_report(results), "latex").splitlines()
    top = lines.index("\\toprule")
    assert lines[top + 1 : top + 4] == [
        r" & gqa & pope & \multicolumn{2}{c}{retrieval} & \multicolumn{2}{c}{all, LLaVA} \\",
        r"\cmidrule(lr){2-2} \cmidrule(lr){3-3} \cmidrule(lr){4-5} \cmidrule(lr){6-7}",
        r" & exact match & accuracy & T$\rightarrow$I R@1 & T$\rightarrow$I R@5 & average & mean rank \\",
    ]


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_a_table_too_wide_for_the_terminal_names_what_it_leaves_out(tmp_path, width):
    put_results(tmp_path)
    for benchmark in ("pope", "vizwiz", "a_name_as_long_as_this_one_is_for_a_terminal"):
        put_result(tmp_path, "only_gqas_kind", benchmark, items_table(0.4, benchmark="gqa"))
    report = build_report(tmp_path, display=Display(groups={"A group": ["clip*"]}))
    written = io.StringIO()
    print_report(report, Console(file=written, width=width, highlight=False))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("┏") for line in lines) == 1
    end = next(place for place, line in enumerate(lines) if line.startswith("└"))
    table = "".join(re.sub(r"[^\w.]", "", line) for line in lines[:end])  # of names that wrap, too
    (left_out,) = re.findall(r"No room for (.*?); other formats", " ".join(" ".join(lines[end:]).split())) or [""]
    for row in report.table.rows:  # no number is lost without a word
        numbers = [cell.number for cell in report.table.scores if cell.row == row.name and cell.value is not None]
        named = row.name in left_out or "more columns" in left_out
        assert all(number in table for number in numbers) or named, row.name
    assert bool(left_out) == (width <= 80)


@pytest.mark.parametrize("width", [80, 81, 100, 119, 120])
@pytest.mark.parametrize("benchmarks", [3, 4, 7, 10])
def test_each_model_and_each_number_is_on_one_line_of_the_terminal(width, benchmarks):
    names = ("scienceqa", "mme", "textvqa", "ai2d", "pope", "a_long_name", "gqa", "vizwiz", "b", "seedbench")
    models = ("untrained", "clip_long", "clips", "efficientnet")
    frame = pd.DataFrame(
        [[f"{model}{place} ±10.2" for place in range(benchmarks)] for model in range(10, 14)],
        index=models,
        columns=[f"{name} exact match" for name in names[:benchmarks]],
    )
    for transposable in (True, False):
        written = io.StringIO()
        print_frame(frame, Console(file=written, width=width), transposable=transposable)
        lines = written.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        shown = [cell for cell in frame.to_numpy().ravel() if any(str(cell) in line for line in lines)]
        assert all(sum(str(cell) in line for line in lines) == 1 for cell in shown)
        left_out = " ".join(lines).partition("No room for ")[2].partition(";")[0]
        assert len(shown) == frame.size or left_out


def test_the_terminal_says_why_no_model_was_tested(tmp_path):
    put_result(tmp_path, "one", "gqa", items_table(0.4, benchmark="gqa"))
    put_result(tmp_path, "two", "gqa", items_table(0.5, benchmark="gqa"), protocol={"prompt": "another"})
    written = io.StringIO()
    print_report(build_report(tmp_path), Console(file=written, width=300))
    assert "No two models could be tested" in written.getvalue()
    assert 'its settings against theirs: prompt: "another"' in written.getvalue()


def test_a_study_ends_with_what_was_won_and_the_caveats(tmp_path):
    for row, right in (("one", 40), ("two", 100)):
        put_hits(tmp_path, row, "gqa", right)
    put_hits(tmp_path, "three", "gqa", 50, items="other ")
    report, written = build_report(tmp_path, baseline="one"), io.StringIO()
    print_report(report, Console(file=written, width=1000), brief=True)
    won, caveats = written.getvalue().splitlines()
    assert won.startswith("two against one: 1 won, 0 tied, 0 lost. two beats one by ")
    contradiction = "Numbers contradict the answers that they are from: 1 case."
    assert caveats == f"Caveats: {contradiction} 1 number is for other items than the rest, and not tested against it."


def test_a_long_name_alone_leaves_nothing_out(capsys):
    for columns in ({"value": ["1.0"]}, {}):
        print_frame(pd.DataFrame(columns, index=["a-name-of-" + "many-" * 12 + "words"]), Console(width=80))
        assert "No room" not in capsys.readouterr().out


def test_a_remark_has_the_room_that_numbers_leave():
    remark = "no test: the models do not have scores for the same items"
    frame = pd.DataFrame([["65.0", remark]], index=["gqa exact match"], columns=["A", "verdict"])
    for width, lines in ((100, 1), (60, 2)):
        written = io.StringIO()
        print_frame(frame, Console(file=written, width=width))
        assert sum(line.startswith("│") for line in written.getvalue().splitlines()) == lines


def test_numbers_and_intervals_read_well():
    for value, places, sign, text in [
        (12.345, 1, False, "12.3"), (-0.04, 1, True, "±0.0"), (-2.5, 1, True, "−2.5"),
        (1234.5, 1, False, "1\u202f234.5"), (None, 1, False, "—"),
    ]:  # fmt: skip
        assert format_number(value, places, sign=sign) == text
    for largest, scale, places in [(1.0, 100.0, 1), (0.9, 100.0, 2), (10.0, 1.0, 1), (9.0, 1.0, 2)]:
        column = Column(benchmark="b", metric="m", label="x", scale=scale, higher_is_better=True, largest=largest)
        assert column.places == places
    column = Column(benchmark="b", metric="m", label="x", scale=100.0, higher_is_better=True, largest=50.0)
    for value, low, high, text in [
        (50, 48, 52.4, "±2.2"), (0, 0, 8, "+8.0/−0.0"), (3.4, 0.5, 11, "+7.6/−2.9"), (5, None, None, ""),
    ]:  # fmt: skip
        assert Cell(row="r", column=column, value=value, ci_low=low, ci_high=high).margin == text
    # small values get the decimals that they need, rounding errors none
    assert difference_ci_text(-0.04, 0.03, 1) == "−0.04 to +0.03"
    needed = {0.0: 1, 12.3: 1, 0.004: 3, -3e-9: 9, 4e-14: 1, None: 1}
    assert {value: decimals_needed(value, 1) for value in needed} == needed


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
    frame = frame_of(built)
    assert {*frame["model"]} == {"clip + tiny", "clip + large", "clips + tiny", "clips + large"}
    assert {*frame["baseline"].dropna()} == {"clip + tiny", "clip + large"}
    assert {*frame_of(built, "seeds")["model"]} == {*frame["model"]}
    over = build_report(tmp_path / "out", display=Display(models={"clip": "OpenAI"}))
    assert [row.name for row in over.table.rows][2:] == ["OpenAI + tiny", "OpenAI + large"]


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
def test_a_wrong_name_is_one_line_and_status_2(results, display, message, tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "report.yaml"
    file.write_text(yaml.safe_dump({"inputs": [str(results)], "output": str(tmp_path / "out"), "display": display}))
    monkeypatch.setattr(sys, "argv", ["clips-bench", "report", "--config", str(file)])
    assert main() == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("display", [{"models": {"clop": "x"}}, {"models": {"net": "clip"}}, {"groups": {"A": ["x*"]}}])
def test_a_study_file_with_a_wrong_name_is_rejected(display: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"display\."):
        parse_study({**SMALL, "display": display})
