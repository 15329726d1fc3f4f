"""Names of models and benchmarks with any characters are the same in every format of a report."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import lxml.html
import pandas as pd
import pytest
from generators import explore, sizes
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from report_material import items_table, put_result, rendered

from benchmarks.report.latex import latex_text
from benchmarks.report.report import Display, build_report
from clips.safe_text import strip_control_chars

NAMES_PER_REPORT = 8
WORDS = r"""
NA nan null None 007 1.10 1e5 true on no 1:30 0x1F inf -1 =1+1 @x [x] [2pt] *star \item \\[1cm] & a_b ~ ^2 #1 $x$ {a}
'@x a--b --- ``q'' ?` !` <b> &amp; a|b `c` __x__ ~~x~~ ![a](b) 模型一 Ünïcode ℝ³ x² 👍 Ⅷ
"""
PHRASES = ("* & b", "100 %", '"x"', "- a", "1. a", "# a", "αβ ≤ 5 → 3", "½ × 2", "naïve “q” …", "עברית", "a\u00a0b")
LETTERS = r"""abzABZ019 -_.,:;!?'"`()[]{}<>/\|@#$%^&*+=~éßøłαΩ≤∞→×²½中가ℝ👍–—“’"""

ODD = "ab -=\\&[*\x00\x07\x0b\t\n\x1b\x7f\x85\u200b\u202e\u2028\ufeff\ud800éa\u0301ﬁŉĸſ"


@st.composite
def names(draw: st.DrawFn) -> list[str]:
    """Names that differ in the texts that formats without control characters and runs of spaces show."""
    one = st.one_of(
        st.sampled_from([*WORDS.split(), *PHRASES]),
        st.text(alphabet=LETTERS, min_size=1, max_size=12),
        st.text(alphabet=ODD, min_size=1, max_size=8),
    )
    count = {"min_size": NAMES_PER_REPORT, "max_size": NAMES_PER_REPORT}
    found: list[str] = draw(st.lists(one.filter(lambda name: plain(name) != ""), unique_by=plain, **count))
    return found


def plain(name: str) -> str:
    """A name without control characters, each run of spaces as one."""
    return " ".join(strip_control_chars(re.sub(r"[ \t\r\n]+", " ", name)).split())


def straight(text: str) -> str:
    """A text with straight quotation marks: LaTeX prints them curly."""
    return " ".join(
        text.translate(str.maketrans(dict(zip("“”„‘’`ˆ˜", 3 * ['"'] + 3 * ["'"] + ["^", "~"], strict=True)))).split()
    )


def as_printed(latex: str) -> str:
    """The text that LaTeX code prints, by pylatexenc, which lacks two of LaTeX's characters."""
    known = get_default_latex_context_db()
    own = [MacroTextSpec("textbar", "|"), MacroTextSpec("textperiodcentered", "·")]
    known.add_context_category("own", prepend=True, macros=own)
    return str(LatexNodes2Text(latex_context=known).latex_to_text(latex))


def printed(name: str) -> str:
    """What LaTeX prints: for characters that it has no command for, their code points."""
    others = {"\N{REPLACEMENT CHARACTER}": "?", "\u00ad": ""}
    characters = unicodedata.normalize("NFC", plain(name))
    shown = [text if (text := latex_text(each)).startswith("U+") else others.get(each, each) for each in characters]
    return straight("".join(shown))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    for number in range(NAMES_PER_REPORT - 1):
        put_result(folder, f"m{number}", "gqa", items_table(0.1 * number, benchmark="gqa", count=12))
    return folder


@sizes
def test_every_name_is_in_every_format(examples: int, results: Path) -> None:
    def check(data: st.DataObject) -> None:
        *models, benchmark = data.draw(names())
        display = Display(models={f"m{n}": name for n, name in enumerate(models)}, benchmarks={"gqa": benchmark})
        report = build_report(results, display=display)

        frame = pd.read_csv(io.StringIO(rendered(report, "csv")), dtype={"model_name": str}, **AS_WRITTEN)
        shown = [*map(plain, models)]
        # a spreadsheet would take these for formulas; those that look as if they were escaped are, too
        bare = [name[1:] if name.lstrip("'")[:1] in {*"=+-@"} else name for name in frame["model_name"]]
        assert [*map(plain, bare)] == shown

        page = lxml.html.fromstring(MarkdownIt("commonmark").enable("table").render(rendered(report, "markdown")))
        assert [plain(row[0].text_content()) for row in page.findall(".//tbody/tr")][: len(models)] == shown
        assert plain(benchmark) in plain(page.find(".//thead").text_content())

        page = lxml.html.fromstring(rendered(report, "html"))
        table = next(each for each in page.findall(".//table") if each.findall(".//tbody/tr"))
        assert [plain(row[0].text_content()) for row in table.findall(".//tbody/tr")][: len(models)] == shown
        assert plain(benchmark) in plain(table.text_content())

        text = "\n".join(line for line in rendered(report, "latex").splitlines() if not line.startswith("%"))
        assert not re.search(r"(\\\\|\\(top|mid|bottom)rule|\\addlinespace)\s*[\[*]", text)
        rows = [re.split(r"(?<!\\)&", line) for line in text.splitlines() if re.search(r"(?<!\\)&", line)]
        assert {len(row) for row in rows} == {2}
        in_latex = [straight(as_printed(row[0])) for row in rows]
        assert in_latex[-len(models) - 1 : -1] == [*map(printed, models)]
        assert printed(benchmark) in straight(as_printed(rows[0][1]))

    explore(check, -(-examples // NAMES_PER_REPORT))


def letters(text: str) -> str:
    """A text as a PDF has it whatever its fonts: no spaces, no marks above letters."""
    split = unicodedata.normalize("NFKD", text.replace("ı", "i"))
    return "".join(each for each in split if not each.isspace() and not unicodedata.combining(each))


@pytest.mark.skipif(not shutil.which("pdflatex") or not shutil.which("pdftotext"), reason="needs pdflatex, pdftotext")
def test_every_name_is_in_the_pdf(tmp_path: Path) -> None:
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{cmap,lmodern,booktabs}\begin{document}"
    rows = [*WORDS.split(), *PHRASES]
    for start in range(0, len(rows), 40):  # a page
        part = rows[start : start + 40]
        table = "".join(f"{latex_text(name)} & {number} \\\\\n" for number, name in enumerate(part, 1))
        body = rf"\noindent\begin{{tabular}}{{lr}}\toprule {table}\bottomrule\end{{tabular}}\end{{document}}"
        (tmp_path / "names.tex").write_text(head + "\n" + body, encoding="utf-8")
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "names.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
        assert done.returncode == 0, done.stdout[-2000:]
        command = ["pdftotext", "-layout", "names.pdf", "-"]
        text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
        lines = [letters(straight(line)) for line in text.splitlines()]
        for number, name in enumerate(part, 1):
            assert f"{letters(printed(name))}{number}" in lines, (name, latex_text(name))


AS_WRITTEN = {"keep_default_na": False, "na_values": [""]}
