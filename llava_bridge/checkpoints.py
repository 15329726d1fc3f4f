"""Checkpoints of a stage: which are whole, which one a run goes on from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from clips.artifact import write_file
from clips.errors import UserError
from llava_bridge.launch import is_main_process
from llava_bridge.processes import barrier
from llava_bridge.workspace import COMPLETE, SHARDS


def mark_complete(checkpoint: Path, bad: Mapping[str, str]) -> None:
    """Say that all processes have written their parts, how many they are, and which samples were unusable so far."""
    mark = {"processes": os.environ["WORLD_SIZE"], "bad": bad}
    write_file(checkpoint / COMPLETE, json.dumps(mark, ensure_ascii=False))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written completely; what was not is removed.

    Raises:
        UserError: it was written by another number of processes.
    """
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if newest is not None:
        _refuse_others(newest)
    barrier()  # all have looked before anything goes
    for other in set(folder.glob("checkpoint-*")) - set(whole):
        if is_main_process():
            shutil.rmtree(other, ignore_errors=True)
    barrier()
    return newest


def _refuse_others(checkpoint: Path) -> None:
    """DeepSpeed cuts the optimizer's state into one part for each process; FSDP's shards are for any number of them."""
    if (checkpoint / SHARDS).is_dir():
        return
    processes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["processes"]
    if processes != os.environ["WORLD_SIZE"]:
        raise UserError(
            f"launch.processes: expected {processes}, as when {checkpoint} was written, got "
            f"{os.environ['WORLD_SIZE']}; or remove {checkpoint.parent}, and the stage begins anew"
        )


def bad_before(checkpoint: Path | None) -> dict[str, str]:
    """The unusable samples that were met before ``checkpoint``."""
    return {} if checkpoint is None else json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["bad"]
