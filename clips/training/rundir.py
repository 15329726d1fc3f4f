"""A training run's directory: what it records of itself, and when another run may go on in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clips.core.artifact import MANIFEST, read_manifest, write_file, writing
from clips.core.identity import result_settings
from clips.errors import UserError
from clips.plain import difference, leaves, plain, to_yaml
from clips.secrets import alike, without_secrets
from clips.training.standing import CONFIG, checkpoints, read_loop

_BEGUN = {CONFIG, "metrics.jsonl", "tensorboard"}  # what a run has written before its first checkpoint


def is_finished(output: str | Path, config: Any, inputs: Mapping[str, str]) -> bool:
    """Whether the run that ``config`` describes is already finished in ``output``.

    Args:
        output: the run's directory, there or not.
        config: the run's config.
        inputs: what the run reads, each with its hash.

    Raises:
        UserError: the directory holds something else, or the work of another config or from other inputs.
    """
    directory = Path(output)
    with writing(output):
        if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
            return False
    if not directory.is_dir() or not _is_run(directory, config):
        raise UserError(f"{directory}: exists and is not a training run; choose another output or remove it")
    finished, kept = (directory / MANIFEST).is_file(), checkpoints(directory)
    if finished or kept:
        recorded = directory if finished else kept[-1]  # the latest attempt may not have come to a checkpoint
        _refuse_other_config(directory, recorded, config, () if finished else config.may_change)
        _refuse_other_inputs(directory, _inputs_of(directory) if finished else read_loop(kept[-1]).inputs, inputs)
    return finished


def _is_run(directory: Path, config: Any) -> bool:
    """Whether training wrote ``directory``: it is finished, or has a checkpoint, or was stopped before its first."""
    if not (directory / CONFIG).is_file():
        return False
    if (directory / MANIFEST).is_file():
        return read_manifest(directory).get("kind") == "encoder"
    others = [path.name for path in directory.iterdir() if path.name not in _BEGUN and path.name[0] != "."]
    whole = plain(config).keys() <= read_run_config(directory).keys()  # one written by hand leaves defaults out
    return bool(checkpoints(directory)) or (whole and not others)


def record_run(output: str | Path, config: Any) -> None:
    """Create a run's directory with its config; UserError where that cannot be."""
    write_file(Path(output) / CONFIG, to_yaml(without_secrets(plain(config))))


def read_run_config(directory: str | Path) -> dict[str, Any]:
    """The config of the run or checkpoint in ``directory`` as plain data; UserError where there is none."""
    path = Path(directory) / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected the output of `clips train` or one of its checkpoints") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        raise UserError(f"{path}: not valid YAML") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected the config of a training run, a mapping of field names to values")
    return config


def changes(checkpoint: Path, config: Any) -> list[str]:
    """What ``config`` has otherwise than ``checkpoint`` was made with, as ``config.may_change`` allows; in words.

    The run's own record is no measure: it is that of the latest attempt, which may not have come to a checkpoint.
    """
    both = (read_run_config(checkpoint), plain(config))
    there, here = (dict(leaves(without_secrets(values))) for values in both)
    return [
        f"{name} {there.get(name)} → {here.get(name)}"
        for name in sorted(there.keys() | here.keys())
        if _is_under(name, config.may_change) and not alike(there.get(name), here.get(name))
    ]


def _refuse_other_config(directory: Path, recorded: Path, config: Any, may_change: Sequence[str]) -> None:
    there, here = (
        result_settings(values, type(config), besides=tuple(may_change))
        for values in (without_secrets(read_run_config(recorded)), without_secrets(plain(config)))
    )
    if found := difference(there, here):
        raise UserError(
            f"{directory}: holds a run of another config: {found}; choose another output or remove the directory"
        )


def _is_under(name: str, fields: Sequence[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _inputs_of(directory: Path) -> dict[str, str]:
    """What a finished run read, each with its hash."""
    return {name: parent.get("hash") for name, parent in read_manifest(directory).get("parents", {}).items()}


def _refuse_other_inputs(directory: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    for name, content in here.items():
        if there.get(name, content) != content:
            raise UserError(
                f"{directory}: holds a run that read other content from {name} than it has now; "
                "choose another output or remove the directory"
            )
