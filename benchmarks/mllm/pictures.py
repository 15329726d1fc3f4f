"""The pictures of a task's questions, for models that do not keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from benchmarks.mllm.answering import Picture, picture_name
from benchmarks.outcome import MOST_THUMBNAILS, thumbnail


def pictures_of(task: Any, numbers: Sequence[int]) -> Mapping[int, Picture]:
    """Question number → its first picture, of those questions that have one.

    Args:
        task: lmms-eval's task with its data.
        numbers: of the questions.
    """
    found: dict[int, Picture] = {}
    seen: set[str] = set()
    for number in numbers:
        first = next(
            (visual for visual in task.doc_to_visual(task.eval_docs[number]) or [] if isinstance(visual, Image)), None
        )
        if first is not None:
            name = picture_name(first)
            shown = name not in seen and len(seen) < MOST_THUMBNAILS
            found[number] = Picture(name, thumbnail(first) if shown else None)
            seen.add(name)
    return found
