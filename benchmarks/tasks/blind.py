"""Blind runs: a LLaVA answers some items again about a blank image, or about another item's.

Whole images are drawn, each with all its items: questions about an image share its computation, and scorers that count
pairs of questions find them complete. The images have a fixed random order, that of the SHA-256 of their names and the
data's hash. The first ones are drawn, and each is replaced by the next one: a derangement, since all are different.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.results.baselines import BLIND_KINDS, SIGHTED
from benchmarks.results.protocol import BLIND_PREFIX, Entries
from benchmarks.tasks.mllm.llava_input import input_settings
from benchmarks.tasks.registry import BenchmarkConfig
from clips.errors import UserError
from clips.ranges import PositiveFraction

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchmarks.tasks.mllm.items import QuestionImage

NO_OTHER_IMAGE = "benchmarks.blind: expected an image that is not one of the question's, found none in the data"


@dataclass(frozen=True, kw_only=True)
class BlindConfig(BenchmarkConfig):
    """A benchmark of a LLaVA, with runs without the image.

    Args:
        blind: additional runs without the image: ``blank`` (an image of one color), ``shuffled`` (another item's
            image). The report credits a score to the images if it is above both.
        blind_items: ratio of the items with an image that a blind run covers; 1 for all.
    """

    blind: tuple[Literal["blank", "shuffled"], ...] = ()
    blind_items: PositiveFraction = 0.075

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.blind)) < len(self.blind):
            raise UserError("blind: expected different kinds")


def blind_settings(config: BlindConfig, processor: Any) -> Entries:
    """Protocol entries about the blind runs; they do not change the score itself (`protocol.ranking_keys`)."""
    if not config.blind:
        return {}
    stated: Entries = {f"{BLIND_PREFIX}{kind}": BLIND_KINDS[kind] for kind in config.blind}
    if "blank" in config.blind:
        stated[f"{BLIND_PREFIX}blank"] = f"{BLIND_KINDS['blank']}, RGB {mean_color(processor)}"
    return stated | {f"{BLIND_PREFIX}items": config.blind_items}


@dataclass(frozen=True)
class BlindSample:
    """The images of a benchmark in their random order; the first ``count`` are drawn."""

    order: tuple[str, ...]
    count: int

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.order)}

    def rows(self, images: Sequence[str | None]) -> list[int]:
        """The positions of the items whose image is drawn."""
        drawn = set(self.order[: self.count])
        return [row for row, image in enumerate(images) if image in drawn]

    def others(self, image: str) -> Iterator[str]:
        """The images that may replace an image, the preferred one first; never the image itself."""
        place, count = self._places[image], len(self.order)
        return (self.order[(place + step) % count] for step in range(1, count))


def draw_sample(images: Sequence[str | None], data_hash: str, ratio: float, *, more: Iterable[str] = ()) -> BlindSample:
    """Draw images until they have the given ratio of the items.

    Args:
        images: the image of each item, None for an item without one.
        data_hash: determines the order.
        ratio: of the items that have an image.
        more: other images that may replace one.

    Raises:
        UserError: fewer than two different images.
    """
    counts = Counter(image for image in images if image is not None)
    names = {*counts, *more}
    if len(names) < 2:
        raise UserError(f"benchmarks.blind: expected at least two different images in the data, got {len(names)}")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{data_hash} {name}".encode()).digest())
    count, items = 0, 0
    while items < ratio * counts.total() and count < len(order):
        items += counts[order[count]]
        count += 1
    return BlindSample(tuple(order), count)


def mean_color(processor: Any) -> tuple[int, ...]:
    """The mean color of a LLaVA's preprocessing, rounded as its padding is; gray without ``processor``, of a server."""
    if processor is None:
        return (127, 127, 127)
    return tuple(int(255 * value) for value in processor.image_processor.image_mean)


def blank_images(processor: Any, own: Sequence[Image], resize: str) -> list[Image]:
    """An image of one color for each image of a question."""
    import PIL.Image

    # where the model's input does not depend on an image's size (pad fills with the mean color, too), one size for all,
    # so that all questions share the computation of one image
    fixed = resize in ("pad", "squash", "shortest side, center crop")
    return [PIL.Image.new("RGB", (336, 336) if fixed else image.size, mean_color(processor)) for image in own]


def other_images(own: Sequence[Image], candidates: Iterable[Sequence[Image]]) -> list[Image]:
    """As many images as a question has, of the first candidate with an image that the question does not have."""
    from benchmarks.tasks.mllm.items import image_hash_name

    known = {image_hash_name(image) for image in own}
    for images in candidates:
        if others := [image for image in images if image_hash_name(image) not in known]:
            return [others[number % len(others)] for number in range(len(own))]
    raise UserError(NO_OTHER_IMAGE)


@dataclass(frozen=True, kw_only=True)
class BlindView:
    """What a model sees while it answers the questions of a blind run of an lmms-eval task."""

    kind: str  # of the run, or `SIGHTED` for the own images, whose answers are cached
    numbers: Sequence[int]  # index among the selected questions → among all
    sample: BlindSample  # the images of the questions in their random order
    names: Mapping[int, str]  # index among all evaluated questions → its image
    documents: Any  # all questions of the data
    processor: Any  # the LLaVA's; None for that of a server
    resize: str  # how its preprocessing resizes images; empty if unknown

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


def blind_views(
    processor: Any, task: Any, config: BlindConfig, images: Mapping[int, QuestionImage], data_hash: str
) -> Iterator[BlindView]:
    """Restrict a task to the questions of its blind runs; yields the view of the sighted run, then of each blind one.

    ``images`` are the first images of all evaluated questions, and ``data_hash`` determines which are asked again.
    """
    from benchmarks.tasks.mllm.offline_tasks import select_questions

    names = {number: images[number].name for number in sorted(images)}
    sample = draw_sample([*names.values()], data_hash, config.blind_items)
    asked = [*names]
    numbers = [asked[row] for row in sample.rows([*names.values()])]
    documents = task.eval_docs
    select_questions(task, numbers)
    for kind in (SIGHTED, *config.blind):
        yield BlindView(
            kind=kind,
            numbers=numbers,
            sample=sample,
            names=names,
            documents=documents,
            processor=processor,
            resize="" if processor is None else str(input_settings(processor)["input_resize"]),
        )
