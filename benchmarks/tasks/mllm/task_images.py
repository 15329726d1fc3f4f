"""The images of a task's questions: their records and names."""

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
        thumbnail: a small JPEG, only for the first question about the image, and only for a limited number of images.
    """

    name: str
    thumbnail: bytes | None


def image_hash_name(picture: Image) -> str:
    """A name derived from an image's decoded pixels, independent of its origin."""
    rgb = picture.convert("RGB")  # the bytes of a palette image do not determine its colors
    content = f"{rgb.mode}{rgb.size}".encode() + rgb.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def first_images(task: Any, numbers: Sequence[int]) -> Mapping[int, QuestionImage]:
    """Question index → its first image, for models that record none; only questions with an image.

    Args:
        task: lmms-eval's task with its data.
        numbers: indices of the questions.
    """
    found: dict[int, QuestionImage] = {}
    seen: set[str] = set()
    for number in numbers:
        first = next(
            (visual for visual in task.doc_to_visual(task.eval_docs[number]) or [] if isinstance(visual, Image)), None
        )
        if first is not None:
            name = image_hash_name(first)
            shown = name not in seen and len(seen) < MAX_THUMBNAILS
            found[number] = QuestionImage(name, thumbnail(first) if shown else None)
            seen.add(name)
    return found
