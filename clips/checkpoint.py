"""A training run on disk: its directory, and checkpoints from which it goes on exactly.

All that training depends on is the weights, the optimizer's state and the number of steps done: the order
of the samples and every random draw are functions of (seed, step), so nothing else needs to be kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from clips.artifact import MANIFEST, artifact_directory, read_manifest, write_file, writing
from clips.commandline import difference, leaves, plain, to_yaml
from clips.errors import UserError, reason_of

CONFIG = "config.yaml"
CHECKPOINTS = ".checkpoints"
_WEIGHTS, _OPTIMIZER, _LOOP = "model.safetensors", "optimizer.safetensors", "loop.json"
_AVERAGE = "average.safetensors"

_BEGUN = {CONFIG, "metrics.jsonl", "tensorboard"}  # what a run has written before its first checkpoint

# These say how a run is carried out, not what comes of it: a run may go on with others.
_FREE = {"output", "track", "log_every", "checkpoint_every", "keep_checkpoints", "data.workers", "data.cache_images"}


@dataclasses.dataclass(kw_only=True)
class LoopState:
    """Where a training run stands.

    Args:
        step: steps done.
        samples_seen: samples trained on, over all processes.
        seconds: time spent in training, interruptions left out.
        bad: unusable samples met so far: name → reason.
        inputs: what the run reads, each with its hash.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)


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
        _refuse_other_config(directory, config)
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
    write_file(Path(output) / CONFIG, to_yaml(config))


def read_run_config(directory: str | Path) -> dict[str, Any]:
    """The config of the run or checkpoint in ``directory`` as plain data; UserError where there is none."""
    path = Path(directory) / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected the output of `clips train` or one of its checkpoints") from None
    except (yaml.YAMLError, ValueError, OSError):
        raise UserError(f"{path}: not valid YAML") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected the config of a training run, a mapping of field names to values")
    return config


def _refuse_other_config(directory: Path, config: Any) -> None:
    there, here = (
        {name: value for name, value in leaves(values) if name not in _FREE}
        for values in (read_run_config(directory), plain(config))
    )
    if found := difference(there, here):
        raise UserError(
            f"{directory}: holds a run of another config: {found}; choose another output or remove the directory"
        )


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


def save_checkpoint(
    output: str | Path,
    model: torch.nn.Module,
    optimizer: Any,
    loop: LoopState,
    config: Any,
    *,
    keep: int,
    average: torch.nn.Module | None = None,
) -> Path:
    """Write a checkpoint whole or not at all, then delete all but the ``keep`` latest."""
    from safetensors.torch import save_file

    checkpoint = Path(output) / CHECKPOINTS / f"step-{loop.step:08d}"
    with artifact_directory(checkpoint) as partial:
        save_file(_contiguous(model.state_dict()), partial / _WEIGHTS)
        if average is not None:
            save_file(_contiguous(average.state_dict()), partial / _AVERAGE)
        save_file(_contiguous(_flatten(optimizer.state_dict()["state"])), partial / _OPTIMIZER)
        write_file(partial / CONFIG, to_yaml(config))
        write_file(partial / _LOOP, json.dumps(dataclasses.asdict(loop), ensure_ascii=False))
    for old in checkpoints(output)[:-keep]:
        shutil.rmtree(old)
    return checkpoint


def checkpoints(output: str | Path) -> list[Path]:
    """The checkpoints of a run, the latest last."""
    found = (Path(output) / CHECKPOINTS).glob(f"[!.]*/{_LOOP}")
    return [path.parent for path in sorted(found, key=lambda path: read_loop(path.parent).step)]


def read_loop(checkpoint: Path) -> LoopState:
    """Where the run stood at ``checkpoint``; UserError where its record is broken."""
    path = checkpoint / _LOOP
    try:
        loop = LoopState(**json.loads(path.read_text(encoding="utf-8")))
        return dataclasses.replace(loop, step=int(loop.step), bad=dict(loop.bad), inputs=dict(loop.inputs))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: broken ({reason_of(error)}); remove this checkpoint to go on without it") from None


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flatten(state: Mapping[int, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Put a checkpoint's weights into ``model``; UserError where they are broken or do not fit."""
    with _loading(checkpoint / _WEIGHTS) as tensors:
        model.load_state_dict(tensors)


def load_exported(checkpoint: Path, model: torch.nn.Module) -> None:
    """Put what a checkpoint would export into ``model``: its average of the weights, where it keeps one."""
    if not (checkpoint / _AVERAGE).is_file():
        load_weights(checkpoint, model)
        return
    with _loading(checkpoint / _AVERAGE) as tensors:
        model.load_state_dict(
            {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
        )


def restore(
    output: str | Path, model: torch.nn.Module, optimizer: Any, average: torch.nn.Module | None = None
) -> LoopState:
    """Go on from the latest checkpoint in ``output``; a fresh LoopState where there is none."""
    found = checkpoints(output)
    if not found:
        return LoopState()
    load_weights(found[-1], model)
    if average is not None:
        with _loading(found[-1] / _AVERAGE) as tensors:
            average.load_state_dict(tensors)
    state: dict[int, dict[str, torch.Tensor]] = {}
    with _loading(found[-1] / _OPTIMIZER) as tensors:
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        # What is not a tensor, rates and decays, follows from the config at every step.
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_loop(found[-1])


@contextlib.contextmanager
def _loading(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    try:
        yield load_file(path)
    except Exception as error:  # safetensors raises its own errors, load_state_dict whatever does not fit
        raise UserError(
            f"{path}: cannot be loaded ({reason_of(error)}); remove this checkpoint to go on without it"
        ) from None


def remove_checkpoints(output: str | Path) -> None:
    """Delete all checkpoints of a run."""
    shutil.rmtree(Path(output) / CHECKPOINTS, ignore_errors=True)
