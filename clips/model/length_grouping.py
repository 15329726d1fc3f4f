"""Group the rows of a batch by length, so that each group is computed only up to its longest row.

This only skips padding if tokens after a row's end do not influence its result.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_MAX_GROUPS = 8
Rows = Literal["texts", "captions"]
# Each group launches all kernels once more, casts all weights and adds to their gradients. On an H200 three more groups
# of 64 web captions made a step of B/16 47 ms longer, of 107, and saved 8 % of its operations (docs/performance.md).
MIN_GROUP_SIZE: dict[str, dict[Rows, int]] = {
    "cpu": {"texts": 16, "captions": 16},
    "cuda": {"texts": 512, "captions": 64},  # a caption's row has the tokens of its image too
}


def group_by_length(lengths: Tensor, device: torch.device, rows: Rows) -> tuple[Tensor, list[int], list[int]]:
    """Split a batch into groups of rows of similar length.

    The number of groups depends only on the number of rows: processes with different texts call their layers equally
    often.

    Args:
        lengths: (B,) int64, B at least 1.
        device: of the computation.
        rows: of a text tower, or of the captioner.

    Returns:
        The rows' order (B,), shortest first; the sizes of the groups, which add up to B; the maximum length of each
        group.
    """
    order = lengths.argsort()
    least = MIN_GROUP_SIZE.get(device.type, MIN_GROUP_SIZE["cuda"])[rows]
    groups = order.tensor_split(max(1, min(_MAX_GROUPS, len(lengths) // least)))
    sizes = [len(group) for group in groups]
    return order, sizes, [int(group.max()) for group in lengths[order].cpu().split(sizes)]
