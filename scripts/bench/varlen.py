"""Attention of packed rows by torch's ``varlen_attn``, registered in transformers as ``varlen``; no mask is made.

It takes the bounds of the samples from the arguments that transformers passes on to FlashAttention. On a CPU, for which
torch has no such kernel, each sample is computed on its own.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface

NAME = "varlen"


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample.

    Args:
        module: the layer, with ``num_key_value_groups``.
        query: (R, heads, T, C).
        key: (R, heads / groups, T, C).
        value: as ``key``.
        attention_mask: None.
        scaling: of the products; by default 1 / √C.
        cu_seq_lens_q: (samples + 1,) int32, bounds of the samples in the rows one after the other.
        max_length_q: tokens of the longest sample.
        _: other arguments of transformers' attentions.
    """
    rows, heads, tokens, channels = query.shape
    key, value = (each.repeat_interleave(module.num_key_value_groups, dim=1) for each in (key, value))
    q, k, v = (each.transpose(1, 2).reshape(rows * tokens, heads, channels) for each in (query, key, value))
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        bounds, length, causal = cu_seq_lens_q, max_length_q, (-1, 0)
        found = varlen_attn(q, k, v, bounds, bounds, length, length, scale=scaling, window_size=causal)
        assert isinstance(found, Tensor)
    else:
        samples = []
        for start, end in itertools.pairwise(cu_seq_lens_q.tolist()):
            own_q, own_k, own_v = (each[start:end].transpose(0, 1) for each in (q, k, v))
            samples.append(F.scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True, scale=scaling))
        found = torch.cat(samples, dim=1).transpose(0, 1)
    return found.reshape(rows, tokens, heads, channels), None


AttentionInterface.register(NAME, varlen_attention)
