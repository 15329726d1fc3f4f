"""The items of a task, from lmms-eval's samples, and the images of their questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from benchmarks.tasks.evaluation import MAX_THUMBNAILS, thumbnail

if TYPE_CHECKING:
    import pandas as pd


Sample = Mapping[str, Any]
"""lmms-eval's log of a question: its row, the prompt and answer, and the entries of each metric."""


def items_table(
    samples: Sequence[Sample], images: Mapping[int, Any], columns: Mapping[str, Any], score: str
) -> pd.DataFrame:
    """The items of a task, with the columns that its metrics need; ``score`` names the one with the item's score."""
    import pandas as pd

    numbers = [sample["doc_id"] for sample in samples]
    return pd.DataFrame(
        {
            "item": [str(number) for number in numbers],
            "image": [images[number].name if number in images else str(number) for number in numbers],
            "direction": "",
            "category": [_text(_category(sample["doc"])) for sample in samples],
            "question": [_question(sample) for sample in samples],
            "prediction": [_text(sample["filtered_resps"][0]) for sample in samples],
            "target": [_target(sample) for sample in samples],
            "score": columns.get(score, np.full(len(samples), np.nan)),
            "thumbnail": [images[number].thumbnail if number in images else None for number in numbers],
            **columns,
        }
    )


def _question(sample: Sample) -> str:
    question = sample["doc"].get("question")
    return question.strip() if isinstance(question, str) else _text(sample["arguments"][0])


def _target(sample: Sample) -> str:
    """The expected answer; for VQA tasks the annotators' answers, because their own target names a column."""
    return _text(sample["doc"].get("answers") or sample["target"])


def _category(doc: Mapping[str, Any]) -> Any:
    """The task's own category; for GQA the structural type, the first of its ``types``."""
    types = doc.get("types")
    if isinstance(types, Mapping) and types.get("structural"):
        return types["structural"]
    names = ("category", "question_type", "type", "capability", "data_type")
    return next((doc[name] for name in names if doc.get(name) is not None), "")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " | ".join(dict.fromkeys(map(_text, value)))
    return value.strip() if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class QuestionImage:
    """The record of a question's first image.

    Args:
        name: hash of its pixels; questions about the same image share it.
        thumbnail: a small JPEG, only for the first question about the image, and for at most ``MAX_THUMBNAILS`` images.
    """

    name: str
    thumbnail: bytes | None


def image_hash_name(image: Image) -> str:
    """A name derived from an image's decoded pixels."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # bytes of a palette do not determine colors
    content = hashlib.sha256(f"{rgb.mode}{rgb.size}".encode())
    content.update(rgb.tobytes())
    return content.hexdigest()[:16]


def record_image(name: str, image: Image, recorded: set[str]) -> QuestionImage:
    """The record of an image; its name is added to ``recorded``, the images that have a thumbnail already."""
    is_new = name not in recorded and len(recorded) < MAX_THUMBNAILS
    recorded.add(name)
    return QuestionImage(name, thumbnail(image) if is_new else None)


def first_images(task: Any, numbers: Sequence[int]) -> Mapping[int, QuestionImage]:
    """Question index → its first image, for models that record none; only questions with an image."""
    found: dict[int, QuestionImage] = {}
    recorded: set[str] = set()
    for number in numbers:
        visuals = task.doc_to_visual(task.eval_docs[number]) or []
        first = next((visual for visual in visuals if isinstance(visual, Image)), None)
        if first is not None:
            found[number] = record_image(image_hash_name(first), first, recorded)
    return found
