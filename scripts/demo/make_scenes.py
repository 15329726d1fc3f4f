"""Write a directory of captioned scenes: WebDataset shards, LLaVA's training files, and benchmarks for a test split.

    python scripts/demo/make_scenes.py --output runs/scenes/train --num_scenes 9000
    python scripts/demo/make_scenes.py --output runs/scenes/test --split test --num_scenes 400

A scene consists of objects (real emoji) on a background; some have a written word. Captions and questions follow from
the ground truth. In a study it is the command of an entry of ``data``, see scripts/studies/demo.yaml.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scene_drawing import ObjectClass
from scene_questions import (
    align_record,
    existence_question,
    instruct_record,
    open_questions,
    sign_questions,
    text_record,
    yes_no_pairs,
)
from scene_rng import DeterministicRng
from scene_texts import SceneDescription, describe_scene, make_captions
from scene_world import SceneGenerator, Split, render

from clips.commandline.parsing import parse_config
from clips.core.artifact import atomic_artifact_dir, write_manifest
from clips.core.durable import atomic_write
from clips.data.tar_index import add_member
from clips.errors import UserError
from clips.safe_text import log_info

SHARD_SIZE = 1000
HUB_OWNER = "lmms-lab-encoder"
YES_OR_NO = " Please answer yes or no."
"""The end of every MME question."""
_POPE_CATEGORIES = ("random", "popular", "adversarial")
_MAX_POPULAR, _MAX_ADVERSARIAL = 12, 6
_ANSWERS = 10
_LEAST = {"pope": 2 * len(_POPE_CATEGORIES), "mme": 2}  # rows that belong together
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkRows:
    """Rows of each benchmark; 0 omits it, and a benchmark is smaller if the scenes do not yield enough rows.

    Args:
        pope: questions, six per image: a yes and a no for each of POPE's three ways to choose an absent object.
        mme: questions, two for each fact.
        gqa: questions with one-word answers.
        textvqa: questions about words on signs.
        nocaps: images to caption.
    """

    pope: int = 300
    mme: int = 300
    gqa: int = 200
    textvqa: int = 100
    nocaps: int = 100

    def __post_init__(self) -> None:
        for name, count in dataclasses.asdict(self).items():
            least = _LEAST.get(name, 1)
            if count < 0 or 0 < count < least:
                raise UserError(f"benchmarks.{name}: expected 0 or at least {least}, got {count}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig(SceneGenerator):
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
        mllm_style: write the long captions as multimodal models do, a summary and then details of decreasing
            importance, some of them wrong; else complete and true ones.
        benchmarks: rows of each benchmark of a test split.
    """

    output: str
    split: Split = "train"
    num_scenes: int = 9000
    image_size: int = 64
    mllm_style: bool = False
    benchmarks: BenchmarkRows = dataclasses.field(default_factory=BenchmarkRows)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("num_scenes", 1, 10**9 - 1), ("image_size", 32, 4096)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")


def make_scenes(config: ScenesConfig) -> None:
    """Write the directory.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_artifact_dir(config.output, kind="scenes") as folder:
        images = _write_split(folder, config)
        rows = _write_benchmarks(folder / "hub", images, config.benchmarks) if config.split == "test" else {}
        write_manifest(folder, kind="scenes", config=config, scenes=config.num_scenes, benchmarks=rows)
    log_info(f"{config.output}: {config.num_scenes} {config.split} scenes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneImage:
    """A scene with its image as PNG; ``key`` has nine digits."""

    key: str
    described: SceneDescription
    png: bytes

    @property
    def name(self) -> str:
        """Its file name."""
        return f"{self.key}.png"

    def cell(self) -> dict[str, Any]:
        """Return the image as a cell of an image column."""
        return {"bytes": self.png, "path": self.name}


def _write_split(folder: Path, config: ScenesConfig) -> list[SceneImage]:
    """Write the shards and LLaVA's files; returns the images of a test split."""
    records: dict[str, list[dict[str, Any]]] = {"align": [], "instruct": [], "text": []}
    images = []
    for number, start in enumerate(range(0, config.num_scenes, SHARD_SIZE)):
        shard = f"shard-{number:05d}.tar"
        with tarfile.open(folder / shard, "w") as tar:
            for index in range(start, min(start + SHARD_SIZE, config.num_scenes)):
                scene = config.scene(config.split, index)
                captions, png = make_captions(config, scene, mllm=config.mllm_style), io.BytesIO()
                render(scene, config.image_size).save(png, format="PNG", compress_level=3)
                image = SceneImage(key=f"{index:09d}", described=describe_scene(config, scene), png=png.getvalue())
                sidecar = {**dataclasses.asdict(captions), "scene": scene.to_json()}
                add_member(tar, image.name, image.png)
                add_member(tar, f"{image.key}.json", json.dumps(sidecar, ensure_ascii=False).encode())
                long, place = captions.synthetic_caption, f"{shard}/{image.name}"
                records["align"].append(align_record(image.described, long, image.key, place))
                records["instruct"].append(instruct_record(image.described, image.key, place))
                records["text"].append(text_record(image.described, long, image.key))
                if config.split == "test":
                    images.append(image)
    for name, entries in records.items():
        atomic_write(folder / f"llava_{name}.json", json.dumps(entries))
    return images


