"""The container file and the dev container: what they name is there. (No test can build an image.)"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTAINER = ROOT / "Containerfile"


def test_the_linter_finds_nothing():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint")
    ended = subprocess.run([hadolint, str(CONTAINER)], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.returncode) == ("", 0)


def test_what_is_copied_exists_and_enters_the_build():
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINER.read_text(), re.MULTILINE)
        for name in line.split()
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied  # without which the package does not build


def test_the_image_has_extras_that_exist_and_no_root():
    text = CONTAINER.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert set(named.split(",")) <= extras.keys() - {"dev"}
    users = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert users[-1] == "1000"
