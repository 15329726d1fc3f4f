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
from typing import Any

from clips.commandline.progress import progress_iter
from clips.errors import UserError
from clips.loader.inspection import Example, InspectionConfig, Span, report_inspection
from clips.loader.invalid_samples import InvalidSamples
from clips.loader.sampler import evenly
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
        image_tokens: number of tokens of an image, or of each tile with ``anyres``; a ViT-L/14 at 336 pixels has 576.
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


def run_inspect(config: InspectConversationsConfig) -> None:
    """Print samples and a summary."""
    samples = read_samples(config)  # before torch is imported, which takes seconds: the path may be wrong
    from llava_bridge.conversation import IGNORE_INDEX, IMAGE, ConversationEncoder, resolve_training_template
    from llava_bridge.data.batches import ConversationDataset
    from llava_bridge.encoders.encoder import ImagePreprocess
    from llava_bridge.model.build import add_image_token, build_processor, load_tokenizer

    tokenizer = load_tokenizer(config.llm)
    add_image_token(tokenizer)
    template = resolve_training_template(tokenizer.chat_template, config.chat_template, tokenizer)
    image_tokens: Any = config.image_tokens
    if config.image_aspect_ratio == "anyres":  # the processor of a LLaVA with these tiles, for their number only
        unused = (0.0, 0.0, 0.0)
        pixels = ImagePreprocess(size=config.image_size, mean=unused, std=unused, interpolation="bicubic")
        images = make_anyres_processor(pixels, resolve_pinpoints(config.image_size, config.image_grid_pinpoints))
        processor = build_processor(images, tokenizer, config.image_size, config.image_tokens, template)
        image_tokens = functools.partial(num_image_tokens, processor)
    chat = ConversationEncoder(tokenizer, template, image_tokens)

    # Evenly spaced samples, read as training would.
    dataset = ConversationDataset(samples, chat, config.max_length)
    untruncated = ConversationDataset(samples, chat, sys.maxsize)
    lengths: list[int] = []  # in tokens, of each valid sample
    num_supervised = num_truncated = 0
    num_images, invalid, examples = Counter[int](), InvalidSamples(), list[Example]()
    chosen = evenly(len(samples), config.num_samples)
    shown = config.shown(chosen)
    for index in progress_iter(chosen.tolist(), "reading", "samples"):
        sample = samples[index]
        try:
            encoded = dataset.encode(sample)
        except Exception as error:  # training skips a sample at any error
            reason = str(error) or type(error).__name__
            for image in sample.images:  # so that samples with the same fault are counted together
                reason = reason.replace(f"{image}: ", "")
            invalid.add([(index, sample.name, reason)])
            continue
        ids, labels = encoded["input_ids"], encoded["labels"]
        lengths.append(len(ids))
        num_supervised += sum(label != IGNORE_INDEX for label in labels)
        num_images[len(sample.images)] += 1
        if len(ids) == config.max_length:
            num_truncated += len(untruncated.encode(sample)["input_ids"]) > config.max_length
        if index in shown:  # its text in runs of supervised and other tokens, an image's tokens as one marker
            spans = []
            for (supervised, is_image), run in itertools.groupby(
                zip(ids, labels, strict=True), key=lambda pair: (pair[1] != IGNORE_INDEX, pair[0] == chat.image_id)
            ):
                tokens = [token for token, _ in run]
                text = f"{IMAGE} × {len(tokens)}" if is_image else tokenizer.decode(tokens)
                spans.append(Span(text=text, supervised=supervised))
            name = f"{sample.name}  {', '.join(map(str, sample.images))}"
            examples.append(Example(name=name, texts={"": spans}))

    num_read = len(lengths) + invalid.count
    lines = [f"samples     {len(samples):,} in the source, {num_read:,} read, {invalid.count:,} invalid"]
    lines += invalid.summary()
    if keys := samples.describe_unread():
        lines.append(f"not read    the keys {keys}")
    if lengths:
        mean, longest = sum(lengths) / len(lengths), max(lengths)
        lines += [
            f"images      {', '.join(f'{number:,} with {images}' for images, number in sorted(num_images.items()))}; "
            f"{config.image_tokens} tokens assumed for each{' tile' if config.image_aspect_ratio == 'anyres' else ''} "
            "(--image_tokens)",
            f"tokens      {mean:.0f} on average, {longest} at most; {num_truncated:,} truncated at max_length",
            f"supervised  {num_supervised / sum(lengths):.1%} of them",
        ]
    report_inspection(config.path, lines=lines, examples=examples, invalid=invalid, num_read=num_read)
