"""``clips plan``: memory, time, GPUs and storage of a training beforehand.

clips plan scripts/configs/clips-l-14.yaml --gpu h200 --num_gpus 64
"""

from __future__ import annotations

import dataclasses

from clips.errors import UserError, unknown_name_error
from clips.planning.hardware import GPUS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPlanConfig:
    """Print estimates for each stage of a training: memory of a GPU by part, time, GPU hours, storage.

    Args:
        train_config: a YAML file of `clips train`.
        gpu: the type of GPU, such as a100-80, h100, h200, b200, l40s, 4090.
        num_gpus: number of GPUs.
        mfu: model FLOPs utilization, the assumed ratio of FLOP/s to the GPU's peak; null is that of a
            roofline of the step's kernels, see docs/performance.md.
        roofline: also print the kernels of a step with their time by the roofline, the images that it needs per second,
            and the bytes that each strategy sends.
        metrics_file: a metrics.jsonl whose median "mfu" replaces ``mfu``.
        mean_loss_tokens: mean number of tokens of a synthetic caption in the caption loss; null is the captioner's
            maximum.
        reserve_gb: GB of a GPU that are not tensors: context, libraries, NCCL's buffers.
        fragmentation: bytes lost to gaps between tensors, as a ratio of the tensors.
        num_images: number of images of remote training data.
        bytes_per_image: stored bytes of an image with its captions.
    """

    train_config: str
    gpu: str = "h200"
    num_gpus: int = 8
    mfu: float | None = None
    roofline: bool = False
    metrics_file: str | None = None
    mean_loss_tokens: int | None = None
    reserve_gb: float = 2.0
    fragmentation: float = 0.05
    num_images: int | None = None
    bytes_per_image: float | None = None

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise unknown_name_error(self.gpu, GPUS, "type of GPU")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise UserError(f"mfu: expected a ratio above 0, up to 1, got {self.mfu}")
        if (self.num_images is None) != (self.bytes_per_image is None):
            raise UserError("bytes_per_image: expected together with num_images, or neither")
        for name in ("num_gpus", "mean_loss_tokens", "num_images", "bytes_per_image"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("reserve_gb", "fragmentation"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")
