"""Steps that need no training: a program that stands in for the suite's, and an engine that starts jobs in the test.

Snakemake takes seconds to start, so that most tests of a study run its jobs one after the other in their own process;
``test_study_engine.py`` runs them under Snakemake.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_material import SMALL

from benchmarks.study import commands, steps
from benchmarks.study import run as runner
from benchmarks.study.commands import RerunConfig, StudyConfig, rerun_steps, resolve_study
from benchmarks.study.locks import is_locked, locked
from benchmarks.study.run import PLAN, Summary, run_steps
from benchmarks.study.state import Step, StepKey, state_of

FAKE = Path(__file__).with_name("fake_step.py")


def fake_program(words: Sequence[str]) -> list[str]:
    """How a step is started: the fake, for any command."""
    return [sys.executable, str(FAKE), *words]


def in_process(output: Path, flags: Sequence[str], show: Callable[[], None]) -> int:
    """``runner.run_snakemake`` without Snakemake: the jobs in their order, children of failed ones left out."""
    path, failed = output.resolve() / PLAN, set[str]()
    for name, planned in json.loads(path.read_text(encoding="utf-8"))["jobs"].items():
        if not failed.isdisjoint(planned["parents"]) or not runner.run_step(path, name):
            failed.add(name)
        show()
    return 1 if failed else 0


def use_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have studies run the fake program in this process, and take any command for known."""
    monkeypatch.setattr(runner, "resolve_executable", fake_program)
    monkeypatch.setattr(runner, "run_snakemake", in_process)
    monkeypatch.setattr(commands, "check_command", lambda words: None)
    monkeypatch.setattr(steps, "command_version", lambda words: 1)


def write_study(folder: Path, **fields: object) -> StudyConfig:
    """The small study as a file, its output below ``folder``."""
    content = {**SMALL, "output": str(folder / "out"), "jobs": 2, **fields}
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return StudyConfig(study=str(folder / "study.yaml"), check=False)


def run_study(config: StudyConfig) -> None:
    """``study run`` but for its report."""
    commands.run_study_steps(config, report=lambda output: None)


def states(config: StudyConfig) -> dict[str, str]:
    """The state of each step of a study."""
    return {step.name: state_of(step).name for step in resolve_study(config).steps}


def rerun_study(config: RerunConfig) -> None:
    """``study rerun`` but for its report."""
    rerun_steps(config, report=lambda output: None)


def make(root: Path, name: str, *parents: str, **config: object) -> Step:
    """A step that runs the fake program by its path."""
    output = root / "made" / name
    settings = {"output": str(output), "count": str(root / "runs.txt"), **config}
    words = ("python", str(FAKE))
    return Step(name=name, kind="data", command=words, config=settings, outputs=(output,), parents=parents, study=root)


def run(root: Path, steps: list[Step], *, mark: str = "", **options: Any) -> Summary:
    """Run steps as the runner does; a step without a key has one that changes with ``mark`` alone."""
    keyed = [
        dataclasses.replace(step, key=StepKey(key=f"{step.name}{mark}")) if not step.key.key else step for step in steps
    ]
    with locked(root):
        return run_steps(keyed, root, **{"jobs": 2, **options})


RUNNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it otherwise
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from study_engine import make, run
place = Path({place!r})
{code}
"""


def start_runner(place: Path, code: str, until: Path) -> subprocess.Popen[bytes]:
    """A process that runs ``code`` with ``place``, ``make`` and ``run``, once the file ``until`` exists."""
    tests = Path(__file__).parent
    text = RUNNER.format(tests=str(tests), root=str(tests.parent), place=str(place), code=code)
    process = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not until.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def wait_until_free(place: Path) -> None:
    """Until nothing of a killed runner is at work in the directory any more."""
    deadline = time.monotonic() + 60
    while any(is_locked(path) for path in (place / ".lock", *place.glob("steps/*/.lock"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def named(steps: Sequence[Step], name: str) -> Step:
    """The step of this name."""
    return next(step for step in steps if step.name == name)


def visits(root: Path, name: str) -> int:
    """How often a step was begun on what is there now of its output."""
    return (root / "made" / name / "visits.txt").read_text(encoding="utf-8").count("visit")
