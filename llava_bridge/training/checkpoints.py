"""Checkpoints of a stage: completeness, resuming, conversion to another number of processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clips.core import durable
from clips.core.durable import atomic_write
from clips.core.identity import file_hash
from clips.errors import UserError, error_reason
from clips.loader.invalid_samples import InvalidSamples
from clips.parallel.distributed import all_gather_objects, from_main
from llava_bridge.training.launch import barrier, is_main_process, log_rank0
from llava_bridge.training.run_dir import COMPLETE_MARKER


def mark_complete(checkpoint: Path, invalid_samples: InvalidSamples, seconds: float) -> None:
    """Record that all processes have written their shards, with the files' hashes; called in every process.

    All files are on the disk before the record is. ``seconds``: elapsed time of the stage.
    """
    files = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    hashes = _hash_files(checkpoint, sorted(name for name in files if name != COMPLETE_MARKER), written=True)
    if is_main_process():
        mark = {"processes": os.environ["WORLD_SIZE"], "invalid_samples": invalid_samples.stored(), "seconds": seconds}
        durable.sync_tree(checkpoint)
        atomic_write(checkpoint / COMPLETE_MARKER, json.dumps(mark | {"hashes": hashes}, ensure_ascii=False))
        durable.sync(checkpoint.parent)


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """The record of a complete checkpoint: ``processes``, ``invalid_samples``, ``seconds``, ``hashes``."""
    return json.loads((checkpoint / COMPLETE_MARKER).read_text(encoding="utf-8"))


def _hash_files(checkpoint: Path, names: Sequence[str], *, written: bool = False) -> dict[str, str | None]:
    """File name → hash, None if it cannot be read; each process hashes some, of those just ``written`` flushed ones."""
    own: dict[str, str | None] = {}
    for name in names[int(os.environ.get("RANK", "0")) :: int(os.environ["WORLD_SIZE"])]:
        try:
            if written:
                durable.sync(checkpoint / name)
            own[name] = file_hash(checkpoint / name)
        except UserError:
            if written:
                raise
            own[name] = None
    return {name: value for hashes in all_gather_objects(own) for name, value in hashes.items()}


def step_of(checkpoint: Path) -> int:
    """The number of steps before a checkpoint, by the name that HF's Trainer gives it."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint without damage; incomplete ones, and damaged ones after it, are deleted.

    Called in every process.

    Raises:
        UserError: all complete ones are damaged.
    """
    # by rank 0, as a shared disk may show them to another node later
    listed = from_main(lambda: {path: _read_hashes(path) for path in folder.glob("checkpoint-*")})
    complete = sorted((path for path, hashes in listed.items() if hashes is not None), key=step_of, reverse=True)
    unusable = listed.keys() - set(complete)
    chosen = damage = None
    for checkpoint in complete:
        if (damage := _find_damage(checkpoint, listed[checkpoint])) is None:
            chosen = checkpoint
            break
        log_rank0(damage)
        unusable.add(checkpoint)
    if damage is not None:
        raise UserError(f"{damage}; no earlier checkpoint is left: remove {folder} to restart the stage")
    barrier()  # all processes have read the folder before anything is deleted
    for other in unusable:
        if is_main_process():
            shutil.rmtree(other, ignore_errors=True)
    barrier()
    if chosen is not None and chosen != complete[0]:
        log_rank0(f"resuming from {chosen}, the checkpoint before it")
    return chosen


def _read_hashes(checkpoint: Path) -> dict[str, str] | str | None:
    """The hashes of a complete checkpoint's files, or why its marker cannot be read; None of an incomplete one."""
    if not (checkpoint / COMPLETE_MARKER).is_file():
        return None
    try:
        return dict(read_marker(checkpoint).get("hashes", {}))  # which earlier versions did not write
    except (ValueError, TypeError, AttributeError, OSError) as error:
        return f"{checkpoint / COMPLETE_MARKER}: broken ({error_reason(error)})"


def _find_damage(checkpoint: Path, hashes: dict[str, str] | str | None) -> str | None:
    if not isinstance(hashes, dict):
        return hashes
    names = sorted(hashes)
    now = _hash_files(checkpoint, names)
    wrong = next((name for name in names if now[name] != hashes[name]), None)
    return None if wrong is None else f"{checkpoint / wrong}: missing or damaged, it has another hash than when written"


def convert_if_of_other_processes(checkpoint: Path) -> bool:
    """Add DeepSpeed's universal form to a checkpoint of another number of processes; returns whether it is of one.

    DeepSpeed writes a shard of the optimizer for each process; its universal form is for any number of them. Called in
    every process. Source: https://www.deepspeed.ai/tutorials/universal-checkpointing.

    Raises:
        UserError: it is ZeRO-3's, whose universal form lacks the optimizer's steps; or it cannot be converted.
    """
    processes = from_main(lambda: read_marker(checkpoint)["processes"])
    if processes == os.environ["WORLD_SIZE"]:
        return False

    def refusal(reason: str) -> UserError:
        return UserError(
            f"distributed.num_processes: expected {processes}, as when {checkpoint} was written, got "
            f"{os.environ['WORLD_SIZE']}, {reason}; or remove {checkpoint.parent} to restart the stage"
        )

    if any(checkpoint.glob("*/zero_pp_rank_*_model_states.pt")):
        raise refusal("since it is ZeRO-3's")
    if is_main_process():
        log_rank0(f"converting {checkpoint}, written by {processes}, to any number of processes")
        source = (checkpoint / "latest").read_text(encoding="utf-8")
        target = f"{source}_universal"
        shutil.rmtree(checkpoint / target, ignore_errors=True)
        folders = ("--input_folder", str(checkpoint / source), "--output_folder", str(checkpoint / target))
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, "--inject_missing_state"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            reason = result.stderr.strip().rpartition("\n")[2]
            raise refusal(f"as DeepSpeed cannot convert it ({reason})")
        durable.sync_tree(checkpoint / target)
        atomic_write(checkpoint / "latest_universal", target)  # DeepSpeed's file name
    barrier()
    return True
