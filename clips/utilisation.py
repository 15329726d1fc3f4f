"""How much of a GPU's peak a training uses: model FLOPs utilisation (appendix B of PaLM, arXiv 2204.02311)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clips.dryrun import dry_contrast, dry_step, fake_model
from clips.hardware import gpu_of
from clips.step import Run


class Utilisation:
    """FLOP/s of a run as a share of the peak of its GPUs; costs nothing where the peak is not known.

    Args:
        run: the run.
        peak: FLOP/s of one process's device; by default what `clips.hardware` says of the GPU, None for any other.
    """

    def __init__(self, run: Run, peak: float | None = None) -> None:
        self.run = run
        self.peak = peak_of(run) if peak is None else peak
        self._flops: float | None = None

    def read(self, batch: Mapping[str, Tensor], samples_per_second: float) -> dict[str, float]:
        """The log's "mfu" and "tflops" of a process, or nothing; the first call takes seconds.

        Args:
            batch: a batch of this process; the first one's captions say how long captions are.
            samples_per_second: of all processes.
        """
        if self.peak is None:
            return {}
        if self._flops is None:
            self._flops = flops_per_sample(self.run, batch)
        rate = self._flops * samples_per_second / self.run.processes.count
        return {"mfu": rate / self.peak, "tflops": rate / 1e12}


def flops_per_sample(run: Run, batch: Mapping[str, Tensor]) -> float:
    """FLOPs of a sample's forward and backward pass, its share of the global contrastive loss included.

    Nothing that is computed twice to save memory counts twice; products of padding count where the model makes them.
    """
    model = fake_model(run.config.model, run.config.recipe)
    texts = {name: value.cpu() for name, value in batch.items() if name != "image"}
    samples = len(batch["image"])
    step = dry_step(model, samples, device="cpu", bf16=False, texts=texts)
    everyone = run.processes.count  # each row meets that many times as many others
    return (step.flops + dry_contrast(model, samples, 1).flops * everyone) / samples


def peak_of(run: Run) -> float | None:
    """FLOP/s that this process's device can reach in the run's precision; None where the table does not have it."""
    device = run.processes.device
    if device.type != "cuda":
        return None
    gpu = gpu_of(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.peak(run.precision)
