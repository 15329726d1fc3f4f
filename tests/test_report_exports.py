"""What a report is exported as: LaTeX that compiles, JSON by its schema, figures that stand alone, chosen parts."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_material import edit, items_table, put_failure, put_result, put_results, rendered

from benchmarks.report import latex
from benchmarks.report.latex import latex_text
from benchmarks.report.latex_style import LatexStyle
from benchmarks.report.report import Report, build_report
from benchmarks.report.row_selection import Selection
from benchmarks.study.display import Display
from clips.errors import UserError

NASTY = r"a&b % $c$ #d _e_ {f} ~g ^h \input{/etc/passwd} <i> |j| ünïß Łódź α→β −3 Привет 中文 😀" + "\x1b[31m\u202e\x07"
TEX = shutil.which("pdflatex") and shutil.which("kpsewhich")


@pytest.fixture
def nasty(tmp_path: Path) -> Report:
    """A report whose names, title and reasons are as bad as they come, with a gap and a large negative number."""
    put_results(tmp_path)
    put_failure(tmp_path, "clip", "pope", NASTY)
    for row in ("untrained", "clips", "clip"):
        edit(tmp_path / row / "gqa.json", "exact_match", scale=99.0)
    unlike = {"value": -12.345, "ci_low": -13.0, "ci_high": 5.0, "label": NASTY, "aggregation": None, "columns": []}
    edit(tmp_path / "clip/gqa.json", "exact_match", **unlike)  # its items would tell otherwise
    built = build_report(tmp_path, baseline="untrained", display=Display(models={"clips": NASTY}))
    return dataclasses.replace(built, answer=NASTY, source=dataclasses.replace(built.source, title=NASTY))


@pytest.mark.skipif(not TEX, reason="needs pdflatex")
def test_the_latex_table_compiles(nasty: Report, tmp_path: Path) -> None:
    if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        pytest.skip("needs booktabs")
    said = compiled(rendered(nasty, "latex"), tmp_path)
    assert "undefined" not in said.casefold()


def many_columns(tmp_path: Path, count: int) -> Report:
    """Three models on benchmarks with long names; the second is not significantly below the third."""
    for number in range(count):
        for row, skill in {"low": 0.1, "same": 0.6, "top": 0.61}.items():
            name = f"a_benchmark_{number}"
            put_result(tmp_path, row, name, items_table(skill, benchmark=name, seed=number))
    return build_report(tmp_path)


def styled(report: Report, **style: Any) -> str:
    return latex.render_latex(dataclasses.replace(report, latex=LatexStyle(**style)))


@pytest.mark.skipif(not TEX, reason="needs pdflatex")
@pytest.mark.parametrize("count", [2, 4, 14])
def test_no_table_is_wider_than_its_float(count: int, tmp_path: Path) -> None:
    if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        pytest.skip("needs booktabs")
    report = many_columns(tmp_path, count)
    for intervals in ("auto", "inline", "separate", "none"):
        assert "Overfull" not in compiled(styled(report, intervals=intervals), tmp_path, "twocolumn")


def test_a_wide_table_spans_both_columns_then_drops_its_intervals_then_is_divided(tmp_path: Path) -> None:
    texts = {count: styled(many_columns(tmp_path / str(count), count)) for count in (1, 4, 14)}
    assert texts[1].count(r"\begin{table") == texts[1].count(r"\begin{table}") == 1
    assert texts[4].count(r"\begin{table") == texts[4].count(r"\begin{table*}") == 1
    assert texts[4].count(r"\pm") == 3 * 4
    assert texts[14].count(r"\begin{table") == 6  # three parts of values, three of intervals
    assert r"\pm" not in texts[14]
    assert "part 2 of 3" in texts[14]
    for text in texts.values():
        assert r"\resizebox" not in text
        assert r"\tiny" not in text
        assert "^{+" not in text  # superscripts would be below 7 pt
    assert r"\label{tab:4-intervals}" in styled(many_columns(tmp_path / "4", 4), intervals="separate")


def test_marks_by_rank_are_those_of_the_field(tmp_path: Path) -> None:
    report = many_columns(tmp_path, 2)
    text = styled(report, marks="ranks", intervals="none")
    marks = {1: r"\textbf{%s}", 2: r"\underline{%s}$^{\circ}$", 3: "%s"}
    for row in ("low", "same", "top"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"{row} & "))
        expected = []
        for column in report.table.columns:
            values = [cell.value or 0 for cell in column.cells]
            own = next(cell.value or 0 for cell in column.cells if cell.row == row)
            expected.append(marks[1 + sum(value > own for value in values)] % f"{own:.1f}")
        assert [each.strip() for each in line.split("&")][1:3] == expected
    assert "Bold: best; underlined: second best" in text
    assert report.overall[0].ranks["low"].value == 3
    assert "mean rank" in text


def compiled(table: str, folder: Path, options: str = "") -> str:
    """What pdflatex says of an article with ``table`` in it."""
    (folder / "table.tex").write_text(table, encoding="utf-8")
    begin = rf"\documentclass[{options}]{{article}}\usepackage[margin=0.75in]{{geometry}}\usepackage{{booktabs}}"
    document = begin + r"\begin{document}\input{table}\end{document}"
    (folder / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


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


def test_nothing_in_the_latex_table_is_a_command_of_others(nasty: Report) -> None:
    text = rendered(nasty, "latex")
    assert "\\input" not in "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert r"$-$1\,222.2" in text
    lines = [line for line in rendered(nasty, "markdown").splitlines() if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in lines}) == 1
    assert "<i>" not in "".join(lines)


def test_benchmarks_stand_above_their_metrics(tmp_path: Path) -> None:
    put_results(tmp_path)
    lines = rendered(build_report(tmp_path), "latex").splitlines()
    top = lines.index("\\toprule")
    assert lines[top + 1 : top + 4] == [
        r" & gqa & pope & \multicolumn{2}{c}{retrieval} & \multicolumn{2}{c}{all} \\",
        r"\cmidrule(lr){2-2} \cmidrule(lr){3-3} \cmidrule(lr){4-5} \cmidrule(lr){6-7}",
        r" & exact match & accuracy & T$\rightarrow$I R@1 & T$\rightarrow$I R@5 & average, LLaVA & mean rank, LLaVA \\",
    ]


def test_the_tidy_table_has_a_line_for_each_model_and_metric(nasty: Report) -> None:
    frame = pd.read_csv(io.StringIO(rendered(nasty, "csv")))
    assert len({*frame}) == 31
    assert len(frame) == 12
    assert set(frame["value"].isna() == frame["missing"].notna()) == {True}
    assert frame["missing"].notna().sum() == 1
    assert set(frame["delta"].notna() == frame["p_adjusted"].notna()) == {True}
    assert (frame["significant"].dropna() == (frame["p_adjusted"].dropna() < 0.05)).all()


def test_the_tidy_table_states_the_size_of_a_models_input(tmp_path: Path) -> None:
    for row, resolution, tokens in (("small", 64, {"input_tokens": 16}), ("large", 96, {})):
        stated = {"input_resolution": resolution, **tokens}
        put_result(tmp_path, row, "pope", items_table(0.5, benchmark="pope"), protocol=stated)
    report = build_report(tmp_path)
    frame = pd.read_csv(io.StringIO(rendered(report, "csv"))).set_index("model")
    assert frame["resolution"].to_dict() == {"small": 64, "large": 96}
    assert frame["tokens"].dropna().to_dict() == {"small": 16}
    assert "resolution" not in rendered(report, "wide")


def deltas(report: Report) -> dict[tuple[str, str, str], float]:
    return {
        (cell.row, cell.column.benchmark, cell.column.metric): cell.delta.p_adjusted
        for cell in report.table.scores
        if cell.delta
    }


def test_columns_are_chosen_after_the_tests(tmp_path: Path) -> None:
    put_results(tmp_path)
    whole = build_report(tmp_path, baseline="clip")
    part = build_report(tmp_path, baseline="clip", selection=Selection(benchmarks=("pope:accuracy", "gqa")))
    assert [column.metric for column in part.table.columns] == ["accuracy", "exact_match"]
    assert deltas(part) == {key: p for key, p in deltas(whole).items() if key[1] != "retrieval"}
    assert part.table.comparisons == whole.table.comparisons
    assert "Omitted from this table: 2 of 4 columns. Tests are corrected for all columns" in part.notes[0]
    assert "retrieval" not in part.answer
    assert not any(remark.startswith("Left out") for remark in whole.notes)
    more = build_report(tmp_path, selection=Selection(benchmarks=("pope:Share of Yes", "pope:yes")))
    assert [column.metric for column in more.table.columns] == ["yes"]  # which the main table lacks
    assert all(cell.value is not None for cell in more.table.scores)


def test_rows_are_chosen_before_the_tests(tmp_path: Path) -> None:
    put_results(tmp_path)
    part = build_report(tmp_path, baseline="clip", selection=Selection(models=("untrained", "clip")))
    assert [row.name for row in part.table.rows] == ["untrained", "clip"]
    assert {cell.row for cell in part.table.scores if cell.mark == "best"} == {"clip"}
    assert part.table.comparisons == 4
    assert part.notes[0].startswith("Omitted from this table: 1 of 3 models.")
    alone = build_report(tmp_path, baseline="clip", selection=Selection(models=("c*s", "untrained")))
    assert [row.name for row in alone.table.rows] == ["clips", "untrained"]
    assert not deltas(alone)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(models=("clap",)), r"unknown name in 'models' 'clap'; did you mean 'clip"),
        (Selection(benchmarks=("pop",)), r"unknown name in 'benchmarks' 'pop'; did you mean 'pope'"),
        (
            Selection(benchmarks=("pope:accurate",)),
            r"of pope in 'benchmarks' 'accurate'; did you mean 'acc",
        ),
        (Selection(benchmarks=("pope:beauty",)), r"\(known: accuracy, share of yes, yes\)"),
    ],
)
def test_an_unknown_row_or_column_is_named(tmp_path: Path, selection: Selection, message: str) -> None:
    put_results(tmp_path)
    with pytest.raises(UserError, match=message):
        build_report(tmp_path, selection=selection)


COUNT = 120


def chance_report(folder: Path, skills: dict[str, float], chance: float = 0.02, yes: float | None = None) -> Report:
    """Rows of some skill on pope, and on gqa of which chance is not known."""
    ways = {"chance": chance} | ({} if yes is None else {"always yes": yes})
    blind = {way: {"hit": np.full(COUNT, value)} for way, value in ways.items()}
    for row, skill in skills.items():
        put_result(folder, row, "pope", items_table(skill, benchmark="pope", count=COUNT), blind=blind)
        put_result(folder, row, "gqa", items_table(skill, benchmark="gqa", count=COUNT))
    return build_report(folder)


def plain(built: Report, name: str) -> str:
    return re.sub(" +", " ", rendered(built, name)) if name == "markdown" else rendered(built, name)


def chance_lines(built: Report) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(plain(built, "csv"))).set_index(["model", "benchmark"])


def test_every_format_has_the_chance_level(tmp_path):
    built = chance_report(tmp_path, {"clip": 0.4, "clips": 0.7}, chance=0.5, yes=0.61)
    page = plain(built, "html")
    assert page.count('<th scope="row">chance</th>') == 2  # wide, and narrow
    assert "always yes 61.0" in page
    assert "| chance | — | 50.0 (always yes 61.0) |" in plain(built, "markdown")
    assert r"chance & {\textemdash} & \shortstack[r]{50.0\\{\scriptsize always yes 61.0}}" in rendered(built, "latex")
    lines = chance_lines(built)[["chance", "always_yes"]]
    assert lines.loc["clip", "pope"].to_dict() == {"chance": 50, "always_yes": pytest.approx(61)}
    assert lines.loc["clip", "gqa"].isna().all()


def test_chance_of_many_answers_is_not_rounded_to_nothing(tmp_path):
    assert "| chance | — | 0.02 |" in plain(chance_report(tmp_path, {"clip": 0.4}, chance=0.0002), "markdown")


@pytest.mark.parametrize("yes", [0.2, 0.1 * 3 + 1e-16])
def test_a_way_that_gives_no_more_than_guessing_is_not_shown(tmp_path, yes):
    assert "| chance | — | 30.0 |" in plain(chance_report(tmp_path, {"clip": 0.4}, chance=0.1 * 3, yes=yes), "markdown")


def test_chance_is_that_of_the_rows_that_know_it_and_of_no_other_protocol(tmp_path):
    for row, protocol, blind in (
        ("aged", {}, None),
        ("clip", {}, {"chance": {"hit": np.full(COUNT, 0.4)}}),
        ("crop", {}, {"chance": {"hit": np.full(COUNT, 0.5)}}),
        ("other", {"shots": 5}, {"chance": {"hit": np.full(COUNT, 0.3)}}),
    ):
        items = items_table(0.6, benchmark="pope", count=COUNT)
        put_result(tmp_path, row, "pope", items, protocol=protocol, blind=blind)
    built = build_report(tmp_path)
    assert chance_lines(built)["chance"].fillna(-1).tolist() == [50, 50, 50, -1]


def test_no_row_at_all_is_not_said_where_one_was_measured_otherwise(tmp_path):
    assert "No model is significantly above chance" in chance_report(tmp_path, {"a": 0.4, "b": 0.5}, chance=0.9).answer
    items = items_table(0.99, benchmark="pope", count=COUNT)
    put_result(tmp_path, "other", "pope", items, protocol={"shots": 5})
    assert "No model is significantly above chance" not in build_report(tmp_path).answer


@pytest.mark.parametrize(
    ("chance", "yes", "answer", "below"),
    [
        (0.05, None, "", None),
        (0.45, None, "", "entirely better): clip on pope accuracy."),
        (0.05, 0.45, "", "entirely better): clip on pope accuracy (always yes)."),
        (0.9, None, "No model is significantly above chance on pope accuracy.", ": clip and clips on pope accuracy."),
    ],
)
def test_models_not_above_chance_are_named(tmp_path, chance, yes, answer, below):
    built = chance_report(tmp_path, {"clip": 0.45, "clips": 0.7}, chance=chance, yes=yes)
    assert built.answer.endswith(answer or built.answer)
    assert ("chance" in built.answer) == bool(answer)
    said = [line for line in built.notes if line.startswith("Not significantly above chance")]
    assert bool(said) == (below is not None)
    assert not below or said[0].endswith(below)


def test_where_chance_is_not_known_nothing_is_said_of_it(tmp_path):
    put_result(tmp_path / "study", "clip", "gqa", items_table(0.4, benchmark="gqa"))
    built = build_report(tmp_path / "study")
    assert not any("chance" in rendered(built, name) for name in ("html", "markdown", "latex"))
    assert chance_lines(built)["chance"].isna().all()
