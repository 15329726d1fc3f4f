"""The interface of captioners: images of a window in, captions out, whether a local model or a server writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from clips.data.sources import Sample

CaptionsByIndex = dict[int, "list[GeneratedCaption] | str"]
"""Index of a sample → its captions, or the reason why there are none."""


@dataclasses.dataclass(frozen=True)
class GeneratedCaption:
    """The model's output for an image: its text, number of tokens, and whether it ends with EOS."""

    text: str
    tokens: int
    ended: bool


@dataclasses.dataclass(frozen=True)
class PromptedImage:
    """A valid sample of the source with its decoded image and the text of its prompt."""

    index: int
    sample: Sample
    image: Image.Image
    text: str


class Captioner(Protocol):
    """Writes captions for windows of samples."""

    windows_ahead: int
    """Number of windows to submit before the first one's captions are awaited."""

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of all prompts so far, images included."""

    def submit(self, window: range, images: Sequence[PromptedImage]) -> Callable[[], CaptionsByIndex]:
        """Begin the captions of a window's valid samples; the function that is returned waits for them."""

    def identity(self) -> Mapping[str, Any]:
        """The manifest entry of the model."""
