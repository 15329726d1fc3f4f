"""Write a directory of scenes: WebDataset shards, LLaVA's training files, text, and benchmarks for a test split.

clips scenes --output runs/scenes/train --num_scenes 9000
clips scenes --output runs/scenes/test --split test --num_scenes 400
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from clips.commandline.progress import progress_iter
from clips.core.artifact import atomic_artifact_dir, atomic_write, log_info, write_manifest
from clips.data.tar_index import add_member
from clips.errors import UserError
from clips.scenes.benchmark_data import BenchmarkRows, TestImage, write_benchmarks
from clips.scenes.captions import SceneCaptions, make_captions
from clips.scenes.llava_data import make_align_record, make_instruct_record, make_text_record
from clips.scenes.phrases import describe_scene
from clips.scenes.render import render
from clips.scenes.synthetic_captions import MllmCaptionStyle
from clips.scenes.world import SIGN_WORDS, Scene, SceneGenerator, SignSize

_ENCODING: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 3},
    "jpg": {"format": "JPEG", "quality": 92, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True, "method": 0},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """The scenes to generate.

    Args:
        output: the directory to write.
        split: train or test; test scenes are combinations of objects that do not occur in training scenes.
        num_scenes: number of scenes.
        num_object_classes: number of object classes, 8 or more.
        max_objects: maximum number of objects in one scene, 1 to 5.
        sign_ratio: ratio of scenes with a written word, 0 to 1; lower if there is no room for a sign.
        sign_size: small, or large: legible in images of 64 pixels.
        num_sign_words: number of different words on signs, 2 or more.
        image_size: size of the square images in pixels.
        seed: another seed gives other scenes.
        sprite_set: sprite set.
        image_format: png and webp are lossless.
        mllm_style: write the long captions as multimodal models do, a summary and then details of decreasing
            importance, some of them wrong; null writes complete and true ones.
        questions_per_image: maximum number of questions in an instruction conversation.
        shard_size: scenes per shard.
        benchmarks: rows of each benchmark of a test split.
    """

    output: str
    split: Literal["train", "test"] = "train"
    num_scenes: int = 9000
    num_object_classes: int = 60
    max_objects: int = 5
    sign_ratio: float = 0.15
    sign_size: SignSize = "small"
    num_sign_words: int = len(SIGN_WORDS)
    image_size: int = 64
    seed: int = 0
    sprite_set: Literal["twemoji"] = "twemoji"
    image_format: Literal["png", "jpg", "webp"] = "png"
    mllm_style: MllmCaptionStyle | None = None
    questions_per_image: int = 7
    shard_size: int = 1000
    benchmarks: BenchmarkRows = dataclasses.field(default_factory=BenchmarkRows)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_scenes", 1, 10**9 - 1),
            ("image_size", 32, 4096),
            ("seed", 0, 2**63 - 1),
            ("questions_per_image", 1, 20),
            ("shard_size", 1, 100_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")
        if not 0 <= self.sign_ratio <= 1:
            raise UserError(f"sign_ratio: expected 0 to 1, got {self.sign_ratio}")
        self.world()

    def world(self) -> SceneGenerator:
        """Return the generator of the scenes."""
        return SceneGenerator(
            num_object_classes=self.num_object_classes,
            max_objects=self.max_objects,
            signs_per_mille=round(1000 * self.sign_ratio),
            sign_size=self.sign_size,
            num_sign_words=self.num_sign_words,
            seed=self.seed,
            sprite_set=self.sprite_set,
        )


def generate_scenes(config: ScenesConfig) -> None:
    """Run ``clips scenes``.

    Raises:
        UserError: the directory cannot be written.
    """
    world, started = config.world(), time.monotonic()
    with atomic_artifact_dir(config.output, kind="scenes") as folder:
        _write_split(folder, world, config)
        rows = _write_benchmarks(folder, world, config) if config.split == "test" else {}
        write_manifest(
            folder, kind="scenes", config=config, seed=config.seed, scenes=config.num_scenes, benchmarks=rows
        )
    seconds, count = time.monotonic() - started, config.num_scenes
    log_info(f"{config.output}: {count} {config.split} scenes in {seconds:.1f} s ({count / seconds:.0f}/s)")


def _write_split(folder: Path, world: SceneGenerator, config: ScenesConfig) -> None:
    records: dict[str, list[dict[str, Any]]] = {"align": [], "instruct": [], "text": []}
    turns = config.questions_per_image
    for number, start in enumerate(progress_iter(range(0, config.num_scenes, config.shard_size), "generating scenes")):
        shard = f"shard-{number:05d}.tar"
        with tarfile.open(folder / shard, "w") as tar:
            for index in range(start, min(start + config.shard_size, config.num_scenes)):
                scene, key = world.scene(config.split, index), f"{index:09d}"
                image, captions = f"{key}.{config.image_format}", make_captions(world, scene, config.mllm_style)
                add_member(tar, image, encode_image(world, scene, config.image_size, config.image_format))
                add_member(tar, f"{key}.json", _sidecar(scene, captions))
                long = captions.synthetic_caption
                records["align"].append(make_align_record(world, scene, long, key, f"{shard}/{image}"))
                records["instruct"].append(make_instruct_record(world, scene, key, f"{shard}/{image}", turns))
                records["text"].append(make_text_record(world, scene, long, key, turns))
    for name, entries in records.items():
        atomic_write(folder / f"llava_{name}.json", json.dumps(entries))


def encode_image(world: SceneGenerator, scene: Scene, image_size: int, form: str) -> bytes:
    """Return the image of a scene as the bytes of an image file."""
    buffer = io.BytesIO()
    image: Image.Image = render(world, scene, image_size)
    image.save(buffer, **_ENCODING[form])
    return buffer.getvalue()


def _sidecar(scene: Scene, captions: SceneCaptions) -> bytes:
    return json.dumps({**dataclasses.asdict(captions), "scene": scene.to_json()}, ensure_ascii=False).encode()


def _write_benchmarks(folder: Path, world: SceneGenerator, config: ScenesConfig) -> dict[str, int]:
    rows = write_benchmarks(folder / "hub", list(_test_images(world, config)), config.benchmarks)
    for name, found in rows.items():
        limit = getattr(config.benchmarks, name)
        if found < limit - (limit % 6 if name == "pope" else limit % 2 if name == "mme" else 0):
            log_info(f"benchmarks.{name}: {found} rows instead of {limit}; more scenes (num_scenes) would yield more")
    return rows


def _test_images(world: SceneGenerator, config: ScenesConfig) -> Iterable[TestImage]:
    for index in range(config.num_scenes):
        scene, key = world.scene(config.split, index), f"{index:09d}"
        yield TestImage(
            key=key,
            name=f"{key}.{config.image_format}",
            described=describe_scene(world, scene),
            image=functools.partial(encode_image, world, scene, config.image_size, config.image_format),
        )
