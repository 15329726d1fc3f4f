"""Read study files: expand entries with ``sweep``, and build a checked `Study`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.study.executors import executor_config
from benchmarks.study.schema import Study
from benchmarks.study.sweep import expand_sweeps
from clips.errors import UserError
from clips.serialization import to_plain
from clips.typed_data import from_plain
from clips.yaml_files import read_yaml

_ENTRIES = ("data", "encoders", "llms", "llava_variants", "existing_llavas", "benchmarks", "resources")


def read_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises:
        UserError: naming file and field, with the close match of an unknown key.
    """
    content = read_yaml(path)
    try:
        return parse_study(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_study(content: Any) -> Study:
    """Build a study from the content of its file.

    Raises:
        UserError: naming the field.
    """
    if not isinstance(content, dict):
        raise UserError(f"expected a mapping with name, encoders, benchmarks, …, got {content!r:.80}")
    fields = {name: value for name, value in to_plain(content).items() if value is not None}
    if "sweeps" in fields:  # a field of ``Study`` that is no key of study files
        raise UserError("unknown key 'sweeps'; did you mean 'sweep' in an entry?")
    for name in _ENTRIES:
        if isinstance(fields.get(name), dict):  # an empty entry means the defaults
            fields[name] = {key: {} if entry is None else entry for key, entry in fields[name].items()}
    for name in ("encoders", "llms", "llava_variants"):
        if isinstance(fields.get(name), dict):
            fields[name], sweeps = expand_sweeps(fields[name], name)
            fields |= {"sweeps": sweeps} if name == "encoders" else {}
    executor = executor_config(fields.pop("executor", "local"))
    return dataclasses.replace(from_plain(Study, fields), executor=executor)
