"""Rows of a batch in groups of like length, so that each is computed no further than its longest row goes.

Where nothing behind a row's end can influence what is read of it, this changes no result: it only leaves padding out.
"""

from __future__ import annotations

from torch import Tensor

_MOST_GROUPS = 8
_SMALLEST_GROUP = 16  # rows; each group writes the gradients of all weights once more


def groups_by_length(lengths: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """How to split a batch so that rows of like length stand together.

    The number of groups depends on the number of rows alone: processes with unlike texts call their layers equally
    often.

    Args:
        lengths: (B,) int64, B at least 1.

    Returns:
        The rows' order (B,), shortest first; the groups' sizes, which add up to B; each group's greatest length.
    """
    order = lengths.argsort()
    parts = order.tensor_split(max(1, min(_MOST_GROUPS, len(lengths) // _SMALLEST_GROUP)))
    sizes = [len(part) for part in parts]
    longest = [int(part.max()) for part in lengths[order].cpu().split(sizes)]
    return order, sizes, longest
