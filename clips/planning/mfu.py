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

_MAX_COUNTED = 8  # batches


class MfuMeter:
    """Counts a run's FLOPs per sample, and computes its FLOP/s as a ratio of its devices' peak, if known.

    Args:
        config: of the run; its ``distributed.device_peak_tflops`` takes precedence over `clips.planning.hardware`.
        device: of this process.
        precision: of the computation.
        processes: number of processes that share the batch.
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
        model = config.model
        self._uncountable = model.cache_trunk_features or model.cache_text_features

    def read(self, batch: Mapping[str, Tensor], samples_per_second: float) -> dict[str, float]:
        """Return "flops_per_sample" and, with a known peak, "mfu" and "tflops" of one process.

        With cached features it returns nothing, because it is not known which layers computed. FLOPs depend on the
        lengths of captions: they are a mean over the first eight calls, which take seconds.

        Args:
            batch: one of this process.
            samples_per_second: of all processes.
        """
        if len(self.counted) < _MAX_COUNTED and not self._uncountable:
            try:
                self.counted.append(flops_per_sample(self.config, batch, self.processes))
            except Exception as error:  # torch's internals may differ; the training should not end
                log_info(f"FLOPs: cannot be counted ({error_reason(error)})")
                self._uncountable = True
        if self._uncountable:
            return {}
        flops = statistics.fmean(self.counted)
        counted = {"flops_per_sample": flops}
        if self.peak is None:
            return counted
        rate = flops * samples_per_second / self.processes
        return counted | {"mfu": rate / self.peak, "tflops": rate / 1e12}


def flops_per_sample(config: EncoderTrainConfig, batch: Mapping[str, Tensor], processes: int) -> float:
    """Count FLOPs of a sample's forward and backward pass, including its part of the global contrastive loss.

    Recomputation to save memory is not counted; products with padding count if the model computes them.
    """
    # Imported here, because an error about torch's internals must not end the training.
    from clips.planning.dry_run import contrastive_flops, fake_model, profile_step

    model = fake_model(config.model, config.recipe)
    texts = {name: value.cpu() for name, value in batch.items() if name != "image"}
    samples = len(batch["image"])
    step = profile_step(model, samples, device="cpu", bf16=False, texts=texts, memory=False)
    return (step.flops + contrastive_flops(model, samples, processes)) / samples


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of ``device`` in ``precision``; None for a device that is not in the table of GPUs."""
    if device.type != "cuda":
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.peak(precision)
