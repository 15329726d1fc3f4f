"""Another seed or stop? What more seeds would add to what a table's differences can show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from benchmarks.report.cell_text import column_title
from benchmarks.report.significance import Evidence
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.item_scores import comparable
from benchmarks.results.noise import MIN_VARIANCE_RATIO, Scores
from benchmarks.results.power import Components, variance_components


def another_seed_notes(table: Table, evidence: Evidence) -> list[str]:
    """By how much the minimum detectable difference would shrink with another seed, and with any number of seeds."""
    shrinks = []
    for column, parts in column_components(table, evidence).items() if table.seeds else ():
        if parts.degrees and parts.num_seeds > 1 and (now := parts.min_detectable(parts.num_seeds)):
            more = (parts.min_detectable(seeds) / now for seeds in (parts.num_seeds + 1, math.inf))
            another, limit = (f"{100 * max(0.0, 1 - ratio):.0f} %" for ratio in more)
            shrinks.append(f"by {another} and {limit} on {column_title(column)}")
    if not shrinks:
        return []
    return [
        "Another seed or stop? The minimum detectable difference shrinks with another seed of every model, and with "
        f"any number of seeds, {'; '.join(shrinks)}; the rest is due to the images."
    ]


def column_components(table: Table, evidence: Evidence) -> dict[Column, Components]:
    """Ranked column → its components, over the differences from the baselines, else over all pairs of models."""
    found = {}
    for column in table.columns:
        cells = [cell for cell in table.column_cells(column) if cell.value is not None and cell.group == 0]
        pairs = list(_pairs(table, evidence, cells))
        if pairs and column.ranked:
            found[column] = variance_components(pairs, evidence.training_noise(cells[0]))
    return found


def _pairs(table: Table, evidence: Evidence, cells: Sequence[Cell]) -> Iterator[tuple[Scores, Scores]]:
    """The comparable pairs of a column without models near an end of the scale, which have no noise to plan with."""
    scores = {cell.row: found for cell in cells if (found := evidence.scores(cell)) is not None}
    enough = MIN_VARIANCE_RATIO * max((each.image_variance for each in scores.values()), default=0.0)
    included = {row: each for row, each in scores.items() if each.image_variance >= enough > 0}
    pairs = [(row.name, row.baseline) for row in table.rows if row.name in included and row.baseline in included]
    for first, second in pairs or itertools.combinations(included, 2):
        if comparable(included[first], included[second]):
            yield included[first], included[second]
