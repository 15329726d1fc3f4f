"""Two rows compared, as data: the lines of metrics that both have, and what can be told of them in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Metric
from benchmarks.statistics import LEVEL, Difference
from benchmarks.trained import Apart
from benchmarks.trust.sides import Side
from benchmarks.wording import listed

_NAMED = 8  # rows or numbers in a sentence


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of two rows.

    Args:
        rows: names of A and B.
        benchmark: the benchmark.
        name: of the metric.
        first: A's metric.
        second: B's.
        unlike: in words, what keeps the two from being compared; empty where nothing does.
        difference: A minus B; None where it cannot be tested.
        p_value: corrected for all lines.
        same_model: whether both were measured on the same files.
        training: how the two models' trainings differ; None where it is the same model.
    """

    rows: tuple[str, str]
    benchmark: str
    name: str
    first: Metric
    second: Metric
    unlike: tuple[str, ...] = ()
    difference: Difference | None = None
    p_value: float = 1.0
    same_model: bool = False
    training: Apart | None = None

    @property
    def unchanged(self) -> bool:
        """Whether the same model has the same number, of which there is nothing to test."""
        return self.same_model and self.first.value == self.second.value

    @property
    def verdict(self) -> str:
        """What can be told."""
        if self.unlike:
            return "not comparable"
        if self.unchanged:
            return "unchanged: the same model"
        if self.difference is None:
            return "no test: the rows do not share their items, or the metric cannot be computed from them"
        if self.p_value >= LEVEL:
            return "not told apart"
        if self.first.higher_is_better is None:
            return "they differ"
        return "A is better" if (self.difference.value > 0) == self.first.higher_is_better else "B is better"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides and what can be told of them.

    Args:
        sides: A and B.
        lines: the metrics that both have.
        left_out: in words, what was not compared, and why.
        context: in words, how the two sides differ besides their numbers: code, versions, machine, study file.
    """

    sides: tuple[Side, Side]
    lines: tuple[Line, ...]
    left_out: tuple[str, ...]
    context: tuple[str, ...]

    @property
    def title(self) -> str:
        """``A: …, B: …``."""
        return f"A: {self.sides[0].name}, B: {self.sides[1].name}"

    @property
    def answer(self) -> str:
        """How many numbers are comparable, and which of them moved by more than noise."""
        comparable = [line for line in self.lines if not line.unlike]
        moved = [line for line in comparable if line.difference is not None and line.p_value < LEVEL]
        names = [f"{_rows(line)} on {line.benchmark} {line.first.label}" for line in moved]
        if len(names) > _NAMED:
            names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"]
        said = f"{len(comparable)} of {len(self.lines)} numbers are comparable"
        return f"{said}; beyond noise moved {listed(names)}." if names else f"{said}; none moved beyond noise."

    def said(self) -> list[str]:
        """The answer where there is more than one pair of rows, then what was left out, then the context."""
        left_out = [f"Not compared: {reason}." for reason in self.left_out]
        return [self.answer, *self.trained(), *left_out, *self.context]

    def trained(self) -> list[str]:
        """In words, how the trainings of the models differ, warnings last; what several pairs share is said once."""
        told: dict[str, dict[str, list[str]]] = {}  # sentence → rows → benchmarks
        for last in (False, True):
            for line in {(line.rows, line.benchmark): line for line in self.lines if line.training}.values():
                assert line.training is not None
                for sentence in line.training.warnings if last else line.training.sentences:
                    told.setdefault(sentence, {}).setdefault(_rows(line), []).append(line.benchmark)
        return [
            f"{few(f'{rows} on {listed(benchmarks)}' for rows, benchmarks in where.items())}: {sentence}"
            for sentence, where in told.items()
        ]

    def by_rows(self) -> dict[tuple[str, str], list[Line]]:
        """The lines of each pair of rows."""
        found: dict[tuple[str, str], list[Line]] = {}
        for line in self.lines:
            found.setdefault(line.rows, []).append(line)
        return found

    def unlike(self) -> list[str]:
        """In words, which numbers are not comparable, and why."""
        found = {f"{_rows(line)} on {line.benchmark}": "; ".join(line.unlike) for line in self.lines if line.unlike}
        return [f"{what} was measured otherwise: {why}." for what, why in found.items()]


def _rows(line: Line) -> str:
    return line.rows[0] if line.rows[0] == line.rows[1] else f"{line.rows[0]} against {line.rows[1]}"


def few(names: Iterable[str]) -> str:
    """Names in a sentence; of many the first ones, and how many more there are."""
    found = [*names]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more
