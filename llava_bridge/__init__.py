"""Plug any vision encoder into LLaVA and train it with DeepSpeed.

Importing this package registers the bridge's vision tower with transformers, so that unmodified
``LlavaForConditionalGeneration.from_pretrained`` loads the bridge's checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llava_bridge.model.auto_registration import register_on_import

if TYPE_CHECKING:
    from llava_bridge.inference.generate import answer, answer_conversations, iter_answer_batches, load_llava
    from llava_bridge.inference.loglikelihood import loglikelihoods

__all__ = ["answer", "answer_conversations", "iter_answer_batches", "load_llava", "loglikelihoods"]

register_on_import()


def __getattr__(name: str) -> Any:
    """Import the public functions at first use: they need torch and transformers."""
    if name in __all__:
        from llava_bridge.inference import generate, loglikelihood

        return getattr(loglikelihood if name == "loglikelihoods" else generate, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
