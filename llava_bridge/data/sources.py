"""Data sources and their conversations, repeated for one epoch; captions become answers to one question."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, overload

import numpy as np

from clips.core.identity import RUN_ONLY
from clips.data.formats import FORMATS, DatasetSpec, read_dataset
from clips.data.formats.conversation_table import ConversationTable
from clips.data.formats.dataset_format import IMAGE, Conversation, Turn, captions_by_image, captions_of
from clips.data.images import InvalidSampleError
from clips.errors import UserError, unknown_name_error
from clips.loader.invalid_samples import InvalidSamples
from clips.ranges import Positive, PositiveFloat

READ_FORMATS = tuple(name for name, entry in FORMATS.items() if entry.conversations or entry.captions)
"""The formats that LLaVA's training reads; each caption is an answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutSourceConfig:
    """Conversations, or captions of which each image has one.

    Args:
        path: its file or directory. ``conversations``, ``vqa`` and ``webdataset`` also accept ``{000..127}`` for many
            files.
        format: ``llava`` (LLaVA's JSON list, also ShareGPT4V's), ``conversations`` (rows
            with messages or conversations and images: a directory of ``datasets``, parquet, JSON lines), ``webdataset``
            (tar shards of images and JSON), ``vqa`` (rows with question, answer and image, stored as those of
            ``conversations``), ``cocoqa`` (JSON lines of image, question, answer), ``karpathy`` (captions in Karpathy's
            JSON) or another format of captions.
        image_root: base directory of image references; null uses the directory of the file.
        split: for ``karpathy`` and directories of ``conversations`` or ``vqa`` the split to read; for ``cocoqa``
            ``train`` (without the held-out fifth of the photos), ``held_out`` or ``all``.
    """

    path: str
    format: str = "llava"
    image_root: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        if self.format not in READ_FORMATS:
            raise unknown_name_error(self.format, READ_FORMATS, "data.format")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationSourceConfig(HeldOutSourceConfig):
    """One data source.

    Args:
        captions_per_image: maximum number of captions of each image; null uses all.
        repeats: repetitions of each sample per epoch: 0.5 uses a random half, the same in each epoch, 2 each twice, 1.5
            each once and a random half twice.
        missing_images: ``skip`` skips samples whose image is missing (see ``max_invalid_ratio``); ``error`` checks the
            files of all images before training starts.
    """

    captions_per_image: Positive | None = 1
    repeats: PositiveFloat = 1.0
    missing_images: Literal["skip", "error"] = dataclasses.field(default="skip", metadata=RUN_ONLY)


CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
"""The question of all captions, as in lmms-eval's captioning tasks."""
_MAX_KEYS = 12


class Samples(Sequence[Conversation]):
    """Conversations of some sources, each read on access; ``order`` has the index of each in the joined parts."""

    def __init__(self, parts: Sequence[ConversationTable | Sequence[Conversation]], order: np.ndarray | None = None):
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])
        self.order = np.arange(self.starts[-1]) if order is None else order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | Sequence[Conversation]:
        if isinstance(index, slice):
            return Samples(self.parts, self.order[index])
        place = int(self.order[index])
        part = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.parts[part][place - int(self.starts[part])]

    def __iter__(self) -> Iterator[Conversation]:
        if np.array_equal(self.order, np.arange(self.starts[-1])):  # a table is read faster in batches than by index
            return itertools.chain.from_iterable(self.parts)
        return (self[index] for index in range(len(self)))

    def describe_unread(self) -> str:
        """The keys of rows that no reader reads, with the number of samples that have each; empty without any."""
        counts = Counter[str]()
        for part in self.parts:
            if isinstance(part, ConversationTable):
                counts.update(part.unread())
            else:
                counts.update(key for one in part for key in one.unread)
        shown = [f"{key} ({count:,})" for key, count in counts.most_common(_MAX_KEYS)]
        return ", ".join([*shown, *([f"and {len(counts) - _MAX_KEYS} more"] if len(counts) > _MAX_KEYS else [])])

    def sizes(self) -> np.ndarray:
        """The number of images and of characters of each sample, (N, 2)."""
        parts = [
            part.sizes()
            if isinstance(part, ConversationTable)
            else np.array([(len(one.images), sum(len(turn.content) for turn in one.turns)) for one in part], int)
            for part in self.parts
        ]
        return np.concatenate([part.reshape(-1, 2) for part in parts])[self.order]