# ---------------------------------------------------------------- benchmarks in the formats of lmms-eval's datasets


def _write_benchmarks(root: Path, images: Sequence[SceneImage], sizes: BenchmarkRows) -> dict[str, int]:
    """Write the benchmarks and return the number of rows of each.

    With ``root`` as working directory, unmodified tasks of lmms-eval load ``lmms-lab-encoder/POPE`` and the others
    from it. Column names and splits are those of the Hub's datasets.
    """
    rows = {
        "pope": pope_rows(images, sizes.pope),
        "mme": mme_rows(images, sizes.mme),
        "textvqa": textvqa_rows(images, sizes.textvqa),
        "nocaps": nocaps_rows(images, sizes.nocaps),
    }
    names = {"pope": ("POPE", "test"), "mme": ("MME", "test"), "textvqa": ("textvqa", "validation")}
    for name, (dataset, split) in {**names, "nocaps": ("NoCaps", "validation")}.items():
        if rows[name]:
            _write_parquet(root / HUB_OWNER / dataset / "data" / f"{split}-00000-of-00001.parquet", rows[name])
    questions, question_images = gqa_rows(images, sizes.gqa)
    if questions:
        _write_gqa(root / HUB_OWNER / "GQA", questions, question_images)
    written = {name: len(found) for name, found in rows.items()} | {"gqa": len(questions)}
    for name, count in written.items():
        limit = getattr(sizes, name)
        if count < limit - limit % _LEAST.get(name, 1):
            log_info(f"benchmarks.{name}: {count} rows instead of {limit}; more scenes (num_scenes) would yield more")
    return written


