"""The page: complete in itself, readable, and right in a browser; and the report of a whole study."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from report_material import METRICS, items_table, put_result
from study_material import SMALL

from benchmarks.report.command import ReportConfig, report
from benchmarks.report.curves import Curve, draw
from benchmarks.report.model import build_report
from benchmarks.report.page import SECTIONS, render_page
from benchmarks.report.source import Gap, read_source
from benchmarks.report.timing import without_pauses
from benchmarks.study import commands
from benchmarks.study.record import write_study_record
from benchmarks.study.state import StepRecord, write_record
from clips.errors import UserError

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
STYLE = Path(commands.__file__).parents[1] / "report" / "templates" / "style.css"


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study's output in which one branch failed, as the runner would have left it."""
    monkeypatch.setattr(commands, "check_command", lambda words: None)
    monkeypatch.setattr(commands, "code_hash", lambda words: "code")
    output = tmp_path / "out"
    content = {**SMALL, "output": str(output), "question": "Which is better?", "notes": ["A note for the reader."]}
    content["benchmarks"] = {name: {"data": "$data/test"} for name in METRICS}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    keyed = commands.resolve(commands.StudyConfig(study=str(file)))
    write_study_record(output, commands.study_record(keyed, str(file)))
    for number, step in enumerate(keyed.plan.steps):
        failed = step.name.startswith("llava-net")
        if step.name.startswith("evaluate-llava-net"):
            continue
        record = StepRecord(
            name=step.name,
            kind=step.kind,
            command=" ".join(step.command),
            key=keyed.keys[step.name].key,
            outcome="failed" if failed else "done",
            started=1000.0 + 10 * number,
            seconds=9.0,
            peak_memory_mb=512.0,
            exit_status=1 if failed else 0,
            log_tail=("loading", "these weights are not of this architecture") if failed else (),
        )
        write_record(output, record)
        if step.kind in {"encoder", "llava"} and not failed:
            step.outputs[0].mkdir(parents=True)
            lines = [
                {
                    "step": i,
                    "samples_seen": 8 * i,
                    "loss": 5 / (i + 1),
                    "contrastive_loss": 4 / (i + 1),
                    "stage": "align",
                }
                for i in range(20)
            ]
            text = "\n".join([*map(json.dumps, lines), '{"step": 20, "lo'])
            (step.outputs[0] / "metrics.jsonl").write_text(text, encoding="utf-8")
    for encoder, skill in (("clip", 0.4), ("clips", 0.7)):
        for benchmark in METRICS:
            row = f"{encoder}-s0" if benchmark == "retrieval" else f"{encoder}-tiny-s0"
            put_result(output / "results", row, benchmark, items_table(skill, benchmark=benchmark))
    return output


def test_a_studys_page_has_every_section(study):
    page = render_page(build_report(study))
    for section in SECTIONS:
        of_others = section.id in {"settings", "seeds", "lengths", "published", "found", "captioned", "maps"}
        assert (f'id="{section.id}"' in page) is not of_others
    for text in (
        "Which is better?",
        "A note for the reader.",
        "no text tower",
        "these weights are not of this architecture",
    ):
        assert text in page
    assert "never a claim" in page  # the data are scenes
    assert page.count("<svg viewBox") == 2  # contrastive loss and projector alone


def test_a_failed_step_explains_the_cells_behind_it(study):
    outcomes = read_source(study).outcomes
    gap = outcomes["net", "pope"]
    assert isinstance(gap, Gap)
    assert gap.kind == "failed"
    assert gap.reason == "step llava-net-tiny-s0 failed: these weights are not of this architecture"
    assert outcomes["net", "retrieval"] == Gap(kind="not applicable", reason="no text tower")


def test_results_of_another_key_are_not_shown(study):
    path = study / "steps" / "evaluate-llava-clips-tiny-s0" / "step.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"key": "of an older study"}
    path.write_text(json.dumps(content), encoding="utf-8")
    gap = read_source(study).outcomes["clips", "pope"]
    assert isinstance(gap, Gap)
    assert gap.reason == "not run since the study or its code changed"


def test_a_broken_result_of_a_study_fails_its_cell_only(study):
    (study / "results" / "clips-tiny-s0" / "pope.json").write_text("{", encoding="utf-8")
    outcomes = read_source(study).outcomes
    gap = outcomes["clips", "pope"]
    assert isinstance(gap, Gap)
    assert "pope.json: not a result file" in gap.reason
    assert not isinstance(outcomes["clip", "pope"], Gap)


def test_the_baseline_of_the_study_is_used_and_can_be_overridden(study):
    assert build_report(study).answer.startswith("clips beats clip")
    assert build_report(study, baseline="clips").answer.startswith("clip loses to clips")


def test_the_command_writes_every_format_and_says_where(study, capsys):
    report(ReportConfig(directory=str(study)))
    written = {path.name for path in (study / "report").iterdir()}
    assert written == {"index.html", "table.csv", "table.jsonl", "table.md", "table.tex"}
    assert (study / "report" / "index.html").stat().st_size < 15e6
    captured = capsys.readouterr()
    assert "clips beats clip" in " ".join(captured.out.split())
    assert "report/index.html" in captured.err
    assert "▲" not in captured.out  # the terminal's table has no such marks, the page's has
    assert "bold" not in captured.out
    assert "▲" in (study / "report" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="unknown format 'htm'; did you mean 'html'"):
        report(ReportConfig(directory=str(study), formats=("htm",)))


