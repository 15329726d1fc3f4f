"""Classes of colors for the tests of classification and probes: images in every layout, and an encoder that sees."""

from __future__ import annotations

from pathlib import Path

import bench_world as world
import numpy as np
import torch

from benchmarks.tasks.encoders.dual_encoder import DualEncoder

CLASSES = tuple(world.COLORS)


class Colorist:
    """Sees the color of a square and reads it in a text; what it cannot find is alike for all.

    Args:
        seen_as: color → the color that it takes it for.
        blind: has one and the same vector for everything.
    """

    def __init__(self, seen_as: dict[str, str] | None = None, *, blind: bool = False) -> None:
        self.seen_as, self.blind = seen_as or {}, blind

    def _vector(self, name: str | None) -> torch.Tensor:
        vector = torch.ones(len(CLASSES))
        if name is not None and not self.blind:
            vector[CLASSES.index(name)] += 1
        return vector

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        found = []
        for each in pixels.permute(0, 2, 3, 1).reshape(len(pixels), -1, 3).int().numpy():
            name = next((name for name, value in world.COLORS.items() if (each == value).all(axis=1).any()), None)
            found.append(self._vector(self.seen_as.get(name, name)))
        return torch.stack(found)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._vector(CLASSES[number] if number >= 0 else None) for number in tokens[:, 0]])

    def as_encoder(self) -> DualEncoder:
        def tokenizer(texts: list[str]) -> torch.Tensor:
            return torch.tensor([[next((n for n, name in enumerate(CLASSES) if name in text), -1)] for text in texts])

        how = {"input_resolution": 64, "input_resize": "squash", "input_interpolation": "bilinear"}
        return world.dual_encoder(
            self, tokenizer, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), **how
        )


def write_wds(root: Path, count: int = 12, *, split: str = "test", shards: int = 2, start: int = 0) -> Path:
    """CLIP_benchmark's format; image n is of class n modulo the number of classes."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(start, start + count)[shard::shards]:
            members[f"s{number:07d}.png"] = world.png(world.draw_image(number))
            members[f"s{number:07d}.cls"] = str(number % len(CLASSES)).encode()
        world.write_tar(root / split / f"{shard}.tar", members)
    (root / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c} square.\nthere is a {c} thing\n")
    (root / split / "nshards.txt").write_text(f"{shards}\n")
    return root


def write_folders(root: Path, count: int = 12, *, split: str = "test") -> Path:
    """A folder for each class; their order is that of the alphabet."""
    for number in range(count):
        folder = root / split / f"a_{world.color(number)}_thing"
        folder.mkdir(parents=True, exist_ok=True)
        world.draw_image(number).save(folder / f"{number}.png")
    return root


def table(count: int = 12) -> object:
    """A ``datasets.Dataset`` with a ClassLabel."""
    import datasets

    images = [{"bytes": world.png(world.draw_image(number)), "path": None} for number in range(count)]
    labels = [number % len(CLASSES) for number in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
