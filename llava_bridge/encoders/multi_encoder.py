"""Several encoders of the same image: concatenated features, or interleaved tokens.

``several:A + B`` concatenates the features of each grid cell, as Prismatic's DINO-SigLIP does; ``several:interleave:A +
B`` gives each grid cell a token of each encoder, A's before B's, as Interleaved-MoF does (arXiv 2401.06209, section
5.2). There each encoder has its own adapter: here each has its own channels, with zeros in all others, so that the
projector's first layer has separate weights for each.

Each encoder uses its own default hidden state, or all the same: ``vision_feature_layer``.

All see the image at the size of the first, or at ``image_size``, normalized as in their training. Grids that differ are
interpolated to the first one's; class tokens are dropped.
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
from llava_bridge.encoders.encoder import VisionEncoder, VisionTower, check_feature_layer
from llava_bridge.encoders.spec import fusion_mode, split_encoders


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
        self.tokens_of_a_place = len(towers) if interleave else 1

    def states(self, pixels: Tensor, deepest: int = 0) -> Iterator[Tensor]:
        """Yield (B, G², ΣD), or (B, n · G², ΣD) for interleaved tokens of n towers."""
        seen = [self._seen(number, pixels) for number in range(len(self.towers))]
        seen = [_on_grid(tokens, seen[0].shape[1]) for tokens in seen]
        if not self.interleave:
            yield torch.cat(seen, dim=2)
            return
        widths = [tokens.shape[2] for tokens in seen]
        starts = [0, *itertools.accumulate(widths)]
        own = [F.pad(tokens, (starts[i], starts[-1] - starts[i + 1])) for i, tokens in enumerate(seen)]
        yield torch.stack(own, dim=2).flatten(1, 2)

    def _seen(self, number: int, pixels: Tensor) -> Tensor:
        """Return the patch tokens (B, G², D) of one tower."""
        tower: Any = self.towers[number]
        tower.recompute = self.recompute
        own = pixels * self.get_buffer("scales")[number] + self.get_buffer("shifts")[number]
        index = self.layers[number] % (tower.depth + 1)
        state = next(itertools.islice(tower.states(own, index), index, None))
        return state[:, int(tower.class_token) :]


def _on_grid(tokens: Tensor, count: int) -> Tensor:
    """Interpolate tokens (B, N, D) of a square grid to one of ``count`` cells."""
    if tokens.shape[1] == count:
        return tokens
    side, wanted = math.isqrt(tokens.shape[1]), math.isqrt(count)
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bilinear", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2)


def build(architecture: Mapping[str, Any]) -> VisionTower:
    """Build the towers in ``architecture``."""
    from llava_bridge.encoders import build_tower

    listed = architecture["towers"]
    return MultiTower(
        [build_tower(one["source"], one["architecture"]) for one in listed],
        [one["layer"] for one in listed],
        [one["scale"] for one in listed],
        [one["shift"] for one in listed],
        interleave=architecture["interleave"],
    )


def load(reference: str, image_size: int | None) -> VisionEncoder:
    """Read all encoders of ``A + B``.

    Raises:
        UserError: one of them is missing, broken, or does not accept the common image size.
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
            raise UserError(f"encoder: {other} beside {first}, at {size} pixels: {error}") from None
    towers = [build_tower(encoder.source, encoder.architecture) for encoder in encoders]
    weights: dict[str, Tensor] = {}
    for number, (encoder, tower) in enumerate(zip(encoders, towers, strict=True)):
        own = tower.state_dict() if encoder.weights is None else encoder.weights
        weights |= {f"towers.{number}.{name}": value for name, value in own.items()}
    listed = [
        {
            "source": encoder.source,
            "architecture": dict(encoder.architecture),
            "layer": tower.default_layer,
            **_from_first(encoders[0], encoder),
        }
        for encoder, tower in zip(encoders, towers, strict=True)
    ]
    architecture = {"interleave": fusion_mode(spec) == "interleave", "towers": listed}
    combined = build(architecture)
    weights |= dict(combined.named_buffers(recurse=False))
    return VisionEncoder(
        source="several",
        architecture=architecture,
        weights=weights,
        pixels=dataclasses.replace(encoders[0].pixels),
        parent=reference,
    )


def with_feature_layer(encoder: VisionEncoder, layer: int | Sequence[int] | None) -> VisionEncoder:
    """Return several encoders with the hidden state ``layer`` of each; None is each one's own default.

    Raises:
        UserError: more than one layer.
    """
    if layer is None:
        return encoder
    if not isinstance(layer, int):
        raise UserError(f"vision_feature_layer: expected one for all of several encoders, got {list(layer)}")
    towers = [{**one, "layer": layer} for one in encoder.architecture["towers"]]
    return dataclasses.replace(encoder, architecture={**encoder.architecture, "towers": towers})


def _from_first(first: VisionEncoder, other: VisionEncoder) -> dict[str, list[float]]:
    """Map the first one's normalized pixels to the other's: x · s₁ / s₂ + (m₁ − m₂) / s₂, per channel."""
    channels = zip(first.pixels.mean, first.pixels.std, other.pixels.mean, other.pixels.std, strict=True)
    pairs = [(std1 / std2, (mean1 - mean2) / std2) for mean1, std1, mean2, std2 in channels]
    return {"scale": [scale for scale, _ in pairs], "shift": [shift for _, shift in pairs]}
