"""Checkpoints of a stage: which are whole, which one a run goes on from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from clips.core.artifact import atomic_write
from clips.data.invalid_samples import InvalidSamples, restored
from clips.errors import UserError
from llava_bridge.training.distributed import barrier
from llava_bridge.training.launch import is_main_process, log_rank0
from llava_bridge.training.work_dir import COMPLETE_MARKER, SHARDS_DIR

_UNIVERSAL = "latest_universal"  # by that name DeepSpeed looks for it


def mark_complete(checkpoint: Path, bad: InvalidSamples, seconds: float) -> None:
    """Say that all processes have written their parts, and what is known of the stage so far.

    Args:
        checkpoint: the directory.
        bad: the invalid samples that any process has met.
        seconds: that the stage has taken.
    """
    mark = {"processes": os.environ["WORLD_SIZE"], "bad": bad.stored(), "seconds": seconds}
    atomic_write(checkpoint / COMPLETE_MARKER, json.dumps(mark, ensure_ascii=False))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written completely; what was not is removed."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    barrier()  # all have looked before anything goes
    for other in set(folder.glob("checkpoint-*")) - set(whole):
        if is_main_process():
            shutil.rmtree(other, ignore_errors=True)
    barrier()
    return newest


def needs_universal_conversion(checkpoint: Path) -> bool:
    """Whether another number of processes wrote ``checkpoint``, and each of them a part that these cannot read.

    DeepSpeed cuts the optimizer's state into one part for each process; FSDP's shards are for any number of them.
    """
    return not (checkpoint / SHARDS_DIR).is_dir() and _writers(checkpoint) != os.environ["WORLD_SIZE"]


def convert_to_universal(checkpoint: Path) -> None:
    """Lay a form of a DeepSpeed checkpoint beside it that any number of processes reads; called in every process.

    DeepSpeed's own converter, as https://www.deepspeed.ai/tutorials/universal-checkpointing describes it.

    Raises:
        UserError: it is ZeRO-3's, of which that form loses the optimizer's steps; or it cannot be converted.
    """
    if any(checkpoint.glob("*/zero_pp_rank_*_model_states.pt")):
        raise _refusal(checkpoint, "since it is ZeRO-3's")
    if is_main_process() and not (checkpoint / _UNIVERSAL).is_file():
        log_rank0(f"making {checkpoint} one for any number of processes: {_writers(checkpoint)} have written it")
        before = (checkpoint / "latest").read_text(encoding="utf-8")
        after = f"{before}_universal"
        shutil.rmtree(checkpoint / after, ignore_errors=True)
        places = ("--input_folder", str(checkpoint / before), "--output_folder", str(checkpoint / after))
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *places, "--inject_missing_state"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = done.stderr.strip().rpartition("\n")[2]
            raise _refusal(checkpoint, f"as DeepSpeed cannot convert it ({why})")
        atomic_write(checkpoint / _UNIVERSAL, after)
    barrier()


def _refusal(checkpoint: Path, why: str) -> UserError:
    return UserError(
        f"launch.num_processes: expected {_writers(checkpoint)}, as when {checkpoint} was written, got "
        f"{os.environ['WORLD_SIZE']}, {why}; or remove {checkpoint.parent}, and the stage begins anew"
    )


def _writers(checkpoint: Path) -> str:
    return json.loads((checkpoint / COMPLETE_MARKER).read_text(encoding="utf-8"))["processes"]


def load_invalid_samples(checkpoint: Path | None) -> InvalidSamples:
    """The invalid samples that were met before ``checkpoint``."""
    if checkpoint is None:
        return InvalidSamples()
    return restored(json.loads((checkpoint / COMPLETE_MARKER).read_text(encoding="utf-8"))["bad"])


def load_elapsed_seconds(checkpoint: Path | None) -> float:
    """What the stage had taken before ``checkpoint``; 0 where an older version wrote that."""
    known = {} if checkpoint is None else json.loads((checkpoint / COMPLETE_MARKER).read_text(encoding="utf-8"))
    return float(known.get("seconds", 0.0))
