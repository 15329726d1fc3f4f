"""Projectors: from an encoder's features to the LLM's input; one entry of :data:`PROJECTORS` each.

Nothing heavy is imported here: configs are read before torch is.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Callable
from typing import Any

from clips.errors import UserError, unknown_name_error

DEFAULT_PROJECTOR = "mlp2x_gelu"
"""LLaVA-1.5's, which transformers' own LLaVA has: a LLaVA with it needs no class of this suite."""
_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """How features become tokens of the LLM.

    Args:
        type: mlp2x_gelu (LLaVA-1.5's; any number of layers: mlp3x_gelu), linear (LLaVA's first), pixel_shuffle
            (InternVL's: ``downsample_factor``² neighbors become one token), pool (their mean becomes one token),
            c_abstractor (Honeybee's: convolutions around a pooling to ``num_tokens``), perceiver (Flamingo's resampler:
            ``num_tokens`` learned queries that attend to the features).
        downsample_factor: of pixel_shuffle and pool: it divides the size of the encoder's grid.
        num_tokens: of c_abstractor (a square number) and perceiver: number of tokens per image.
        num_layers: of c_abstractor: blocks before and after the pooling; of perceiver: layers.
        num_heads: of perceiver's attention.
    """

    type: str = dataclasses.field(default=DEFAULT_PROJECTOR, metadata={"known": "llava_bridge.projectors:PROJECTORS"})
    downsample_factor: int = 2
    num_tokens: int = 144
    num_layers: int = 3
    num_heads: int = 8

    def __post_init__(self) -> None:
        _entry(self)
        for field in ("downsample_factor", "num_tokens", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise UserError(f"projector.{field}: expected 1 or more, got {getattr(self, field)}")

    @property
    def is_stock(self) -> bool:
        """Whether it is transformers' own."""
        return self.type == DEFAULT_PROJECTOR

    @property
    def mlp_depth(self) -> int:
        """The N of ``mlpNx_gelu``."""
        found = _MLP.fullmatch(self.type)
        assert found is not None
        return int(found[1])


@dataclasses.dataclass(frozen=True)
class ProjectorShape:
    """Input and output of a projector: ``patches`` features of ``width``, and an LLM of width ``llm``.

    ``extra`` features, the class token's, precede those of the patches. With interleaved tokens of several encoders,
    ``in_turn`` tokens belong to one grid cell.
    """

    patches: int
    width: int
    llm: int
    extra: int = 0
    in_turn: int = 1

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
    num_output_tokens(config, shape)  # rejects what does not fit
    modules = importlib.import_module("llava_bridge.projectors.modules")
    return getattr(modules, _entry(config).module)(config, shape)


# ---------------------------------------------------------------- number of tokens


def _one_each(config: ProjectorConfig, shape: ProjectorShape) -> int:
    return shape.extra + shape.patches


def _by_factor(config: ProjectorConfig, shape: ProjectorShape) -> int:
    _refuse_all_but_grids(config, shape)
    if shape.grid % config.downsample_factor:
        raise UserError(
            f"projector.downsample_factor: expected a divisor of {shape.grid}, the side of the encoder's grid, "
            f"got {config.downsample_factor}"
        )
    return (shape.grid // config.downsample_factor) ** 2


def _square(config: ProjectorConfig, shape: ProjectorShape) -> int:
    _refuse_all_but_grids(config, shape)
    if math.isqrt(config.num_tokens) ** 2 != config.num_tokens or config.num_tokens > shape.patches:
        raise UserError(
            f"projector.num_tokens: expected a square number up to {shape.patches}, the encoder's patches, "
            f"got {config.num_tokens}"
        )
    return config.num_tokens


def _asked_for(config: ProjectorConfig, shape: ProjectorShape) -> int:
    if shape.width % config.num_heads:
        raise UserError(
            f"projector.num_heads: expected a divisor of {shape.width}, the encoder's width, got {config.num_heads}"
        )
    return config.num_tokens


def _refuse_all_but_grids(config: ProjectorConfig, shape: ProjectorShape) -> None:
    if shape.in_turn > 1:
        raise UserError(
            f"projector.type: expected one that needs no grid, for the tokens stand in turn; got {config.type}"
        )
    if shape.extra:
        raise UserError(
            f"vision_feature_select_strategy: expected default, as {config.type} takes patches alone, got full"
        )


def preserves_grid(config: ProjectorConfig) -> bool:
    """Whether its tokens form a square grid, row by row."""
    return _entry(config).keeps_places


@dataclasses.dataclass(frozen=True)
class _Projector:
    module: str
    tokens: Callable[[ProjectorConfig, ProjectorShape], int]
    keeps_places: bool = True


PROJECTORS: dict[str, _Projector] = {
    DEFAULT_PROJECTOR: _Projector("Mlp", _one_each),
    "linear": _Projector("Linear", _one_each),
    "pixel_shuffle": _Projector("PixelShuffle", _by_factor),
    "pool": _Projector("Pool", _by_factor),
    "c_abstractor": _Projector("CAbstractor", _square),
    "perceiver": _Projector("Perceiver", _asked_for, keeps_places=False),
}
"""Name → its class in :mod:`llava_bridge.projectors.modules`, how many tokens it gives, and whether these have places;
mlpNx_gelu for any N."""


def _entry(config: ProjectorConfig) -> _Projector:
    name = DEFAULT_PROJECTOR if _MLP.fullmatch(config.type) else config.type
    if name not in PROJECTORS:
        raise unknown_name_error(name, PROJECTORS, "projector")
    return PROJECTORS[name]
