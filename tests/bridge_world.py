"""Small parts for the bridge's tests: encoder directories by open_clip itself, an LLM, pictures with talk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = ("red", "green", "blue", "yellow")
VIT = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 3,
        "head_width": 16,
        "no_ln_pre": True,
        "pool_type": "avg",
        "final_ln_after_pool": True,
        "pos_embed_type": "sin_cos_2d",
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
TRUNK = {**VIT, "vision_cfg": {"timm_model_name": "tiny_vit_5m_224", "timm_model_pretrained": False, "image_size": 64}}
RESNET = {**VIT, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}
SMALL_LLM = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
"""Of a transformers config, whose other fields depend on the kind."""
TEXTS = [f"The shape is {color}. USER: What color is it? ASSISTANT: {color}" for color in COLORS] * 8


def open_clip_model(model_cfg: dict[str, Any], seed: int = 0) -> Any:
    import torch

    from clips.commandline.import_guards import without_wandb

    with without_wandb():
        from open_clip.model import CLIP, CustomTextCLIP
    torch.manual_seed(seed)
    kind = CustomTextCLIP if "timm_model_name" in model_cfg["vision_cfg"] else CLIP
    return kind(**model_cfg).eval()


def make_encoder(directory: Path, model_cfg: dict[str, Any]) -> Any:
    """Write an encoder directory in open_clip's hub layout; return open_clip's own model."""
    from safetensors.torch import save_file

    model = open_clip_model(model_cfg)
    directory.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        directory / "open_clip_model.safetensors",
    )
    preprocess = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    return model


def make_llm(directory: Path, context: int = 128, *, width: int = 32, tied: bool = False) -> Path:
    """A tiny untrained Llama; ``tied``: its output layer has the weights of its embedding."""
    import torch

    from llava_bridge.model.small_llama import SmallLlamaConfig, new_llama, train_tokenizer

    config = SmallLlamaConfig(
        vocab_size=320, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=context
    )
    tokenizer = train_tokenizer(TEXTS, config)
    torch.manual_seed(0)
    model = new_llama(config, tokenizer)
    if tied:
        model.config.tie_word_embeddings = True
        model = type(model)(model.config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_llava(directory: Path, encoder: Path, llm: Path, **parts: Any) -> Path:
    """An untrained LLaVA around the two."""
    from llava_bridge.model.build import LlavaParts, build_llava

    for part in build_llava(LlavaParts(encoder=str(encoder), llm=str(llm), **parts)):
        part.save_pretrained(directory)
    return directory


def make_talk(directory: Path, samples: int = 16) -> Path:
    """Pictures of one color and a conversation about each, in LLaVA's form, and the same as text."""
    directory.mkdir(parents=True)
    rows = []
    for number in range(samples):
        color = COLORS[number % len(COLORS)]
        Image.new("RGB", (40, 24), color).save(directory / f"{number}.png")
        talk = [
            ("human", "<image>\nWhat color is it?"),
            ("gpt", color),
            ("human", "Sure?"),
            ("gpt", "yes" * (number % 3 + 1)),
        ]
        turns = [{"from": who, "value": value} for who, value in talk]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (directory / "talk.json").write_text(json.dumps(rows))
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return directory


SHAPES = ((40, 24), (24, 40), (64, 64), (200, 30))
"""Widths and heights of an album's pictures."""


def make_album(directory: Path) -> Path:
    """Noise of several shapes with talk about one picture, two, and none."""
    directory.mkdir(parents=True)
    for number, size in enumerate(SHAPES):
        Image.effect_noise(size, 60).convert("RGB").save(directory / f"{number}.png")
    shown = [[number] for number in range(len(SHAPES))] + [[0, 2], [], []]
    rows = [
        {
            "id": str(number),
            "image": [f"{one}.png" for one in pictures],
            "conversations": [
                {"from": "human", "value": "<image>\n" * len(pictures) + "What color is it?"},
                {"from": "gpt", "value": COLORS[number % len(COLORS)]},
            ],
        }
        for number, pictures in enumerate(shown)
    ]
    (directory / "talk.json").write_text(json.dumps(rows))
    return directory


def config_file(directory: Path, name: str, talk: Path, **fields: Any) -> Path:
    """A tiny run of all stages; ``fields`` of TrainConfig override it."""
    from clips.serialization import to_yaml
    from llava_bridge.data import ConversationSourceConfig
    from llava_bridge.model.small_llama import SmallLlamaConfig
    from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig

    data = [ConversationSourceConfig(path=str(talk / "talk.json"))]
    settings: dict[str, Any] = {
        "output": str(directory / name),
        "stages": ["llm_pretrain", "align", "instruct"],
        "llm_from_scratch": SmallLlamaConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=96
        ),
        "llm_pretrain": StageConfig(
            data=[ConversationSourceConfig(path=str(talk / "text.jsonl"), format="text")],
            max_steps=4,
            global_batch_size=4,
            max_length=32,
        ),
        "align": StageConfig(data=data, max_steps=4, global_batch_size=4),
        "instruct": StageConfig(data=data, max_steps=6, global_batch_size=4, learning_rate=1e-3),
        "precision": "fp32",
        "logging_steps": 1,
    }
    path = directory / f"{name}.yaml"
    path.write_text(to_yaml(LlavaTrainConfig(**{**settings, **fields})))
    return path


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python process, one thread."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


def trained_alone(*files: Path, driver: str = "swap_driver.py", **environment: str) -> str:
    """Train by config files, one after the other, in one process that a launcher would start; return what it prints."""
    done = run_python(str(Path(__file__).with_name(driver)), *map(str, files), **launched(), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def launched() -> dict[str, str]:
    """What a launcher tells the only process that it starts."""
    from llava_bridge.training.launch import _free_port

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return {**alone, "MASTER_PORT": str(_free_port())}


def losses(directory: Path) -> list[float]:
    """Of each logged step."""
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def run_processes(count: int, driver: str, *arguments: str, timeout: float, **environment: str) -> str:
    """Run a driver in so many processes that share a training, as a launcher starts them; return what they print.

    All are ended when one fails, or after ``timeout`` seconds, which counts as a failure.
    """
    from llava_bridge.training.launch import _free_port

    command = [sys.executable, str(Path(__file__).with_name(driver)), *arguments]
    place = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    place |= {"MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as printed:
        started = [
            subprocess.Popen(
                command,
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
                stdout=printed,
                stderr=printed,
            )
            for rank in range(count)
        ]
        deadline = time.monotonic() + timeout
        try:
            while any(one.poll() is None for one in started):
                if time.monotonic() > deadline or any(one.poll() for one in started):
                    break
                time.sleep(0.05)
            statuses = [one.poll() for one in started]
        finally:
            for one in started:
                one.kill()
                one.wait()
        printed.seek(0)
        text = printed.read()
    assert statuses == [0] * count, f"ended with {statuses} (None: after {timeout:.0f} s not at all): {text[-3000:]}"
    return text
