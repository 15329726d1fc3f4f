"""Baselines of a score: the same metric in a condition in which the model does not see the image.

A *baseline* is an ordinary metric (`Metric.baseline_of`), and so is the *gain*, the paired difference of the score and
a baseline of it (`Metric.gain_of`). A score is *credited* to its images if the gain over each baseline is significant,
that is, if its 95 % interval is above 0 (two-sided 5 %, 2.5 % per direction). Requiring all of them needs no
correction: the tests form an intersection-union test (Berger, Technometrics 24, 1982).

Blind runs put the same questions to the same LLaVA without their image. A run covers some images with all their items
(``IN_BLIND_RUN`` marks them). Its scores are item columns of their own: ``blank:correct`` for a blank image,
``shuffled:correct`` for another item's image, and ``sighted:correct`` for the own image, scored on the same items
alone, because some scorers (CIDEr) depend on the other items. Columns of words (groups) do not depend on the answers
and exist once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.noise import Scores
from benchmarks.results.result_types import UNREAD_WRONG

if TYPE_CHECKING:
    import pandas as pd

BLIND_KINDS: Mapping[str, str] = {
    "blank": "an image of one color, the mean color of the LLaVA's preprocessing",
    "shuffled": "the image of another item, never the same image",
}
WITHOUT_IMAGE: Mapping[str, str] = {
    "blank": "a blank image",
    "shuffled": "another item's image",
    "other_image": "another sample's image and the same web caption",
}
"""Condition → what the model sees, for a sentence. A new one needs two metrics of a benchmark: baseline and gain."""
CONDITIONS = (*WITHOUT_IMAGE, UNREAD_WRONG)
"""Those of `Metric.condition`; in the last one, answers that were not read count as wrong."""
SIGHTED = "sighted"
IN_BLIND_RUN = "in_blind_run"


def baseline_name(metric: str, condition: str) -> str:
    """The name of a metric's baseline, ``pope_accuracy_blank``."""
    return f"{metric}_{condition}"


def gain_name(metric: str, condition: str) -> str:
    """The name of a metric's gain over it, ``pope_accuracy_over_blank``."""
    return f"{metric}_over_{condition}"


def blind_column(kind: str, name: str) -> str:
    """The item column ``name`` of a blind run, or of the sighted answers to its questions."""
    return f"{kind}:{name}"


def is_blind_column(name: str) -> bool:
    """Whether an item column belongs to a blind run."""
    return name == IN_BLIND_RUN or name.partition(":")[0] in {SIGHTED, *BLIND_KINDS}


def add_blind_columns(items: pd.DataFrame, rows: Sequence[int], answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the columns of blind runs to a table of items.

    Args:
        items: the table; changed in place.
        rows: (B,) positions of the questions of the blind runs.
        answers: kind, or `SIGHTED` → item column → (B,) values; of other than numbers only ``prediction`` is stored.
    """
    marked = np.zeros(len(items), bool)
    marked[list(rows)] = True
    items[IN_BLIND_RUN] = marked
    for kind, columns in answers.items():
        for name, values in columns.items():
            array = np.asarray(values)
            if name == "prediction" or array.dtype.kind in "biuf":
                is_text = name == "prediction"
                column = np.full(len(items), None if is_text else np.nan, dtype=object if is_text else float)
                column[list(rows)] = array
                items[blind_column(kind, name)] = column


def blind_columns(items: pd.DataFrame, names: Sequence[str], kind: str) -> tuple[str, ...] | None:
    """The columns of a metric in a blind run, or in its sighted answers; None if the items lack one of them."""
    words = {name for name in names if name in items and items[name].dtype.kind not in "biuf"}
    names_of_kind = tuple(name if name in words else blind_column(kind, name) for name in names)
    return names_of_kind if IN_BLIND_RUN in items and {*names_of_kind} <= {*items.columns} else None


def rows_of(items: pd.DataFrame, columns: Sequence[str]) -> np.ndarray | None:
    """(N,) the items of a metric with these columns: those that a blind run covers, or all (None)."""
    return items[IN_BLIND_RUN].to_numpy(dtype=bool) if any(map(is_blind_column, columns)) else None


def gain_scores(scores: Scores, baseline: Scores) -> Scores:
    """The difference as one metric of the model, seed by seed: both come from the same weights."""
    return dataclasses.replace(
        scores,
        values=scores.values - baseline.values,
        influence=scores.influence - baseline.influence,
        enters=scores.enters | baseline.enters,
        is_gain=True,
        parts=((1.0, scores), (-1.0, baseline)),
    )
