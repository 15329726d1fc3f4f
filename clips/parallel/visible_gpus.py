"""The GPUs of this machine and the settings of their memory, without an import of torch."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import MutableMapping

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # the last two are old names


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


def set_allocator(environment: MutableMapping[str, str]) -> None:
    """Let torch's allocator grow its segments in processes with ``environment``, unless the user has set its options.

    The sizes of activations differ from batch to batch, for which fixed segments leave gaps: memory that no tensor has.
    """
    if not any(name in environment for name in _ALLOCATOR):
        environment[_ALLOCATOR[0]] = "expandable_segments:True"
