"""The cases of a compositional benchmark's blind runs: the same captions with other images."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.tasks.blind_images import NO_OTHER_IMAGE, blank_images, draw_sample, mean_color
from benchmarks.tasks.data.pair_sets import PairSet
from benchmarks.tasks.mllm.llava_input import input_settings
from clips.data.formats.dataset_format import ImageRegion
from clips.data.lazy_images import LazyImage
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.run_config import BenchmarkConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlindPairs:
    """The blind runs of a benchmark.

    Args:
        rows: positions of their cases among all.
        by_kind: kind → these cases, with the images of the run.
    """

    rows: Sequence[int]
    by_kind: dict[str, PairSet]


@dataclasses.dataclass(frozen=True, slots=True)
class _BlankImage(LazyImage):
    """An image of one color."""

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


def blind_pairs(pairs: PairSet, config: BenchmarkConfig, processor: Any) -> BlindPairs:
    """The cases of the blind runs; images are the same if their files are, whatever the box."""
    files = {region: json.loads(content)[0] for region, content in pairs.contents.items()}
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
    return BlindPairs(
        rows=rows,
        by_kind={
            kind: dataclasses.replace(
                pairs, cases=[dataclasses.replace(case, images=replace[kind](case.images)) for case in cases]
            )
            for kind in config.blind
        },
    )
