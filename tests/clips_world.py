"""A tiny data set of the suite's own layout, and a tiny training of it, for the tests of the trainer."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from clips.commandline.parsing import parse_config
from clips.train import EncoderTrainConfig

COLORS = ["red", "green", "blue", "yellow", "white", "black", "purple"]


def picture(index: int, size: tuple[int, int] = (40, 32), kind: str = "png") -> bytes:
    rng = np.random.default_rng(index)
    pixels = (rng.integers(0, 200, 3) + rng.integers(0, 56, (size[1], size[0], 3))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, {"jpg": "jpeg"}.get(kind, kind))
    return stream.getvalue()


def captions(index: int) -> dict[str, Any]:
    color = COLORS[index % len(COLORS)]
    return {
        "web_caption": f"{color} thing {index}",
        "synthetic_caption": f"A {color} square. It lies on a table. There are {index} dots.",
        "captions": [f"sentence {number} of {index}" for number in range(5)],
    }


def sample(index: int) -> dict[str, bytes]:
    return {"png": picture(index), "json": json.dumps(captions(index)).encode()}


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, sizes: tuple[int, ...] = (9, 7, 5)) -> Path:
    """Shards of unlike sizes; sample ``index`` has key ``f"{index:09d}"``."""
    first = 0
    for number, size in enumerate(sizes):
        samples = {f"{index:09d}": sample(index) for index in range(first, first + size)}
        write_shard(folder / f"shard-{number:05d}.tar", samples)
        first += size
    return folder


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in checkpoint.glob("*.safetensors") for name, value in load_file(file).items()}


def config_text(data: Path, output: Path, /, **fields: Any) -> str:
    return json.dumps(
        {
            "output": str(output),
            "data": {"sources": [{"path": str(data)}], "max_invalid_ratio": 0.2},
            "model": {"architecture": "clips-tiny", "image_size": 16, "context_length": 12},
            "recipe": {"name": "clips", "captioner": {"max_length": 12, "num_layers": 1, "max_loss_tokens": 4}},
            "max_steps": 6,
            "global_batch_size": 4,
            "precision": "fp32",
            "logging_steps": 2,
            "save_steps": 2,
            **fields,
        }
    )


def train_config(data: Path, output: Path, /, **fields: Any) -> EncoderTrainConfig:
    path = output.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config_text(data, output, **fields))
    config = parse_config(EncoderTrainConfig, ["--config", str(path)], prog="test")
    assert config is not None
    return config
