"""The images of lmms-eval's tasks, decoded as those of training instead of by ``datasets``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
from PIL.Image import Image

from clips.data.images import InvalidImageError, decode_image, has_unknown_range, read_header, to_rgb


class RgbImage(datasets.Image):
    """The feature of ``datasets`` for images, decoded by `clips.data.images.decode_image`."""

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Image:
        """The image of a cell; raises InvalidImageError."""
        if isinstance(value, dict) and value.get("bytes") is not None:
            return decode_image(value["bytes"])
        if isinstance(value, dict) and value.get("path") is not None and Path(value["path"]).is_file():
            return decode_image(Path(value["path"]).read_bytes())
        return to_rgb(super().decode_example(value, token_per_repo_id))


def decode_as_in_training(task: Any) -> None:
    """Let the dataset of an lmms-eval task decode its images as `RgbImage`."""
    for splits in {id(each): each for each in (task.dataset, task.dataset_no_image)}.values():
        for documents in splits.values():
            if isinstance(documents, datasets.Dataset):
                features = {name: _replaced(feature) for name, feature in documents.features.items()}
                documents.info.features = datasets.Features(features)


def _replaced(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return RgbImage(mode=feature.mode, decode=feature.decode)
    if isinstance(feature, dict):
        return {name: _replaced(each) for name, each in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return dataclasses.replace(feature, feature=_replaced(feature.feature))
    return feature


def unsupported_questions(documents: Any, numbers: Iterable[int]) -> list[int]:
    """Those of the questions with an image that the loader rejects for its range of pixels; only headers are read."""
    if not isinstance(documents, datasets.Dataset):
        return []
    lists = (datasets.List, datasets.LargeList)
    names = [
        name
        for name, feature in documents.features.items()
        if isinstance(feature.feature if isinstance(feature, lists) else feature, datasets.Image)
    ]
    wanted, unsupported = list(numbers) if names else [], list[int]()
    stored = documents.select_columns(names).with_format("arrow")
    for start in range(0, len(wanted), 64):
        batch = wanted[start : start + 64]
        for number, row in zip(batch, stored[batch].to_pylist(), strict=True):
            cells = [cell for value in row.values() for cell in (value if isinstance(value, list) else [value])]
            if any(map(_is_unsupported, cells)):
                unsupported.append(number)
    return unsupported


def _is_unsupported(cell: Any) -> bool:
    """Whether the loader rejects an image for its range; a missing or broken one is an error when it is shown."""
    try:
        content = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        return has_unknown_range(read_header(content))
    except (InvalidImageError, OSError, TypeError):
        return False
