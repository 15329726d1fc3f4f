"""A tiny dataset of the suite's own format, and a tiny training on it, for the tests of the trainer."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_driver
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from clips import train as training
from clips.commandline.parsing import parse_config
from clips.data.sources import SourceConfig, open_source
from clips.data.tar_index import add_member
from clips.train import EncoderTrainConfig

COLORS = ["red", "green", "blue", "yellow", "white", "black", "purple"]


def draw_image(index: int, size: tuple[int, int] = (40, 32), kind: str = "png") -> bytes:
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
    return {"png": draw_image(index), "json": json.dumps(captions(index)).encode()}


def write_members(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add_member(tar, name, content)
    return path


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    return write_members(
        path, {f"{key}.{extension}": each for key, files in samples.items() for extension, each in files.items()}
    )


def write_shards(folder: Path, sizes: tuple[int, ...] = (9, 7, 5)) -> Path:
    """Shards of different sizes; sample ``index`` has key ``f"{index:09d}"``."""
    first = 0
    for number, size in enumerate(sizes):
        samples = {f"{index:09d}": sample(index) for index in range(first, first + size)}
        write_shard(folder / f"shard-{number:05d}.tar", samples)
        first += size
    return folder


def write_sizes(folder: Path, sizes: tuple[int, ...]) -> Path:
    """A sizes.json of shards as `write_shards` names them, with any contents."""
    counts = {f"shard-{number:05d}.tar": size for number, size in enumerate(sizes)}
    (folder / "sizes.json").write_text(json.dumps(counts), encoding="utf-8")
    return folder


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def number_of(web: str, synthetic: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """In a recipe's place: the number that a web caption ends with, and one that was drawn."""
    return {"number": torch.tensor(int(web.split()[-1])), "draw": torch.tensor(rng.integers(1 << 30))}


def opened(path: Path | str, /, **fields: Any) -> Any:
    """The data source at ``path``."""
    return open_source(SourceConfig(path=str(path), **fields))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of an encoder directory or a checkpoint; names in different files do not collide."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def is_equal(one: Path, other: Path) -> bool:
    """Whether two directories hold the same tensors, bit by bit."""
    mine, theirs = tensors_of(one), tensors_of(other)
    return bool(mine) and mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def config_text(data: Path, output: Path, /, **fields: Any) -> str:
    return json.dumps(
        {
            "output": str(output),
            "data": {"sources": [{"path": str(data)}], "max_invalid_ratio": 0.2},
            "model": {"architecture": "clips-tiny", "image_size": 16, "context_length": 12},
            "recipe": {
                "name": "clips",
                "captioner": {"max_length": 12, "num_layers": 1, "max_loss_tokens": 4, "width": 32},
            },
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


def train(config: EncoderTrainConfig) -> None:
    """Train, but count each batch's FLOPs as one: counting them takes twice as long as the tiny training itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clips.training.mfu.flops_per_sample", lambda *_: 1.0)
        training.train(config)


def trained(data: Path, output: Path, /, **fields: Any) -> Path:
    """Train with the tiny config, without checkpoints unless asked for; returns ``output``."""
    train(train_config(data, output, **{"save_steps": 100, **fields}))
    return output


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Break the training off after ``step`` steps, without a word to anyone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", distributed_driver.stop_at(step))
        with pytest.raises(InterruptedError):
            yield


# Trainings in several processes.


def torchrun(log: Path, *command: str, processes: int = 2) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *command)
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-m", *launcher], env=environment, stderr=stream, stdout=stream)


def start_drive(folder: Path, plan: list[dict[str, Any]], *options: str, processes: int = 2) -> subprocess.Popen[bytes]:
    """Start the trainings of a plan (``distributed_driver``)."""
    (folder / "plan.json").write_text(json.dumps(plan))
    command = (*options, str(Path(__file__).parent / "distributed_driver.py"), str(folder / "plan.json"))
    return torchrun(folder / "log", *command, processes=processes)


def drive(folder: Path, plan: list[dict[str, Any]], processes: int = 2) -> None:
    assert start_drive(folder, plan, processes=processes).wait(900) == 0, (folder / "log").read_text()[-5000:]


def without_key_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    """A bias on attention's keys has no effect and a gradient of pure rounding, which Adam blows up to full steps."""
    if name.endswith(("in_proj_bias", "qkv.bias")):
        query, _, values = value.chunk(3)
        return torch.cat([query, values])
    return value.chunk(2)[1] if name.endswith("key_value.bias") else value


def assert_same_training(output: Path, expected: Path) -> None:
    """The same metrics, validation and weights, up to the rounding of sums in another order."""
    for mine, theirs in zip(metrics(output), metrics(expected), strict=True):
        compared = [name for name in theirs if name in ("grad_norm", "logit_scale") or name.endswith("loss")]
        assert "loss" in compared
        for name in compared:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), (output.name, name)
        found, wanted = ({key: entry[key] for key in entry if key.startswith("val_")} for entry in (mine, theirs))
        assert found == wanted
    weights, wanted = tensors_of(output), tensors_of(expected)
    assert weights.keys() == wanted.keys()
    for name, value in weights.items():
        difference = without_key_bias(name, value) - without_key_bias(name, wanted[name])
        # Adam turns rounding in a gradient near zero into a step: single entries may differ, not the whole.
        assert difference.abs().mean() < 1e-6, (output.name, name)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that is made in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else (made,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.element_size())
        return made
