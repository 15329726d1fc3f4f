"""A comparison of two sides as data: a report's table of both, the lines with a number on both sides, and the text."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.report.differences import compare_models
from benchmarks.report.load_results import MissingValue, ReportSource, read_source, stale_results
from benchmarks.report.measures import score_frame
from benchmarks.report.notes import unread_differences
from benchmarks.report.scores import seed_tables, set_gains
from benchmarks.report.table import Cell, Table
from benchmarks.report.training_settings import TrainingDiff, diff_training, training_of_result
from benchmarks.results.contradictions import contradictions
from benchmarks.results.formatting import commit_text, join_with_and
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.protocol import INPUT_PREFIX, describe_differences, name_one_sided, ranked_together
from benchmarks.results.results import Result
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK, RECORD_FILE, RowRecord
from benchmarks.tasks.listing import parts
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Result]
_A, _B = "A", "B"  # both results may have the same model name
_MAX_LISTED = 4  # changed lines of a study file
_MAX_NAMES = 8  # models or numbers in a sentence
_KINDS = TESTED, UNCHANGED, INCOMPARABLE, UNTESTED = "tested", "unchanged", "not comparable", "without a test"
HEADERS = ("A", "B", "A − B", "95 % interval", "corrected p", "MDD", "verdict")


@dataclass(frozen=True, kw_only=True)
class ComparisonSide:
    """The results of one directory.

    Args:
        name: a study's name, otherwise the directory as the user wrote it.
        rows: model → benchmark → result; for a study only results of its current file.
        gaps: as text, the missing results of a study.
        facts: software, machine and time of the results, name → value.
        study: a study's file; otherwise empty.
    """

    name: str
    rows: Mapping[str, Row]
    gaps: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    study: str = ""


def read_side(path: str, field: str) -> ComparisonSide:
    """Read a study, or results.

    Raises:
        UserError: no such directory, no results in it, or one that cannot be read.
    """
    rows: dict[str, dict[str, Result]] = {}
    gaps, name, machine, text, what = [], path, dict[str, str](), "", "is up to date"
    if (Path(path) / RECORD_FILE).is_file():
        source = read_source(path)
        for (row, benchmark), outcome in source.outcomes.items():
            if isinstance(outcome, Result):
                rows.setdefault(row, {})[benchmark] = dataclasses.replace(outcome, model_name=row)
            elif outcome.kind != "not applicable" and outcome.reason != EXCLUDED_FROM_BENCHMARK:
                gaps.append(f"{row} on {benchmark}: {outcome.kind}: {outcome.reason}")
        assert source.study is not None
        machine = {f"machine's {name}": str(value) for name, value in source.study.machine.items()}
        name, text, what = f"{source.title} ({path})", source.study.text, "belongs to the current study"
    else:
        found = find_results_by_row(path, field)
        old = stale_results(result for own in found.values() for result in own.values())
        for row, own in found.items():
            for benchmark, result in own.items():
                if result.path in old:
                    gaps.append(f"{result.model_name} on {benchmark}: {old[result.path]}")
                else:
                    rows.setdefault(row, {})[benchmark] = result
    if not rows:
        raise UserError(f"{field}: {path}: no result {what} ({'; '.join(gaps[:1])})")
    results = [result for own in rows.values() for result in own.values()]
    versions: dict[str, set[str]] = {}
    for result in results:
        for library, version in result.versions.items():
            versions.setdefault(library, set()).add(version)
    days = sorted(result.created[:10] for result in results)
    commits = sorted({commit_text(result.git) or "not known" for result in results})
    facts = {"measured on": " to ".join(dict.fromkeys([days[0], days[-1]])), "commit": ", ".join(commits)}
    facts |= {library: ", ".join(sorted(known)) for library, known in versions.items()}
    return ComparisonSide(name=name, rows=rows, gaps=tuple(gaps), facts=facts | machine, study=text)


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
        unread: A's and B's share of answers not read as text, if they differ significantly.
    """

    rows: tuple[str, str]
    first: Cell
    second: Cell
    protocol_differences: tuple[str, ...] = ()
    same_model: bool = False
    training: TrainingDiff | None = None
    unread: str = ""

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.first.column.benchmark

    @property
    def kind(self) -> str:
        """Whether there is a test, or the reason in short."""
        if self.protocol_differences:
            return INCOMPARABLE
        if self.same_model and self.first.value == self.second.value:
            return UNCHANGED
        return TESTED if self.first.delta else UNTESTED

    @property
    def verdict(self) -> str:
        """Whether A or B is better, or why there is no test."""
        delta, ranked = self.first.delta, self.first.column.ranked
        if self.kind == UNCHANGED:
            return "unchanged: the same model"
        if self.kind == INCOMPARABLE or delta is None:
            untested = "no test: the models do not have scores for the same items, or one has no interval"
            return INCOMPARABLE if self.kind == INCOMPARABLE else untested
        if not delta.significant or not ranked:
            return "significantly different" if delta.significant else "not significant"
        winner = _A if (delta.value > 0) == self.first.column.higher_is_better else _B
        credit = ", not credited to the images" if delta.credited is False else ""
        return f"{winner} is better{credit}" + (f"; answers not read: {self.unread}" if self.unread else "")

    @property
    def pair(self) -> str:
        """The models in a sentence."""
        return self.rows[0] if self.rows[0] == self.rows[1] else f"{self.rows[0]} against {self.rows[1]}"

    def texts(self) -> list[str]:
        """The line's cells in the order of `HEADERS`."""
        delta, values = self.first.delta, [self.first.number, self.second.number]
        if delta is None:
            difference = (self.first.value or 0.0) - (self.second.value or 0.0)
            text = "" if self.protocol_differences else self.first.column.text(difference, sign=True)
            return [*values, text, "", "", "", self.verdict]
        return [*values, delta.number, delta.interval, f"{delta.p_adjusted:.2g}", delta.detectable, self.verdict]


