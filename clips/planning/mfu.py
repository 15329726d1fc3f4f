"""Model FLOPs utilization (MFU) of a running training. Source: appendix B of PaLM (arXiv 2204.02311)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from clips.core.artifact import log_info
from clips.errors import error_reason
from clips.planning.hardware import find_gpu
from clips.training.train_config import EncoderTrainConfig

_COUNTED = 8  # batches


class MfuMeter:
    """FLOPs of a run's samples, and its FLOP/s as a ratio of its devices' peak where that is known.

    Args:
        config: of the run; its ``distributed.device_peak_tflops`` takes precedence over `clips.planning.hardware`.
        device: of this process.
        precision: of the computation.
        processes: how many share the batch.
        counted: FLOPs per sample of the batches counted so far, which a resumed run continues; more are appended.
    """

    def __init__(
        self,
        config: EncoderTrainConfig,
        *,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        processes: int,
        counted: list[float] | None = None,
    ) -> None:
        self.config, self.processes = config, processes
        stated = config.distributed.device_peak_tflops
        self.peak = peak_flops(device, precision) if stated is None else stated * 1e12
        self.counted = [] if counted is None else counted
        self._failed = False

    def read(self, batch: Mapping[str, Tensor], samples_per_second: float) -> dict[str, float]:
        """The log's "flops_per_sample"; with a peak "mfu" and, of one process, "tflops". The first calls take seconds.

        FLOPs depend on the lengths of a batch's captions: the mean over the batches of the first eight calls.

        Args:
            batch: one of this process.
            samples_per_second: of all processes.
        """
        if len(self.counted) < _COUNTED and not self._failed:
            try:
                self.counted.append(flops_per_sample(self.config, batch, self.processes))
            except Exception as error:  # of another torch's internals; no training should end for this
                log_info(f"FLOPs: cannot be counted ({error_reason(error)})")
                self._failed = True
        if self._failed:
            return {}
        flops = statistics.fmean(self.counted)
        counted = {"flops_per_sample": flops}
        if self.peak is None:
            return counted
        rate = flops * samples_per_second / self.processes
        return counted | {"mfu": rate / self.peak, "tflops": rate / 1e12}


def flops_per_sample(config: EncoderTrainConfig, batch: Mapping[str, Tensor], processes: int) -> float:
    """FLOPs of a sample's forward and backward pass, its share of the global contrastive loss included.

    Recomputation to save memory is not counted; products of padding count where the model makes them.
    """
    # Imported within `read`'s try: it uses torch's internals, and without them the training continues.
    from clips.planning.dry_run import contrastive_flops, fake_model, profile_step

    model = fake_model(config.model, config.recipe)
    texts = {name: value.cpu() for name, value in batch.items() if name != "image"}
    samples = len(batch["image"])
    step = profile_step(model, samples, device="cpu", bf16=False, texts=texts)
    return (step.flops + contrastive_flops(model, samples, processes)) / samples


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that ``device`` can reach in ``precision``; None for a device that is not in the table of GPUs."""
    if device.type != "cuda":
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.peak(precision)
