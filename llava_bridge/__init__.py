"""Plug any vision encoder into LLaVA and train it with DeepSpeed.

Importing this package teaches transformers the bridge's vision tower, so that stock
``LlavaForConditionalGeneration.from_pretrained`` loads what the bridge wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llava_bridge.model.registration import register_on_import

if TYPE_CHECKING:
    from llava_bridge.asking.inference import answer, answer_batches, answer_conversations, load_llava

__all__ = ["answer", "answer_batches", "answer_conversations", "load_llava"]

register_on_import()


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first asked for: they need torch and transformers."""
    if name in __all__:
        from llava_bridge.asking import inference

        return getattr(inference, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
