"""Check the configs and input files of a study's steps before the first one starts.

The configs are checked in a separate process, ``python -m benchmarks.study.preflight``, which reads
``[[step, command, config], …]`` from its standard input: some config classes are in modules that import torch, which
the runner does not import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.launchers import PYTHON_SCRIPT, find_command
from benchmarks.study.schema import Study
from benchmarks.study.steps import Step
from clips.core.artifact import log_info
from clips.data.remote_files import expand_brace_ranges
from clips.errors import UserError
from clips.typed_data import from_plain, to_plain


def check_input_files(steps: Iterable[Step], study: Study) -> None:
    """Check that all external input files exist; one line is logged for each missing file.

    Raises:
        UserError: with the number of missing files.
    """
    missing: dict[Path, list[str]] = {}
    for step in steps:
        for path in step.needs:
            if _is_input_file(step, path, study) and not all(map(os.path.exists, expand_brace_ranges(str(path)))):
                missing.setdefault(path, []).append(step.name)
    for path, (first, *others) in missing.items():
        more = f" and {len(others)} more" if others else ""
        log_info(f"{path}: no such file or directory; needed by {first}{more}")
    if missing:
        raise UserError(f"{study.name}: files that no step makes are missing: {len(missing)}")


def _is_input_file(step: Step, path: Path, study: Study) -> bool:
    """Whether a string that looks like a path certainly is an external file."""
    if path.resolve().is_relative_to(study.directory.resolve()):
        return False
    # In configs of the suite's commands every string with a slash is a path. A user's script may have others, so that
    # only paths below the study's ``paths`` count.
    return step.command[0] != PYTHON_SCRIPT or any(path.is_relative_to(root) for root in study.paths.values())


def check_configs(steps: Iterable[Step]) -> None:
    """Check every step's config against its command's config class.

    Raises:
        UserError: the step and the error of the first invalid config.
    """
    configs = [[step.name, step.command, to_plain(step.config)] for step in steps if step.command[0] != PYTHON_SCRIPT]
    if not configs:
        return
    command = [sys.executable, "-m", "benchmarks.study.preflight"]
    child = subprocess.run(command, input=json.dumps(configs), capture_output=True, text=True)
    if child.returncode == 2:
        raise UserError(child.stderr.strip().splitlines()[-1])
    if child.returncode != 0:
        raise RuntimeError(f"checking the steps' configs failed:\n{child.stderr}")


def first_config_error(configs: Sequence[tuple[str, list[str], Any]]) -> str | None:
    """The step and the error of the first invalid ``(step, command, config)``, or None."""
    for name, words, config in configs:
        try:
            from_plain(find_command(tuple(words)).config_class(), config, what=" ".join(words))
        except UserError as error:
            return f"step {name}: {error}"
    return None


def main() -> int:
    """Check the configs on standard input; the first error goes to standard error, and the exit status is 2."""
    problem = first_config_error(json.load(sys.stdin))
    if problem is not None:
        print(problem, file=sys.stderr)
    return 0 if problem is None else 2


if __name__ == "__main__":
    sys.exit(main())
