"""Where pictures and their captions come from: by random access, as training reads them."""

from __future__ import annotations

from clips.data.formats import FORMATS
from clips.data.images import BadSampleError
from clips.data.sources.base import Afar, Record, Sample, Source, SourceConfig, blocks_of
from clips.errors import UserError
from clips.imported import imported

__all__ = [
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
    reader = FORMATS[config.format].source or "clips.data.sources.listed:ListedCaptions"
    source: Source = imported(reader)(config)
    if not len(source):
        raise UserError(f"{config.path}: no samples")
    return source
