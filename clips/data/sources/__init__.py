"""Sources of images and captions with random access, for training."""

from __future__ import annotations

from clips.data.formats import FORMATS
from clips.data.images import InvalidSampleError
from clips.data.sources.source import Record, RemoteSource, Sample, Source, SourceConfig, shard_lengths
from clips.errors import UserError
from clips.lazy_import import import_from_string

__all__ = [
    "InvalidSampleError",
    "Record",
    "RemoteSource",
    "Sample",
    "Source",
    "SourceConfig",
    "open_source",
    "shard_lengths",
]


def open_source(config: SourceConfig) -> Source:
    """The source of ``config``, with its first samples checked.

    Raises:
        UserError: a file is missing or invalid, or none of the first samples has the fields in ``config``.
    """
    reader = FORMATS[config.format].source or "clips.data.sources.listed:ListedCaptions"
    source: Source = import_from_string(reader)(config)
    if not len(source):
        raise UserError(f"{config.path}: no samples")
    return source
