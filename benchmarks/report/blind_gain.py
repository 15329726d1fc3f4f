"""The gain of the image: a score minus the score without the image, per cell, and the cells that it does not credit.

A cell is *credited* if its gain over every kind of blind run is significant (see `benchmarks.results.blind`). A cell
that is not has no rank mark, and the sentences do not name it as better: the model answers as well without the image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from benchmarks.report.cell_text import UNCREDITED, column_title, decimals
from benchmarks.report.load_results import ReportSource
from benchmarks.report.significance import Evidence
from benchmarks.report.table import BlindGain, Cell, Column, Table
from benchmarks.results.blind import BLIND_KINDS, BlindPair, compare_with_blind, gain_of
from benchmarks.results.formatting import (
    decimals_needed,
    difference_ci_text,
    format_number,
    join_or_count,
    join_with_and,
)
from benchmarks.results.noise import training_noise
from benchmarks.results.result_types import BlindScore
from benchmarks.results.results import Result


def with_gains(table: Table, source: ReportSource, evidence: Evidence) -> Table:
    """The table with the gains of its cells, over images and, with several seeds, training runs."""
    cells = dict(table.cells)
    for column in table.columns:
        measured = [cell for cell in table.column_cells(column) if cell.value is not None]
        found = {cell.row: evidence.gains(cell) for cell in measured}
        for kind in BLIND_KINDS:
            pairs = {row: gains[kind] for row, gains in found.items() if kind in gains}
            noise = training_noise(
                [gain_of(pair.sighted, pair.blind) for pair in pairs.values() if pair.sighted.trained]
            )
            for cell in measured:
                gain = None
                if cell.row in pairs:
                    pair = pairs[cell.row]
                    tested = compare_with_blind(gain_of(pair.sighted, pair.blind), noise)
                    gain = _gain(pair, tested.low, tested.high, tested.p_value, tested.min_detectable)
                elif not cell.members and (stored := _stored(source, cell.row, column).get(kind)):
                    gain = stored
                if gain is not None:
                    key = (cell.row, column.benchmark, column.metric)
                    scaled = _scaled(gain, column.scale)
                    cells[key] = dataclasses.replace(cells[key], gains={**cells[key].gains, kind: scaled})
    return dataclasses.replace(table, cells=cells)


def _gain(pair: BlindPair, low: float, high: float, p_value: float, smallest: float) -> BlindGain:
    return BlindGain(
        sighted=pair.sighted.value,
        blind=pair.blind.value,
        ci_low=low,
        ci_high=high,
        p_value=p_value,
        n=pair.n,
        min_detectable=smallest,
    )


def _stored(source: ReportSource, row: str, column: Column) -> Mapping[str, BlindGain]:
    """The gains in a result file."""
    outcome = source.outcomes[row, column.benchmark]
    metric = outcome.metrics.get(column.metric) if isinstance(outcome, Result) else None
    return {kind: _from_file(score) for kind, score in metric.blind.items()} if metric else {}


def _from_file(score: BlindScore) -> BlindGain:
    ends = (math.nan if end is None else end for end in (score.gain_low, score.gain_high))
    return BlindGain(
        sighted=score.sighted,
        blind=score.value,
        ci_low=next(ends),
        ci_high=next(ends),
        p_value=score.p_value,
        n=score.n,
        min_detectable=math.nan,
    )


def _scaled(gain: BlindGain, scale: float) -> BlindGain:
    names = ("sighted", "blind", "ci_low", "ci_high", "min_detectable")
    return dataclasses.replace(gain, **{name: getattr(gain, name) * scale for name in names})


def gain_text(gain: BlindGain, column: Column) -> str:
    """``+12.3 [8.0 to 16.4]``."""
    places = decimals(column)
    interval = difference_ci_text(gain.ci_low, gain.ci_high, places)
    return f"{format_number(gain.value, places, sign=True)} [{interval}]"


def gain_notes(table: Table, source: ReportSource) -> list[str]:
    """Notes below the table: the gains of each column, the scores that they do not credit, and missing gains."""
    lines = [line for column in table.columns if (line := _column_note(table, column))]
    missing = [
        f"{cell.row} on {column_title(cell.column)} has no gain over blind: the blind runs of its seeds do not cover "
        "the same items, or the items are missing."
        for cell in table.cells.values()
        if cell.members and not cell.gains and all(_stored(source, row, cell.column) for row in cell.members)
    ]
    if not lines:
        return missing
    uncredited = [cell for cell in table.cells.values() if cell.credited is False]
    about = (
        "Gain over blind: the score minus that of the same LLaVA on the same questions without their image (blank: "
        "an image of one color; shuffled: another item's image), with its 95 % interval, paired by image. A score is "
        "credited to the images if the gain over each is significant (two-sided 5 %, not corrected for other cells)."
    )
    return [about, *lines, *map(_reason, uncredited), *missing]


def _column_note(table: Table, column: Column) -> str:
    by_model = []
    counts: set[int] = set()
    for cell in table.column_cells(column):
        if cell.gains:
            texts = [f"{gain_text(gain, column)} over {kind}" for kind, gain in cell.gains.items()]
            by_model.append(f"{cell.row} {join_with_and(texts)}")
            counts |= {gain.n for gain in cell.gains.values()}
    items = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else ""
    return f"Gain over blind on {column_title(column)} ({items} items): {'; '.join(by_model)}." if by_model else ""


def _reason(cell: Cell) -> str:
    """Why a cell is not credited."""
    column = cell.column
    weak = [kind for kind, gain in cell.gains.items() if not gain.credits(column.higher_is_better)]
    smallest = max((cell.gains[kind].min_detectable for kind in weak), default=math.nan)
    number = format_number(smallest, decimals_needed(smallest, decimals(column)))
    power = f" These items detect a gain of {number} with power 0.8." if math.isfinite(smallest) else ""
    return (
        f"{UNCREDITED} {cell.row} on {column_title(column)} is not credited to the images and has no mark: the score "
        f"is not significantly better than with {join_with_and(weak)} images.{power}"
    )


def not_credited(cells: Iterable[Cell]) -> str:
    """A sentence on scores that would lead their column and are not credited; empty without any."""
    names = [f"{cell.row} on {column_title(cell.column)}" for cell in cells]
    if not names:
        return ""
    reason = "because they are not significantly better than those of the same LLaVA without the image"
    return f"Not credited, {reason}: {join_or_count(names, 'scores')}."
