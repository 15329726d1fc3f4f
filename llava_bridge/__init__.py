"""Plug any vision encoder into LLaVA and train it with DeepSpeed.

After ``llava_bridge.register()`` unmodified transformers loads the bridge's checkpoints, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_bridge.inference.generate import answer, answer_conversations, iter_answer_batches, load_llava
    from llava_bridge.inference.loglikelihood import loglikelihoods
    from llava_bridge.model.modeling_llava import register

__all__ = ["answer", "answer_conversations", "iter_answer_batches", "load_llava", "loglikelihoods", "register"]


def __getattr__(name: str) -> Any:
    """Import the public functions at first use: they need torch and transformers."""
    if name in __all__:
        from llava_bridge.inference import generate, loglikelihood
        from llava_bridge.model import modeling_llava

        modules = {"loglikelihoods": loglikelihood, "register": modeling_llava}
        return getattr(modules.get(name, generate), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
