"""The projectors' modules, each built from (config, shape); they map features (B, extra + G², D) to (B, M, W).

Legend: B images, G size of the encoder's grid, D its width (times the number of feature layers), M tokens of the LLM, W
its width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llava_bridge.projectors import PERCEIVER_HEADS, ProjectorConfig, ProjectorShape


def make_mlp(depth: int, width: int, llm: int) -> nn.Sequential:
    """``depth`` linear layers with GELU between them."""
    layers: list[nn.Module] = [nn.Linear(width, llm)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(llm, llm)]
    return nn.Sequential(*layers)


class Mlp(nn.Sequential):
    """An MLP on each feature, with the number of layers in the name."""

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__(*make_mlp(config.mlp_depth, shape.width, shape.llm))


class Linear(nn.Linear):
    """One layer on each feature, as in the first LLaVA (arXiv 2304.08485)."""

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__(shape.width, shape.llm)


class PixelShuffle(nn.Module):
    """Concatenated features of neighbors, normalized, through an MLP of two layers.

    Source: InternVL 1.5 (arXiv 2404.16821, section 3.1), ``mlp1`` of its reference code.
    """

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__()
        self.factor = config.downsample_factor
        width = shape.width * self.factor**2
        self.norm = nn.LayerNorm(width)
        self.mlp = make_mlp(2, width, shape.llm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, G², D) to (B, (G / factor)², W)."""
        return self.mlp(self.norm(group_neighbors(features, self.factor).flatten(2)))


class PixelShuffleLinear(nn.Module):
    """Concatenated features of neighbors through one linear layer without bias.

    Source: nanoVLM, ``models/modality_projector.py``, also Idefics3's connector (arXiv 2408.12637).
    """

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__()
        self.factor = config.downsample_factor
        self.proj = nn.Linear(shape.width * self.factor**2, shape.llm, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, G², D) to (B, (G / factor)², W)."""
        return self.proj(group_neighbors(features, self.factor).flatten(2))


class PatchMerger(nn.Module):
    """Normalized features of neighbors, concatenated, through an MLP whose inner width is that of the concatenation.

    Source: Qwen2-VL's merger (arXiv 2409.12191) with a LayerNorm, as in LLaVA-OneVision-1.5 (``adapter.json`` in
    ``tools/convert_checkpoint/config/llava-ov-1.5-8b``).
    """

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__()
        self.factor = config.downsample_factor
        width = shape.width * self.factor**2
        self.norm = nn.LayerNorm(shape.width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, shape.llm))

    def forward(self, features: Tensor) -> Tensor:
        """(B, G², D) to (B, (G / factor)², W)."""
        return self.mlp(group_neighbors(self.norm(features), self.factor).flatten(2))


class Pool(nn.Module):
    """The mean of neighboring features, through LLaVA's MLP."""

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__()
        self.factor = config.downsample_factor
        self.mlp = make_mlp(2, shape.width, shape.llm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, G², D) to (B, (G / factor)², W)."""
        return self.mlp(group_neighbors(features, self.factor).mean(2))


def group_neighbors(features: Tensor, factor: int) -> Tensor:
    """(B, G², D) to (B, (G / factor)², factor², D)."""
    rows, side = len(features), math.isqrt(features.shape[1])
    cells = features.reshape(rows, side // factor, factor, side // factor, factor, -1)
    return cells.transpose(2, 3).reshape(rows, (side // factor) ** 2, factor**2, -1)


class CAbstractor(nn.Module):
    """Residual convolutions, pooling to a square of tokens, residual convolutions, and an MLP.

    Source: Honeybee (arXiv 2312.06742, section 3.2): RegNet stages with squeeze-and-excitation around an adaptive
    average pooling, learned positions at the input.
    """

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__()
        from timm.layers import LayerNormAct2d
        from timm.models.regnet import RegStage

        self.side = math.isqrt(config.num_tokens)
        self.positions = nn.Parameter(torch.zeros(1, shape.patches, shape.width))
        nn.init.trunc_normal_(self.positions, std=0.02)

        def stage() -> nn.Module:
            width, group = shape.width, math.gcd(shape.width, 64)  # RegNet's group size, or the largest divisor
            layers: dict[str, Any] = {"act_layer": nn.SiLU, "norm_layer": LayerNormAct2d}
            # three blocks before and three after the pooling, as in Honeybee
            return RegStage(3, width, width, stride=1, dilation=1, group_size=group, **layers)

        self.before, self.after = stage(), stage()
        self.pool = nn.AdaptiveAvgPool2d(self.side)
        self.mlp = make_mlp(2, shape.width, shape.llm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, G², D) to (B, M, W)."""
        rows, side = features + self.positions, math.isqrt(features.shape[1])
        image = rows.transpose(1, 2).unflatten(2, (side, side))
        return self.mlp(self.after(self.pool(self.before(image))).flatten(2).transpose(1, 2))


class Perceiver(nn.Module):
    """Learned queries that attend to the features and to each other.

    Source: Flamingo (arXiv 2204.14198, section 3.1.1): keys and values are features and queries, concatenated.
    """

    def __init__(self, config: ProjectorConfig, shape: ProjectorShape) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.num_tokens, shape.width) * 0.02)
        # Flamingo has six, for the frames of videos
        self.layers = nn.ModuleList(PerceiverLayer(shape.width, PERCEIVER_HEADS) for _ in range(3))
        self.norm = nn.LayerNorm(shape.width)
        self.out = nn.Linear(shape.width, shape.llm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D) to (B, M, W)."""
        queries = self.queries.to(features.dtype).expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        return self.out(self.norm(queries))


class PerceiverLayer(nn.Module):
    """Attention of the queries, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_queries, self.norm_features, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """(B, M, D) and (B, N, D) to (B, M, D)."""
        normed = self.norm_queries(queries)
        keys = torch.cat([self.norm_features(features), normed], dim=1)
        queries = queries + self.attention(normed, keys, keys, need_weights=False)[0]
        return queries + self.mlp(self.norm_mlp(queries))
