"""Conversations about pictures, from files to batches."""

from llava_bridge.data.samples import DataConfig, Sample, Turn
from llava_bridge.data.sources import SOURCES, read_samples, read_texts
from llava_bridge.data.split import is_held_back

__all__ = ["SOURCES", "DataConfig", "Sample", "Turn", "is_held_back", "read_samples", "read_texts"]
