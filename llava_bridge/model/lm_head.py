"""The output layer of a LLaVA, which maps the LLM's hidden states to logits.

transformers' LLaVA uses this layer's product as the logits. Some LLMs do more: Granite divides it by
``logits_scaling``, Cohere and Falcon-H1 multiply it (``logit_scale``, ``lm_head_multiplier``), Gemma 2 caps it with
``final_logit_softcapping``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from clips.core.artifact import log_info
from clips.errors import UserError

# Config names of the operations on the product, and the values at which they are the identity.
_FACTORS: dict[str, Any] = {"logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0}
_CAPS: dict[str, Any] = {"final_logit_softcapping": None}


def extract_lm_head(llm: Any) -> nn.Module:
    """Return an output layer with which a LLaVA has the logits of ``llm`` alone.

    A factor is merged into the layer's weights. The layer is therefore a separate copy if its weights can no longer be
    the embedding's: then, and if the embedding is not called ``embed_tokens``, where transformers' LLaVA would look for
    it. A cap is dropped, with a message: the LLM in the LLaVA has none. ``llm.config`` is updated.

    Raises:
        UserError: it has no such layer, or does something else with its product; it has no key-value cache, as state
            space models, which transformers' LLaVA does not support; or it needs more than embeddings.
    """
    layer, config = llm.get_output_embeddings(), llm.config
    if layer is None:
        raise UserError(f"llm: {config.model_type} has no output layer; expected a causal LM")
    products, logits = _products_and_logits(llm, layer)
    factor, scaled = float((logits * products).sum() / products.square().sum()), False
    if _set(config, _CAPS):
        log_info(
            f"llm: {config.model_type} caps its logits, which LLaVAs do not: greedy answers are the same, but "
            "probabilities and losses are not those of the LLM by itself"
        )
    elif not torch.allclose(logits, products, rtol=1e-4, atol=1e-5, equal_nan=True):  # float16 may overflow
        scaled = torch.allclose(logits, factor * products, rtol=1e-4, atol=1e-5) and _set(config, _FACTORS)
        if not scaled:
            raise UserError(
                f"llm: {config.model_type} does more for its logits than an output layer, which no LLaVA does"
            )
    if scaled or (config.tie_word_embeddings and not hasattr(llm.base_model, "embed_tokens")):
        layer, config.tie_word_embeddings = copy.deepcopy(layer), False
    if scaled:
        with torch.no_grad():
            for weight in layer.parameters():
                weight.mul_(factor)
    return layer


def neutralize_logit_scaling(config: Any) -> None:
    """Set an LLM's config to the identity on the product, as in every LLaVA."""
    _set(config, {**_FACTORS, **_CAPS})


def _set(config: Any, neutral: dict[str, Any]) -> bool:
    """Record the identity on the product; return whether the config had another operation."""
    said = [name for name, value in neutral.items() if getattr(config, name, value) != value]
    for name in said:
        setattr(config, name, neutral[name])
    return bool(said)


@torch.no_grad()
def _products_and_logits(llm: Any, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return, for a few tokens, the output of ``layer`` on the last hidden states, and the LLM's logits."""
    tokens = torch.arange(1, 5, device=llm.device)[None]
    learns, _ = llm.training, llm.eval()
    made = llm.base_model(input_ids=tokens, use_cache=False)
    if not hasattr(made, "past_key_values"):
        kind = llm.config.model_type
        raise UserError(f"llm: {kind} remembers no keys and values, which transformers' LLaVA asks of its LLM")
    logits = llm(input_ids=tokens, use_cache=False).logits
    _check_embeddings(llm, tokens, made.last_hidden_state)
    llm.train(learns)
    return layer(made.last_hidden_state), logits


def _check_embeddings(llm: Any, tokens: Tensor, hidden: Tensor) -> None:
    """Raise UserError unless the LLM gives equal outputs from embeddings and tokens; an image is no token."""
    embedded = llm.get_input_embeddings()(tokens)
    try:
        again = llm.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        llm.base_model(inputs_embeds=embedded + 1, use_cache=False)  # Gemma 4 looks up the tokens of its embeddings
        alike = torch.allclose(again, hidden, rtol=1e-3, atol=1e-4, equal_nan=True)
    except (RuntimeError, TypeError, ValueError):
        alike = False
    if not alike:
        raise UserError(
            f"llm: {llm.config.model_type} reads its tokens next to their embeddings, and images in a LLaVA have "
            "embeddings alone; expected another LLM, such as Gemma 2 or Qwen 3"
        )
