"""Conversion of local data: ``clips-bench prepare --dataset cocoqa --source DIR --output DIR``.

A converter is one entry in ``CONVERTERS``. Most write the format of an upstream lmms-eval task, which evaluates it with
``task:``, for instance ``{name: cocoqa, task: gqa, data: OUT}``.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.data.phrase_boxes import read_scenes
from clips.core.artifact import atomic_artifact_dir, atomic_write, log_info, write_manifest
from clips.data.formats import DatasetSpec
from clips.data.formats.conversations import is_held_out
from clips.data.lazy_images import FileImage, LazyImage
from clips.errors import UserError, unknown_name_error
from clips.text_files import read_json, read_json_lines

_HUB = "lmms-lab-encoder"
_MIN_SCENES = 8  # of a class: two for test, and train holds out one in five
_MIN_PHOTOS = 12  # of a class: three for test


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Convert local data into a format that the suite reads.

    Args:
        dataset: ``cocoqa`` (as GQA), ``karpathy`` or ``flickr8k`` (a split of a Karpathy JSON, as NoCaps), ``mmvet``
            (all of MM-Vet), ``coco_long`` (photos with long captions by MLLMs: a training table, and a retrieval set
            of other photos), ``held_out`` (a Karpathy JSON with one sixth of the training photos in a split
            ``held_out``, to test on photos not used to choose settings), ``scene_classes`` (scenes with one object as
            images in a directory for each class: the splits ``train`` and, one in four of each class, ``test`` of a
            linear probe) or ``cocoqa_classes`` (the same of photos, by the object that COCO-QA asks for).
        source: the directory of the data: ``questions.jsonl`` (of both cocoqa and cocoqa_classes), one
            ``dataset_*.json`` or ``mm-vet.jsonl``, next to ``images``; for coco_long the directory of both
            ``coco_long`` and ``coco_mini``; for scene_classes the output of ``clips scenes``.
        output: the directory to write.
        split: for a Karpathy JSON one of its splits, by default ``val``; for cocoqa ``held_out``, the fifth of its
            photos that training excludes (the default), or ``all``. The others have none.
        limit: use at most this number of images; for trials.
    """

    dataset: str
    source: str
    output: str
    split: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.dataset not in CONVERTERS:
            raise unknown_name_error(self.dataset, CONVERTERS, "dataset")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: expected at least 1, got {self.limit}")
        if self.split is not None and self.dataset in _WITHOUT_SPLITS:
            raise UserError(f"split: {self.dataset} has none, got '{self.split}'")
        if self.dataset == "cocoqa" and self.split not in {None, *_COCOQA_SPLITS}:
            raise unknown_name_error(str(self.split), _COCOQA_SPLITS, "split of cocoqa")


_COCOQA_SPLITS = ("held_out", "all")
_WITHOUT_SPLITS = {"mmvet", "coco_long", "held_out", "scene_classes", "cocoqa_classes"}
_HELD_OUT_EVERY = 6  # of Flickr8k's 6,000 photos 1,000, as many as in its other splits


def run_prepare(config: PrepareConfig) -> None:
    """Convert a dataset.

    Raises:
        UserError: the source is missing or malformed, or no sample remains.
    """
    with atomic_artifact_dir(config.output, kind="hub") as folder:
        details = CONVERTERS[config.dataset](config, folder)
        write_manifest(folder, kind="hub", config=config, counts=details)
    log_info(f"{config.output}: {', '.join(f'{count} {name}' for name, count in details.items())}")


