"""Names and thumbnails of the images of a task's questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from benchmarks.tasks.evaluation import MAX_THUMBNAILS, thumbnail


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
    rgb = image.convert("RGB")  # the bytes of a palette image do not determine its colors
    content = f"{rgb.mode}{rgb.size}".encode() + rgb.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def record_image(image: Image, recorded: set[str]) -> QuestionImage:
    """The record of an image; its name is added to ``recorded``, the images that have a thumbnail already."""
    name = image_hash_name(image)
    is_new = name not in recorded and len(recorded) < MAX_THUMBNAILS
    recorded.add(name)
    return QuestionImage(name, thumbnail(image) if is_new else None)


def first_images(task: Any, numbers: Sequence[int]) -> Mapping[int, QuestionImage]:
    """Question index → its first image, for models that record none; only questions with an image.

    Args:
        task: lmms-eval's task with its data.
        numbers: indices of the questions.
    """
    found: dict[int, QuestionImage] = {}
    recorded: set[str] = set()
    for number in numbers:
        visuals = task.doc_to_visual(task.eval_docs[number]) or []
        first = next((visual for visual in visuals if isinstance(visual, Image)), None)
        if first is not None:
            found[number] = record_image(first, recorded)
    return found
