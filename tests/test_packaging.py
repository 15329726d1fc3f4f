"""What is built to be installed: nothing is missing in it, nothing else is in it, and it runs away from the clone."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("clips", "llava_bridge", "benchmarks")
MINI = "scripts/demo/mini.yaml"
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source")]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def elsewhere(built, tmp_path_factory) -> Path:
    """A folder with the demo's scripts and an environment of its own, ``env``, in which only the wheel is installed.

    Its dependencies are those of this environment, read where they lie: no network is needed, and the clone, which may
    be installed there for editing, is not seen.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "scripts/demo", folder / "scripts/demo", ignore=NOT_SOURCE)
    venv.create(folder / "env")
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(
        "\n".join(dict.fromkeys(sysconfig.get_path(of) for of in ("purelib", "platlib")))
    )
    words = ["--python", str(folder / "env"), "install", "--no-deps", "--no-index", "--quiet", str(built[1])]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True, timeout=120)
    return folder


def run(elsewhere: Path, program: str, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A program of that environment: the clone is not on the path, and not the current directory."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([elsewhere / "env" / "bin" / program, *words], cwd=elsewhere, env=environment,
                          capture_output=True, text=True, timeout=timeout, check=False)  # fmt: skip


def source_files(*folders: str) -> set[str]:
    """The files below folders of the clone."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_packages_whole_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licenses = {name.rpartition("/")[2] for name in wheel.namelist() if "/licenses/" in name}
    assert names == source_files(*PACKAGES)
    assert licenses == {"LICENSE", "NOTICE"}
    assert built[1].stat().st_size < 5e6


def test_the_source_distribution_holds_the_clone(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("tests", "scripts", "docs", "notebooks", ".devcontainer")
    assert source_files(*PACKAGES, *folders) <= names
    assert {"README.md", "constraints.txt", "Makefile", "Containerfile", "SECURITY.md", ".ci/run"} <= names
    assert not {name for name in names if name.startswith((".git/", ".venv", "runs/"))}


@pytest.mark.slow
def test_the_commands_of_the_wheel_run_away_from_the_clone(elsewhere):
    code = "import clips, llava_bridge, benchmarks; print(clips.__file__, llava_bridge.__file__, benchmarks.__file__)"
    where = run(elsewhere, "python", "-c", code)
    assert where.stdout.split(), where.stderr
    assert all(path.startswith(str(elsewhere / "env")) for path in where.stdout.split())
    for program in ("clips", "llava-bridge", "clips-bench"):
        ended = run(elsewhere, program, "--help")
        assert ended.returncode == 0, ended.stderr
        assert f"usage: {program} COMMAND" in ended.stdout
    planned = run(elsewhere, "clips-bench", "study", "plan", MINI)
    assert planned.returncode == 0, planned.stderr
    assert "models: untrained, clips" in planned.stdout
    assert "output: runs/mini" in planned.stdout


@pytest.fixture(scope="module")
def finished(elsewhere) -> Path:
    """The directory of the demo in miniature, run by the wheel and the demo's scripts alone."""
    ended = run(elsewhere, "clips-bench", "study", "run", MINI, timeout=1200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "untrained" in ended.stdout
    assert "runs/mini/report/index.html" in ended.stdout + ended.stderr
    assert not (ROOT / "runs" / "mini").exists()
    return elsewhere / "runs" / "mini"


@pytest.mark.slow
def test_every_cell_of_the_table_is_a_number(finished):
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (finished / "results").rglob("*.json")]
    names = ["retrieval", "pope", "mme", "gqa", "textvqa_val", "nocaps_val"]
    written = sorted(result["benchmark"] for result in results)
    assert written == sorted([*names * 2, "recaption"])  # of the row that has a captioner
    assert {result["status"] for result in results} == {"ok"}
    assert all(result["fingerprint"] and result["items"] for result in results)
    with (finished / "report" / "table.csv").open(encoding="utf-8", newline="") as file:
        assert {line["model"] for line in csv.DictReader(file)} == {"untrained", "clips"}
    assert {"index.html", "table.tex"} <= {path.name for path in (finished / "report").iterdir()}


@pytest.mark.slow
def test_every_artifact_says_where_it_comes_from(finished):
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in finished.rglob("manifest.json")]
    assert sorted(manifest["kind"] for manifest in manifests) == sorted(
        ["scenes", "scenes", "encoder", "encoder", "llava", "llava"]
    )
    shipped = json.loads((ROOT / "scripts/demo/llm/manifest.json").read_text(encoding="utf-8"))
    hashes = {manifest["hash"] for manifest in [*manifests, shipped]}
    for manifest in manifests:
        assert manifest["config"]
        assert manifest["versions"]
        assert manifest["kind"] == "scenes" or {parent["hash"] for parent in manifest["parents"].values()} <= hashes
    llavas = [manifest for manifest in manifests if manifest["kind"] == "llava"]
    assert all(manifest["stages"]["instruct"]["steps"] == 20 for manifest in llavas)
    assert all(manifest["config"]["distributed"]["deepspeed"] == "zero2" for manifest in llavas)


@pytest.mark.slow
def test_a_second_run_does_nothing(elsewhere, finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "steps").rglob("*")}
    ended = run(elsewhere, "clips-bench", "study", "run", MINI)
    assert ended.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (finished / "steps").rglob("*")} == before


CONTAINER = ROOT / "Containerfile"


def test_the_linter_finds_nothing():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint")
    ended = subprocess.run([hadolint, str(CONTAINER)], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.returncode) == ("", 0)


def test_copied_files_exist_and_are_in_the_build():
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
