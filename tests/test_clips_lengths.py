from __future__ import annotations

import pytest
import torch

from clips.model.length_grouping import group_by_length


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (7, 1), (16, 1), (40, 2), (64, 4), (1000, 8)])
def test_every_row_is_in_one_group_and_no_group_cuts_a_row(rows, groups):
    lengths = torch.randint(1, 80, (rows,), generator=torch.Generator().manual_seed(0))
    order, sizes, longest = group_by_length(lengths)
    assert sorted(order.tolist()) == list(range(rows))
    assert (len(sizes), sum(sizes)) == (groups, rows)
    assert [int(part.max()) for part in lengths[order].split(sizes)] == longest == sorted(longest)


def test_groups_of_like_length_leave_padding_out():
    lengths = torch.tensor([5] * 32 + [60] * 32).roll(5)
    _, sizes, longest = group_by_length(lengths)
    assert (sizes, longest) == ([16] * 4, [5, 5, 60, 60])
