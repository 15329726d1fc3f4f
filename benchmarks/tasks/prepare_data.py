"""Conversion of local data into a format that the suite reads: ``clips-bench prepare --what cocoqa --source DIR
--output DIR``.

A converter is one entry in ``CONVERTERS``. Most write the format of an upstream lmms-eval task, which evaluates it with
``task:``, for instance ``{name: cocoqa, task: gqa, data: OUT}``.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks.data.caption_sets import load_caption_set
from clips.core.artifact import atomic_artifact_dir, atomic_write, log_info, write_manifest
from clips.data.formats import DatasetSpec
from clips.data.formats.conversations import is_held_out
from clips.data.lazy_images import FileImage, LazyImage
from clips.data.text_files import read_json_lines
from clips.errors import UserError, unknown_name_error

_HUB = "lmms-lab-encoder"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Convert local data into a format that the suite reads.

    Args:
        dataset: ``cocoqa`` (as GQA), ``karpathy`` or ``flickr8k`` (a split of a Karpathy JSON, as NoCaps), ``mmvet``
            (all of MM-Vet) or ``coco_long`` (photos with long captions by MLLMs as a table to train on, and others for
            retrieval).
        source: the directory of the data: ``questions.jsonl``, one ``dataset_*.json`` or ``mm-vet.jsonl``, next to
            ``images``; for coco_long the directory of both ``coco_long`` and ``coco_mini``.
        output: the directory to write.
        split: of a Karpathy JSON any that it has, by default ``val``; of cocoqa ``held_out``, the fifth of its photos
            that training omits, which is the default, or ``all``. The others have none.
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
_WITHOUT_SPLITS = {"mmvet", "coco_long"}


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
    """The questions about held-out photos, or about all, as GQA's balanced testdev."""
    source = Path(config.source)
    images: dict[str, None] = {}
    questions: list[dict[str, str]] = []
    for number, row in read_json_lines(source / "questions.jsonl", texts=("image", "question", "answer")):
        if config.split != "all" and not is_held_out(row["image"]):
            continue
        if row["image"] not in images and config.limit is not None and len(images) == config.limit:
            continue
        images[row["image"]] = None
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
    _write(
        data / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", rows, {"id": "string", "image": "image"}
    )
    atomic_write(data / "README.md", GQA_README)
    return {"pictures": len(images), "questions": len(questions)}


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
    """A split's images with all their captions, as NoCaps' validation set."""
    spec = DatasetSpec(path=config.source, format="karpathy", split=config.split or "val")
    captions = load_caption_set(spec, captions_per_image=100, limit=config.limit)
    rows = (
        {
            "image": _bytes(image),
            "image_id": number,
            "annotations_captions": list(texts),
        }
        for number, (image, texts) in enumerate(zip(captions.files, captions.captions, strict=True))
    )
    kinds = {"image": "image", "image_id": "int64", "annotations_captions": "strings"}
    _write(folder / _HUB / "NoCaps" / "data" / "validation-00000-of-00001.parquet", rows, kinds)
    return {"pictures": len(captions.images), "captions": sum(map(len, captions.captions))}


def _mmvet(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """All questions of MM-Vet with their images, as lmms-eval's test set."""
    source = Path(config.source)
    kept: list[dict[str, Any]] = []
    images: dict[str, None] = {}
    for number, row in read_json_lines(
        source / "mm-vet.jsonl", texts=("question_id", "image", "question", "answer"), others=("capability",)
    ):
        if not isinstance(row["capability"], list):
            where = f"{source / 'mm-vet.jsonl'} line {number}"
            raise UserError(f"{where}: capability: expected a list, got {row['capability']!r:.80}")
        if row["image"] not in images and config.limit is not None and len(images) == config.limit:
            continue
        images[row["image"]] = None
        kept.append(row)
    if not kept:
        raise UserError(f"{source / 'mm-vet.jsonl'}: no questions in it")
    rows = (
        {name: row[name] for name in ("question_id", "question", "answer")}
        | {"image": _bytes(FileImage(source / "images", row["image"])), "capability": ",".join(row["capability"])}
        for row in kept
    )
    kinds = dict.fromkeys(("question_id", "question", "answer", "capability"), "string") | {"image": "image"}
    _write(folder / _HUB / "MMVet" / "data" / "test-00000-of-00001.parquet", rows, kinds)
    return {"pictures": len(images), "questions": len(kept)}


def _coco_long(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """``train.jsonl``: images with all their ``long`` captions; ``test.jsonl``: those of coco_mini not among them.

    ``both.jsonl`` are those of the first that have ``human`` captions too. Images of the training files are relative to
    ``source``, of the test to coco_mini.
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
        "training pictures": len(tables["train"]),
        "of them with human captions": len(tables["both"]),
        "test pictures": len(tables["test"]),
    }


def _bytes(image: LazyImage) -> dict[str, Any]:
    image.open()  # a broken image is named now, not in the middle of an evaluation
    return {"bytes": image.read(), "path": Path(image.name).name}


def _write(path: Path, rows: Iterator[Mapping[str, Any]], kinds: Mapping[str, str]) -> None:
    """A parquet file as ``datasets`` writes it; ``kinds`` name each column's type."""
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
}
