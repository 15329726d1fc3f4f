"""The settings of training data; torch is not imported here, so that errors of settings are reported fast."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from clips.core.identity import RUN_ONLY
from clips.data.sources import SourceConfig
from clips.errors import UserError
from clips.ranges import Fraction, NonNegative, Positive, PositiveFraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training images; evaluation always uses the full image.

    Args:
        crop_scale_min: minimum area of a random crop, as a ratio of the image; 1 squashes the full image instead.
        color_jitter: strength of SimCLR's color jitter, applied to 80 % of the images. Brightness, contrast and
            saturation change by up to 0.8 times the strength, the hue by up to 0.2 times the strength of its circle.
            The reference uses 0.4: ±0.32 and ±0.08.
        gray_scale_prob: ratio of images converted to gray; the reference uses 0.2.
        horizontal_flip: mirror half of the images; wrong if captions mention left and right.
    """

    crop_scale_min: PositiveFraction = 0.4
    color_jitter: Fraction = 0.0
    gray_scale_prob: Fraction = 0.0
    horizontal_flip: bool = False

    @property
    def varies(self) -> bool:
        """Whether the augmentation is random."""
        return self.crop_scale_min < 1 or self.horizontal_flip or self.color_jitter > 0 or self.gray_scale_prob > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data.

    Args:
        sources: images with captions, each an entry of format, path, web_caption, synthetic_caption (see
            `--data.sources.help`); several are read as one, or mixed by their weights.
        shuffle_buffer_shards: number of shards (or blocks of 10,000 rows, or streamed row groups) that are shuffled
            together. null shuffles all samples of an epoch, which suits local disks; of more than 2,048 shards it is
            100. For remote shards, a number such as 100 limits the reading to few shards at a time.
        augment: augmentation of the images.
        num_workers: DataLoader workers for each training process; 0 reads ahead in a thread.
        cache_images: cache decoded images in memory, so that each is decoded once at each size that crops need.
        max_invalid_ratio: stop if more than this ratio of the samples is undecodable or has no caption.
    """

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    shuffle_buffer_shards: Positive | None = None
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    num_workers: NonNegative = dataclasses.field(default=0, metadata=RUN_ONLY)
    cache_images: bool = dataclasses.field(default=False, metadata=RUN_ONLY)
    max_invalid_ratio: Fraction = dataclasses.field(default=0.01, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise UserError("data.sources: expected a weight for each source or for none")
        if self.shuffle_buffer_shards is None and any(source.streaming for source in self.sources):
            raise UserError("data.shuffle_buffer_shards: expected a number, such as 100, for a streamed source")
