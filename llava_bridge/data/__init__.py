"""Conversations about images, from files to batches."""

from llava_bridge.data.sources import (
    ConversationSourceConfig,
    HeldOutSourceConfig,
    read_conversations,
    read_samples,
    read_texts,
)

__all__ = ["ConversationSourceConfig", "HeldOutSourceConfig", "read_conversations", "read_samples", "read_texts"]
