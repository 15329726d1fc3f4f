"""The cases of a compositional benchmark's blind runs: the same captions with other images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.tasks.blind_images import NO_OTHER_IMAGE, BlindConfig, blank_images, draw_sample, mean_color
from benchmarks.tasks.data.pair_sets import PairSet
from benchmarks.tasks.mllm.llava_input import input_settings
from clips.data.formats.dataset_format import ImageRegion
from clips.data.lazy_images import LazyImage
from clips.errors import UserError

Scores = Sequence[np.ndarray]
"""(P, C) scores of each case."""


class BlindPairs(NamedTuple):
    """The scores of the blind runs: positions of their cases among all, and kind → (P, C) scores of these cases."""

    rows: list[int]
    scores: dict[str, Scores]


@dataclasses.dataclass(frozen=True, slots=True)
class _BlankImage(LazyImage):
    size: tuple[int, int]
    color: tuple[int, ...]

    @property
    def name(self) -> str:
        """See `LazyImage`."""
        return f"blank {self.size}"

    def read(self) -> bytes:
        """See `LazyImage`."""
        from PIL import Image

        stream = io.BytesIO()
        Image.new("RGB", self.size, self.color).save(stream, "PNG")
        return stream.getvalue()


def blind_pairs(
    pairs: PairSet, config: BlindConfig, processor: Any, score: Callable[[PairSet], Scores]
) -> BlindPairs | None:
    """Score the cases of the blind runs; None without any. Images are the same if their files are, whatever the box."""
    if not config.blind:
        return None
    files = {region: file for region, (file, _) in pairs.contents.items()}
    regions = {name: region for region, name in reversed(files.items())}
    firsts = [files[case.images[0]] for case in pairs.cases]
    sample = draw_sample(firsts, pairs.hash, config.blind_items, more=files.values())
    rows = sample.rows(firsts)
    resize = str(input_settings(processor)["input_resize"])

    def blank(own: Sequence[ImageRegion]) -> tuple[ImageRegion, ...]:
        images = blank_images(processor, [pairs.open(region) for region in own], resize)
        return tuple(ImageRegion(_BlankImage(image.size, mean_color(processor))) for image in images)

    def shuffled(own: Sequence[ImageRegion]) -> tuple[ImageRegion, ...]:
        taken = {files[region] for region in own}
        others = [name for name in sample.others(files[own[0]]) if name not in taken]
        if not others:
            raise UserError(NO_OTHER_IMAGE)
        return tuple(regions[others[number % len(others)]] for number in range(len(own)))

    replace: dict[str, Callable[[Sequence[ImageRegion]], tuple[ImageRegion, ...]]]
    replace = {"blank": blank, "shuffled": shuffled}
    cases = [pairs.cases[row] for row in rows]
    changed = {
        kind: [dataclasses.replace(case, images=replace[kind](case.images)) for case in cases] for kind in config.blind
    }
    return BlindPairs(rows, {kind: score(dataclasses.replace(pairs, cases=found)) for kind, found in changed.items()})