def comparison_lines(
    pairs: Sequence[tuple[Row, Row]], *, all_metrics: bool = False
) -> tuple[Table, list[ComparisonLine]]:
    """A report's table of both models of each pair, A compared with B, and a line for each common metric.

    Equal results of the same model are not tested.
    """
    rows: list[RowRecord] = []
    outcomes: dict[tuple[str, str], Result | MissingValue] = {}
    pairs = [pair for pair in pairs if all(pair)]
    benchmarks = tuple(dict.fromkeys(name for pair in pairs for name in pair[0] if name in pair[1]))
    for pair in pairs:
        names = [f"{letter} {next(iter(row.values())).model_name}" for letter, row in zip((_A, _B), pair, strict=True)]
        rows += [RowRecord(name=names[0], encoder="", baseline=names[1]), RowRecord(name=names[1], encoder="")]
        for name, row in zip(names, pair, strict=True):
            for benchmark in benchmarks:
                result = row.get(benchmark)
                missing = MissingValue(kind="missing", reason=missing_reason(result))
                outcomes[name, benchmark] = result if result and result.metrics else missing
    source = ReportSource(
        title="", question="", notes=(), rows=tuple(rows), benchmarks=benchmarks, outcomes=outcomes, steps=(),
        study=None, directory=Path(),
    )  # fmt: skip
    items = ItemScores()
    table = seed_tables(source, items)[all_metrics]
    set_gains(table, items)
    unchanged = lambda first, second: first.value == second.value and _same_model(first, second)  # noqa: E731
    compare_models([table], items, ranked=False, untested=unchanged)
    return table, [line for place in range(0, len(rows), 2) for line in _lines(table, place)]


def _lines(table: Table, place: int) -> Iterator[ComparisonLine]:
    trainings: dict[str, TrainingDiff] = {}
    for column in table.columns:
        cells = column.cells[place : place + 2]
        if any(cell.value is None for cell in cells):
            continue
        first, second = (cell.results[0] for cell in cells)
        models, same_model = repr((first.model, second.model)), _same_model(*cells)
        if not same_model and models not in trainings:
            trainings[models] = diff_training(training_of_result(first), training_of_result(second))
        protocols = [
            {name: value for name, value in result.protocol.items() if not name.startswith(INPUT_PREFIX)}
            for result in (first, second)
        ]
        same_protocol = ranked_together(first.protocol, second.protocol)
        yield ComparisonLine(
            rows=(first.model_name, second.model_name),
            first=cells[0],
            second=cells[1],
            protocol_differences=() if same_protocol else tuple(describe_differences(*protocols)),
            same_model=same_model,
            training=trainings.get(models),
            unread=unread_differences(table, cells[:1], {cells[1].row}),
        )


def _same_model(first: Cell, second: Cell) -> bool:
    one, other = (cell.results[0].model.get("hash") for cell in (first, second))
    return bool(one) and one == other


