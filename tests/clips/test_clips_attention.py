"""Attention of open_clip's towers that reads its packed projection in place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from clips.model.compute import PackedAttention, pack_attention


def modules(**options: object) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """torch's attention and the same, packed."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(32, 4, batch_first=True, **options)
    nn.init.normal_(plain.in_proj_bias)
    packed = nn.ModuleList([copy.deepcopy(plain)])
    pack_attention(packed)
    return plain, packed[0]


@pytest.mark.parametrize("mask", [None, "causal", "of each head"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bf16", [False, True])
def test_values_and_gradients_are_those_of_torch(mask: str | None, training: bool, bf16: bool):
    plain, packed = (module.train(training) for module in modules())
    assert type(packed) is PackedAttention
    masks = {
        None: None,
        "causal": torch.full((7, 7), -torch.inf).triu(1),
        "of each head": torch.randn(3 * 4, 7, 7),
    }
    found = []
    for module in (plain, packed):
        x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result, weights = module(x, x, x, need_weights=False, attn_mask=masks[mask])
        assert weights is None
        result.float().square().sum().backward()
        found.append([result, x.grad, *(value.grad for value in module.parameters())])
    for expected, actual in zip(*found, strict=True):
        error = (actual.float() - expected.float()).abs().max() / expected.abs().max()
        assert error < (0.01 if bf16 else 1e-5)


def test_other_calls_and_modules_are_torchs():
    plain, packed = modules()
    query, keys = torch.randn(2, 1, 32), torch.randn(2, 5, 32)
    for options in ({}, {"need_weights": False}, {"key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)}):
        expected, weights = plain(query, keys, keys, **options)
        actual, packed_weights = packed(query, keys, keys, **options)
        assert torch.equal(actual, expected)
        assert (weights is None) == (packed_weights is None)
    assert torch.equal(packed(keys, keys, keys, None, False)[0], plain(keys, keys, keys, None, False)[0])
    boolean = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = plain(keys, keys, keys, need_weights=False, attn_mask=boolean)[0]
    assert torch.equal(packed(keys, keys, keys, need_weights=False, attn_mask=boolean)[0], expected)
    for options in ({"dropout": 0.1}, {"add_zero_attn": True}, {"kdim": 16, "vdim": 16}):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.MultiheadAttention(32, 4, batch_first=True, **options)])
        pack_attention(model)
        assert type(model[0]) is nn.MultiheadAttention
