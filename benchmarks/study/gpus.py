"""The GPUs of this machine, handed out to steps: a file lock on each, so that studies beside each other share them."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.locks import acquire

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs that a program started here would see, as CUDA_VISIBLE_DEVICES calls them: numbers or UUIDs.

    CUDA reads that variable up to the first entry that is no device; without it all are visible.
    """
    if VISIBLE in os.environ:
        named = [entry.strip() for entry in os.environ[VISIBLE].split(",")]
        return list(itertools.takewhile(lambda entry: entry not in {"", "-1"}, named))
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.split()


def take_gpus(devices: Sequence[str], count: int) -> tuple[list[str], list[int]] | None:
    """Take ``count`` of ``devices``; None where fewer are free.

    Returns:
        the devices, and the descriptors of the locks on them: a device is taken as long as one is open.
    """
    folder = Path(tempfile.gettempdir()) / f"clips-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    choosing = acquire(folder / "all.lock", wait=True)  # one at a time, or two might take half of what they need
    assert choosing is not None
    held: dict[str, int] = {}
    try:
        for device in devices:
            if len(held) < count and (lock := acquire(folder / f"{device.replace('/', '_')}.lock")) is not None:
                held[device] = lock
    finally:
        os.close(choosing)
    if len(held) == count:
        return list(held), list(held.values())
    for lock in held.values():
        os.close(lock)
    return None


def gpu_environment(devices: Sequence[str]) -> dict[str, str]:
    """The environment variables that show ``devices`` alone."""
    order = {} if VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # nvidia-smi's numbers
    return {VISIBLE: ",".join(devices), **order}
