"""An encoder that knows pictures by heart and understands the word ``thing<n>``, if it stands where it still reads."""

from __future__ import annotations

from pathlib import Path

import bench_world as world
import numpy as np
import pytest
import torch

from benchmarks.results.results import Result, read_result, result_path
from benchmarks.tasks.encoders import embedding
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, RunConfig


class Reader:
    """Its vectors have a place for each thing; a text without any is as far from all pictures.

    Args:
        pictures: how many of `world.picture` it knows.
        context: words that it reads.
    """

    def __init__(self, pictures: int, context: int) -> None:
        self.visual, self.image_size, self.preprocess_cfg = self, 64, {"size": 64}
        self.pictures, self.context = pictures, context
        self.known = {world.picture(number).tobytes(): number for number in range(pictures)}
        self.words = {f"thing{number}": number + 1 for number in range(pictures)}

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        numbers = [self.known[each.byte().numpy().tobytes()] for each in pixels]
        return torch.eye(self.pictures + 1)[numbers]

    def tokenizer(self, texts: list[str]) -> torch.Tensor:
        tokens = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            for place, word in enumerate(text.split()[: self.context]):
                row[place] = self.words.setdefault(word, len(self.words) + 1)
        return tokens

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        places = [[int(token) - 1 for token in row if 0 < token <= self.pictures] for row in tokens]
        return torch.eye(self.pictures + 1)[[found[0] if found else self.pictures for found in places]]


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
    reader = Reader(pictures, context)
    encoder = embedding.DualEncoder(
        model=reader,
        preprocess=lambda image: torch.from_numpy(np.array(image)),
        tokenizer=reader.tokenizer,
        how={},
        device="cpu",
        precision="uint8",
    )
    monkeypatch.setattr(embedding, "load_dual_encoder", lambda *_: encoder)
    (folder / "encoder").mkdir(exist_ok=True)
    config = RunConfig(
        model_name=row,
        output=str(folder / "results"),
        encoder=str(folder / "encoder"),
        benchmarks=[benchmark],
        overwrite=True,
    )
    run_benchmarks(config)
    return read_result(result_path(config.output, row, benchmark.name))


def write_pictures(folder: Path, count: int, suffix: str = ".png") -> Path:
    """``0.png``, ``1.png``, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        world.picture(number).save(folder / f"{number}{suffix}")
    return folder
