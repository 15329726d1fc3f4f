"""An encoder that knows image_root by heart and understands the word ``thing<n>``, if it is within its context."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import bench_world as world
import pytest
import torch
from bench_world import write_images as write_images

from benchmarks.results.results import Result
from benchmarks.tasks.encoders import dual_encoder
from benchmarks.tasks.registry import BenchmarkConfig


class Reader:
    """Its vectors have a dimension for each image; a text of no image is as far from all of them.

    Args:
        images: how many of `world.draw_image` it knows.
        context: words that it reads.
        texts: texts that it knows by heart → the number of their image.
        blind: image_root that have the vector of the next one.
        broken: an image whose vector is not finite.
    """

    def __init__(
        self,
        pictures: int,
        context: int = 100,
        *,
        texts: dict[str, int] | None = None,
        blind: tuple[int, ...] = (),
        broken: int | None = None,
    ) -> None:
        self.visual, self.image_size = self, 64
        self.preprocess_cfg = {"size": (64, 64), "resize_mode": "squash", "interpolation": "bilinear"}
        self.pictures, self.context, self.texts, self.blind, self.broken = pictures, context, texts or {}, blind, broken
        self.known = {world.draw_image(number).tobytes(): number for number in range(pictures)}
        self.words = {f"thing{number}": number + 1 for number in range(pictures)}

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        numbers = [self.known[each.byte().numpy().tobytes()] for each in pixels]
        vectors = torch.eye(self.pictures + 1)[[(n + 1) % self.pictures if n in self.blind else n for n in numbers]]
        vectors[[number == self.broken for number in numbers]] = torch.nan
        return vectors

    def tokenizer(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        context = context_length or self.context
        tokens = torch.zeros(len(texts), context, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            words = [f"thing{self.texts[text]}"] if text in self.texts else text.split()
            for place, word in enumerate(words[:context]):
                row[place] = self.words.setdefault(word, len(self.words) + 1)
        return tokens

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        known = [[int(token) - 1 for token in row if 0 < token <= self.pictures] for row in tokens]
        return torch.eye(self.pictures + 1)[[found[0] if found else self.pictures for found in known]]

    def use(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
        how = dual_encoder.describe_preprocessing(SimpleNamespace(model=self, config={}), "unused")
        return world.use_encoder(monkeypatch, folder, world.dual_encoder(self, self.tokenizer, **how))


def evaluate(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    benchmark: BenchmarkConfig,
    *,
    pictures: int,
    context: int = 100,
    row: str = "row",
) -> Result:
    """The result of a `Reader` on a benchmark."""
    encoder = Reader(pictures, context).use(monkeypatch, folder)
    return world.measure(folder / "results", benchmark, row=row, encoder=encoder, overwrite=True)
