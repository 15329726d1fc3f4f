"""The images of lmms-eval's tasks, decoded as those of training instead of by ``datasets``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
from PIL.Image import Image

from clips.data.images import decode_image, to_rgb


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
                found = {name: _replaced(feature) for name, feature in documents.features.items()}
                documents.info.features = datasets.Features(found)


def _replaced(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return RgbImage(mode=feature.mode, decode=feature.decode)
    if isinstance(feature, dict):
        return {name: _replaced(each) for name, each in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return dataclasses.replace(feature, feature=_replaced(feature.feature))
    return feature
