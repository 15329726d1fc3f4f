"""Two sides compared, as data: a report's table of both, the lines that both have a number for, and the words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.analysis.comparison_side import ComparisonSide
from benchmarks.report.cell_text import column_head, decimals
from benchmarks.report.table import Cell, Table
from benchmarks.report.tidy import tidy
from benchmarks.results.formatting import decimals_needed, difference_ci_text, format_number, join_with_and
from benchmarks.study.training_settings import TrainingDiff

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 8  # rows or numbers in a sentence
HEADS = ("A", "B", "A−B", "95 % interval", "p", "smallest", "")


@dataclass(frozen=True, kw_only=True)
class ComparisonLine:
    """One metric of two rows.

    Args:
        rows: names of A and B.
        first: A's cell, whose ``delta`` is A minus B where it can be tested.
        second: B's.
        protocol_differences: in words, what keeps the two from being compared; empty where nothing does.
        same_model: whether both were measured on the same files.
        training: how the two models' trainings differ; None where it is the same model.
    """

    rows: tuple[str, str]
    first: Cell
    second: Cell
    protocol_differences: tuple[str, ...] = ()
    same_model: bool = False
    training: TrainingDiff | None = None

    @property
    def benchmark(self) -> str:
        """The benchmark."""
        return self.first.column.benchmark

    @property
    def verdict(self) -> str:
        """What can be told."""
        if self.protocol_differences:
            return "not comparable"
        if self.same_model and self.first.value == self.second.value:
            return "unchanged: the same model"
        delta, higher_is_better = self.first.delta, self.first.column.higher_is_better
        if delta is None:
            return "no test: the rows do not share their items, or the metric cannot be computed from them"
        if not delta.significant:
            return "not told apart"
        if higher_is_better is None:
            return "they differ"
        return "A is better" if (delta.value > 0) == higher_is_better else "B is better"

    @property
    def pair(self) -> str:
        """The rows in a sentence."""
        return self.rows[0] if self.rows[0] == self.rows[1] else f"{self.rows[0]} against {self.rows[1]}"

    def texts(self) -> list[str]:
        """What stands under `HEADS`."""
        places, delta = decimals(self.first.column), self.first.delta
        values = [format_number(cell.value, places) for cell in (self.first, self.second)]
        gain = format_number((self.first.value or 0.0) - (self.second.value or 0.0), places, sign=True)
        if delta is None:
            return [*values, "" if self.protocol_differences else gain, "", "", "", self.verdict]
        smallest = format_number(
            delta.min_detectable_difference, decimals_needed(delta.min_detectable_difference, places)
        )
        return [
            *values,
            gain,
            difference_ci_text(delta.ci_low, delta.ci_high, places),
            f"{delta.p_adjusted:.2g}",
            smallest,
            self.verdict,
        ]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides and what can be told of them.

    Args:
        sides: A and B.
        table: the rows of both, those of A with their differences to B's.
        lines: the metrics that both have.
        left_out: in words, what was not compared, and why.
        context: in words, how the two sides differ besides their numbers: code, versions, machine, study file.
    """

    sides: tuple[ComparisonSide, ComparisonSide]
    table: Table
    lines: tuple[ComparisonLine, ...]
    left_out: tuple[str, ...] = ()
    context: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """``A: …, B: …``."""
        return f"A: {self.sides[0].name}, B: {self.sides[1].name}"

    @property
    def answer(self) -> str:
        """How many numbers are comparable, and which of them moved by more than noise."""
        comparable = [line for line in self.lines if not line.protocol_differences]
        moved = [line for line in comparable if line.first.delta and line.first.delta.significant]
        names = [f"{line.pair} on {line.benchmark} {line.first.column.label}" for line in moved]
        if len(names) > _NAMED:
            names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"]
        said = f"{len(comparable)} of {len(self.lines)} numbers are comparable"
        return f"{said}; beyond noise moved {join_with_and(names)}." if names else f"{said}; none moved beyond noise."

    def tidy(self) -> pd.DataFrame:
        """The table as a report's ``table.csv`` has it, with the verdicts in the lines of A."""
        import pandas as pd

        told = pd.DataFrame(
            [
                {
                    "model": line.first.row,
                    "benchmark": line.benchmark,
                    "metric": line.first.column.metric,
                    "same_model": line.same_model,
                    "protocol_differences": "; ".join(line.protocol_differences) or None,
                    "training": (line.training.in_short or None) if line.training else None,
                    "confounders": ("; ".join(line.training.uneven) or None) if line.training else None,
                    "verdict": line.verdict,
                }
                for line in self.lines
            ]
        )
        return tidy(self.table).drop(columns="notes").merge(told, how="left", on=["model", "benchmark", "metric"])

    def texts(self) -> dict[str, pd.DataFrame]:
        """``A …, B …`` → a line for each metric of these two rows, as people read it."""
        import pandas as pd

        found: dict[str, list[ComparisonLine]] = {}
        for line in self.lines:
            found.setdefault(f"A {line.rows[0]}, B {line.rows[1]}", []).append(line)
        return {
            title: pd.DataFrame(
                [line.texts() for line in lines],
                index=[column_head(line.first.column) for line in lines],
                columns=[*HEADS],
            )
            for title, lines in found.items()
        }

    def said(self) -> list[str]:
        """What stands below: what is not comparable, how trainings differ, what was left out, and the context."""
        apart = {
            f"{line.pair} on {line.benchmark}": "; ".join(line.protocol_differences)
            for line in self.lines
            if line.protocol_differences
        }
        return [
            *(f"{what} was measured otherwise: {why}." for what, why in apart.items()),
            *self.trained(),
            *(f"Not compared: {reason}." for reason in self.left_out),
            *self.context,
            *self.about_tests(),
        ]

    def trained(self) -> list[str]:
        """In words, how the trainings of the models differ, warnings last; what several pairs share is said once."""
        told: dict[str, dict[str, list[str]]] = {}  # sentence → rows → benchmarks
        for last in (False, True):
            for line in {(line.rows, line.benchmark): line for line in self.lines if line.training}.values():
                assert line.training is not None
                for sentence in line.training.warnings if last else line.training.sentences:
                    told.setdefault(sentence, {}).setdefault(line.pair, []).append(line.benchmark)
        return [
            f"{abbreviate_names(f'{rows} on {join_with_and(benchmarks)}' for rows, benchmarks in where.items())}: "
            f"{sentence}"
            for sentence, where in told.items()
        ]

    def about_tests(self) -> list[str]:
        """What p and smallest mean; nothing where nothing was tested."""
        if not self.table.comparisons:
            return []
        return [
            f"p: paired tests over images, Holm-corrected for {self.table.comparisons}; intervals are each for itself. "
            "smallest: the smallest true difference that a single such test would show four times in five, by the "
            "spread that was seen. The noise of training is in none of them."
        ]


def abbreviate_names(names: Iterable[str]) -> str:
    """Names in a sentence; of many the first ones, and how many more there are."""
    found = [*names]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more
