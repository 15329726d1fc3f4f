"""The directory of an unfinished training: its lock, and whose progress it has. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from clips.core.durable import atomic_write
from clips.core.identity import RUN, read_run, run_text
from clips.core.locks import lock_output
from clips.errors import UserError
from llava_bridge.data import read_samples
from llava_bridge.data.sources import join_samples, reject_faults, reject_missing
from llava_bridge.training.inputs import Inputs
from llava_bridge.training.launch import log_rank0

CHECKPOINTS_DIR = "checkpoints"
COMPLETE_MARKER = "complete"
"""The file in a checkpoint that is written last."""


@contextlib.contextmanager
def lock_work_dir(inputs: Inputs) -> Iterator[None]:
    """Lock the work directory for this run.

    The directory is deleted when the block succeeds, or fails with a UserError before there is progress. UserError:
    another run has locked it, or it cannot be written.
    """
    work = inputs.work
    with lock_output(work / "lock", inputs.config.output):
        try:
            yield
        except UserError:
            if not has_progress(work):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def has_progress(work: Path) -> bool:
    """Whether a work directory has a finished stage or a complete checkpoint."""
    return any(work.glob("*/model")) or any(work.glob(f"*/{CHECKPOINTS_DIR}/*/{COMPLETE_MARKER}"))


def prepare_work_dir(inputs: Inputs) -> None:
    """Keep the state of this run if it was interrupted; delete that of another run without progress.

    Raises:
        UserError: images are missing with ``missing_images: error``, a stage has too many samples with faults of their
            text, or another run has progress here.
    """
    config, work = inputs.config, inputs.work
    for data in (data for name in config.stages for data in config.stage(name).data):
        if data.missing_images == "error":
            log_rank0(f"checking all images of {data.path}")
            reject_missing(read_samples(data, config.seed), data.path, log_rank0)
        elif data.format == "llava" or Path(data.path).suffix in {".json", ".jsonl"}:
            read_samples(data, config.seed)  # converted once, before all processes start
    run, before = inputs.identity, read_run(work / RUN)
    if has_progress(work):
        run.reject_other(work, before or {})
    if before is not None and run.difference(before) is None:
        log_rank0(f"resuming the unfinished run in {work}")
        return
    for name in config.stages:  # all of them, before the first is trained for hours
        samples = join_samples([read_samples(data, config.seed) for data in config.stage(name).data])
        reject_faults(samples, f"{name}.data", config.max_invalid_ratio)
    for entry in work.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    atomic_write(work / RUN, run_text(run))


def remove_leftover(inputs: Inputs) -> None:
    """Delete the work directory of a finished run, unless another run has progress in it."""
    work = inputs.work
    if has_progress(work) and inputs.identity.difference(read_run(work / RUN) or {}):
        log_rank0(f"{work} has an unfinished run with other settings; remove it if it is not needed")
        return
    shutil.rmtree(work, ignore_errors=True)
