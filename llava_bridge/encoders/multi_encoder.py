"""Several encoders of the same image: concatenated features, or interleaved tokens.

``several:A + B`` concatenates the features of each grid cell, as Prismatic's DINO-SigLIP does. ``several:interleave:A +
B`` gives each grid cell a token of each encoder, as Interleaved-MoF does (arXiv 2401.06209, section 5.2): there each
encoder has its own adapter; here each has its own channels, zeros in all others, so that the projector's first layer
has separate weights for each.

Each encoder uses its default hidden state, or ``vision_feature_layer``. All see the image at the size of the first, or
at ``image_size``, normalized as in their training. Grids are interpolated to the first one's; class tokens are dropped.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clips.errors import UserError
from llava_bridge.encoders.encoder import VisionEncoder, VisionTower, check_feature_layer, hidden_state
from llava_bridge.encoders.spec import is_interleaved, split_encoders


class MultiTower(VisionTower):
    """Several towers as one; its only hidden state combines theirs.

    Args:
        towers: in the order of their features.
        layers: the hidden state of each.
        scales: per tower and channel, the map from the first one's pixels to its own: ``pixels · scale + shift``.
        shifts: see ``scales``.
        interleave: whether tokens are interleaved instead of features concatenated.
    """

    class_token = False
    default_layer = -1
    depth = 0

    def __init__(
        self,
        towers: Sequence[VisionTower],
        layers: Sequence[int],
        scales: Sequence[Sequence[float]],
        shifts: Sequence[Sequence[float]],
        *,
        interleave: bool,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.layers = list(layers)
        for number, (tower, layer) in enumerate(zip(towers, self.layers, strict=True), 1):
            check_feature_layer(tower, layer, f"encoder {number} of several")
        self.register_buffer("scales", torch.tensor(scales)[..., None, None])
        self.register_buffer("shifts", torch.tensor(shifts)[..., None, None])
        self.interleave = interleave
        self.tokens_per_cell = len(towers) if interleave else 1

    def states(self, pixels: Tensor, deepest: int = 0) -> Iterator[Tensor]:
        """Yield (B, G², ΣD), or (B, n · G², ΣD) for interleaved tokens of n towers."""
        features = [self._patch_tokens(number, pixels) for number in range(len(self.towers))]
        features = [_interpolate_grid(tokens, features[0].shape[1]) for tokens in features]
        if not self.interleave:
            yield torch.cat(features, dim=2)
            return
        starts = [0, *itertools.accumulate(tokens.shape[2] for tokens in features)]
        padded = [F.pad(tokens, (starts[i], starts[-1] - starts[i + 1])) for i, tokens in enumerate(features)]
        yield torch.stack(padded, dim=2).flatten(1, 2)

    def _patch_tokens(self, number: int, pixels: Tensor) -> Tensor:
        """Return the patch tokens (B, G², D) of one tower."""
        tower: Any = self.towers[number]
        tower.recompute = self.recompute
        own_pixels = pixels * self.get_buffer("scales")[number] + self.get_buffer("shifts")[number]
        return hidden_state(tower, own_pixels, self.layers[number])[:, int(tower.class_token) :]


def _interpolate_grid(tokens: Tensor, cells: int) -> Tensor:
    """Interpolate tokens (B, N, D) of a square grid to one of ``cells`` cells."""
    if tokens.shape[1] == cells:
        return tokens
    side, new_side = math.isqrt(tokens.shape[1]), math.isqrt(cells)
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bilinear", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2)


def build(architecture: Mapping[str, Any]) -> VisionTower:
    """Build the towers in ``architecture``."""
    from llava_bridge.encoders import build_tower

    entries = architecture["towers"]
    return MultiTower(
        [build_tower(entry["source"], entry["architecture"]) for entry in entries],
        [entry["layer"] for entry in entries],
        [entry["scale"] for entry in entries],
        [entry["shift"] for entry in entries],
        interleave=architecture["interleave"],
    )


def load(reference: str, image_size: int | None) -> VisionEncoder:
    """Read all encoders of ``A + B``.

    Raises:
        UserError: one of them is missing or invalid, or does not accept the common image size.
    """
    from llava_bridge.encoders import build_tower, load_encoder

    spec = f"several:{reference}"
    first, *others = split_encoders(spec)
    encoders = [load_encoder(first, image_size)]
    size = encoders[0].pixels.size
    for other in others:
        try:
            encoders.append(load_encoder(other, size))
        except UserError as error:
            raise UserError(f"encoder: {other} next to {first}, at {size} pixels: {error}") from None
    towers = [build_tower(encoder.source, encoder.architecture) for encoder in encoders]
    weights: dict[str, Tensor] = {}
    for number, (encoder, tower) in enumerate(zip(encoders, towers, strict=True)):
        own = tower.state_dict() if encoder.weights is None else encoder.weights
        weights |= {f"towers.{number}.{name}": value for name, value in own.items()}
    entries = [
        {
            "source": encoder.source,
            "architecture": dict(encoder.architecture),
            "layer": tower.default_layer,
            **_renormalization(encoders[0], encoder),
        }
        for encoder, tower in zip(encoders, towers, strict=True)
    ]
    architecture = {"interleave": is_interleaved(spec), "towers": entries}
    weights |= dict(build(architecture).named_buffers(recurse=False))
    return VisionEncoder(
        source="several",
        architecture=architecture,
        weights=weights,
        pixels=encoders[0].pixels,
        parent=reference,
    )


def with_feature_layer(encoder: VisionEncoder, layer: int | Sequence[int] | None) -> VisionEncoder:
    """Return several encoders with the hidden state ``layer`` of each; None uses each one's default.

    Raises:
        UserError: more than one layer.
    """
    if layer is None:
        return encoder
    if not isinstance(layer, int):
        raise UserError(f"vision_feature_layer: expected one for all of several encoders, got {list(layer)}")
    towers = [{**entry, "layer": layer} for entry in encoder.architecture["towers"]]
    return dataclasses.replace(encoder, architecture={**encoder.architecture, "towers": towers})


def _renormalization(first: VisionEncoder, other: VisionEncoder) -> dict[str, list[float]]:
    """Map the first one's normalized pixels to the other's: x · s₁ / s₂ + (m₁ − m₂) / s₂, per channel."""
    channels = zip(first.pixels.mean, first.pixels.std, other.pixels.mean, other.pixels.std, strict=True)
    pairs = [(std1 / std2, (mean1 - mean2) / std2) for mean1, std1, mean2, std2 in channels]
    return {"scale": [scale for scale, _ in pairs], "shift": [shift for _, shift in pairs]}
