"""Retrieval examples: the top results of some queries, stored with the items for the report.

The queries are chosen by a hash of the item names: they are the same for every model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tasks.data.caption_sets import CaptionSet
from benchmarks.tasks.evaluation import thumbnail
from benchmarks.tasks.item_sampling import first_per_image, hash_order

if TYPE_CHECKING:
    import pandas as pd
    import torch

QUERIES_PER_DIRECTION = 24  # each about another image
TOP_K = 5
_LONGEST_CAPTION = 1000


def with_top_results(
    items: pd.DataFrame,
    captions: CaptionSet,
    images: torch.Tensor,
    texts: torch.Tensor,
    *,
    most: int = QUERIES_PER_DIRECTION,
) -> pd.DataFrame:
    """Add a column ``found`` and the thumbnails of all images in it to the items of a retrieval.

    ``found`` is JSON, the most similar answers first: ``[{"answer": …, "similarity": 0.31, "right": true}, …]``. An
    answer is an image's reference or a caption. Other queries have null.

    Args:
        items: one row per image, then one row per caption, from `retrieval.items_of`.
        captions: the data.
        images: (N, D) unit vectors of its images.
        texts: (M, D) unit vectors of its captions.
        most: maximum queries per direction.
    """
    shown: set[int] = set()
    column: list[str | None] = [None] * len(items)
    image_of = dict(zip(items["item"], items["image"], strict=True))
    number_of = {name: number for number, name in enumerate(captions.images)}
    for direction, side, answers, offset in (("i2t", images, texts, 0), ("t2i", texts, images, len(captions.images))):
        names = items.loc[items["direction"] == direction, "item"]
        row_of = dict(zip(names, names.index, strict=True))
        for name in first_per_image(hash_order(names), image_of, most):
            query = row_of[name] - offset
            similarity, found = (answers @ side[query]).topk(min(TOP_K, len(answers)))
            column[row_of[name]] = _as_json(captions, direction, query, found.tolist(), similarity.tolist())
            shown |= {number_of[image_of[name]], *(found.tolist() if direction == "t2i" else [])}
    images_shown = [
        thumbnail(captions.open(number)) if number in shown and known is None else known
        for number, known in enumerate(items["thumbnail"])
    ]
    return items.assign(found=column, thumbnail=images_shown)


def _as_json(captions: CaptionSet, direction: str, query: int, found: list[int], similarity: list[float]) -> str:
    query_side, answer_side = (0, 1) if direction == "i2t" else (1, 0)
    right = set(captions.pairs[captions.pairs[:, query_side] == query, answer_side].tolist())
    texts = captions.texts if direction == "i2t" else captions.images
    return json.dumps(
        [
            {
                "answer": texts[answer][:_LONGEST_CAPTION] if direction == "i2t" else texts[answer],
                "similarity": float(np.round(value, 4)),
                "right": answer in right,
            }
            for answer, value in zip(found, similarity, strict=True)
        ],
        ensure_ascii=False,
    )
