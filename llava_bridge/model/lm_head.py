"""The output layer of a LLaVA, which maps the LLM's hidden states to logits.

transformers' LLaVA uses the layer's output as the logits. Some LLMs process it further: Granite divides it by
``logits_scaling``, Cohere and Falcon-H1 multiply it (``logit_scale``, ``lm_head_multiplier``), Gemma 2 caps it with
``final_logit_softcapping``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clips.core.artifact import log_info
from clips.errors import UserError

# Config fields of the operations on the output, and their values without effect.
_FACTORS: dict[str, Any] = {"logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0}
_CAPS: dict[str, Any] = {"final_logit_softcapping": None}


def extract_lm_head(llm: Any) -> nn.Module:
    """Return an output layer with which a LLaVA has the logits of ``llm``.

    A factor is merged into the layer's weights. A tied layer is copied if it has a factor, or if the embedding is not
    called ``embed_tokens``, where transformers' LLaVA expects it. A cap is dropped, with a message: the LLM in the
    LLaVA has none. ``llm.config`` is updated.

    Raises:
        UserError: it has no output layer, processes its output in another way, has no key-value cache (as state space
            models), or needs more than embeddings: transformers' LLaVA does not support these.
    """
    layer, config = llm.get_output_embeddings(), llm.config
    if layer is None:
        raise UserError(f"llm: {config.model_type} has no output layer; expected a causal LM")
    with computing_in_float32(llm):
        outputs, logits = _outputs_and_logits(llm, layer)
    factor, scaled = float((logits * outputs).sum() / outputs.square().sum()), False
    if _neutralize(config, _CAPS):
        log_info(
            f"llm: {config.model_type} caps its logits, which LLaVAs do not: greedy answers are the same, but "
            "probabilities and losses differ from those of the LLM alone"
        )
    elif not torch.allclose(logits, outputs, rtol=1e-4, atol=1e-5, equal_nan=True):  # float16 may overflow
        scaled = torch.allclose(logits, factor * outputs, rtol=1e-4, atol=1e-5) and _neutralize(config, _FACTORS)
        if not scaled:
            raise UserError(
                f"llm: {config.model_type} processes the output layer's result further, which no LLaVA supports"
            )
    if scaled or (config.tie_word_embeddings and not hasattr(llm.base_model, "embed_tokens")):
        layer, config.tie_word_embeddings = copy.deepcopy(layer).float(), False
    if scaled:
        with torch.no_grad():
            for weight in layer.parameters():
                weight.mul_(factor)
    return layer


@contextlib.contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Meanwhile each module converts its bf16 weights to float32 for the time of its call."""
    stored: dict[nn.Parameter, Tensor] = {}

    def convert(module: nn.Module, _: Any) -> None:
        for weight in module.parameters(recurse=False):
            if weight.dtype == torch.bfloat16:
                stored[weight] = weight.data
                weight.data = weight.data.float()

    def restore(module: nn.Module, _: Any, __: Any) -> None:
        for weight in module.parameters(recurse=False):
            if weight in stored:
                weight.data = stored.pop(weight)

    modules = list(model.modules())
    hooks = [module.register_forward_pre_hook(convert) for module in modules]
    hooks += [module.register_forward_hook(restore, always_call=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def neutralize_logit_scaling(config: Any) -> None:
    """Set the fields of an LLM's config that transform its logits to their values without effect."""
    _neutralize(config, _FACTORS | _CAPS)


def _neutralize(config: Any, neutral: dict[str, Any]) -> bool:
    """Set these fields; return whether any had another value."""
    changed = [name for name, value in neutral.items() if getattr(config, name, value) != value]
    for name in changed:
        setattr(config, name, neutral[name])
    return bool(changed)


@torch.no_grad()
def _outputs_and_logits(llm: Any, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return, for a few tokens, the output of ``layer`` on the last hidden states, and the LLM's logits."""
    tokens = torch.arange(1, 5, device=llm.device)[None]
    was_training, _ = llm.training, llm.eval()
    base = llm.base_model(input_ids=tokens, use_cache=False)
    if not hasattr(base, "past_key_values"):
        raise UserError(f"llm: {llm.config.model_type} has no key-value cache, which transformers' LLaVA requires")
    logits = llm(input_ids=tokens, use_cache=False).logits
    _check_embeddings(llm, tokens, base.last_hidden_state)
    llm.train(was_training)
    return layer(base.last_hidden_state), logits


def _check_embeddings(llm: Any, tokens: Tensor, hidden: Tensor) -> None:
    """Raise UserError unless the LLM gives equal outputs from embeddings and tokens; an image is no token."""
    embedded = llm.get_input_embeddings()(tokens)
    try:
        from_embeddings = llm.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        llm.base_model(inputs_embeds=embedded + 1, use_cache=False)  # Gemma 4 looks up the tokens of its embeddings
        equal = torch.allclose(from_embeddings, hidden, rtol=1e-3, atol=1e-4, equal_nan=True)
    except (RuntimeError, TypeError, ValueError):
        equal = False
    if not equal:
        raise UserError(
            f"llm: {llm.config.model_type} needs tokens in addition to their embeddings, but images in a LLaVA have "
            "only embeddings; expected another LLM, such as Gemma 2 or Qwen 3"
        )
