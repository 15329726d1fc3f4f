"""What a training computes, and as a share of its devices' peak: MFU (appendix B of PaLM, arXiv 2204.02311)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from clips.core.artifact import say
from clips.errors import reason_of
from clips.planning.hardware import gpu_of
from clips.training.config import TrainConfig

_COUNTED = 8  # batches


class Utilisation:
    """FLOPs of a run's samples, and its FLOP/s as a share of the peak of its devices where that is known.

    Args:
        config: of the run; its ``scale.peak_tflops`` goes before what `clips.planning.hardware` says of the GPU.
        device: of this process.
        precision: what it computes in.
        processes: how many share the batch.
        counted: FLOPs of a sample in the batches counted so far, which an interrupted run goes on with; more are added.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        processes: int,
        counted: list[float] | None = None,
    ) -> None:
        self.config, self.processes = config, processes
        stated = config.scale.peak_tflops
        self.peak = peak_of(device, precision) if stated is None else stated * 1e12
        self.counted = [] if counted is None else counted
        self._failed = False

    def read(self, batch: Mapping[str, Tensor], samples_per_second: float) -> dict[str, float]:
        """The log's "flops_per_sample"; with a peak "mfu" and, of one process, "tflops". The first calls take seconds.

        FLOPs depend on the lengths of a batch's captions: the mean of the first eight batches that are asked about.

        Args:
            batch: one of this process.
            samples_per_second: of all processes.
        """
        if self._failed:
            return {}
        if len(self.counted) < _COUNTED:
            try:
                self.counted.append(flops_per_sample(self.config, batch, self.processes))
            except Exception as error:  # of a torch whose insides are others; no training should end for this
                say(f"FLOPs: cannot be counted ({reason_of(error)})")
                self._failed = True
                return {}
        flops = statistics.fmean(self.counted)
        counted = {"flops_per_sample": flops}
        if self.peak is None:
            return counted
        rate = flops * samples_per_second / self.processes
        return counted | {"mfu": rate / self.peak, "tflops": rate / 1e12}


def flops_per_sample(config: TrainConfig, batch: Mapping[str, Tensor], processes: int) -> float:
    """FLOPs of a sample's forward and backward pass, its share of the global contrastive loss included.

    What is computed twice to save memory counts once; products of padding count where the model makes them.
    """
    # Within `read`'s try: it rests on torch's insides, and without them the training goes on.
    from clips.planning.dryrun import contrast_flops, dry_step, fake_model

    model = fake_model(config.model, config.recipe)
    texts = {name: value.cpu() for name, value in batch.items() if name != "image"}
    samples = len(batch["image"])
    step = dry_step(model, samples, device="cpu", bf16=False, texts=texts)
    return (step.flops + contrast_flops(model, samples, processes)) / samples


def peak_of(device: torch.device, precision: str) -> float | None:
    """FLOP/s that ``device`` can reach in ``precision``; None where the table of GPUs does not have it."""
    if device.type != "cuda":
        return None
    gpu = gpu_of(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.peak(precision)
