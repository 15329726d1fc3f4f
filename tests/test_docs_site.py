"""The documentation builds without a warning, has a page for each command, loads nothing, and can be searched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import PROGRAMS, ROOT, commands

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs the extra docs: mkdocs-material")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs: mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


def test_every_command_has_a_page_with_its_fields(site: Path):
    for program in PROGRAMS:
        for name in commands(program):
            page = (site / "reference" / f"{program}-{name.replace(' ', '-')}.html").read_text(encoding="utf-8")
            assert re.search(r"<td><code>\w+</code></td>", page), f"{program} {name}"
    train = (site / "reference" / "clips-train.html").read_text(encoding="utf-8")
    assert "<code>optimizer.learning_rate</code>" in train
    assert "data.sources" in train


def test_llms_txt_names_every_page_of_the_guides(site: Path):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    docs, optional = text.split("## Optional")
    assert docs.startswith("# CLIPS suite\n\n> ")
    for page in (ROOT / "docs").rglob("*.md"):
        url = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert f"]({url.replace('README', 'index')}): " in docs, url
    assert "](reference/clips-train.html)" in optional


def test_no_page_loads_anything_from_elsewhere(site: Path):
    loads = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(https?:|//)|<link[^>]*\shref=["']?(https?:|//)|@import"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert not loads.search(page.read_text(encoding="utf-8")), page.relative_to(site)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:|//)", style.read_text(encoding="utf-8")), style.relative_to(site)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium in the path")
def test_the_search_works_from_disk(site: Path, tmp_path: Path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--enable-logging=stderr"]
    address = f"file://{site}/how-to/resume.html?q=fingerprint"
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path}/profile", "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.findall(r'class="md-search-result__link"', shown.stdout)
    assert len(found) > 2
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line and "rror" in line] == []
