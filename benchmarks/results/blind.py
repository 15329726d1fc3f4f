"""Blind runs: the same questions to the same LLaVA, without their image. The gain of the image is a paired difference.

A blind run covers some images with all their items (``IN_BLIND_RUN`` marks them). Its scores are item columns of their
own: ``blank:correct`` for a blank image, ``shuffled:correct`` for another item's image, and ``sighted:correct`` for the
own image, scored on the same items alone, because some scorers (CIDEr) depend on the other items. Columns of words
(groups) do not depend on the answers and exist once.

A model's score is *credited* to its images if the gain over each kind of blind run is significantly better than 0
(two-sided 5 %, that is 2.5 % per direction). Requiring all kinds needs no correction: the tests form an
intersection-union test (Berger, Technometrics 24, 1982).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.results.noise import ALPHA, Scores, TrainingNoise
from benchmarks.results.result_types import BlindScore, columns_of
from benchmarks.results.statistics import PairedDifference, compare, image_scores

if TYPE_CHECKING:
    import pandas as pd

BLIND_KINDS: Mapping[str, str] = {
    "blank": "an image of one color, the mean color of the LLaVA's preprocessing",
    "shuffled": "the image of another item, never the same image",
}
SIGHTED = "sighted"
IN_BLIND_RUN = "in_blind_run"


class BlindPair(NamedTuple):
    """A metric with and without the image, on ``n`` items that enter it."""

    sighted: Scores
    blind: Scores
    n: int


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
            found = np.asarray(values)
            if name == "prediction" or found.dtype.kind in "biuf":
                is_text = name == "prediction"
                column = np.full(len(items), None if is_text else np.nan, dtype=object if is_text else float)
                column[list(rows)] = found
                items[blind_column(kind, name)] = column


def blind_tables(tables: Sequence[pd.DataFrame], names: Sequence[str], kind: str) -> list[dict[str, np.ndarray]] | None:
    """The columns of a metric on the items of the blind runs, one table per seed; None if one of them is missing."""
    found = []
    for table in tables:
        part = table[table[IN_BLIND_RUN]] if IN_BLIND_RUN in table else table.iloc[:0]
        own = {name: blind_column(kind, name) for name in names}
        words = {name for name in names if name in part and part[name].dtype.kind not in "biuf"}
        if not len(part) or any(own[name] not in part for name in set(names) - words):
            return None
        columns = columns_of(part, [name if name in words else own[name] for name in names])
        found.append(dict(zip(names, columns.values(), strict=True)))
    return found


def gain_scores(
    tables: Sequence[pd.DataFrame],
    aggregation: str,
    names: Sequence[str],
    kind: str,
    *,
    most: float | None = 1.0,
    trained: bool = False,
) -> BlindPair | None:
    """A metric with and without the image, on the items of the blind runs; the arguments are those of `image_scores`.

    None if they have no such metric, or if the seeds' blind runs cover different items.
    """
    sighted, blind = (blind_tables(tables, names, each) for each in (SIGHTED, kind))
    if sighted is None or blind is None:
        return None
    parts = [table[table[IN_BLIND_RUN]] for table in tables]
    items = parts[0]["item"].tolist()
    if any(part["item"].tolist() != items for part in parts):
        return None
    first, second = (
        image_scores(
            aggregation,
            each,
            names,
            parts[0]["image"].to_numpy(),
            items=items,
            most=most,
            trained=trained,
        )
        for each in (sighted, blind)
    )
    if np.isnan([first.value, second.value]).any():
        return None
    return BlindPair(first, second, count_items(tables[0], names))


def gain_of(sighted: Scores, blind: Scores) -> Scores:
    """The difference as one metric of the model, seed by seed: both come from the same weights."""
    return dataclasses.replace(
        sighted,
        values=sighted.values - blind.values,
        influence=sighted.influence - blind.influence,
        enters=sighted.enters | blind.enters,
    )


def compare_with_blind(gain: Scores, noise: TrainingNoise) -> PairedDifference:
    """The gain of the image with its interval and p-value, over images and, with several seeds, training runs."""
    zero = dataclasses.replace(
        gain, values=np.zeros(1), influence=np.zeros_like(gain.influence[:1]), trained=False
    )  # with it, a gain that is equal for all images has Tango's interval and the sign test
    return compare(gain, zero, noise)


def blind_scores(
    items: pd.DataFrame, aggregation: str, names: Sequence[str], *, most: float | None
) -> dict[str, BlindScore]:
    """Kind of blind run → a metric's score without the image; empty if the items have no blind runs."""
    found: dict[str, BlindScore] = {}
    for kind in BLIND_KINDS if IN_BLIND_RUN in items else ():
        pair = gain_scores([items], aggregation, names, kind, most=most)
        if pair is None:
            continue
        tested = compare_with_blind(gain_of(pair.sighted, pair.blind), TrainingNoise())
        ends = (None if np.isnan(end) else float(end) for end in (tested.low, tested.high))
        found[kind] = BlindScore(
            value=pair.blind.value,
            sighted=pair.sighted.value,
            gain_low=next(ends),
            gain_high=next(ends),
            p_value=tested.p_value,
            n=pair.n,
        )
    return found


def count_items(items: pd.DataFrame, names: Sequence[str]) -> int:
    """Number of items of the blind runs that enter a metric."""
    return int(items.loc[items[IN_BLIND_RUN], names[0]].notna().sum())


def is_credited(gains: Iterable[tuple[float, float]], *, higher_is_better: bool) -> bool:
    """Whether a score is credited to the images, given the gain and p-value of each kind of blind run."""
    return all(p_value < ALPHA and (value > 0) == higher_is_better for value, p_value in gains)
