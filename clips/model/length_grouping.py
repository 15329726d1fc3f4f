"""Group the rows of a batch by length, so that each is computed only up to the longest row of its group.

If nothing after a row's end can influence its result, this only skips padding.
"""

from __future__ import annotations

from torch import Tensor

_MOST_GROUPS = 8
_SMALLEST_GROUP = 16  # rows; each group writes the gradients of all weights once more


def group_by_length(lengths: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Split a batch into groups of rows of similar length.

    The number of groups depends only on the number of rows: processes with different texts call their layers equally
    often.

    Args:
        lengths: (B,) int64, B at least 1.

    Returns:
        The rows' order (B,), shortest first; the sizes of the groups, which add up to B; the maximum length of each
        group.
    """
    order = lengths.argsort()
    parts = order.tensor_split(max(1, min(_MOST_GROUPS, len(lengths) // _SMALLEST_GROUP)))
    sizes = [len(part) for part in parts]
    longest = [int(part.max()) for part in lengths[order].cpu().split(sizes)]
    return order, sizes, longest
