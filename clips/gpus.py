"""GPUs by their data sheets, and those of this machine; without an import of torch."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU model, by its data sheet."""

    memory: float  # bytes
    bf16: float  # FLOP/s of dense bfloat16 matrix products with float32 sums, without sparsity
    fp32: float  # FLOP/s of float32 outside of tensor cores
    name: str  # a pattern that torch.cuda.get_device_name matches

    def peak(self, precision: str) -> float:
        """Return FLOP/s in ``precision``, "bf16" or "fp32"."""
        return self.bf16 if precision == "bf16" else self.fp32


GPUS: dict[str, Gpu] = {
    "a100-40": Gpu(memory=40e9, bf16=312e12, fp32=19.5e12, name=r"A100.*40GB"),
    "a100-80": Gpu(memory=80e9, bf16=312e12, fp32=19.5e12, name=r"A100.*80GB"),
    # SXM; the data sheets of H100, H200 and B200 state twice as much, with sparsity
    "h100": Gpu(memory=80e9, bf16=989e12, fp32=67e12, name=r"H100 80GB HBM3"),
    "h200": Gpu(memory=141e9, bf16=989e12, fp32=67e12, name=r"H200$"),
    "b200": Gpu(memory=180e9, bf16=2250e12, fp32=75e12, name=r"B200$"),  # an eighth of an HGX B200
    "l40s": Gpu(memory=48e9, bf16=362e12, fp32=91.6e12, name=r"L40S$"),
    "l4": Gpu(memory=24e9, bf16=121e12, fp32=30.3e12, name=r"L4$"),
    "4090": Gpu(memory=24e9, bf16=165.2e12, fp32=82.6e12, name=r"RTX 4090$"),  # NVIDIA's Ada architecture paper
}


def find_gpu(device_name: str) -> Gpu | None:
    """Return the entry for a name of torch.cuda.get_device_name; None if there is none."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.name, device_name)), None)


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
