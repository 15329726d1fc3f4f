"""Published numbers beside a report: a table of their own, without intervals, marks or tests.

What a paper does not say of its protocol cannot be compared with ours: the numbers are shown as printed, and the
differences between them are plain subtraction, as papers print them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.results.formatting import format_number
from benchmarks.results.reference_results.load import ReferenceResult, load_reference_results, select_reference_results
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_NOTE = (
    "Published numbers are shown as printed, apart from the rows measured here: their protocols are not known in full, "
    "so they have no intervals and are neither ranked nor compared with ours."
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
}


@dataclass(frozen=True, kw_only=True)
class ReferenceTable:
    """The published rows that a report shows.

    Args:
        columns: ``<data set>/<metric>``.
        rows: as selected.
        baseline: of these rows, whose values the others' are compared with; None where there is none.
    """

    columns: tuple[str, ...]
    rows: tuple[ReferenceResult, ...]
    baseline: ReferenceResult | None = None

    def delta(self, row: ReferenceResult, column: str) -> float | None:
        """A value minus the baseline's, rounded as both are printed.

        None where one of them is missing, or stands in another table: the same model is 3 points better in one paper
        than in another.
        """
        if self.baseline is None or row is self.baseline or row.source != self.baseline.source:
            return None
        mine, base = row.values.get(column), self.baseline.values.get(column)
        return None if mine is None or base is None else round(mine - base, 2)

    def text(self) -> pd.DataFrame:
        """The rows as people read them, ``60.3 (+2.8)``; an em dash where nothing was published."""
        import pandas as pd

        return pd.DataFrame(
            [[self._text(row, column) for column in self.columns] for row in self.rows],
            index=[f"{row.name} (published, {row.set})" for row in self.rows],
            columns=[column_label(column) for column in self.columns],
        )

    def sources(self) -> list[str]:
        """Where the rows are printed."""
        return list(dict.fromkeys(row.source for row in self.rows))

    def _text(self, row: ReferenceResult, column: str) -> str:
        delta = self.delta(row, column)
        gain = "" if delta is None else f" ({format_number(delta, 1, sign=True)})"
        return format_number(row.values.get(column), 1) + gain


def column_label(column: str) -> str:
    """``coco/t2i_r1`` as ``coco T→I R@1``."""
    dataset, _, metric = column.partition("/")
    return f"{dataset} {_METRICS.get(metric, metric.replace('_', ' '))}".strip()


def is_reference_row(name: str) -> bool:
    """Whether a published row has this name, bare or behind its set (``clips:CLIPS ViT-L/14``)."""
    return any(name in {row.name, f"{row.set}:{row.name}"} for row in load_reference_results())


def build_reference_table(
    wanted: Sequence[str], benchmarks: Sequence[str], baseline: str | None = None
) -> ReferenceTable | None:
    """The published rows asked for; None where none are.

    Args:
        wanted: see `select_rows`.
        benchmarks: those of the report: where some of the rows' data sets are among them, only these are shown.
        baseline: one of the rows, by name.

    Raises:
        UserError: no such row or set, or a baseline and no rows.
    """
    if not wanted:
        if baseline is not None:
            raise UserError(f"reference_results: expected the set of '{baseline}' as well, to take differences to it")
        return None
    rows = select_reference_results(wanted)
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    asked = [column for column in columns if any(_same_data(column, name) for name in benchmarks)]
    base = next((row for row in rows if baseline in {row.name, f"{row.set}:{row.name}"}), None)
    if baseline is not None and base is None:
        raise unknown_name_error(baseline, [row.name for row in rows], "baseline among the published rows")
    return ReferenceTable(columns=tuple(asked or columns), rows=rows, baseline=base)


def _same_data(column: str, benchmark: str) -> bool:
    """Whether a benchmark's name is that of a column's data set, or begins with it (``coco_karpathy``)."""
    dataset = column.partition("/")[0]
    return benchmark == dataset or benchmark.startswith((f"{dataset}_", f"{dataset}-", f"{dataset}."))
