"""Check a study's steps before the first of them runs: a typo or a missing file is told now, not after hours.

The configs are checked in a process of its own, ``python -m benchmarks.study.preflight``, which reads
``[[step, command, config], …]`` from its standard input: the commands' config classes live in modules that import
torch, without which the runner does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.launchers import PYTHON_SCRIPT, find_command
from benchmarks.study.schema import Study
from benchmarks.study.steps import Step
from clips.commandline.parsing import parse_config
from clips.core.artifact import log_info
from clips.data.remote_files import expand_brace_ranges
from clips.errors import UserError
from clips.serialization import to_plain, to_yaml


def check_input_files(steps: Iterable[Step], study: Study) -> None:
    """Check that the files that steps need and no step makes are there; each missing one is named on a line.

    Raises:
        UserError: some are missing.
    """
    missing: dict[Path, list[str]] = {}
    for step in steps:
        for path in step.needs:
            if _is_file_of(step, path, study) and not all(map(os.path.exists, expand_brace_ranges(str(path)))):
                missing.setdefault(path, []).append(step.name)
    for path, (first, *others) in missing.items():
        more = f" and {len(others)} more" if others else ""
        log_info(f"{path}: no such file or directory; needed by {first}{more}")
    if missing:
        raise UserError(f"{study.name}: files that no step makes are missing: {len(missing)}")


def _is_file_of(step: Step, path: Path, study: Study) -> bool:
    """Whether something that looks like a path surely is one, and no step's output.

    The configs of the suite's commands hold nothing else with a slash. A script of the user's may call anything
    ``a/b``: there only what lies below the study's ``paths`` counts.
    """
    if path.resolve().is_relative_to(study.directory.resolve()):
        return False
    return step.command[0] != PYTHON_SCRIPT or any(path.is_relative_to(root) for root in study.paths.values())


def check_configs(steps: Iterable[Step]) -> None:
    """Check every step's config against its command's config class.

    Raises:
        UserError: the first config that its command would refuse: which step, and why.
    """
    asked = [
        [step.name, list(step.command), to_plain(step.config)] for step in steps if step.command[0] != PYTHON_SCRIPT
    ]
    if not asked:
        return
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.study.preflight"], input=json.dumps(asked), capture_output=True, text=True
    )
    if child.returncode == 2:
        raise UserError(child.stderr.strip().splitlines()[-1])
    if child.returncode != 0:
        raise RuntimeError(f"checking the steps' configs failed:\n{child.stderr}")


def first_config_error(asked: Sequence[tuple[str, list[str], Any]]) -> str | None:
    """What is wrong with the first wrong config; None where all are right."""
    for name, words, config in asked:
        try:
            _parse(tuple(words), config)
        except UserError as error:
            return f"step {name}: {error}"
    return None


def _parse(words: tuple[str, ...], config: Any) -> None:
    command = find_command(words)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        parse_config(command.config_class(), ["--config", str(file)], prog=" ".join(words))


def main() -> int:
    """Check what standard input holds; the problem goes to standard error and the exit status is 2."""
    problem = first_config_error(json.load(sys.stdin))
    if problem is not None:
        print(problem, file=sys.stderr)
    return 0 if problem is None else 2


if __name__ == "__main__":
    sys.exit(main())