def test_a_report_against_another_baseline_stands_beside_the_studys(study, capsys):
    report(ReportConfig(directory=str(study), formats=("markdown",)))
    before = (study / "report" / "table.md").read_text(encoding="utf-8")
    report(ReportConfig(directory=str(study), formats=("markdown",), baseline="clips"))
    assert (study / "report" / "table.md").read_text(encoding="utf-8") == before
    beside = (study / "report-against-clips" / "table.md").read_text(encoding="utf-8")
    assert "clip loses to clips" in beside
    assert "clip loses to clips" in " ".join(capsys.readouterr().out.split())


def test_the_command_names_what_it_wrote_and_nothing_else(study, tmp_path, capsys):
    report(ReportConfig(directory=str(study), output=str(tmp_path / "pages"), formats=("csv", "latex")))
    assert f"report: {tmp_path}/pages/table.csv, {tmp_path}/pages/table.tex\n" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"table.csv", "table.tex"}


def test_a_report_that_cannot_be_written_is_one_line(study, tmp_path):
    (tmp_path / "a-file").write_text("mine", encoding="utf-8")
    for place in (tmp_path / "a-file", Path("/proc/nowhere")):
        with pytest.raises(UserError, match=f"^{place}: cannot write here"):
            report(ReportConfig(directory=str(study), output=str(place)))


class Loads(HTMLParser):
    """Everything in a page that a browser would fetch, and ids that stand twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.without_alt = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "img" and not given.get("alt"):
            self.without_alt += 1
        for name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            target = given.get(name) or ""
            if target and not target.startswith(("#", "data:")):
                self.fetched.append(f"{tag} {name}={target}")


def test_the_page_loads_nothing(study):
    page = render_page(build_report(study))
    found = Loads()
    found.feed(page)
    assert found.fetched == []
    assert found.without_alt == 0
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", page)
    assert "default-src 'none'" in page


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    block = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for ground in ("paper", "sheet", "tint"):
        for text in ("ink", "ink-soft", "accent", "gain", "loss"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for place in range(8):
        assert contrast(colours[f"series-{place}"], colours["paper"]) >= 3


@functools.cache
def browser_dump(page: Path, script: str) -> str:
    """The page after ``script`` ran in a headless browser, as text."""
    assert CHROMIUM
    changed = page.read_text(encoding="utf-8").replace("script-src 'sha256-", "script-src 'unsafe-inline' 'x-")
    trial = page.with_name("trial.html")
    trial.write_text(changed.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=390,800"]
    command = [CHROMIUM, *flags, f"--user-data-dir={page.parent}/profile", "--dump-dom", f"file://{trial}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium in the path")
def test_in_a_browser_the_table_sorts_and_the_page_fits_a_phone(study):
    report(ReportConfig(directory=str(study), formats=("html",)))
    script = """
      const rows = () => [...document.querySelectorAll('table.main tbody th')];
      const names = () => rows().map(th => th.textContent.trim().split(/\\s/)[0]);
      const heads = document.querySelectorAll('table.main tr.heads th');
      const before = names();
      heads[1].querySelector('button').click(); const down = names();
      heads[1].querySelector('button').click(); const up = names();
      document.title = JSON.stringify({before, down, up, sorted: heads[1].getAttribute('aria-sort'),
        wide: document.documentElement.scrollWidth, phone: getComputedStyle(document.querySelector('.narrow')).display,
        width: innerWidth});
    """
    title = re.search(r"<title>(.*?)</title>", browser_dump(study / "report" / "index.html", script), re.DOTALL)
    assert title
    seen = json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert seen["before"] == ["clip", "clips", "net"]
    assert seen["down"] == ["clips", "clip", "net"]
    assert seen["up"] == ["clip", "clips", "net"]
    assert seen["sorted"] == "ascending"
    assert seen["wide"] <= seen["width"]  # nothing sticks out to the side
    assert seen["phone"] == "block"


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium in the path")
def test_in_a_browser_nothing_is_complained_about(study):
    report(ReportConfig(directory=str(study), formats=("html",)))
    page = study / "report" / "index.html"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
    ]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={study}/profile", "--dump-dom", f"file://{page}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in run.stderr
    assert "<button" in run.stdout  # the script ran, so its hash in the policy is right


def test_curves_take_the_pages_colours_and_escape_labels():
    curve = Curve(name="clip", colour=1, x=(0.0, 1.0, 2.0), y=(3.0, 2.0, 1.0))
    svg = draw([curve], x_label="a <b> & $c$", y_label="loss", salt="s")
    assert svg.startswith("<svg viewBox=")
    assert "var(--series-1)" in svg
    assert "a &lt;b&gt; &amp; $c$" in svg
    assert "http" not in svg
    assert svg == draw([curve], x_label="a <b> & $c$", y_label="loss", salt="s")


def test_pauses_between_runs_are_cut():
    starts, end = without_pauses([(100.0, 110.0), (105.0, 120.0), (5000.0, 5010.0), (9000.0, 9001.0)])
    assert starts == [0.0, 5.0, 20.0, 30.0]
    assert end == 31.0


def test_texts_of_any_length_are_cut(tmp_path):
    items = items_table(0.5, benchmark="gqa").assign(question="word " * 200_000)
    put_result(tmp_path, "clip", "gqa", items)
    built = build_report(tmp_path)
    assert len(render_page(dataclasses.replace(built, remarks=()))) < 300_000
