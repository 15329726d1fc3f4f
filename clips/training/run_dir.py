"""A training run's directory: its identity and config, and whether a run may resume in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clips.core.artifact import atomic_write, check_finished
from clips.core.identity import RUN, Identity, differing, is_below, reject_other_run, run_text
from clips.errors import UserError
from clips.safe_text import redact
from clips.training.train_state import CHECKPOINTS_DIR, CONFIG_FILE, list_checkpoints, read_train_state
from clips.typed_data import to_plain, to_yaml


def check_trained(config: Any, run: Identity) -> bool:
    """Check that ``config.output`` is free or has this run, and return whether the run is finished.

    Raises:
        UserError: the directory contains something else, or a run of another config or other inputs.
    """
    output = Path(config.output)
    if check_finished(output, "encoder", run, work=output / CHECKPOINTS_DIR / RUN):
        return True
    for checkpoint in list_checkpoints(output)[-1:]:  # without a checkpoint the run may be overwritten
        reject_other_run(output, read_train_state(checkpoint).identity, run, may_change=config.allow_changes_on_resume)
    return False


def create_run_dir(config: Any, run: Identity) -> None:
    """Create a run's directory with its identity and config; UserError if it cannot be written."""
    atomic_write(Path(config.output) / CHECKPOINTS_DIR / RUN, run_text(run))
    atomic_write(Path(config.output) / CONFIG_FILE, to_yaml(redact(to_plain(config))))


def read_run_config(directory: str | Path) -> dict[str, Any]:
    """Return the config of the run or checkpoint in ``directory`` as plain data; UserError if there is none."""
    path = Path(directory) / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected the output of `clips train` or one of its checkpoints") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        raise UserError(f"{path}: not valid YAML") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected the config of a training run, a mapping of field names to values")
    return config


def resume_changes(config: Any, run: Identity) -> list[str]:
    """Return the changes since the latest checkpoint that ``allow_changes_on_resume`` permits, as "NAME OLD → NEW"."""
    before = read_train_state(list_checkpoints(config.output)[-1]).identity
    return [
        f"{name} {before.get(name)} → {run.get(name)}"
        for name in differing(before, run)
        if is_below(name, config.allow_changes_on_resume)
    ]
