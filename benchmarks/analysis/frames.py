"""Frames in, frames out: the tests of a report on anybody's scores, from Python."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from benchmarks.exchange.item_table import results_of
from benchmarks.report.load_results import name_by_model, read_source, source_of_items
from benchmarks.report.measures import difference_frame, score_frame
from benchmarks.report.report import build_report
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class Comparison(NamedTuple):
    """The two frames of a comparison, of which a report is made, too; numbers are scaled as they are shown.

    Args:
        scores: a line for each model and metric: ``value`` with its interval, the number of items, chance.
        differences: a line for each tested pair of models and metric: ``difference`` with its interval, ``p_value``,
            ``p_adjusted``, whether it is ``significant``, ``min_detectable_difference``.
    """

    scores: pd.DataFrame
    differences: pd.DataFrame


def compare(
    items: pd.DataFrame | str | Path,
    *more: str | Path,
    baseline: str | None = None,
    pairs: Literal["baseline", "all"] | None = None,
) -> Comparison:
    """Compare models on the same items: paired tests over images, or items, and seeds, corrected together (Holm).

    Args:
        items: a line for each model, benchmark, metric and item, with the columns of docs/item-tables.md; or the path
            of such a table, of a directory of results, or of a study.
        more: further paths.
        baseline: the model that the others are compared with.
        pairs: ``baseline`` tests the pairs with it (and with the best of each metric), and is the default if there is
            one; ``all`` tests all pairs.

    Raises:
        UserError: naming the row and the column, or the file; paths after a frame; or ``pairs="baseline"`` without one.
    """
    if pairs == "baseline" and baseline is None:
        raise UserError("pairs: 'baseline' needs the name of one, baseline=…")
    if isinstance(items, str | Path):
        source = read_source(items, *more)
    elif more:
        raise UserError(f"expected one frame, or paths alone, got a frame and {', '.join(map(str, more))}")
    else:
        source = name_by_model(source_of_items(results_of(items), Path("frame")))
    chosen = pairs or ("baseline" if baseline else "all")
    report = build_report(source, baseline=baseline, pairs=chosen)
    ids = report.source.model_ids
    scores, differences = score_frame(report.table, ids), difference_frame(report.table, ids)
    if differences.empty and scores["model"].nunique() > 1:
        warnings.warn(
            "no models were tested: expected scores for exactly the same items, and the same protocol and source",
            stacklevel=2,
        )
    else:
        for note in report.notes:
            if note.kind == "other items":
                warnings.warn(note.text, stacklevel=2)
    return Comparison(scores, differences)
