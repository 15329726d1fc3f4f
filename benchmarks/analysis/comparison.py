"""A comparison of two sides as data: a report's table of both, the lines with a number on both sides, and the text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.analysis.comparison_side import ComparisonSide
from benchmarks.report.cell_text import column_header, decimals
from benchmarks.report.table import Cell, Table
from benchmarks.report.tidy import tidy
from benchmarks.results.formatting import decimals_needed, difference_ci_text, format_number, join_with_and
from benchmarks.study.training_settings import TrainingDiff

if TYPE_CHECKING:
    import pandas as pd

_MAX_NAMES = 8  # models or numbers in a sentence
HEADERS = ("A", "B", "A − B", "95 % interval", "corrected p", "MDD", "verdict")


@dataclass(frozen=True, kw_only=True)
class ComparisonLine:
    """One metric of two models.

    Args:
        rows: names of A and B.
        first: A's cell, whose ``delta`` is A minus B; no delta without a test.
        second: B's cell.
        protocol_differences: as text, differences that make the two incomparable.
        same_model: whether both results come from the same model files.
        training: differences of the two models' training settings; None for the same model.
    """

    rows: tuple[str, str]
    first: Cell
    second: Cell
    protocol_differences: tuple[str, ...] = ()
    same_model: bool = False
    training: TrainingDiff | None = None

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.first.column.benchmark

    @property
    def verdict(self) -> str:
        """Whether A or B is better, or why there is no test."""
        if self.protocol_differences:
            return "not comparable"
        if self.same_model and self.first.value == self.second.value:
            return "unchanged: the same model"
        delta, higher_is_better = self.first.delta, self.first.column.higher_is_better
        if delta is None:
            return "no test: the models do not share their items, or the metric cannot be computed from them"
        if not delta.significant:
            return "not significant"
        if higher_is_better is None:
            return "significantly different"
        return "A is better" if (delta.value > 0) == higher_is_better else "B is better"

    @property
    def pair(self) -> str:
        """The models in a sentence."""
        return self.rows[0] if self.rows[0] == self.rows[1] else f"{self.rows[0]} against {self.rows[1]}"

    def texts(self) -> list[str]:
        """The line's cells in the order of `HEADERS`."""
        places, delta = decimals(self.first.column), self.first.delta
        values = [format_number(cell.value, places) for cell in (self.first, self.second)]
        difference = format_number((self.first.value or 0.0) - (self.second.value or 0.0), places, sign=True)
        if delta is None:
            return [*values, "" if self.protocol_differences else difference, "", "", "", self.verdict]
        detectable = delta.min_detectable_difference
        return [
            *values,
            difference,
            difference_ci_text(delta.ci_low, delta.ci_high, places),
            f"{delta.p_adjusted:.2g}",
            format_number(detectable, decimals_needed(detectable, places)),
            self.verdict,
        ]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides and their comparison.

    Args:
        sides: A and B.
        table: the models of both, A's with their differences from B's.
        lines: the common metrics.
        left_out: as text, the excluded results with the reasons.
        context: as text, differences of the two sides other than numbers: code, versions, machine, study file.
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
        """The number of comparable metrics, and those with a significant difference."""
        comparable = [line for line in self.lines if not line.protocol_differences]
        significant = [line for line in comparable if line.first.delta and line.first.delta.significant]
        names = [f"{line.pair} on {line.benchmark} {line.first.column.label}" for line in significant]
        if len(names) > _MAX_NAMES:
            names = [*names[: _MAX_NAMES - 1], f"{len(names) - _MAX_NAMES + 1} more"]
        counts = f"{len(comparable)} of {len(self.lines)} numbers are comparable"
        return f"{counts}; significantly different: {join_with_and(names) if names else 'none'}."

    def tidy(self) -> pd.DataFrame:
        """The table in the form of a report's ``table.csv``, with the verdicts in the lines of A."""
        import pandas as pd

        verdicts = pd.DataFrame(
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
        return tidy(self.table).drop(columns="notes").merge(verdicts, how="left", on=["model", "benchmark", "metric"])

    def texts(self) -> dict[str, pd.DataFrame]:
        """``A: …, B: …`` → a readable line for each metric of these two models."""
        import pandas as pd

        by_pair: dict[str, list[ComparisonLine]] = {}
        for line in self.lines:
            by_pair.setdefault(f"A: {line.rows[0]}, B: {line.rows[1]}", []).append(line)
        return {
            title: pd.DataFrame(
                [line.texts() for line in lines],
                index=[column_header(line.first.column) for line in lines],
                columns=[*HEADERS],
            )
            for title, lines in by_pair.items()
        }

    def notes(self) -> list[str]:
        """The notes below the table: incomparable results, training differences, omissions, context, and tests."""
        incomparable = {
            f"{line.pair} on {line.benchmark}": "; ".join(line.protocol_differences)
            for line in self.lines
            if line.protocol_differences
        }
        tests = (
            f"Corrected p: paired tests over images, Holm-corrected for {self.table.comparisons}; intervals are not "
            "corrected. MDD: minimum detectable difference, the true difference that a single such test detects with "
            "power 0.8. None of them includes seed variance."
        )
        return [
            *(f"{name} was measured under different settings: {why}." for name, why in incomparable.items()),
            *self._training_notes(),
            *(f"Not compared: {reason}." for reason in self.left_out),
            *self.context,
            *([tests] if self.table.comparisons else []),
        ]

    def _training_notes(self) -> list[str]:
        """The training differences, warnings last; a difference of several pairs is listed once."""
        by_sentence: dict[str, dict[str, list[str]]] = {}  # sentence → models → benchmarks
        lines = {(line.rows, line.benchmark): line for line in self.lines if line.training}.values()
        trained = [(line, line.training) for line in lines if line.training]
        sentences = [(line, sentence) for line, training in trained for sentence in training.sentences]
        sentences += [(line, warning) for line, training in trained for warning in training.warnings]
        for line, sentence in sentences:
            by_sentence.setdefault(sentence, {}).setdefault(line.pair, []).append(line.benchmark)
        return [
            f"{abbreviate_names(f'{pair} on {join_with_and(benchmarks)}' for pair, benchmarks in pairs.items())}: "
            f"{sentence}"
            for sentence, pairs in by_sentence.items()
        ]


def abbreviate_names(names: Iterable[str]) -> str:
    """The first names in a sentence, and the number of others."""
    listed = [*names]
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return ", ".join(listed[:_MAX_NAMES]) + more