def pope_rows(images: Sequence[SceneImage], limit: int) -> Rows:
    """POPE: for each image and way of choosing, one present object and one absent one.

    Absent objects are sampled at random, among the most frequent of the split (popular), and among those that most
    often co-occur with the present ones (adversarial), as POPE defines them.
    """
    frequency: Counter[str] = Counter()
    together: dict[str, Counter[str]] = {}
    for image in images:
        kinds = sorted(image.described.kinds)
        frequency.update(kinds)
        for first, second in itertools.permutations(kinds, 2):
            together.setdefault(first, Counter())[second] += 1
    rows: Rows = []
    for image in images[: limit // _LEAST["pope"]]:
        rng = image.described.scene.rng("pope")
        present = itertools.cycle(rng.shuffled(image.described.groups))
        for category in _POPE_CATEGORIES:
            absent = _absent(image.described, category, frequency, together, rng)
            for kind, answer in ((next(present).kind, "yes"), (absent, "no")):
                rows.append(
                    {
                        "id": str(len(rows)),
                        "question_id": str(len(rows) + 1),
                        "question": existence_question(kind),
                        "answer": answer,
                        "image_source": image.key,
                        "image": image.cell(),
                        "category": category,
                    }
                )
    return rows


def _absent(
    described: SceneDescription,
    category: str,
    frequency: Counter[str],
    together: Mapping[str, Counter[str]],
    rng: DeterministicRng,
) -> ObjectClass:
    absent = described.absent
    if category == "popular":
        absent = sorted(absent, key=lambda kind: (-frequency[kind.name], kind.number))[:_MAX_POPULAR]
    if category == "adversarial":
        counts = sum((together.get(name, Counter()) for name in described.kinds), Counter[str]())
        absent = sorted(absent, key=lambda kind: (-counts[kind.name], kind.number))[:_MAX_ADVERSARIAL]
    return rng.choice(absent)


def mme_rows(images: Sequence[SceneImage], limit: int) -> Rows:
    """MME: two questions for each (category, image), one with each answer; categories as balanced as possible."""
    found: dict[str, list[tuple[str, SceneImage, str, str]]] = {}
    for image in images:
        seen = set()
        for pair in yes_no_pairs(image.described, image.described.scene.rng("mme")):
            if pair.category not in seen:
                seen.add(pair.category)
                found.setdefault(pair.category, []).append((pair.category, image, pair.yes, pair.no))
    layers = itertools.zip_longest(*(facts for _, facts in sorted(found.items())))
    chosen = [fact for layer in layers for fact in layer if fact][: limit // 2]
    return [
        {
            "question_id": f"{category}/{image.name}",
            "image": image.cell(),
            "question": text + YES_OR_NO,
            "answer": answer,
            "category": category,
        }
        for category, image, yes, no in sorted(chosen, key=lambda fact: (fact[0], fact[1].key))
        for text, answer in ((yes, "Yes"), (no, "No"))
    ]


def gqa_rows(images: Sequence[SceneImage], limit: int) -> tuple[Rows, Rows]:
    """GQA: the questions, at most two per image, and their images."""
    questions: Rows = []
    question_images: Rows = []
    for image in images:
        chosen = open_questions(image.described, image.described.scene.rng("gqa"))[: min(2, limit - len(questions))]
        for question in chosen:
            answer = {"question": question.text, "answer": question.answer}
            questions.append({"id": str(len(questions)), "imageId": image.key, **answer})
        if chosen:
            question_images.append({"id": image.key, "image": image.cell()})
    return questions, question_images


def textvqa_rows(images: Sequence[SceneImage], limit: int) -> Rows:
    """TextVQA: questions about signs; ten answers, which agree here."""
    asked = [(image, question) for image in images for question in sign_questions(image.described)][:limit]
    return [
        {
            "image_id": image.key,
            "question_id": number,
            "question": question.text,
            "image": image.cell(),
            "answers": [question.answer] * _ANSWERS,
        }
        for number, (image, question) in enumerate(asked)
    ]


def nocaps_rows(images: Sequence[SceneImage], limit: int) -> Rows:
    """NoCaps: images with their human-like captions."""
    rows: Rows = []
    for number, image in enumerate(images[:limit]):
        captions = make_captions(image.described.world, image.described.scene).captions
        rows.append(
            {
                "image": image.cell(),
                "image_id": number,
                "image_file_name": image.name,
                "annotations_ids": list(range(number * len(captions), (number + 1) * len(captions))),
                "annotations_captions": captions,
            }
        )
    return rows


def _write_gqa(folder: Path, questions: Rows, images: Rows) -> None:
    """Write the README that separates the two datasets of GQA, which share one name."""
    configs = {"testdev_balanced_images": images, "testdev_balanced_instructions": questions}
    lines = ["---", "configs:"]
    for name, rows in configs.items():
        _write_parquet(folder / name / "testdev-00000-of-00001.parquet", rows)
        lines += [f"- config_name: {name}", "  data_files:", "  - split: testdev", f"    path: {name}/testdev-*"]
    atomic_write(folder / "README.md", "\n".join([*lines, "---", ""]))


def _write_parquet(path: Path, rows: Rows) -> None:
    """Write rows with the column description of the ``datasets`` library, so that images decode."""
    import pyarrow
    import pyarrow.parquet

    features = {name: _feature(value) for name, value in rows[0].items()}
    table = pyarrow.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def _feature(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"_type": "Image"}
    if isinstance(value, list):
        return {"feature": _feature(value[0]), "_type": "List"}
    return {"dtype": "int64" if isinstance(value, int) else "string", "_type": "Value"}


if __name__ == "__main__":
    try:
        if (given := parse_config(ScenesConfig, sys.argv[1:], prog="make_scenes.py")) is not None:  # else help
            make_scenes(given)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
