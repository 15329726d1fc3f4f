"""Group the rows of a batch by length, so that each group is computed only up to its longest row.

This only skips padding if tokens after a row's end do not influence its result.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_GROUPS = 8
MIN_GROUP_SIZE = {"cpu": 16, "cuda": 64}  # rows; each group casts all weights and adds to their gradients once more


def group_by_length(lengths: Tensor, device: torch.device) -> tuple[Tensor, list[int], list[int]]:
    """Split a batch into groups of rows of similar length.

    The number of groups depends only on the number of rows: processes with different texts call their layers equally
    often.

    Args:
        lengths: (B,) int64, B at least 1.
        device: of the computation.

    Returns:
        The rows' order (B,), shortest first; the sizes of the groups, which add up to B; the maximum length of each
        group.
    """
    order = lengths.argsort()
    groups = order.tensor_split(max(1, min(_MAX_GROUPS, len(lengths) // MIN_GROUP_SIZE.get(device.type, 64))))
    sizes = [len(group) for group in groups]
    return order, sizes, [int(group.max()) for group in lengths[order].cpu().split(sizes)]
