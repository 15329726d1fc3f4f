"""Conversations about images, from files to batches."""

from llava_bridge.data.sources import ConversationSourceConfig, HeldOutSourceConfig, read_conversations, read_samples

__all__ = ["ConversationSourceConfig", "HeldOutSourceConfig", "read_conversations", "read_samples"]