def _cocoqa(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """The questions about held-out or all photos, in the format of GQA's balanced testdev."""
    source = Path(config.source)
    images: dict[str, None] = {}
    questions: list[dict[str, str]] = []
    for number, row in read_json_lines(source / "questions.jsonl", texts=("image", "question", "answer")):
        if (config.split != "all" and not is_held_out(row["image"])) or not _add_image(images, row, config.limit):
            continue
        questions.append(
            {
                "id": str(number),
                "imageId": row["image"],
                "question": row["question"],
                "answer": row["answer"],
                "type": str(row.get("type", "")),
            }
        )
    if not questions:
        what = "a photo" if config.split == "all" else "a held-out photo"
        raise UserError(f"{source / 'questions.jsonl'}: no question about {what}")
    data = folder / _HUB / "GQA"
    texts = dict.fromkeys(("id", "imageId", "question", "answer", "type"), "string")
    _write(data / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", iter(questions), texts)
    rows = ({"id": name, "image": _bytes(FileImage(source / "images", name))} for name in images)
    columns = {"id": "string", "image": "image"}
    _write(data / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", rows, columns)
    atomic_write(data / "README.md", GQA_README)
    return {"images": len(images), "questions": len(questions)}


GQA_README = """---
configs:
- config_name: testdev_balanced_instructions
  data_files:
  - split: testdev
    path: testdev_balanced_instructions/testdev-*
- config_name: testdev_balanced_images
  data_files:
  - split: testdev
    path: testdev_balanced_images/testdev-*
---
"""


def _karpathy(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """A split's images with all captions, in the format of NoCaps' validation set."""
    spec = DatasetSpec(path=config.source, format="karpathy", split=config.split or "val")
    captions = load_caption_set(spec, captions_per_image=100, limit=config.limit)
    rows = (
        {"image": _bytes(image), "image_id": number, "annotations_captions": list(texts)}
        for number, (image, texts) in enumerate(zip(captions.files, captions.captions, strict=True))
    )
    kinds = {"image": "image", "image_id": "int64", "annotations_captions": "strings"}
    _write(folder / _HUB / "NoCaps" / "data" / "validation-00000-of-00001.parquet", rows, kinds)
    return {"images": len(captions.images), "captions": sum(map(len, captions.captions))}


def _held_out(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """``dataset_held_out.json``: every sixth training photo of a Karpathy JSON is of the split ``held_out``."""
    load_caption_set(DatasetSpec(path=config.source, format="karpathy", split="train"), limit=1)  # raises unless it is
    path = Path(config.source)
    path = next(path.glob("dataset_*.json")) if path.is_dir() else path
    content = read_json(path)
    rows = [row for row in content["images"] if row["split"] == "train"][: config.limit]
    for row in rows[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]:
        row["split"] = "held_out"
    atomic_write(folder / "dataset_held_out.json", json.dumps(content, ensure_ascii=False) + "\n")
    held = sum(row["split"] == "held_out" for row in rows)
    return {"training images": len(rows) - held, "held-out images": held}


def _mmvet(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """All questions of MM-Vet with their images, in the format of lmms-eval's test set."""
    source = Path(config.source)
    questions: list[dict[str, Any]] = []
    images: dict[str, None] = {}
    for number, row in read_json_lines(
        source / "mm-vet.jsonl", texts=("question_id", "image", "question", "answer"), others=("capability",)
    ):
        if not isinstance(row["capability"], list):
            where = f"{source / 'mm-vet.jsonl'} line {number}"
            raise UserError(f"{where}: capability: expected a list, got {row['capability']!r:.80}")
        if _add_image(images, row, config.limit):
            questions.append(row)
    if not questions:
        raise UserError(f"{source / 'mm-vet.jsonl'}: contains no questions")
    rows = (
        {name: row[name] for name in ("question_id", "question", "answer")}
        | {"image": _bytes(FileImage(source / "images", row["image"])), "capability": ",".join(row["capability"])}
        for row in questions
    )
    kinds = dict.fromkeys(("question_id", "question", "answer", "capability"), "string") | {"image": "image"}
    _write(folder / _HUB / "MMVet" / "data" / "test-00000-of-00001.parquet", rows, kinds)
    return {"images": len(images), "questions": len(questions)}


def _coco_long(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """``train.jsonl``: images with all ``long`` captions; ``both.jsonl``: those that also have ``human`` captions.

    ``test.jsonl`` has the other images of coco_mini. Image paths are relative to ``source``, in the test to coco_mini.
    """
    train, both, seen = [], [], set()
    source = Path(config.source)
    for _, row in read_json_lines(
        source / "coco_long/captions.jsonl", texts=("image",), others=("coco_id", "human_captions", "long_captions")
    ):
        image = posixpath.normpath(f"coco_long/{row['image']}")  # most are in coco_mini
        train.append({"image": image, "long": [entry["caption"] for entry in row["long_captions"]]})
        if row["human_captions"]:
            both.append({**train[-1], "human": row["human_captions"]})
        seen.add(int(row["coco_id"]))
    test = [
        {"image": row["image"], "captions": row["captions"]}
        for _, row in read_json_lines(
            source / "coco_mini/captions.jsonl", texts=("image",), others=("image_id", "captions")
        )
        if int(row["image_id"]) not in seen
    ]
    tables = {"train": train[: config.limit], "both": both[: config.limit], "test": test[: config.limit]}
    for name, rows in tables.items():
        atomic_write(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {
        "training images": len(tables["train"]),
        "of these with human captions": len(tables["both"]),
        "test images": len(tables["test"]),
    }


def _add_image(images: dict[str, None], row: Mapping[str, Any], limit: int | None) -> bool:
    """Add the image of a question; False if it is not one of the first ``limit`` images."""
    if row["image"] not in images and len(images) == limit:
        return False
    images[row["image"]] = None
    return True


def _scene_classes(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """The scenes of a single object, ``<split>/<class>/<scene>.png``."""
    root = Path(config.source)
    single = [(image, objects[0]["kind"]) for image, objects in read_scenes(root) if len(objects) == 1]
    return _write_classes(root, single[: config.limit], folder, "scenes with a single object", _MIN_SCENES)


def _cocoqa_classes(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """The photos whose questions of type ``object`` have one answer, which is the class.

    A plural counts as its singular. Photos with several answers are left out, as they show objects of several classes.
    """
    source = Path(config.source)
    answers: dict[str, set[str]] = {}
    for _, row in read_json_lines(source / "questions.jsonl", texts=("image", "answer", "type")):
        if row["type"] == "object":
            answers.setdefault(row["image"], set()).add(row["answer"])
    words = set().union(*answers.values())
    single = []
    for image, found in answers.items():
        kinds = {word.removesuffix("s") if word.removesuffix("s") in words else word for word in found}
        if len(kinds) == 1:
            single.append((image, kinds.pop()))
    what = "photos with questions of type object and one answer"
    return _write_classes(source / "images", single[: config.limit], folder, what, _MIN_PHOTOS)


def _write_classes(
    root: Path, images: Sequence[tuple[str, str]], folder: Path, what: str, minimum: int
) -> dict[str, int]:
    """Write (image, class) pairs as ``<split>/<class>/<image>``; classes of fewer than ``minimum`` are left out."""
    groups: dict[str, list[str]] = {}
    for image, kind in images:
        groups.setdefault(re.sub(r"[^\w-]", "_", kind), []).append(image)  # a name of a directory, whatever the data
    groups = {kind: names for kind, names in groups.items() if len(names) >= minimum}
    if len(groups) < 2:
        raise UserError(f"{root}: expected {what}, {minimum} of each of two classes or more")
    for kind, names in groups.items():
        for number, image in enumerate(names):
            target = folder / ("train" if number % 4 else "test") / kind / image.replace("/", "_")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(FileImage(root, image).read())
    return {"images": sum(map(len, groups.values())), "classes": len(groups)}


def _bytes(image: LazyImage) -> dict[str, Any]:
    image.open()  # raises on a broken image now, not in the middle of an evaluation
    return {"bytes": image.read(), "path": Path(image.name).name}


def _write(path: Path, rows: Iterator[Mapping[str, Any]], kinds: Mapping[str, str]) -> None:
    """Write a parquet file in the format of ``datasets``; ``kinds``: column → type."""
    import datasets

    types = {"image": datasets.Image(), "strings": datasets.List(datasets.Value("string"))}
    features = datasets.Features({name: types.get(kind) or datasets.Value(kind) for name, kind in kinds.items()})
    content = list(rows)
    columns = {name: [row[name] for row in content] for name in kinds}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


CONVERTERS: dict[str, Callable[[PrepareConfig, Path], dict[str, int]]] = {
    "cocoqa": _cocoqa,
    "karpathy": _karpathy,
    "flickr8k": _karpathy,
    "mmvet": _mmvet,
    "coco_long": _coco_long,
    "held_out": _held_out,
    "scene_classes": _scene_classes,
    "cocoqa_classes": _cocoqa_classes,
}
