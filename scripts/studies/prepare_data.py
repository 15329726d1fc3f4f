"""Local data as the studies here need them: ``python scripts/studies/prepare_data.py --config FILE``."""

from __future__ import annotations

import json
import posixpath
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.tasks.data.caption_sets import load_caption_set
from clips.commandline.parsing import parse_config
from clips.core.artifact import atomic_artifact_dir, write_manifest
from clips.core.durable import atomic_write
from clips.data.formats import DatasetSpec
from clips.data.formats.conversations import is_held_out
from clips.data.lazy_images import FileImage, LazyImage
from clips.errors import UserError
from clips.method.caption_strategies import sentences
from clips.model.tokenizer import clean_text, wordpiece
from clips.safe_text import log_info
from clips.text_files import read_json, read_json_lines

_HUB = "lmms-lab-encoder"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Convert local data into a format that the suite reads.

    Args:
        dataset: ``cocoqa`` (the questions about photos that training excludes, as GQA), ``flickr8k`` (a split of a
            Karpathy JSON, as NoCaps), ``caption_lengths`` (one long caption by an MLLM of each photo in several forms,
            and photos to test and to tune with short and with long captions), ``noisy_web`` (a Karpathy JSON with one
            sixth of the training photos in a split ``held_out``, and the others with web captions, some of them another
            photo's) or ``cocoqa_classes`` (photos by the object that COCO-QA asks for, for a linear probe).
        source: the directory of the data: ``questions.jsonl`` or one ``dataset_*.json``, next to ``images``; for
            caption_lengths the directory of both ``coco_long`` and ``coco_mini``.
        output: the directory to write.
        split: of flickr8k.
        image_root: of flickr8k, if the images are not next to the JSON.
        limit: use at most this number of images; for trials.
    """

    dataset: Literal["cocoqa", "flickr8k", "caption_lengths", "noisy_web", "cocoqa_classes"]
    source: str
    output: str
    split: str = "val"
    image_root: str | None = None
    limit: int | None = None


_HELD_OUT_EVERY = 6  # of Flickr8k's 6,000 photos 1,000, as many as in its other splits
_LONGEST = 157  # tokens of a long caption: with begin, end and class token the context length of the study, 160
_NUM_TEST, _NUM_TUNE = 180, 60  # of the 369 photos with short and long captions
_SPLITS = {"test": "test_short", "tuning": "tune_short", "training": "train"}
_ORDERS = 24  # of a caption's sentences
_NOISE = (0, 25, 50)  # per cent of the web captions
_MIN_PHOTOS = 12  # of a class


def run_prepare(config: PrepareConfig) -> None:
    """Convert a dataset.

    Raises:
        UserError: the source is missing or malformed, or no sample remains.
    """
    converters = {
        "cocoqa": _cocoqa,
        "flickr8k": _flickr8k,
        "caption_lengths": _caption_lengths,
        "noisy_web": _noisy_web,
        "cocoqa_classes": _cocoqa_classes,
    }
    with atomic_artifact_dir(config.output, kind="hub") as folder:
        details = converters[config.dataset](config, folder)
        write_manifest(folder, kind="hub", config=config, counts=details)
    log_info(f"{config.output}: {', '.join(f'{count} {name}' for name, count in details.items())}")


def _cocoqa(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """The questions about held-out photos, in the format of GQA's balanced testdev."""
    source = Path(config.source)
    images: dict[str, None] = {}
    questions: list[dict[str, str]] = []
    for number, row in read_json_lines(source / "questions.jsonl", texts=("image", "question", "answer")):
        if not is_held_out(row["image"]) or (row["image"] not in images and len(images) == config.limit):
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
        raise UserError(f"{source / 'questions.jsonl'}: no question about a held-out photo")
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


def _flickr8k(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """A split's images with all captions, in the format of NoCaps' validation set."""
    spec = DatasetSpec(path=config.source, format="karpathy", split=config.split, image_root=config.image_root)
    captions = load_caption_set(spec, captions_per_image=100, limit=config.limit)
    rows = (
        {"image": _bytes(image), "image_id": number, "annotations_captions": list(texts)}
        for number, (image, texts) in enumerate(zip(captions.files, captions.captions, strict=True))
    )
    kinds = {"image": "image", "image_id": "int64", "annotations_captions": "strings"}
    _write(folder / _HUB / "NoCaps" / "data" / "validation-00000-of-00001.parquet", rows, kinds)
    return {"images": len(captions.images), "captions": sum(map(len, captions.captions))}


def _caption_lengths(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """``train.jsonl``: one long caption of each photo, of those that fit the context, in every form of the study.

    ``whole``, its sentences joined; ``sentence``, one of them; ``shuffled``, the sentences in several random orders.
    ``test_short.jsonl`` and ``test_long.jsonl`` have human and MLLM captions of the same photos, none of them in train;
    ``tune_short.jsonl`` and ``tune_long.jsonl`` those of others.
    """
    rng = np.random.default_rng(0)
    train: list[tuple[str, list[str], list[str]]] = []
    both = list(train)
    for _, row in read_json_lines(
        Path(config.source) / "coco_long/captions.jsonl",
        texts=("image",),
        others=("human_captions", "long_captions"),
    ):
        fitting = [entry["caption"] for entry in row["long_captions"] if _num_tokens(entry["caption"]) <= _LONGEST]
        if fitting:
            image = posixpath.normpath(f"coco_long/{row['image']}")
            (both if row["human_captions"] else train).append((image, row["human_captions"], fitting))
    if len(both) <= _NUM_TEST + _NUM_TUNE:
        expected = f"more than {_NUM_TEST + _NUM_TUNE} photos with short and long captions"
        raise UserError(f"{config.source}: expected {expected}, got {len(both)}")
    both = [both[index] for index in rng.permutation(len(both))]
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, photos in (("test", both[:_NUM_TEST]), ("tune", both[_NUM_TEST : _NUM_TEST + _NUM_TUNE])):
        tables[f"{name}_short"] = [{"image": image, "captions": short} for image, short, _ in photos]
        tables[f"{name}_long"] = [{"image": image, "captions": long} for image, _, long in photos]
    tables["train"] = []
    for image, _, fitting in [*train, *both[_NUM_TEST + _NUM_TUNE :]][: config.limit]:
        pieces = sentences(fitting[rng.integers(len(fitting))])
        orders = [rng.permutation(len(pieces)) for _ in range(_ORDERS)]
        forms = {
            "whole": ". ".join(pieces),
            "sentence": pieces[rng.integers(len(pieces))],
            "shuffled": [". ".join(pieces[index] for index in order) for order in orders],
        }
        tables["train"].append({"image": image, **forms})
    for name, rows in tables.items():
        _write_lines(folder / f"{name}.jsonl", rows)
    return {f"{name} photos": len(tables[table]) for name, table in _SPLITS.items()}


def _num_tokens(text: str) -> int:
    return len(wordpiece().encode(clean_text(text), add_special_tokens=False).ids)


def _noisy_web(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """``dataset_held_out.json``: every sixth training photo is of the split ``held_out``; ``train.jsonl``: the others.

    ``web_P`` are the human captions of a photo, of which P % are another photo's.
    The foreign captions of 25 % are among those of 50 %. ``second_P`` are all but the first, and ``synthetic`` the own
    ones of these, joined: both have as many texts for a second positive, with noise and without.
    """
    load_caption_set(DatasetSpec(path=config.source, format="karpathy", split="train"), limit=1)  # raises unless it is
    path = Path(config.source)
    content = read_json(next(path.glob("dataset_*.json")) if path.is_dir() else path)
    rows = [row for row in content["images"] if row["split"] == "train"][: config.limit]
    for row in rows[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]:
        row["split"] = "held_out"
    atomic_write(folder / "dataset_held_out.json", json.dumps(content, ensure_ascii=False) + "\n")
    photos = [row for row in content["images"] if row["split"] == "train"]
    texts = [[each["raw"].strip().removesuffix(".").strip() for each in row["sentences"]] for row in photos]
    rng = np.random.default_rng(0)
    table = []
    for number, (row, own) in enumerate(zip(photos, texts, strict=True)):
        own = [own[index] for index in rng.permutation(len(own))]
        donors = [texts[donor] for donor in (number + rng.integers(1, len(photos), len(own))) % len(photos)]
        foreign = [str(rng.choice(captions)) for captions in donors]
        levels = 100 * rng.random(len(own))
        line: dict[str, Any] = {"image": row["filename"], "synthetic": ". ".join(own[1:])}
        for noise in _NOISE:
            web = [foreign[index] if levels[index] < noise else own[index] for index in range(len(own))]
            line |= {f"web_{noise}": web, f"second_{noise}": web[1:]}
        table.append(line)
    _write_lines(folder / "train.jsonl", table)
    return {"training images": len(photos), "held-out images": sum(row["split"] == "held_out" for row in rows)}


def _cocoqa_classes(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """Photos whose questions of type ``object`` have one answer, the class; half of each class is ``test``.

    A plural counts as its singular. Photos with several answers are left out: they show objects of several classes.
    """
    source = Path(config.source)
    answers: dict[str, set[str]] = {}
    for _, row in read_json_lines(source / "questions.jsonl", texts=("image", "answer", "type")):
        if row["type"] == "object":
            answers.setdefault(row["image"], set()).add(row["answer"])
    words = {word for found in answers.values() for word in found}
    photos: dict[str, list[str]] = {}
    for image, found in answers.items():
        kinds = {word.removesuffix("s") if word.removesuffix("s") in words else word for word in found}
        if len(kinds) == 1:
            photos.setdefault(kinds.pop(), []).append(image)
    counts = {"test": 0, "train": 0}
    for kind, images in photos.items():
        if len(images) < _MIN_PHOTOS:
            continue
        for number, image in enumerate(images[: config.limit]):
            split = "train" if number % 2 else "test"
            atomic_write(folder / split / kind / image, FileImage(source / "images", image).read())
            counts[split] += 1
    if not counts["test"]:
        raise UserError(f"{source}: expected {_MIN_PHOTOS} photos with questions of type object and one answer")
    return {f"{split} photos": count for split, count in counts.items()}


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


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


def main() -> int:
    """Run the command line; 2 for a mistake in it or in the data."""
    try:
        config = parse_config(PrepareConfig, sys.argv[1:], prog="prepare_data.py")
        if config is not None:
            run_prepare(config)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
