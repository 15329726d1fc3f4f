"""The GPUs of this machine, without an import of torch."""

from __future__ import annotations

import itertools
import os
import subprocess

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
