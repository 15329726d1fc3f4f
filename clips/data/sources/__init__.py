"""Where pictures and their captions come from: by random access, as training reads them."""

from __future__ import annotations

from clips.data.formats import FORMATS
from clips.data.images import BadSampleError
from clips.data.sources.source import Record, RemoteSource, Sample, Source, SourceConfig, shard_lengths
from clips.errors import UserError
from clips.lazy_import import import_from_string

__all__ = [
    "BadSampleError",
    "Record",
    "RemoteSource",
    "Sample",
    "Source",
    "SourceConfig",
    "open_source",
    "shard_lengths",
]


def open_source(config: SourceConfig) -> Source:
    """The source that ``config`` names, its first samples tried.

    Raises:
        UserError: a file is missing or broken, or all of the first samples lack what ``config`` names.
    """
    reader = FORMATS[config.format].source or "clips.data.sources.listed:ListedCaptions"
    source: Source = import_from_string(reader)(config)
    if not len(source):
        raise UserError(f"{config.path}: no samples")
    return source
