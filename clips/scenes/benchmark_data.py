"""Benchmarks about test scenes in the formats of lmms-eval's datasets on the Hub.

With ``hub/`` as working directory, unmodified tasks of lmms-eval load ``lmms-lab-encoder/POPE`` and the others from it.
Column names and splits are those of the Hub's datasets.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.core.artifact import atomic_write
from clips.errors import UserError
from clips.scenes.captions import make_captions
from clips.scenes.phrases import SceneDescription
from clips.scenes.questions import existence_question, open_questions, sign_questions, yes_no_pairs
from clips.scenes.rng import DeterministicRng
from clips.scenes.sprites import ObjectClass
from clips.scenes.world import SceneGenerator

HUB_OWNER = "lmms-lab-encoder"
YES_OR_NO = " Please answer yes or no."
"""The end of every MME question."""
_POPE_CATEGORIES = ("random", "popular", "adversarial")
_MAX_POPULAR, _MAX_ADVERSARIAL = 12, 6
_ANSWERS = 10


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
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise UserError(f"benchmarks.{field.name}: expected 0 or more, got {getattr(self, field.name)}")
        for name, together in (("pope", 2 * len(_POPE_CATEGORIES)), ("mme", 2)):
            if 0 < getattr(self, name) < together:
                raise UserError(f"benchmarks.{name}: expected 0 or at least {together}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestImage:
    """A test scene with its image.

    Args:
        key: nine digits.
        name: file name, the key with the suffix of the image format.
        described: the scene.
        image: a function that returns the encoded image.
    """

    key: str
    name: str
    described: SceneDescription
    image: Callable[[], bytes]

    def cell(self) -> dict[str, Any]:
        """Return the image as a cell of an image column."""
        return {"bytes": self.image(), "path": self.name}

    def rng(self, purpose: str) -> DeterministicRng:
        """Return the random generator of one benchmark about this image."""
        scene = self.described.scene
        return DeterministicRng(purpose, scene.seed, scene.split, scene.index)


Rows = list[dict[str, Any]]


def write_benchmarks(root: Path, images: Sequence[TestImage], sizes: BenchmarkRows) -> dict[str, int]:
    """Write the benchmarks under ``root`` and return the number of rows of each."""
    rows = {
        "pope": pope_rows(images, sizes.pope),
        "mme": mme_rows(images, sizes.mme),
        "textvqa": textvqa_rows(images, sizes.textvqa),
        "nocaps": nocaps_rows(images, sizes.nocaps),
    }
    datasets = {"pope": ("POPE", "test"), "mme": ("MME", "test"), "textvqa": ("textvqa", "validation"),
              "nocaps": ("NoCaps", "validation")}  # fmt: skip
    for name, (dataset, split) in datasets.items():
        if rows[name]:
            _write_parquet(root / HUB_OWNER / dataset / "data" / f"{split}-00000-of-00001.parquet", rows[name])
    questions, question_images = gqa_rows(images, sizes.gqa)
    if questions:
        _write_gqa(root / HUB_OWNER / "GQA", questions, question_images)
    return {name: len(found) for name, found in rows.items()} | {"gqa": len(questions)}


def pope_rows(images: Sequence[TestImage], limit: int) -> Rows:
    """POPE: for each image and way of choosing, one present object and one absent one.

    Absent objects are sampled at random, among the most frequent of the split (popular), and among those that most
    often co-occur with the present ones (adversarial), as POPE defines them.
    """
    frequency, together = _class_counts(images)
    rows: Rows = []
    for image in images:
        if len(rows) + 2 * len(_POPE_CATEGORIES) > limit:
            break
        rng = image.rng("pope")
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


def _class_counts(images: Sequence[TestImage]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Count how often each object class occurs in an image, and together with each other class."""
    frequency: Counter[str] = Counter()
    together: dict[str, Counter[str]] = {}
    for image in images:
        kinds = sorted(image.described.kinds)
        frequency.update(kinds)
        for first, second in itertools.permutations(kinds, 2):
            together.setdefault(first, Counter())[second] += 1
    return frequency, together


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


def mme_rows(images: Sequence[TestImage], limit: int) -> Rows:
    """MME: two questions for each (category, image), one with each answer; categories as balanced as possible."""
    found: dict[str, list[tuple[TestImage, str, str]]] = {}
    for image in images:
        seen = set()
        for pair in yes_no_pairs(image.described, image.rng("mme")):
            if pair.category not in seen:
                seen.add(pair.category)
                found.setdefault(pair.category, []).append((image, pair.yes, pair.no))
    layers = itertools.zip_longest(*(
        [(category, *fact) for fact in facts] for category, facts in sorted(found.items())
    ))  # fmt: skip
    chosen = [fact for layer in layers for fact in layer if fact][: limit // 2]
    rows: Rows = []
    for category, image, yes, no in sorted(chosen, key=lambda fact: (fact[0], fact[1].key)):
        for text, answer in ((yes, "Yes"), (no, "No")):
            rows.append(
                {
                    "question_id": f"{category}/{image.name}",
                    "image": image.cell(),
                    "question": text + YES_OR_NO,
                    "answer": answer,
                    "category": category,
                }
            )
    return rows


def gqa_rows(images: Sequence[TestImage], limit: int) -> tuple[Rows, Rows]:
    """GQA: the questions, at most two per image, and their images."""
    questions: Rows = []
    question_images: Rows = []
    for image in images:
        chosen = open_questions(image.described, image.rng("gqa"))[: min(2, limit - len(questions))]
        for question in chosen:
            questions.append(
                {"id": str(len(questions)), "imageId": image.key, "question": question.text, "answer": question.answer}
            )
        if chosen:
            question_images.append({"id": image.key, "image": image.cell()})
    return questions, question_images


def textvqa_rows(images: Sequence[TestImage], limit: int) -> Rows:
    """TextVQA: questions about signs; ten answers, which agree here."""
    rows: Rows = []
    for image in images:
        for question in sign_questions(image.described)[: max(0, limit - len(rows))]:
            rows.append(
                {
                    "image_id": image.key,
                    "question_id": len(rows),
                    "question": question.text,
                    "image": image.cell(),
                    "answers": [question.answer] * _ANSWERS,
                }
            )
    return rows


def nocaps_rows(images: Sequence[TestImage], limit: int) -> Rows:
    """NoCaps: images with their human-like captions."""
    rows: Rows = []
    for number, image in enumerate(images[:limit]):
        world: SceneGenerator = image.described.world
        captions = make_captions(world, image.described.scene).captions
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
    import json

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