def missing_reason(result: Result | None) -> str:
    """Why a result has no numbers."""
    if result is None:
        return "no result"
    if result.failure_reason:
        return f"failed: {result.failure_reason}"
    return "; ".join(dict.fromkeys(result.missing_metrics.values()))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides and their comparison.

    Args:
        sides: A and B.
        table: the models of both, A's with their differences from B's.
        lines: the common metrics.
        left_out: as text, the excluded results with the reasons.
    """

    sides: tuple[ComparisonSide, ComparisonSide]
    table: Table
    lines: tuple[ComparisonLine, ...]
    left_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """``A: …, B: …``."""
        return f"A: {self.sides[0].name}, B: {self.sides[1].name}"

    @property
    def answer(self) -> str:
        """How many numbers were tested, how many were not, and those that differ significantly."""
        counts = Counter(line.kind for line in self.lines)
        text = ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind])
        text = f"{len(self.lines)} numbers: {text}"
        significant = [line for line in self.lines if line.first.delta and line.first.delta.significant]
        names = [f"{line.pair} on {line.benchmark} {line.first.column.label}" for line in significant]
        if len(names) > _MAX_NAMES:
            names = [*names[: _MAX_NAMES - 1], f"{len(names) - _MAX_NAMES + 1} more"]
        different = f"; significantly different: {join_with_and(names) if names else 'none'}"
        return f"{text}{different if counts[TESTED] else ''}."

    def frame(self) -> pd.DataFrame:
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
        frame = score_frame(self.table).drop(columns=["notes", "resolution", "tokens"])
        return frame.merge(verdicts, how="left", on=["model", "benchmark", "metric"])

    def texts(self) -> dict[str, pd.DataFrame]:
        """``A: …, B: …`` → a readable line for each metric of these two models."""
        import pandas as pd

        by_pair: dict[str, list[ComparisonLine]] = {}
        for line in self.lines:
            by_pair.setdefault(f"A: {line.rows[0]}, B: {line.rows[1]}", []).append(line)
        return {
            title: pd.DataFrame(
                [line.texts() for line in lines],
                index=[line.first.column.title + line.first.column.arrow for line in lines],
                columns=[*HEADERS],
            )
            for title, lines in by_pair.items()
        }

    def contradictions(self) -> Iterator[str]:
        """A sentence for each number that differs although the model, the protocol and the answers do not."""
        for line in {(line.rows, line.benchmark): line for line in self.lines if line.same_model}.values():
            names = ("A", "B") if line.rows[0] == line.rows[1] else line.rows
            yield from contradictions(dict(zip(names, (line.first.results[0], line.second.results[0]), strict=True)))

    def notes(self) -> list[str]:
        """The notes below the table: incomparable results, training differences, omissions, context, and tests."""
        incomparable = {
            f"{line.pair} on {line.benchmark}": "; ".join(name_one_sided(line.protocol_differences))
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
            *self.contradictions(),
            *self._training_notes(),
            *(f"Not compared: {reason}." for reason in self.left_out),
            *self.context(),
            *([tests] if self.table.comparisons else []),
        ]

    def _training_notes(self) -> Iterator[str]:
        """The training differences, warnings last; a difference of several pairs is listed once."""
        by_sentence: dict[str, dict[str, list[str]]] = {}  # sentence → models → benchmarks
        lines = {(line.rows, line.benchmark): line for line in self.lines if line.training}.values()
        trained = [(line, line.training) for line in lines if line.training]
        sentences = [(line, sentence) for line, training in trained for sentence in training.sentences]
        sentences += [(line, warning) for line, training in trained for warning in training.warnings]
        for line, sentence in sentences:
            by_sentence.setdefault(sentence, {}).setdefault(line.pair, []).append(line.benchmark)
        for sentence, pairs in by_sentence.items():
            names = abbreviate_names(f"{pair} on {join_with_and(benchmarks)}" for pair, benchmarks in pairs.items())
            yield f"{names}: {sentence}"

    def context(self) -> Iterator[str]:
        """Differences of the two sides other than numbers: code, versions, machine, sizes, study file."""
        first, second = self.sides
        if changed := name_one_sided(describe_differences(first.facts, second.facts)):
            yield f"The runs (A against B): {'; '.join(changed)}."
        for letter, side in ((_A, first), (_B, second)):
            results = [(each.benchmark, each.model_name, each) for row in side.rows.values() for each in row.values()]
            yield from (f"{letter} has a part of {part}." for part in parts(results))
        if first.study and second.study and first.study != second.study:
            lines = [
                line
                for line in difflib.ndiff(first.study.splitlines(), second.study.splitlines())
                if line[:2] in {"- ", "+ "}
            ]
            changed = [f"{_A if line[0] == '-' else _B} `{line[2:].strip()}`" for line in lines if line[2:].strip()]
            more = f" and {len(changed) - _MAX_LISTED} more lines" if len(changed) > _MAX_LISTED else ""
            if changed:
                yield f"The study files differ: {', '.join(changed[:_MAX_LISTED])}{more}."


def abbreviate_names(names: Iterable[str]) -> str:
    """The first names in a sentence, and the number of others."""
    listed = [*names]
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return ", ".join(listed[:_MAX_NAMES]) + more
