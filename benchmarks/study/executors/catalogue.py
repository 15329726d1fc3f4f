"""The executors by name, and how a study file's ``executor`` is read.

    executor: gpus
    executor: {name: slurm, partition: gpu, account: vision, hours: 24}

To add one: a file with a config dataclass (``base.ExecutorConfig``), and its entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.study.executors.base import ExecutorConfig
from benchmarks.study.executors.gpus import GpusConfig
from benchmarks.study.executors.local import LocalConfig
from benchmarks.study.executors.slurm import SlurmConfig
from clips.errors import UserError, suggest
from clips.typed_data import from_plain

EXECUTORS: Mapping[str, type[ExecutorConfig]] = {"local": LocalConfig, "gpus": GpusConfig, "slurm": SlurmConfig}


def executor_config(content: Any) -> ExecutorConfig:
    """The executor that a study file names, alone or with settings of its own.

    Raises:
        UserError: no such executor, an unknown setting, a value of the wrong kind.
    """
    settings = {"name": content} if isinstance(content, str) else content
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise UserError(f"executor: expected one of {', '.join(EXECUTORS)}, or a mapping with its name, got "
                        f"{content!r:.80}")  # fmt: skip
    if settings["name"] not in EXECUTORS:
        raise suggest(settings["name"], EXECUTORS, "executor")
    own = {key: value for key, value in settings.items() if key != "name"}
    return from_plain(EXECUTORS[settings["name"]], own, what="executor")
