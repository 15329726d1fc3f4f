"""Training in stages of growing resolution, each initialized from the previous one.

stages:
  - {model.image_size: 84, max_samples: 12800000000, global_batch_size: 32768, optimizer.base_learning_rate: 8.0e-6}
  - {model.image_size: 224, max_samples: 512000000, global_batch_size: 16384, optimizer.base_learning_rate: 4.0e-7}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clips.core.artifact import MANIFEST, STAGES_DIR, read_manifest
from clips.errors import UserError
from clips.method.optimizer import EITHER
from clips.training.train_config import LENGTHS, EncoderTrainConfig
from clips.typed_data import from_plain, to_plain


def stage_configs(config: EncoderTrainConfig) -> list[EncoderTrainConfig]:
    """Return the config of each stage, in order: ``config`` itself if it has no stages.

    A stage's fields override the config's. All stages except the last write into ``OUTPUT.stages/N``. Each stage has
    its own sample order.

    Raises:
        UserError: a stage has an unknown or invalid field.
    """
    if not config.stages:
        return [config]
    found: list[EncoderTrainConfig] = []
    for number, fields in enumerate(config.stages, 1):
        values = to_plain(config) | {"stages": []}
        if any(name in fields for name in LENGTHS):
            values |= dict.fromkeys(LENGTHS)
        for pair in EITHER:
            if any(name in _optimizer_fields(fields) for name in pair):
                values["optimizer"] |= dict.fromkeys(pair)
        _override(values, fields, f"stages[{number}]")
        last = number == len(config.stages)
        values["output"] = config.output if last else f"{config.output}{STAGES_DIR}/{number}"
        values["seed"] = config.seed + number - 1
        if found:
            values["model"] |= {"pretrained": found[-1].output, "pretrained_trunk": None}
        found.append(from_plain(EncoderTrainConfig, values, what=f"stages[{number}]"))
    return found


def _optimizer_fields(fields: Mapping[str, Any]) -> set[str]:
    """Return the fields of ``optimizer`` that a stage sets, nested or dotted."""
    nested = fields.get("optimizer")
    dotted = {name.removeprefix("optimizer.") for name in fields if name.startswith("optimizer.")}
    return dotted | (set(nested) if isinstance(nested, Mapping) else set())


def completed_stages(config: Mapping[str, Any], state: Mapping[str, Any], image_size: int) -> list[dict[str, Any]]:
    """Return the record of each stage up to the one of ``config``, for its manifest.

    Args:
        config: of the stage, as plain data.
        state: its steps, samples_seen and seconds.
        image_size: in pixels.
    """
    model, output = config["model"], Path(config["output"])
    # The output of a stage is in the directory of stages, except the last one's, which is next to it.
    stages_dir = output.parent if output.parent.name.endswith(STAGES_DIR) else Path(f"{output}{STAGES_DIR}")
    begun_from = model["pretrained"] or model["pretrained_trunk"]
    before: list[dict[str, Any]] = []
    if begun_from is not None and Path(begun_from).parent == stages_dir and (Path(begun_from) / MANIFEST).is_file():
        before = read_manifest(Path(begun_from)).get("stages", [])
    progress = {name: state[name] for name in ("steps", "samples_seen", "seconds")}
    this = {"begun_from": begun_from, "image_size": image_size, "global_batch_size": config["global_batch_size"]}
    return [*before, this | progress]


def _override(values: dict[str, Any], fields: Mapping[str, Any], what: str) -> None:
    """Set ``fields``, whose names may be dotted, in the nested ``values``."""
    for name, value in fields.items():
        parent, (*sections, field) = values, name.split(".")
        for section in sections:
            if not isinstance(parent.get(section), dict):
                raise UserError(f"{what}: unknown field '{name}'")
            parent = parent[section]
        if isinstance(value, Mapping) and isinstance(parent.get(field), dict):
            _override(parent[field], value, f"{what}.{name}")
        else:
            parent[field] = value
