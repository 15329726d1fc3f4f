"""Causal attention of training batches without a mask, registered in transformers as ``varlen``.

transformers' SDPA separates the samples of a packed row by a mask (R, 1, T, T), which excludes SDPA's flash kernel, and
before each step the host waits for the GPU to learn whether rows are padded. Neither is needed: padding on the right
comes after all tokens that are learned, and the collator knows where samples end.

Legend: R rows, T tokens of a row, H heads, C channels of a head, B samples.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

NAME = "varlen"
Heads = tuple[Tensor, Tensor, Tensor]
"""Query, key and value."""
_MAX_CHANNELS, _CHANNEL_MULTIPLE = 256, 8  # of a head, for the flash kernel
_AMPERE = (8, 0)
_SHORT = 128  # tokens; up to these products and a softmax are faster on CPUs in bf16 than the flash kernel


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample, (R, T, H, C).

    On a GPU torch's ``varlen_attn`` computes it, on a CPU SDPA for each sample, or in bf16 products of short ones.

    Args:
        module: the layer, with ``num_key_value_groups``.
        query: (R, H, T, C).
        key: (R, H / groups, T, C).
        value: as ``key``.
        attention_mask: None, or 0 for padding on the right, which needs no mask.
        dropout: 0.
        scaling: of the products; None for 1 / √C.
        sliding_window: number of tokens that a token sees, including itself; None for all.
        cu_seq_lens_q: (B + 1,) int32, the bounds of the samples in the rows one after the other; None for a sample in
            each row.
        max_length_q: tokens of the longest sample.
        options: other arguments of transformers' attentions.

    Raises:
        ValueError: another kind of attention.
    """
    rows, _, tokens, channels = query.shape
    if (
        dropout
        or key.shape[2] != tokens
        or value.shape[3] != channels
        or channels > _MAX_CHANNELS
        or channels % _CHANNEL_MULTIPLE
        or options.get("is_causal") is False
        or any(options.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    ):
        raise ValueError(f"attention {NAME} has no dropout, cache, cap, sink or bias, and heads of 8 to 256 channels")
    windowed = sliding_window is not None and (max_length_q or tokens) > sliding_window
    if cu_seq_lens_q is None and not windowed:
        return _causal_attention(module, (query, key, value), scaling), None
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device=query.device)
    window = sliding_window if windowed else None
    if not query.is_cuda:
        return _attention_by_sample(module, (query, key, value), cu_seq_lens_q, scaling, window), None
    longest = max_length_q or tokens
    return _attention_on_gpu(module, (query, key, value), cu_seq_lens_q, longest, scaling, window), None


def _causal_attention(module: Any, heads: Heads, scaling: float | None, mask: Tensor | None = None) -> Tensor:
    """(R, T, H, C), of a sample in each row; with a mask (T, T) of what tokens see, by that."""
    query, key, value = heads
    tokens = query.shape[2]
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or tokens > _SHORT or mask is not None:
        output: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=True)[0]
        return output
    key, value = (repeat_kv(each, module.num_key_value_groups) for each in (key, value))
    products = query @ key.mT * (query.shape[3] ** -0.5 if scaling is None else scaling)
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    weights = products.masked_fill(later, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).transpose(1, 2)


def _attention_on_gpu(
    module: Any, heads: Heads, bounds: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    """(R, T, H, C), by torch's kernel for samples of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = heads
    grouped = {"enable_gqa": True} if "enable_gqa" in _parameters(varlen_attn) else {}
    if not grouped:  # of an earlier torch
        key, value = (repeat_kv(each, module.num_key_value_groups) for each in (key, value))
    kernel: Any = varlen_attn
    found: Tensor = kernel(
        *(each.to(value.dtype).transpose(1, 2).flatten(0, 1) for each in (query, key, value)),
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    return found.unflatten(0, (query.shape[0], query.shape[2]))


@torch._disable_dynamo  # its graphs would be of one number of samples each
def _attention_by_sample(
    module: Any, heads: Heads, bounds: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """(R, T, H, C), by SDPA for each sample."""
    rows, _, tokens, _ = heads[0].shape
    lengths = bounds.diff().tolist()
    joined = [each.transpose(0, 1).flatten(1, 2)[None].split(lengths, dim=2) for each in heads]
    outputs = []
    for sample in zip(*joined, strict=True):
        length, mask = sample[0].shape[2], None
        if window is not None and length > window:
            mask = torch.ones(length, length, dtype=torch.bool, device=bounds.device).tril().triu(1 - window)
        outputs.append(_causal_attention(module, sample, scaling, mask))
    return torch.cat(outputs, dim=1)[0].unflatten(0, (rows, tokens))


def can_replace_sdpa(llm: Any, *, bf16: bool) -> bool:
    """Whether ``varlen`` may compute the attention of an LLM in training instead of transformers' SDPA, fast.

    A model that supports FlashAttention passes on all that its attention depends on except the mask.
    """
    if getattr(llm.config, "_attn_implementation", None) != "sdpa" or getattr(llm.config, "attention_dropout", 0.0):
        return False
    if not getattr(llm, "_supports_flash_attn", False) or not llm._can_set_attn_implementation():
        return False
    return not torch.cuda.is_available() or (bf16 and torch.cuda.get_device_capability() >= _AMPERE and _has_varlen())


def _has_varlen() -> bool:
    """Whether torch has the attention, with windows (2.10 has none)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in _parameters(varlen_attn)


@functools.cache  # asked for in each layer of each step
def _parameters(kernel: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kernel).parameters)


AttentionInterface.register(NAME, varlen_attention)
