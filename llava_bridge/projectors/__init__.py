"""Projectors: from an encoder's features to the LLM's input; one entry of :data:`PROJECTORS` each.

This module does not import torch, so that configs are read quickly.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Callable
from typing import Any

from clips.errors import UserError, unknown_name_error
from clips.ranges import Positive

DEFAULT_PROJECTOR = "mlp2x_gelu"
"""LLaVA-1.5's, which transformers' own LLaVA supports without a class of this suite."""
PERCEIVER_HEADS = 8
"""Flamingo's; the widths of ViTs are multiples."""
_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """The projector between encoder and LLM.

    Args:
        type: mlp2x_gelu (LLaVA-1.5's; any number of layers: mlp3x_gelu), linear (LLaVA's first), pixel_shuffle
            (InternVL's: ``downsample_factor``² neighbors become one token), pixel_shuffle_linear (the same with one
            layer, nanoVLM's), patch_merger (Qwen2-VL's and LLaVA-OneVision-1.5's, normalized before neighbors are
            concatenated), pool (their mean becomes one token), c_abstractor (Honeybee's: convolutions around a pooling
            to ``num_tokens``), perceiver (Flamingo's resampler: ``num_tokens`` learned queries that attend to the
            features).
        downsample_factor: for pixel_shuffle, pixel_shuffle_linear, patch_merger and pool: a divisor of the size of the
            encoder's grid.
        num_tokens: for c_abstractor (a square number) and perceiver: number of tokens per image.
    """

    type: str = DEFAULT_PROJECTOR
    downsample_factor: Positive = 2
    num_tokens: Positive = 144

    def __post_init__(self) -> None:
        _entry(self)

    @property
    def in_hf_llava(self) -> bool:
        """Whether transformers' own LLaVA has this projector."""
        return self.type == DEFAULT_PROJECTOR

    @property
    def mlp_depth(self) -> int:
        """The N of ``mlpNx_gelu``."""
        match = _MLP.fullmatch(self.type)
        assert match is not None
        return int(match[1])


@dataclasses.dataclass(frozen=True)
class ProjectorShape:
    """Input and output of a projector: ``patches`` features of ``width``, and an LLM of width ``llm``.

    ``extra`` features, the class token's, precede those of the patches.
    """

    patches: int
    width: int
    llm: int
    extra: int = 0

    @property
    def grid(self) -> int:
        """The size of the square of patches."""
        return math.isqrt(self.patches)


def num_output_tokens(config: ProjectorConfig, shape: ProjectorShape) -> int:
    """Return the number of tokens per image.

    Raises:
        UserError: the projector does not fit the encoder's grid.
    """
    return _entry(config).tokens(config, shape)


def build_projector(config: ProjectorConfig, shape: ProjectorShape) -> Any:
    """Build a new projector, a torch module; seed torch before."""
    num_output_tokens(config, shape)  # raises if they are incompatible
    modules = importlib.import_module("llava_bridge.projectors.modules")
    return getattr(modules, _entry(config).module)(config, shape)


# ---------------------------------------------------------------- number of tokens


def _token_per_feature(config: ProjectorConfig, shape: ProjectorShape) -> int:
    return shape.extra + shape.patches


def _downsampled_grid(config: ProjectorConfig, shape: ProjectorShape) -> int:
    _require_grid(config, shape)
    if shape.grid % config.downsample_factor:
        raise UserError(
            f"projector.downsample_factor: expected a divisor of {shape.grid}, the size of the encoder's grid, "
            f"got {config.downsample_factor}"
        )
    return (shape.grid // config.downsample_factor) ** 2


def _pooled_square(config: ProjectorConfig, shape: ProjectorShape) -> int:
    _require_grid(config, shape)
    if math.isqrt(config.num_tokens) ** 2 != config.num_tokens or config.num_tokens > shape.patches:
        raise UserError(
            f"projector.num_tokens: expected a square number up to {shape.patches}, the encoder's patches, "
            f"got {config.num_tokens}"
        )
    return config.num_tokens


def _query_count(config: ProjectorConfig, shape: ProjectorShape) -> int:
    if shape.width % PERCEIVER_HEADS:
        raise UserError(
            f"projector.type: expected another than {config.type}, as the encoder's width, {shape.width}, is no "
            f"multiple of {PERCEIVER_HEADS}"
        )
    return config.num_tokens


def _require_grid(config: ProjectorConfig, shape: ProjectorShape) -> None:
    if shape.extra:
        raise UserError(
            f"vision_feature_select_strategy: expected default, as {config.type} needs patches only, got full"
        )


def preserves_grid(config: ProjectorConfig) -> bool:
    """Whether the tokens form a square grid, in row-major order."""
    return _entry(config).preserves_grid


@dataclasses.dataclass(frozen=True)
class _Projector:
    module: str
    tokens: Callable[[ProjectorConfig, ProjectorShape], int]
    preserves_grid: bool = True


PROJECTORS: dict[str, _Projector] = {
    DEFAULT_PROJECTOR: _Projector("Mlp", _token_per_feature),
    "linear": _Projector("Linear", _token_per_feature),
    "pixel_shuffle": _Projector("PixelShuffle", _downsampled_grid),
    "pixel_shuffle_linear": _Projector("PixelShuffleLinear", _downsampled_grid),
    "patch_merger": _Projector("PatchMerger", _downsampled_grid),
    "pool": _Projector("Pool", _downsampled_grid),
    "c_abstractor": _Projector("CAbstractor", _pooled_square),
    "perceiver": _Projector("Perceiver", _query_count, preserves_grid=False),
}
"""Name → class in :mod:`llava_bridge.projectors.modules`, number of tokens, whether they form a grid.

``mlp2x_gelu`` stands for mlpNx_gelu with any N.
"""


def _entry(config: ProjectorConfig) -> _Projector:
    name = DEFAULT_PROJECTOR if _MLP.fullmatch(config.type) else config.type
    if name not in PROJECTORS:
        raise unknown_name_error(name, PROJECTORS, "projector")
    return PROJECTORS[name]
