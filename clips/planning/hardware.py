"""Memory, peak FLOP/s and bandwidth of GPUs, from their data sheets."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU model, by its data sheet.

    Args:
        memory: bytes.
        bandwidth: bytes per second of the memory.
        bf16: FLOP/s of dense bfloat16 matrix products with float32 sums, without sparsity.
        fp32: FLOP/s of float32 outside of tensor cores.
        link: bytes per second to the other GPUs of its node, in one direction.
        network: bytes per second to other nodes, typical of nodes with this GPU.
        per_node: GPUs of a typical node.
        name: a pattern that torch.cuda.get_device_name matches.
    """

    memory: float
    bandwidth: float
    bf16: float
    fp32: float
    link: float
    network: float
    per_node: int = 8
    name: str

    def peak(self, precision: str) -> float:
        """Return FLOP/s in ``precision``, "bf16" or "fp32"."""
        return self.bf16 if precision == "bf16" else self.fp32


GPUS: dict[str, Gpu] = {
    # NVIDIA A100 data sheet: NVLink 600 GB/s for both directions; DGX A100: 200 Gbit/s of network for each GPU
    "a100-40": Gpu(
        memory=40e9, bandwidth=1.555e12, bf16=312e12, fp32=19.5e12, link=300e9, network=25e9, name=r"A100.*40GB"
    ),
    "a100-80": Gpu(
        memory=80e9, bandwidth=2.039e12, bf16=312e12, fp32=19.5e12, link=300e9, network=25e9, name=r"A100.*80GB"
    ),
    # NVIDIA H100 and H200 data sheets, SXM: NVLink 900 GB/s; 1,979 TFLOP/s with sparsity; DGX H100: 400 Gbit/s a GPU
    "h100": Gpu(
        memory=80e9, bandwidth=3.350e12, bf16=989e12, fp32=67e12, link=450e9, network=50e9, name=r"H100 80GB HBM3"
    ),
    "h200": Gpu(memory=141e9, bandwidth=4.800e12, bf16=989e12, fp32=67e12, link=450e9, network=50e9, name=r"H200$"),
    # NVIDIA HGX B200 data sheet, an eighth of it: 4.5 PFLOP/s with sparsity, 1.44 TB, NVLink 1.8 TB/s
    "b200": Gpu(memory=180e9, bandwidth=8.000e12, bf16=2250e12, fp32=75e12, link=900e9, network=50e9, name=r"B200$"),
    # NVIDIA L40S and L4 data sheets (half of what is given with sparsity); PCIe 4.0 × 16; 100 Gbit/s assumed
    "l40s": Gpu(memory=48e9, bandwidth=864e9, bf16=362e12, fp32=91.6e12, link=32e9, network=12.5e9, name=r"L40S$"),
    "l4": Gpu(memory=24e9, bandwidth=300e9, bf16=121e12, fp32=30.3e12, link=32e9, network=12.5e9, name=r"L4$"),
    # NVIDIA Ada architecture paper, appendix A; PCIe 4.0 × 16; 100 Gbit/s assumed
    "4090": Gpu(
        memory=24e9, bandwidth=1.008e12, bf16=165.2e12, fp32=82.6e12, link=32e9, network=12.5e9, name=r"RTX 4090$"
    ),
}


def find_gpu(device_name: str) -> Gpu | None:
    """Return the entry for a name of torch.cuda.get_device_name; None if there is none."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.name, device_name)), None)
