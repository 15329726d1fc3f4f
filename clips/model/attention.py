"""Self-attention of open_clip's towers without torch's copies of queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class PackedAttention(nn.MultiheadAttention):
    """torch's module, with its parameters, whose self-attention reads the packed projection in place.

    torch's own copies queries, keys and values from the packed projection to one tensor each, and their gradients back:
    15 % of an eager step of ViT-L/14 on a GPU, as predicted (docs/performance.md). Other calls are torch's.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention (B, L, D) over ``query`` (B, L, D), and None; arguments are torch's."""
        mask, is_self = options.get("attn_mask"), query is key and query is value and not arguments
        usual = options.keys() <= {"need_weights", "attn_mask"} and options.get("need_weights") is False
        if not (is_self and usual) or (mask is not None and not mask.is_floating_point()):
            return super().forward(query, key, value, *arguments, **options)
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in packed)
        if mask is not None and mask.ndim == 3:  # (B × heads, L, L)
            mask = mask.unflatten(0, (-1, self.num_heads))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class SelfAttention(PackedAttention):
    """`PackedAttention` for towers that have self-attention only: ``key`` and ``value`` are not read.

    ZeRO-3 passes three tensors where the caller passes one three times, which looks like another call of torch's.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention (B, L, D) over ``query`` (B, L, D), and None; other arguments are torch's."""
        return super().forward(query, query, query, *arguments, **options)


def pack_attention(model: nn.Module, kind: type[PackedAttention] = PackedAttention) -> None:
    """Turn the batch-first attention modules of ``model`` without dropout and added keys into ``kind``."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and module.batch_first and module.in_proj_weight is not None:
            adds_keys = module.bias_k is not None or module.add_zero_attn
            if not module.dropout and not adds_keys:
                module.__class__ = kind
