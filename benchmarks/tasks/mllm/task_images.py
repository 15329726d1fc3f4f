"""The pictures of a task's questions: what is kept of them, and how they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from benchmarks.tasks.evaluation import MAX_THUMBNAILS, thumbnail


@dataclass(frozen=True)
class QuestionImage:
    """What is kept of a question's first picture.

    Args:
        name: hash of its pixels; questions about the same picture share it.
        thumbnail: a small JPEG, for the first question about it only, and of so many pictures only.
    """

    name: str
    thumbnail: bytes | None


def image_hash_name(picture: Image) -> str:
    """A name made of a picture's pixels as a model sees them: the same wherever it comes from."""
    rgb = picture.convert("RGB")  # the bytes of a picture with a palette do not tell its colors
    content = f"{rgb.mode}{rgb.size}".encode() + rgb.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def first_images(task: Any, numbers: Sequence[int]) -> Mapping[int, QuestionImage]:
    """Question number → its first picture, for models that keep none; of those questions that have one.

    Args:
        task: lmms-eval's task with its data.
        numbers: of the questions.
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
