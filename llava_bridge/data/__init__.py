"""Conversations about images, from files to batches."""

from llava_bridge.data.sources import ConversationSourceConfig, read_samples, read_texts

__all__ = ["ConversationSourceConfig", "read_samples", "read_texts"]
