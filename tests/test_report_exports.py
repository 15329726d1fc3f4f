"""What a report is exported as: LaTeX that compiles, JSON by its schema, figures that stand alone, chosen parts."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from report_material import put_failure, put_results

from benchmarks.report.formats import REPORT_FORMATS, latex
from benchmarks.report.formats.latex import latex_text
from benchmarks.report.report import Report, build_report
from benchmarks.report.row_selection import Selection
from benchmarks.report.tidy import COLUMNS
from clips.commandline.commands import Command, dispatch
from clips.core.artifact import log_info
from clips.errors import UserError

NASTY = r"a&b % $c$ #d _e_ {f} ~g ^h \input{/etc/passwd} <i> |j| ünïß Łódź α→β −3 Привет 中文 😀" + "\x1b[31m\u202e\x07"
TEX = shutil.which("pdflatex") and shutil.which("kpsewhich")


def renamed(report: Report, name: str, to: str) -> Report:
    """The report with another name of a row, of any characters: result files refuse most of them."""
    rows = tuple(dataclasses.replace(row, name=to) if row.name == name else row for row in report.table.rows)
    cells = dict(report.table.cells)
    for key in [key for key in cells if key[0] == name]:
        cells[to, key[1], key[2]] = dataclasses.replace(cells.pop(key), row=to)
    return dataclasses.replace(report, table=dataclasses.replace(report.table, rows=rows, cells=cells))


@pytest.fixture
def nasty(tmp_path: Path) -> Report:
    """A report whose names, title and reasons are as bad as they come, with a gap and a large negative number."""
    put_results(tmp_path)
    put_failure(tmp_path, "clip", "pope", NASTY)
    path = tmp_path / "clip" / "gqa.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metrics"]["exact_match"] |= {
        **{"value": -12.345, "ci_low": -13.0, "ci_high": 5.0, "label": NASTY},
        **{"aggregation": None, "columns": [], "scale": 99.0},  # its items would tell otherwise
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    for row in ("untrained", "clips"):
        other = tmp_path / row / "gqa.json"
        other.write_text(other.read_text(encoding="utf-8").replace('"scale": 100.0', '"scale": 99.0'), encoding="utf-8")
    built = renamed(build_report(tmp_path, baseline="untrained"), "clips", NASTY)
    return dataclasses.replace(built, answer=NASTY, source=dataclasses.replace(built.source, title=NASTY))


@pytest.mark.skipif(not TEX, reason="needs pdflatex")
def test_the_latex_table_compiles(nasty: Report, tmp_path: Path) -> None:
    if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        pytest.skip("needs booktabs")
    said = compiled(REPORT_FORMATS["latex"].render(nasty), tmp_path)
    assert "undefined" not in said.casefold()


@pytest.mark.skipif(not TEX, reason="needs pdflatex")
def test_a_table_that_is_wider_than_its_column_is_made_narrower(tmp_path: Path) -> None:
    if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        pytest.skip("needs booktabs")
    cells = "&".join(["as wide as this"] * 30)
    wide = [rf"\begin{{tabular}}{{{'l' * 30}}}", rf"{cells}\\", r"\end{tabular}"]
    assert "Overfull" in compiled("\n".join(wide), tmp_path)
    assert "Overfull" not in compiled("\n".join(latex._float("wide", "tab:wide", wide)), tmp_path)


def compiled(table: str, folder: Path) -> str:
    """What pdflatex says of an article with ``table`` in it."""
    (folder / "table.tex").write_text(table, encoding="utf-8")
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table}\end{document}"
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
    text = REPORT_FORMATS["latex"].render(nasty)
    assert "\\input" not in "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert r"$-$1\,222.2" in text


def test_benchmarks_stand_above_their_metrics(tmp_path: Path) -> None:
    put_results(tmp_path)
    lines = REPORT_FORMATS["latex"].render(build_report(tmp_path)).splitlines()
    top = lines.index("\\toprule")
    assert lines[top + 1 : top + 4] == [
        r" & gqa & pope & \multicolumn{2}{c}{retrieval} \\",
        r"\cmidrule(lr){2-2} \cmidrule(lr){3-3} \cmidrule(lr){4-5}",
        r" & exact match & accuracy & T$\rightarrow$I R@1 & T$\rightarrow$I R@5 \\",
    ]


def test_the_tidy_table_has_a_line_for_each_model_and_metric(nasty: Report) -> None:
    frame = pd.read_csv(io.StringIO(REPORT_FORMATS["csv"].render(nasty)))
    assert set(frame) == {*COLUMNS}
    assert len(frame) == 12
    assert set(frame["value"].isna() == frame["missing"].notna()) == {True}
    assert frame["missing"].notna().sum() == 1
    assert set(frame["delta"].notna() == frame["p_adjusted"].notna()) == {True}
    assert (frame["significant"].dropna() == (frame["p_adjusted"].dropna() < 0.05)).all()


def test_messages_reach_a_terminal_without_commands_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    log_info("made \x1b]0;title\x07 of \u202ename")
    nasty = str(Path("/nowhere") / "\x1b[31mred\x07")
    command = Command(help="", target="benchmarks.report.report_command:run_report", positional=("directory",))
    assert dispatch("clips-bench", "", {"report": command}, ["report", nasty]) == 2
    said = capsys.readouterr().err
    assert "[31mred" in said
    assert "title" in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


def deltas(report: Report) -> dict[tuple[str, str, str], float]:
    return {key: cell.delta.p_adjusted for key, cell in report.table.cells.items() if cell.delta}


def test_columns_are_chosen_after_the_tests(tmp_path: Path) -> None:
    put_results(tmp_path)
    whole = build_report(tmp_path, baseline="clip")
    part = build_report(tmp_path, baseline="clip", selection=Selection(columns=("pope:accuracy", "gqa")))
    assert [(column.benchmark, column.metric) for column in part.table.columns] == [
        ("pope", "accuracy"),
        ("gqa", "exact_match"),
    ]
    assert deltas(part) == {key: p for key, p in deltas(whole).items() if key[1] != "retrieval"}
    assert part.table.comparisons == whole.table.comparisons
    assert "Left out of this table: 2 of 4 columns. Tests are corrected for all columns" in part.remarks[0]
    assert "retrieval" not in part.answer
    assert not any(remark.startswith("Left out") for remark in whole.remarks)


def test_a_metric_that_the_main_table_lacks_can_be_asked_for(tmp_path: Path) -> None:
    put_results(tmp_path)
    part = build_report(tmp_path, selection=Selection(columns=("pope:Share of Yes", "pope:yes")))
    assert [column.metric for column in part.table.columns] == ["yes"]
    assert all(part.table.cell(row, part.table.columns[0]).value is not None for row in part.table.rows)


def test_rows_are_chosen_before_the_tests(tmp_path: Path) -> None:
    put_results(tmp_path)
    part = build_report(tmp_path, baseline="clip", selection=Selection(rows=("untrained", "clip")))
    assert [row.name for row in part.table.rows] == ["untrained", "clip"]
    assert {cell.row for cell in part.table.cells.values() if cell.mark == "best"} == {"clip"}
    assert part.table.comparisons == 4
    assert part.remarks[0].startswith("Left out of this table: 1 of 3 rows.")
    alone = build_report(tmp_path, baseline="clip", selection=Selection(rows=("c*s", "untrained")))
    assert [row.name for row in alone.table.rows] == ["clips", "untrained"]
    assert not deltas(alone)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(rows=("clap",)), r"unknown row in 'rows' 'clap'; did you mean 'clip"),
        (Selection(columns=("pop",)), r"unknown benchmark in 'columns' 'pop'; did you mean 'pope'"),
        (Selection(columns=("pope:accurate",)), r"unknown metric of pope in 'columns' 'accurate'; did you mean 'acc"),
        (Selection(columns=("pope:beauty",)), r"\(known: accuracy, share of yes, yes\)"),
    ],
)
def test_an_unknown_row_or_column_is_named(tmp_path: Path, selection: Selection, message: str) -> None:
    put_results(tmp_path)
    with pytest.raises(UserError, match=message):
        build_report(tmp_path, selection=selection)