def join_samples(sources: Sequence[Samples]) -> Samples:
    """The samples of all sources, one source after the other."""
    starts = itertools.accumulate((int(source.starts[-1]) for source in sources[:-1]), initial=0)
    order = np.concatenate([start + source.order for start, source in zip(starts, sources, strict=True)])
    return Samples([part for source in sources for part in source.parts], order)


def read_samples(config: ConversationSourceConfig, seed: int = 0) -> Samples:
    """The conversations of one source, repeated by ``repeats``; ``seed`` samples them if it is no integer.

    Raises:
        UserError: a missing or malformed file, or an empty one.
    """
    samples = read_conversations(config, config.captions_per_image)
    order = repeat_indices(len(samples), config.repeats, seed)
    if not len(order):
        raise UserError(f"data.repeats: {config.repeats} of the {len(samples)} samples of {config.path} is none")
    return Samples(samples.parts, order)


def read_conversations(config: HeldOutSourceConfig, captions_per_image: int | None = 1) -> Samples:
    """Every conversation of one source once, and at most ``captions_per_image`` captions of each image (None: all).

    Raises:
        UserError: a missing or malformed file, or an empty one.
    """
    settings = {"split": config.split, "image_root": config.image_root}
    used: dict[str, Any] = {name: value for name, value in settings.items() if name in FORMATS[config.format].takes}
    spec = DatasetSpec(path=config.path, format=config.format, **used)
    records: Iterable[Conversation]
    if FORMATS[config.format].conversations:
        records = read_dataset(spec, "conversations").records
    else:
        records = _captions(spec, captions_per_image)
    samples = Samples([records if isinstance(records, ConversationTable) else list(records)])
    if not len(samples):
        raise UserError(f"{config.path}: no samples (format {config.format}, split {config.split})")
    if all(sample.fault for sample in samples):
        raise UserError(
            f"{config.path}: none of {len(samples)} samples can be used; {samples[0].name}: {samples[0].fault}"
        )
    return samples


def _captions(spec: DatasetSpec, captions_per_image: int | None) -> Iterator[Conversation]:
    """A sample for each caption."""
    for image, values in captions_by_image(read_dataset(spec, "captions").records):
        try:
            captions = captions_of(values)[:captions_per_image]  # none for some images of COCO
        except InvalidSampleError as error:
            raise UserError(f"{spec.path}: {image.name:.200}: {error}") from None
        for caption in captions:
            answer = Turn("assistant", caption.strip())
            yield Conversation(image.name, [image], [Turn("user", f"{IMAGE}\n{CAPTION_PROMPT}"), answer])


_OTHER_MEDIA = re.compile(r"^<(?:video|audio)>\s*$", re.MULTILINE)
"""Placeholders of other data sets; within a line they may be text, such as a question about HTML."""


def find_fault(sample: Conversation) -> str:
    """Why the text of a conversation cannot be trained on, whatever its images and the LLM; empty if it can."""
    if sample.fault:
        return sample.fault
    if not sample.turns:
        return "the conversation is empty"
    answers = [turn.content for turn in sample.turns if turn.role == "assistant"]
    if not all(answer.strip() for answer in answers):  # they would teach the LLM to end an answer immediately
        return "an answer is empty"
    if answers and not any(turn.trained for turn in sample.turns if turn.role == "assistant"):
        return "its answers are not to be trained (loss, train or weight)"
    if any(IMAGE in answer for answer in answers):
        return f"an answer contains {IMAGE}, which stands for an image"
    if marker := next(filter(None, (_OTHER_MEDIA.search(turn.content) for turn in sample.turns)), None):
        return f"a message contains {marker[0].strip()}, but only images are read"
    marks = sum(turn.content.count(IMAGE) for turn in sample.turns if turn.role != "assistant")
    if marks != len(sample.images):
        hint = "" if marks else "; the format conversations puts them first"
        return f"{len(sample.images)} images but {marks} {IMAGE} tokens in the user's messages{hint}"
    return ""


