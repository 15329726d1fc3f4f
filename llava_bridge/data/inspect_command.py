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
from collections.abc import Iterator
from typing import Any

from clips.commandline.progress import progress_iter
from clips.data.formats.dataset_format import Conversation
from clips.data.inspect_page import Example, Span, evenly, thumbnail, write_page
from clips.data.invalid_samples import InvalidSamples
from clips.errors import UserError
from clips.sanitize import strip_control_chars
from llava_bridge.data.samples import ConversationSourceConfig
from llava_bridge.model.anyres import (
    ImageAspectRatio,
    check_pinpoints,
    is_unpad_compatible,
    make_anyres_processor,
    num_image_tokens,
    resolve_pinpoints,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConversationsConfig(ConversationSourceConfig):
    """Show samples as the LLM sees them, their supervised tokens, and invalid samples.

    Args:
        llm: the LLM's directory, or its name on the hub, whose tokenizer and chat template are used.
        chat_template: ``auto`` (the LLM's own if it has one, else vicuna) or the name of one.
        image_tokens: how many tokens a picture takes: 576 for a ViT-L/14 at 336 pixels. With
            ``image_aspect_ratio: anyres`` that is one of its tiles.
        image_aspect_ratio: ``anyres`` counts the tokens of pictures that are cut into tiles; other ways do not matter
            here.
        image_size: with ``anyres``: side of a tile in pixels.
        image_grid_pinpoints: with ``anyres``: as for ``llava-bridge train``.
        max_length: longest sequence in tokens, pictures included.
        num_shown: how many samples are printed.
        num_samples: number of samples to read, spread evenly; 0 reads all.
        html_output: an HTML page to write, with the images.
    """

    llm: str
    chat_template: str = "auto"
    image_tokens: int = 576
    image_aspect_ratio: ImageAspectRatio = "squash"
    image_size: int = 336
    image_grid_pinpoints: list[list[int]] | None = None
    max_length: int = 2048
    num_shown: int = 3
    num_samples: int = 1000
    html_output: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("image_tokens", 1),
            ("image_size", 1),
            ("max_length", 1),
            ("num_shown", 0),
            ("num_samples", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected {least} or more, got {getattr(self, name)}")
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
    """Statistics: tokens of valid samples, of them supervised, images, truncated and invalid samples, some examples."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    supervised: list[int] = dataclasses.field(default_factory=list)
    images: Counter[int] = dataclasses.field(default_factory=Counter)
    truncated: int = 0
    invalid: InvalidSamples = dataclasses.field(default_factory=InvalidSamples)
    examples: list[Example] = dataclasses.field(default_factory=list)


def run_inspect(config: InspectConversationsConfig) -> None:
    """Carry out ``config``: print samples and a summary, and write the page if one is asked for."""
    from llava_bridge.data.sources import read_samples

    samples = read_samples(config)
    found = collect_stats(samples, _chat(config), config)
    for example in found.examples:
        print_example(example)
    if found.examples:
        print("supervised text is between « and »\n")
    lines = list(format_stats(len(samples), found))
    for line in lines:
        print(strip_control_chars(line))
    if config.html_output:
        write_page(config.html_output, title=config.path, lines=lines, examples=found.examples, invalid=found.invalid)


def _chat(config: InspectConversationsConfig) -> Any:
    from llava_bridge.chat_templates import TEMPLATES_WITHOUT_EOT
    from llava_bridge.conversation import ConversationEncoder, resolve_chat_template_with_spaces
    from llava_bridge.model.build import add_image_token, load_tokenizer

    tokenizer = load_tokenizer(config.llm)
    add_image_token(tokenizer)
    template = resolve_chat_template_with_spaces(tokenizer.chat_template, config.chat_template, tokenizer)
    tokens: Any = config.image_tokens
    if config.image_aspect_ratio == "anyres":
        tokens = functools.partial(num_image_tokens, _tiling(config, tokenizer, template))
    return ConversationEncoder(tokenizer, template, tokens, must_end=config.chat_template not in TEMPLATES_WITHOUT_EOT)


def _tiling(config: InspectConversationsConfig, tokenizer: Any, template: str) -> Any:
    """The processor of a LLaVA with such tiles."""
    from llava_bridge.encoders.encoder import ImagePreprocess
    from llava_bridge.model.build import build_processor

    none = (0.0, 0.0, 0.0)  # only sizes matter
    pixels = ImagePreprocess(size=config.image_size, mean=none, std=none, interpolation="bicubic")
    images = make_anyres_processor(pixels, resolve_pinpoints(config.image_size, config.image_grid_pinpoints))
    return build_processor(images, tokenizer, config.image_size, config.image_tokens, template)


def collect_stats(samples: list[Conversation], chat: Any, config: InspectConversationsConfig) -> ConversationStats:
    """Read samples, spread evenly, as training would."""
    from llava_bridge.conversation import IGNORE_INDEX
    from llava_bridge.data.collator import ConversationDataset

    data, found = ConversationDataset(samples, chat, config.max_length), ConversationStats()
    complete = ConversationDataset(samples, chat, sys.maxsize)
    for index in progress_iter(evenly(len(samples), config.num_samples).tolist(), "reading"):
        sample = samples[index]
        try:
            encoded = data.encode(sample)
        except Exception as error:  # whatever would make training skip it
            reason = str(error) or type(error).__name__
            for image in sample.images:  # so that samples with the same fault are counted together
                reason = reason.replace(f"{image}: ", "")
            found.invalid.add([(index, sample.name, reason)])
            continue
        ids, labels = encoded["input_ids"], encoded["labels"]
        found.tokens.append(len(ids))
        found.supervised.append(sum(label != IGNORE_INDEX for label in labels))
        found.images[len(sample.images)] += 1
        if len(ids) == config.max_length:
            found.truncated += len(complete.encode(sample)["input_ids"]) > config.max_length
        if len(found.examples) < config.num_shown:
            name = f"{sample.name}  {', '.join(map(str, sample.images))}"
            images = [thumbnail(image) for image in encoded["pictures"]] if config.html_output else []
            found.examples.append(Example(name=name, thumbnails=images, texts={"": spans_of(chat, ids, labels)}))
    return found


def spans_of(chat: Any, ids: list[int], labels: list[int]) -> list[Span]:
    """The text of a conversation in runs of supervised tokens and of others, an image's tokens as one mark."""
    from llava_bridge.conversation import IGNORE_INDEX, IMAGE

    spans = []
    for (supervised, image), run in itertools.groupby(
        zip(ids, labels, strict=True), key=lambda pair: (pair[1] != IGNORE_INDEX, pair[0] == chat.image_id)
    ):
        tokens = [token for token, _ in run]
        text = f"{IMAGE} × {len(tokens)}" if image else chat.tokenizer.decode(tokens)
        spans.append(Span(text=text, supervised=supervised))
    return spans


def print_example(example: Example) -> None:
    """A sample in the terminal: supervised text in green and between guillemets, which work without color."""
    from rich.console import Console
    from rich.text import Text

    text = Text(strip_control_chars(f"{example.name}\n"), style="dim")
    for span in example.texts[""]:
        content = strip_control_chars(span.text)
        text.append(
            f"«{content}»" if span.supervised else content, style="bold green" if span.supervised else "default"
        )
    Console(highlight=False, soft_wrap=True).print(text, end="\n\n")


def format_stats(count: int, found: ConversationStats) -> Iterator[str]:
    """The statistics in lines of text."""
    read = len(found.tokens) + found.invalid.count
    yield f"samples     {count:,} in the source, {read:,} read, {found.invalid.count:,} invalid"
    yield from found.invalid.summary()
    if found.tokens:
        mean = sum(found.tokens) / len(found.tokens)
        most = max(found.tokens)
        yield f"images      {', '.join(f'{number:,} with {many}' for many, number in sorted(found.images.items()))}"
        yield f"tokens      {mean:.0f} on average, {most} at most; {found.truncated:,} truncated at max_length"
        yield f"supervised  {sum(found.supervised) / sum(found.tokens):.1%} of them"
