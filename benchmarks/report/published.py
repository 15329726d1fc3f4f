"""Published numbers: a table of their own, without intervals, marks or tests.

Papers do not state their protocols in full, so their numbers cannot be compared with measured ones: they are shown as
printed, and differences between them are plain subtractions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.report.figures import FigureSet
from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import format_number
from benchmarks.results.reference_results import ReferenceResult, load_reference_results, select_reference_results
from benchmarks.tasks.listing import subset_text
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_NOTE = (
    "Published numbers are shown as printed, apart from the models measured here: their protocols are not known in "
    "full, so they have no intervals and are neither ranked nor tested."
)
_METRICS = {
    "i2t_r1": "I→T R@1",
    "i2t_r5": "I→T R@5",
    "i2t_r10": "I→T R@10",
    "t2i_r1": "T→I R@1",
    "t2i_r5": "T→I R@5",
    "t2i_r10": "T→I R@10",
    "top1": "top-1",
    "mme_cognition_score": "cognition points",
    "mme_perception_score": "perception points",
    "mmmu_acc": "accuracy",
    "gpt_eval_score": "judge's score",
    "exact_match": "exact match",
    "relaxed_overall": "relaxed accuracy",
    "pope_f1_score": "F1",
    "nocaps_CIDEr": "CIDEr",
    "seed_all": "accuracy",
    "seed_image": "accuracy (images)",
    "anls": "ANLS",
    "ocrbench_points": "points",
    "average": "mean over abilities",
    "pope_accuracy": "accuracy",
    "unstated": "(metric not stated)",
}


@dataclass(frozen=True, kw_only=True)
class ReferenceTable:
    """The published models that a report shows.

    Args:
        columns: ``<dataset>/<metric>``.
        rows: the selected models.
        baseline: the model that the others are compared with.
    """

    columns: tuple[str, ...]
    rows: tuple[ReferenceResult, ...]
    baseline: ReferenceResult | None = None

    def delta(self, row: ReferenceResult, column: str) -> float | None:
        """A value minus the baseline's, rounded to 2 decimals as both are printed.

        None if one of them is missing or from another source: numbers of one model differ between papers by 3 points.
        """
        if self.baseline is None or row is self.baseline or row.source != self.baseline.source:
            return None
        value, base = row.values.get(column), self.baseline.values.get(column)
        return None if value is None or base is None else round(value - base, 2)

    def text(self) -> pd.DataFrame:
        """The table as text, ``60.3 (+2.8)``; an em dash for an unpublished number."""
        import pandas as pd

        return pd.DataFrame(
            [[self._text(row, column) for column in self.columns] for row in self.rows],
            index=[f"{row.name} (published, {row.set})" for row in self.rows],
            columns=[
                f"{dataset} {_METRICS.get(metric, metric.replace('_', ' '))}".strip()
                for dataset, _, metric in (column.partition("/") for column in self.columns)
            ],
        )

    def sources(self) -> list[str]:
        """The sources of the numbers."""
        return list(dict.fromkeys(row.source for row in self.rows))

    def _text(self, row: ReferenceResult, column: str) -> str:
        delta = self.delta(row, column)
        difference = "" if delta is None else f" ({format_number(delta, 1, sign=True)})"
        return format_number(row.values.get(column), 1) + difference


def is_reference_row(name: str) -> bool:
    """Whether this is the name of a published model, with or without its set (``clips:CLIPS ViT-L/14``)."""
    return any(name in _names(row) for row in load_reference_results())


def _names(row: ReferenceResult) -> set[str]:
    return {row.name, f"{row.set}:{row.name}"}


def _is_on(dataset: str, benchmark: str) -> bool:
    return benchmark == dataset or benchmark.startswith((f"{dataset}_", f"{dataset}-", f"{dataset}."))  # coco_karpathy


_RETRIEVAL_SETS = {"coco", "flickr30k"}
_LEAD = (
    "Models that have the name of a published one. Inside or outside: whether the printed number is in the measured "
    "one's 95 % interval. Other protocol: on a part of the benchmark, so that neither is expected. What a paper does "
    "not state may differ, too; clips-bench list BENCHMARK names what usually does."
)


@dataclass(frozen=True, kw_only=True)
class PrintedNumber:
    """A printed number of a measured model.

    Args:
        value: as printed.
        verdict: whether it is in the 95 % interval of the measured one.
        known: of the measured one: the part of the benchmark, and settings other than the column's.
    """

    value: float
    verdict: Literal["inside", "outside", "other protocol", "without an interval"]
    known: str


def printed_numbers(cell: Cell, published: ReferenceResult) -> Iterator[PrintedNumber]:
    """The printed numbers of the same benchmark and metric; of a task another split is another benchmark."""
    for name, value in published.values.items() if cell.value is not None else ():
        dataset, _, metric = name.partition("/")
        is_same = dataset == cell.column.key or (dataset in _RETRIEVAL_SETS and _is_on(dataset, cell.column.key))
        if metric != cell.column.metric or not is_same:
            continue
        part = subset_text(cell.results[0])
        settings = "; ".join(cell.protocol_differences)
        apart = f"{cell.dagger} other settings than the column's: {settings}" if settings else ""
        known = "; ".join(filter(None, [part, apart]))
        if part:
            yield PrintedNumber(value=value, verdict="other protocol", known=known)
        elif cell.ci_low is None or cell.ci_high is None:
            yield PrintedNumber(value=value, verdict="without an interval", known=known)
        else:
            is_inside = cell.ci_low <= value <= cell.ci_high
            yield PrintedNumber(value=value, verdict="inside" if is_inside else "outside", known=known)


def published_comparison(table: Table) -> FigureSet | None:
    """Measured numbers next to the printed ones of the same model, benchmark and metric; None without any."""
    by_name: dict[str, list[ReferenceResult]] = {}
    for published in load_reference_results():
        for name in _names(published):
            by_name.setdefault(name, []).append(published)
    rows = [
        (
            *(cell.row, column.title, cell.score, format_number(printed.value, 1)),
            *(printed.verdict, printed.known, published.source),
        )
        for column in table.columns
        for cell in table.cells(column)
        for published in by_name.get(cell.row, ())
        for printed in printed_numbers(cell, published)
    ]
    headers = ("model", "metric", "measured", "printed", "the printed number is", "known of the measured one", "source")
    return FigureSet(lead=_LEAD, figures=(), headers=headers, rows=tuple(rows)) if rows else None


def build_reference_table(
    wanted: Sequence[str], benchmarks: Sequence[str], baseline: str | None = None
) -> ReferenceTable | None:
    """The table of some published models; None without any.

    Args:
        wanted: names, see `select_reference_results`.
        benchmarks: of the report; limits the columns to their datasets, if the models have any of them.
        baseline: name of one of the models.

    Raises:
        UserError: an unknown model or set, or a baseline without models.
    """
    if not wanted:
        if baseline is not None:
            raise UserError(f"reference_results: expected the set of '{baseline}' as well, to take differences to it")
        return None
    rows = select_reference_results(wanted)
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    shared = [
        column for column in columns if any(_is_on(column.partition("/")[0], benchmark) for benchmark in benchmarks)
    ]
    base = next((row for row in rows if baseline in _names(row)), None)
    if baseline is not None and base is None:
        raise unknown_name_error(baseline, [row.name for row in rows], "baseline among the published models")
    return ReferenceTable(columns=tuple(shared or columns), rows=rows, baseline=base)
