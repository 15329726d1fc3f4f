"""Inspect training conversations as the LLM sees them: which tokens are supervised, the images, invalid samples.

llava-bridge data inspect llava_instruct.json --llm path/to/llm
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from clips.commandline.progress import progress_iter
from clips.data.formats.dataset_format import Conversation
from clips.data.inspect_page import Example, InspectionConfig, Span, evenly, report_inspection
from clips.data.invalid_samples import InvalidSamples
from clips.errors import UserError
from clips.ranges import Positive
from llava_bridge.data.sources import ConversationSourceConfig, read_samples
from llava_bridge.model.image_processing import (
    ImageAspectRatio,
    check_pinpoints,
    is_unpad_compatible,
    make_anyres_processor,
    num_image_tokens,
    resolve_pinpoints,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConversationsConfig(InspectionConfig, ConversationSourceConfig):
    """Show samples as the LLM sees them, their supervised tokens, and invalid samples.

    Args:
        llm: the LLM's directory, or its name on the Hub, whose tokenizer and chat template are used.
        chat_template: ``auto`` (the LLM's own if it has one, else vicuna) or a template's name.
        image_tokens: number of tokens per image, with ``image_aspect_ratio: anyres`` per tile: 576 for a ViT-L/14 at
            336 pixels.
        image_aspect_ratio: ``anyres`` counts the tokens of all tiles of an image; the other values are equivalent here.
        image_size: with ``anyres``: tile size in pixels.
        image_grid_pinpoints: with ``anyres``: as for ``llava-bridge train``.
        max_length: maximum sequence length in tokens, images included.
    """

    llm: str
    chat_template: str = "auto"
    image_tokens: Positive = 576
    image_aspect_ratio: ImageAspectRatio = "squash"
    image_size: Positive = 336
    image_grid_pinpoints: list[list[int]] | None = None
    max_length: Positive = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pinpoints(self.image_aspect_ratio, self.image_grid_pinpoints)
        grid = math.isqrt(self.image_tokens)
        if self.image_aspect_ratio == "anyres" and (
            grid**2 != self.image_tokens or not is_unpad_compatible(self.image_size, grid)
        ):
            raise UserError(
                f"image_tokens: expected a square number whose root divides a tile of {self.image_size} pixels, "
                f"got {self.image_tokens}"
            )


@dataclasses.dataclass
class ConversationStats:
    """Per valid sample tokens and supervised tokens; counts of images, truncated and invalid samples; examples."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    supervised: list[int] = dataclasses.field(default_factory=list)
    images: Counter[int] = dataclasses.field(default_factory=Counter)
    truncated: int = 0
    invalid: InvalidSamples = dataclasses.field(default_factory=InvalidSamples)
    examples: list[Example] = dataclasses.field(default_factory=list)


def run_inspect(config: InspectConversationsConfig) -> None:
    """Print samples and a summary, and write the page if requested."""
    from llava_bridge.conversation import ConversationEncoder, resolve_training_template
    from llava_bridge.encoders.encoder import ImagePreprocess
    from llava_bridge.model.build import add_image_token, build_processor, load_tokenizer

    samples, tokenizer = read_samples(config), load_tokenizer(config.llm)
    add_image_token(tokenizer)
    template = resolve_training_template(tokenizer.chat_template, config.chat_template, tokenizer)
    tokens: Any = config.image_tokens
    if config.image_aspect_ratio == "anyres":  # the processor of a LLaVA with these tiles, for their number only
        unused = (0.0, 0.0, 0.0)
        pixels = ImagePreprocess(size=config.image_size, mean=unused, std=unused, interpolation="bicubic")
        images = make_anyres_processor(pixels, resolve_pinpoints(config.image_size, config.image_grid_pinpoints))
        processor = build_processor(images, tokenizer, config.image_size, config.image_tokens, template)
        tokens = functools.partial(num_image_tokens, processor)
    stats = collect_stats(samples, ConversationEncoder(tokenizer, template, tokens), config)
    lines, num_read = list(format_stats(len(samples), stats)), len(stats.tokens) + stats.invalid.count
    report_inspection(
        config, config.path, lines=lines, examples=stats.examples, invalid=stats.invalid, num_read=num_read
    )


def collect_stats(samples: Sequence[Conversation], chat: Any, config: InspectConversationsConfig) -> ConversationStats:
    """Read evenly spaced samples, as training would."""
    from llava_bridge.conversation import IGNORE_INDEX
    from llava_bridge.data.batches import ConversationDataset

    dataset, stats = ConversationDataset(samples, chat, config.max_length), ConversationStats()
    untruncated = ConversationDataset(samples, chat, sys.maxsize)
    chosen = evenly(len(samples), config.num_samples)
    shown = config.shown(chosen)
    for index in progress_iter(chosen.tolist(), "reading"):
        sample = samples[index]
        try:
            encoded = dataset.encode(sample)
        except Exception as error:  # training skips a sample at any error
            reason = str(error) or type(error).__name__
            for image in sample.images:  # so that samples with the same fault are counted together
                reason = reason.replace(f"{image}: ", "")
            stats.invalid.add([(index, sample.name, reason)])
            continue
        ids, labels = encoded["input_ids"], encoded["labels"]
        stats.tokens.append(len(ids))
        stats.supervised.append(sum(label != IGNORE_INDEX for label in labels))
        stats.images[len(sample.images)] += 1
        if len(ids) == config.max_length:
            stats.truncated += len(untruncated.encode(sample)["input_ids"]) > config.max_length
        if index in shown:
            name = f"{sample.name}  {', '.join(map(str, sample.images))}"
            images, spans = config.thumbnails(encoded["images"]), spans_of(chat, ids, labels)
            stats.examples.append(Example(name=name, thumbnails=images, texts={"": spans}))
    return stats


def spans_of(chat: Any, ids: list[int], labels: list[int]) -> list[Span]:
    """The text of a conversation in runs of supervised and other tokens, an image's tokens as one marker."""
    from llava_bridge.conversation import IGNORE_INDEX, IMAGE

    spans = []
    for (supervised, image), run in itertools.groupby(
        zip(ids, labels, strict=True), key=lambda pair: (pair[1] != IGNORE_INDEX, pair[0] == chat.image_id)
    ):
        tokens = [token for token, _ in run]
        text = f"{IMAGE} × {len(tokens)}" if image else chat.tokenizer.decode(tokens)
        spans.append(Span(text=text, supervised=supervised))
    return spans


def format_stats(count: int, stats: ConversationStats) -> Iterator[str]:
    """The statistics in lines of text."""
    read = len(stats.tokens) + stats.invalid.count
    yield f"samples     {count:,} in the source, {read:,} read, {stats.invalid.count:,} invalid"
    yield from stats.invalid.summary()
    if stats.tokens:
        mean, longest = sum(stats.tokens) / len(stats.tokens), max(stats.tokens)
        yield f"images      {', '.join(f'{number:,} with {images}' for images, number in sorted(stats.images.items()))}"
        yield f"tokens      {mean:.0f} on average, {longest} at most; {stats.truncated:,} truncated at max_length"
        yield f"supervised  {sum(stats.supervised) / sum(stats.tokens):.1%} of them"
