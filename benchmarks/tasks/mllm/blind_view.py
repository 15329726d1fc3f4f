"""What a LLaVA sees in a blind run of an lmms-eval task."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.results.blind import SIGHTED
from benchmarks.tasks.blind_images import BlindSample, blank_images, other_images

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class BlindView:
    """What a model sees while it answers the questions of a blind run.

    Args:
        kind: of the run, or `SIGHTED` for the own images, whose answers are cached.
        numbers: index among the selected questions → among all.
        sample: the images of the questions in their random order.
        names: index among all evaluated questions → its image.
        documents: all questions of the data.
        processor: the LLaVA's; None for that of a server.
        resize: how its preprocessing resizes images; empty if unknown.
    """

    kind: str
    numbers: Sequence[int]
    sample: BlindSample
    names: Mapping[int, str]
    documents: Any
    processor: Any
    resize: str

    def condition(self, number: int) -> list[Any]:
        """The part of an answer's cache key that depends on the image."""
        shuffled = self.kind == "shuffled"
        return [] if self.kind == SIGHTED else [self.kind, next(self._donors(number)) if shuffled else None]

    def visuals(self, number: int, own: Sequence[Image], to_visual: Any) -> list[Image]:
        """The images in place of a question's own."""
        if self.kind == "blank":
            return blank_images(self.processor, own, self.resize)
        if self.kind == "shuffled":
            others = (to_visual(self.documents[donor]) or [] for donor in self._donors(number))
            return next(others)[:1] if len(own) == 1 else other_images(own, others)  # one is not compared again
        return list(own)

    def _donors(self, number: int) -> Iterator[int]:
        """One question for each image that may replace that of a question, the preferred one first."""
        return (self._first[image] for image in self.sample.others(self.names[self.numbers[number]]))

    @functools.cached_property
    def _first(self) -> dict[str, int]:
        """Image → the first question about it."""
        return {name: number for number, name in sorted(self.names.items(), reverse=True)}