_EXAMINED = 1000  # samples of a stage whose text is checked before any stage is trained


def reject_faults(samples: Sequence[Conversation], where: str, max_invalid_ratio: float) -> None:
    """Raise UserError if clearly more than ``max_invalid_ratio`` of the samples have a fault of their text.

    Of many samples, randomly chosen ones are examined, and an excess within their sampling error is accepted.
    """
    examined = sorted(random.Random(0).sample(range(len(samples)), min(_EXAMINED, len(samples))))
    invalid = InvalidSamples()
    for index in examined:
        sample = samples[index]
        if fault := find_fault(sample):
            invalid.add([(index, sample.name, fault)])
    error = 4 * math.sqrt(max_invalid_ratio / len(examined)) if len(examined) < len(samples) else 0.0
    if invalid.count > (max_invalid_ratio + error) * len(examined):
        invalid.check(where, "max_invalid_ratio", max_invalid_ratio, len(examined))


def split_questions(sample: Conversation) -> Iterator[Conversation]:
    """A conversation of each question with the images up to it, without the questions before it: as benchmarks ask it.

    An invalid one, whose marks of images do not match its images or which has a fault, is returned as it is.
    """
    system, seen = [turn for turn in sample.turns if turn.role == "system"], 0
    if sample.fault or sum(turn.content.count(IMAGE) for turn in sample.turns if turn.role == "user") != len(
        sample.images
    ):
        yield sample
        return
    for asked, answer in itertools.pairwise(sample.turns):
        earlier, seen = seen, seen + asked.content.count(IMAGE) * (asked.role == "user")
        if asked.role == "user" and answer.role == "assistant" and answer.trained:
            question = Turn("user", f"{IMAGE}\n" * earlier + asked.content)
            yield dataclasses.replace(sample, images=sample.images[:seen], turns=[*system, question, answer])


def in_other_case(questions: Iterable[Conversation]) -> Iterator[Conversation]:
    """The questions whose answer begins with a letter, with that letter in the other case."""
    for question in (question for question in questions if question.turns):
        *before, answer = question.turns
        own = answer.content.strip()
        if (other := own[:1].swapcase() + own[1:]) != own:
            yield dataclasses.replace(question, turns=[*before, Turn("assistant", other)])


def repeat_indices(count: int, repeats: float, seed: int) -> np.ndarray:
    """Indices of ``count`` items for one epoch: each ``repeats`` times, rounded down, and a random part once more."""
    whole, fraction = divmod(repeats, 1)
    sampled = random.Random(seed).sample(range(count), round(fraction * count))
    return np.array([*range(count)] * int(whole) + sorted(sampled), dtype=np.int64)


def reject_missing(samples: Iterable[Conversation], path: str, log: Callable[[str], None]) -> None:
    """Raise UserError, with the first missing file and their number, unless all images of the source ``path`` exist.

    ``log`` receives progress messages.
    """
    images = list({str(image): image for sample in samples for image in sample.images}.values())
    missing, last_line = [], time.monotonic()
    with ThreadPoolExecutor(32) as threads:
        existing = threads.map(lambda image: image.exists(), images)
        for done, (image, exists) in enumerate(zip(images, existing, strict=True), 1):
            if not exists:
                missing.append(image)
            if time.monotonic() - last_line > 20:
                last_line = time.monotonic()
                log(f"{path}: checked {done:,} of {len(images):,} images")
    if missing:
        raise UserError(
            f"data.missing_images: {len(missing):,} of {len(images):,} images of {path} are missing; "
            f"the first: {missing[0]}"
        )
