"""The GPUs of this machine, assigned to steps by file locks, so that concurrent studies share them."""

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
    """The GPUs that a new process sees: indices or UUIDs, as in CUDA_VISIBLE_DEVICES.

    CUDA reads that variable up to the first entry that is no device; without it all are visible.
    """
    if VISIBLE in os.environ:
        entries = [entry.strip() for entry in os.environ[VISIBLE].split(",")]
        return list(itertools.takewhile(lambda entry: entry not in {"", "-1"}, entries))
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.split()


def take_gpus(devices: Sequence[str], count: int) -> tuple[list[str], list[int]] | None:
    """Lock ``count`` of ``devices``; None if fewer are free.

    Returns:
        the devices, and the descriptors of their locks; closing a descriptor frees its device.
    """
    folder = Path(tempfile.gettempdir()) / f"clips-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    mutex = acquire(folder / "all.lock", wait=True)  # else two processes might each lock a part of their devices
    assert mutex is not None
    locks: dict[str, int] = {}
    try:
        for device in devices:
            if len(locks) < count and (lock := acquire(folder / f"{device.replace('/', '_')}.lock")) is not None:
                locks[device] = lock
    finally:
        os.close(mutex)
    if len(locks) == count:
        return list(locks), list(locks.values())
    for lock in locks.values():
        os.close(lock)
    return None


def gpu_environment(devices: Sequence[str]) -> dict[str, str]:
    """The environment variables that make only ``devices`` visible."""
    order = {} if VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # the order of nvidia-smi's indices
    return {VISIBLE: ",".join(devices), **order}
