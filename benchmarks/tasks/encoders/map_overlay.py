"""Draw a patch map over its image: the part that the model saw, in the image's own coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.protocol import Entries

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MAP_SIZE = 64
"""Points per axis at which a map is drawn and its area measured, independent of the number of patches."""

_DARKEST = 0.25
_LINE = (255, 170, 0)


@dataclass(frozen=True)
class VisibleRegion:
    """The visible region of an image: left, top, right, bottom as ratios of the image size.

    With padding to a square it extends beyond the image.
    """

    left: float
    top: float
    right: float
    bottom: float

    @staticmethod
    def of(preprocessing: Entries, width: int, height: int) -> VisibleRegion:
        """Compute it from the resize mode in the encoder's directory."""
        sides = {"shortest": min(width, height), "longest": max(width, height)}
        side = sides.get(str(preprocessing["input_resize"]))
        if side is None:  # squashed
            return VisibleRegion(0.0, 0.0, 1.0, 1.0)
        wide, tall = side / width, side / height
        return VisibleRegion((1 - wide) / 2, (1 - tall) / 2, (1 + wide) / 2, (1 + tall) / 2)

    def centers(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (columns,) x and (rows,) y of the patch centers, as ratios of the image size."""
        x = self.left + (np.arange(columns) + 0.5) / columns * (self.right - self.left)
        return x, self.top + (np.arange(rows) + 0.5) / rows * (self.bottom - self.top)

    def inside(self, box: tuple[float, float, float, float], rows: int, columns: int) -> np.ndarray:
        """Return (rows, columns) whether each patch center is in ``box``: left, top, right, bottom as ratios."""
        x, y = self.centers(rows, columns)
        return ((y >= box[1]) & (y <= box[3]))[:, None] & ((x >= box[0]) & (x <= box[2]))[None]


def upsample_map(found: Tensor) -> np.ndarray:
    """Interpolate an (h, w) map to (MAP_SIZE, MAP_SIZE), bilinear between patch centers."""
    from torch.nn.functional import interpolate

    return interpolate(found[None, None].float(), size=(MAP_SIZE, MAP_SIZE), mode="bilinear")[0, 0].cpu().numpy()


def overlay_map(
    image: Image, found: np.ndarray, visible: VisibleRegion, box: tuple[float, float, float, float] | None = None
) -> Image:
    """The image with brightness by similarity, scaled from this map's minimum to its maximum.

    Args:
        image: RGB.
        found: (R, R) similarity map over the visible region.
        visible: the visible region; the image is darkest outside it.
        box: left, top, right, bottom of the target, as ratios of the image size, drawn as a line.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    width, height = image.size
    span = float(found.max() - found.min())
    light = _DARKEST + (1 - _DARKEST) * (found - found.min()) / span if span > 0 else np.full(found.shape, _DARKEST)
    left, right = round(visible.left * width), round(visible.right * width)
    top, bottom = round(visible.top * height), round(visible.bottom * height)
    mask = Images.new("L", image.size, round(255 * _DARKEST))
    resized = Images.fromarray((light * 255).round().astype(np.uint8)).resize(
        (max(1, right - left), max(1, bottom - top)), Images.Resampling.BILINEAR
    )
    mask.paste(resized, (left, top))
    shown = Images.composite(image, Images.new("RGB", image.size), mask)
    if box is not None:
        corners = (box[0] * width, box[1] * height, box[2] * width - 1, box[3] * height - 1)
        ImageDraw.Draw(shown).rectangle(corners, outline=_LINE, width=max(1, round(min(width, height) / 80)))
    return shown
