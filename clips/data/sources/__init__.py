"""Where pictures and their captions come from: one class a format."""

from __future__ import annotations

from clips.data.sources.base import FORMATS, Afar, BadSampleError, Record, Sample, Source, SourceConfig, blocks_of
from clips.errors import UserError
from clips.imported import imported

__all__ = [
    "FORMATS",
    "Afar",
    "BadSampleError",
    "Record",
    "Sample",
    "Source",
    "SourceConfig",
    "blocks_of",
    "open_source",
]


def open_source(config: SourceConfig) -> Source:
    """The source that ``config`` names, its first samples tried.

    Raises:
        UserError: a file is missing or broken, or all of the first samples lack what ``config`` names.
    """
    source: Source = imported(FORMATS[config.format].reader)(config)
    if not len(source):
        raise UserError(f"{config.path}: no samples")
    return source
