"""Training in stages of growing resolution: each begins with the weights of the one before.

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
from clips.serialization import to_plain
from clips.training.train_config import LENGTHS, EncoderTrainConfig
from clips.typed_data import from_plain


def stage_configs(config: EncoderTrainConfig) -> list[EncoderTrainConfig]:
    """The config of each stage, in order: ``config`` itself where it has no stages.

    A stage's fields are laid over the config's. All but the last write into ``OUTPUT.stages/N``. The order of the
    samples differs from stage to stage.

    Raises:
        UserError: a stage has an unknown or unfitting field; it is named.
    """
    if not config.stages:
        return [config]
    found: list[EncoderTrainConfig] = []
    for number, fields in enumerate(config.stages, 1):
        last = number == len(config.stages)
        values = to_plain(config) | {"stages": []}
        if any(name in fields for name in LENGTHS):
            values |= dict.fromkeys(LENGTHS)
        for pair in EITHER:
            if any(name in _optimizer_fields(fields) for name in pair):
                values["optimizer"] |= dict.fromkeys(pair)
        _lay_over(values, fields, f"stages[{number}]")
        values["output"] = config.output if last else f"{config.output}{STAGES_DIR}/{number}"
        values["seed"] = config.seed + number - 1
        if found:
            values["model"] |= {"pretrained": found[-1].output, "pretrained_trunk": None}
        found.append(from_plain(EncoderTrainConfig, values, what=f"stages[{number}]"))
    return found


def _optimizer_fields(fields: Mapping[str, Any]) -> set[str]:
    """Which fields of ``optimizer`` a stage gives, in either way of writing."""
    nested = fields.get("optimizer")
    dotted = {name.removeprefix("optimizer.") for name in fields if name.startswith("optimizer.")}
    return dotted | (set(nested) if isinstance(nested, Mapping) else set())


def completed_stages(config: Mapping[str, Any], loop: Mapping[str, Any], image_size: int) -> list[dict[str, Any]]:
    """What each stage of a training has done, for its manifest; the last is the one that ``config`` is of.

    Args:
        config: of the stage, as plain data.
        loop: its steps, samples_seen and seconds.
        image_size: pixels of a picture's side.
    """
    model, folder = config["model"], _folder(config["output"])
    begun_from = model["pretrained"] or model["pretrained_trunk"]
    before: list[dict[str, Any]] = []
    if begun_from is not None and Path(begun_from).parent == folder and (Path(begun_from) / MANIFEST).is_file():
        before = read_manifest(Path(begun_from)).get("stages", [])
    done = {name: loop[name] for name in ("steps", "samples_seen", "seconds")}
    this = {"begun_from": begun_from, "image_size": image_size, "global_batch_size": config["global_batch_size"]}
    return [*before, this | done]


def _folder(output: str) -> Path:
    """Where the stages of a training are whose last, or another of whose stages, writes into ``output``."""
    parent = Path(output).parent
    return parent if parent.name.endswith(STAGES_DIR) else Path(f"{output}{STAGES_DIR}")


def _lay_over(values: dict[str, Any], fields: Mapping[str, Any], what: str) -> None:
    for name, value in fields.items():
        place, rest = values, name
        while "." in rest:
            first, _, rest = rest.partition(".")
            inner = place.get(first)
            if not isinstance(inner, dict):
                raise UserError(f"{what}: unknown field '{name}'")
            place = inner
        if isinstance(value, Mapping) and isinstance(place.get(rest), dict):
            _lay_over(place[rest], value, f"{what}.{name}")
        else:
            place[rest] = value
