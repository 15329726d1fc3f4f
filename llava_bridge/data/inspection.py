"""Look at what an LLM will be shown before money is spent on it: which tokens are learnt, and the pictures.

llava-bridge data inspect llava_instruct.json --llm path/to/llm
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.artifact import say, write_file
from clips.commandline.progress import track
from clips.data.formats.base import Conversation
from clips.errors import UserError
from clips.visible import shown as as_shown
from clips.visible import visible
from llava_bridge.data.samples import DataConfig
from llava_bridge.model.anyres import ImageFit, check_pinpoints, joins, pinpoints_for, tile_maker, tokens_of_picture

_THUMBNAIL = 320
_EXAMPLES = 5  # of samples with the same fault


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig(DataConfig):
    """Show samples as the LLM sees them, what is learnt of them, and what cannot be used.

    Args:
        llm: the LLM's directory, or its name on the hub, whose tokenizer and chat template are used.
        chat_template: ``auto`` (the LLM's own if it has one, else vicuna) or the name of one.
        image_tokens: how many tokens a picture takes: 576 for a ViT-L/14 at 336 pixels. With ``image_fit: anyres`` that
            is one of its tiles.
        image_fit: ``anyres`` counts the tokens of pictures that are cut into tiles; other ways do not matter here.
        image_size: with ``anyres``: side of a tile in pixels.
        image_grid_pinpoints: with ``anyres``: as for ``llava-bridge train``.
        max_length: longest sequence in tokens, pictures included.
        shown: how many samples are printed.
        scan: how many are read, spread evenly; 0 reads all.
        page: an HTML page to write, with the pictures.
    """

    llm: str
    chat_template: str = "auto"
    image_tokens: int = 576
    image_fit: ImageFit = "squash"
    image_size: int = 336
    image_grid_pinpoints: list[list[int]] | None = None
    max_length: int = 2048
    shown: int = 3
    scan: int = 1000
    page: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("image_tokens", 1), ("image_size", 1), ("max_length", 1), ("shown", 0), ("scan", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        check_pinpoints(self.image_fit, self.image_grid_pinpoints)
        grid = math.isqrt(self.image_tokens)
        if self.image_fit == "anyres" and (grid**2 != self.image_tokens or not joins(self.image_size, grid)):
            raise UserError(
                f"image_tokens: expected a square number whose root divides a tile of {self.image_size} pixels, "
                f"got {self.image_tokens}"
            )


@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of text that is learnt, or is not."""

    text: str
    learnt: bool


@dataclasses.dataclass
class Look:
    """What was found: lengths of usable samples, of that learnt, pictures, faults, and some samples in pieces."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    learnt: list[int] = dataclasses.field(default_factory=list)
    pictures: Counter[int] = dataclasses.field(default_factory=Counter)
    cut: int = 0
    bad: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    shown: list[tuple[Conversation, list[Piece], list[Any]]] = dataclasses.field(default_factory=list)


def inspect(config: InspectConfig) -> None:
    """Carry out ``config``: print samples and a summary, and write the page if one is asked for."""
    from llava_bridge.data.sources import read_samples

    samples = read_samples(config)
    chat = _chat(config)
    found = look(samples, chat, config)
    for sample, pieces, _ in found.shown:
        print_sample(sample, pieces)
    if found.shown:
        print("what is learnt stands between « and »\n")
    for line in summary(len(samples), found):
        print(visible(line))
    if config.page:
        write_file(Path(config.page), page(config, list(summary(len(samples), found)), found))
        say(f"page: {config.page}")


def _chat(config: InspectConfig) -> Any:
    from llava_bridge.chat import Chat, template_beside
    from llava_bridge.model.assembly import add_image_token, load_tokenizer
    from llava_bridge.templates import NEVER_END

    tokenizer = load_tokenizer(config.llm)
    add_image_token(tokenizer)
    template = template_beside(tokenizer.chat_template, config.chat_template, tokenizer)
    tokens: Any = config.image_tokens
    if config.image_fit == "anyres":
        tokens = functools.partial(tokens_of_picture, _tiling(config, tokenizer, template))
    return Chat(tokenizer, template, tokens, must_end=config.chat_template not in NEVER_END)


def _tiling(config: InspectConfig, tokenizer: Any, template: str) -> Any:
    """The processor of a LLaVA with such tiles."""
    from llava_bridge.encoders.contract import Pixels
    from llava_bridge.model.assembly import processor_of

    none = (0.0, 0.0, 0.0)  # only sizes matter
    pixels = Pixels(size=config.image_size, mean=none, std=none, interpolation="bicubic")
    images = tile_maker(pixels, pinpoints_for(config.image_size, config.image_grid_pinpoints))
    return processor_of(images, tokenizer, config.image_size, config.image_tokens, template)


def look(samples: list[Conversation], chat: Any, config: InspectConfig) -> Look:
    """Read samples, spread evenly, as training would."""
    from llava_bridge.chat import IGNORED
    from llava_bridge.data.batches import Conversations

    count = min(config.scan or len(samples), len(samples))
    chosen = [samples[index * len(samples) // count] for index in range(count)]
    data, found = Conversations(chosen, chat, config.max_length), Look()
    whole = Conversations(chosen, chat, sys.maxsize)
    for sample in track(chosen, "reading"):
        try:
            encoded = data.encode(sample)
        except Exception as error:  # whatever would make training skip it
            reason = str(error) or type(error).__name__
            for picture in sample.images:  # so that samples with the same fault stand together
                reason = reason.replace(f"{picture}: ", "")
            found.bad.setdefault(reason, []).append(sample.name)
            continue
        ids, labels = encoded["input_ids"], encoded["labels"]
        found.tokens.append(len(ids))
        found.learnt.append(sum(label != IGNORED for label in labels))
        found.pictures[len(sample.images)] += 1
        if len(ids) == config.max_length:
            found.cut += len(whole.encode(sample)["input_ids"]) > config.max_length
        if len(found.shown) < config.shown:
            found.shown.append((sample, pieces_of(chat, ids, labels), encoded["pictures"]))
    return found


def pieces_of(chat: Any, ids: list[int], labels: list[int]) -> list[Piece]:
    """The text of a conversation in runs of tokens that are learnt or are not, a picture's tokens as one mark."""
    from llava_bridge.chat import IGNORED, IMAGE

    pieces = []
    for (learnt, image), run in itertools.groupby(
        zip(ids, labels, strict=True), key=lambda pair: (pair[1] != IGNORED, pair[0] == chat.image_id)
    ):
        tokens = [token for token, _ in run]
        text = f"{IMAGE} × {len(tokens)}" if image else chat.tokenizer.decode(tokens)
        pieces.append(Piece(text, learnt))
    return pieces


def print_sample(sample: Conversation, pieces: list[Piece]) -> None:
    """A sample in the terminal: what is learnt in green and between guillemets, which stay where there is no colour."""
    from rich.console import Console
    from rich.text import Text

    text = Text(visible(f"{sample.name}  {', '.join(map(str, sample.images))}\n"), style="dim")
    for piece in pieces:
        said = visible(piece.text)
        text.append(f"«{said}»" if piece.learnt else said, style="bold green" if piece.learnt else "default")
    Console(highlight=False, soft_wrap=True).print(text, end="\n\n")


def summary(count: int, found: Look) -> Iterator[str]:
    """What was found, in lines."""
    read = len(found.tokens) + sum(map(len, found.bad.values()))
    yield f"{count:,} samples, {read:,} of them read"
    if found.tokens:
        pictures = ", ".join(f"{number:,} with {many}" for many, number in sorted(found.pictures.items()))
        mean = sum(found.tokens) / len(found.tokens)
        yield f"pictures: {pictures}"
        yield f"tokens: {mean:.0f} on average, {max(found.tokens)} at most; {found.cut:,} are cut at max_length"
        yield f"learnt: {sum(found.learnt) / sum(found.tokens):.1%} of them"
    for reason, names in sorted(found.bad.items(), key=lambda item: -len(item[1])):
        more = "" if len(names) <= _EXAMPLES else " …"
        yield f"unusable: {len(names):,}: {reason} ({', '.join(names[:_EXAMPLES])}{more})"


def page(config: InspectConfig, lines: list[str], found: Look) -> str:
    """The page, self-contained."""
    import jinja2

    template = (Path(__file__).parent / "inspection.html.jinja").read_text(encoding="utf-8")
    shown = [
        (sample.name, pieces, [_thumbnail(picture) for picture in images]) for sample, pieces, images in found.shown
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=as_shown)
    return environment.from_string(template).render(path=config.path, lines=lines, shown=shown)


def _thumbnail(picture: Any) -> str:
    picture = picture.convert("RGB")
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()
