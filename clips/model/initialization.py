"""Initialization of this suite's architectures, equal to that of the authors' code (OpenVision) layer by layer.

Image tower: patch embedding Kaiming-uniform, class token normal(1e-6), matrices normal(0.02), except the MLP's second,
a truncated normal of variance 0.3072 / width; all biases 0. Text tower: as open_clip, except for the MLP's biases,
which are 0. Source: vit.py and text_transformer.py of OpenVision; flax's initializers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from clips.model.towers import Towers

_STD = 0.02
_CLASS_STD = 1e-6
_MLP_OUT_VARIANCE = 0.3072  # times 1 / width
_TRUNCATED = 0.87962566103423978  # standard deviation of a standard normal truncated at two standard deviations


@torch.no_grad()
def initialize_openvision(clip: Towers) -> None:
    """Initialize the weights of an open_clip model: its ViT, if it has one, and the biases of its text tower."""
    for block in clip.transformer.resblocks:
        _zero_biases(block)
    visual = clip.visual
    if not hasattr(visual, "conv1") or not hasattr(visual, "transformer"):  # a ResNet or a timm trunk
        return
    nn.init.kaiming_uniform_(visual.conv1.weight, nonlinearity="relu")
    nn.init.normal_(visual.class_embedding, std=_CLASS_STD)
    nn.init.normal_(visual.proj, std=_STD)
    for block in visual.transformer.resblocks:
        _initialize_block(block)


def _initialize_block(block: Any) -> None:
    _zero_biases(block)
    for weight in (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_fc.weight):
        nn.init.normal_(weight, std=_STD)
    out = block.mlp.c_proj.weight  # (width, hidden)
    std = (_MLP_OUT_VARIANCE / out.shape[0]) ** 0.5 / _TRUNCATED
    end = math.erf(2 / math.sqrt(2))  # torch's trunc_normal_ samples until all fit, which meta tensors cannot
    out.uniform_(-end, end).erfinv_().mul_(math.sqrt(2) * std)


def _zero_biases(block: Any) -> None:
    for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
        nn.init.zeros_(bias)
