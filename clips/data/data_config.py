"""What is trained on and how it is varied; without torch, so that a mistake is told at once."""

from __future__ import annotations

import dataclasses

from clips.core.identity import RUN_ONLY
from clips.data.sources import SourceConfig
from clips.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied; evaluation always sees the whole image.

    Args:
        crop_scale_min: a random crop covers at least this share of the image; 1 squashes the whole image instead.
        color_jitter: strength of SimCLR's color jitter, in four images of five: brightness, contrast and saturation
            change by up to 0.8 times this share, the hue by up to 0.2 times this share of its circle. The authors' 0.4
            is ±0.32 and ±0.08.
        gray_scale_prob: the share of images that lose their color; the authors' is 0.2.
        horizontal_flip: mirror half of the images; wrong where captions say left and right.
    """

    crop_scale_min: float = 0.4
    color_jitter: float = 0.0
    gray_scale_prob: float = 0.0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale_min <= 1:
            raise UserError(
                f"data.augment.crop_scale_min: expected a share above 0 and at most 1, got {self.crop_scale_min}"
            )
        for name in ("color_jitter", "gray_scale_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.augment.{name}: expected a share from 0 to 1, got {getattr(self, name)}")

    @property
    def varies(self) -> bool:
        """Whether an image can look different from one time to the next."""
        return self.crop_scale_min < 1 or self.horizontal_flip or self.color_jitter > 0 or self.gray_scale_prob > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on.

    Args:
        sources: images with captions, each an entry of format, path, web_caption, synthetic_caption (see
            `--data.sources.help`); several are read as one, or mixed by their weights.
        shuffle_buffer_shards: shards (or blocks of 10,000 rows, or streamed row groups) that are shuffled together.
            null shuffles all samples of an epoch, which suits local disks; with remote shards or very many samples a
            number, such as 100, keeps the reading to few shards at a time.
        augment: how images are varied.
        num_workers: processes that read ahead for each training process; 0 reads ahead in a thread of its own.
        cache_images: keep decoded images in memory, for data that fits; spares the decoding after one epoch.
        max_invalid_ratio: stop once more than this share of the samples is undecodable or has no caption at all.
    """

    sources: tuple[SourceConfig, ...]
    shuffle_buffer_shards: int | None = None
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    num_workers: int = dataclasses.field(default=0, metadata=RUN_ONLY)
    cache_images: bool = dataclasses.field(default=False, metadata=RUN_ONLY)
    max_invalid_ratio: float = dataclasses.field(default=0.01, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("data.sources: expected at least one source")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise UserError("data.sources: expected a weight for each source or for none")
        if self.shuffle_buffer_shards is not None and self.shuffle_buffer_shards < 1:
            raise UserError(f"data.shuffle_buffer_shards: expected 1 or more, got {self.shuffle_buffer_shards}")
        if self.shuffle_buffer_shards is None and any(source.streaming for source in self.sources):
            raise UserError("data.shuffle_buffer_shards: expected a number, such as 100, where a source is streamed")
        if self.num_workers < 0:
            raise UserError(f"data.num_workers: expected 0 or more, got {self.num_workers}")
        if not 0 <= self.max_invalid_ratio <= 1:
            raise UserError(f"data.max_invalid_ratio: expected a share from 0 to 1, got {self.max_invalid_ratio}")
