"""Read what a report is made of: a study's directory, or any directory of result files.

Only what belongs to the study *as it stands now* is read: a result whose step has not succeeded under the
study's current key counts as missing, with the reason. Where the steps have left no records at all, as where results
were copied, results are read as they lie, and a note says so.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.results.protocol import ranking_key
from benchmarks.results.results import Result, enclosing_study, has_items, read_result, reject_duplicates, result_files
from benchmarks.study.step_state import StepRecord, read_record
from benchmarks.study.study_record import RECORD_FILE, RowRecord, StudyRecord, read_study_record
from benchmarks.study.trash import describe_acceptance
from benchmarks.tasks.mllm.judge import NO_JUDGE
from clips.core.artifact import lexical_abspath
from clips.errors import UserError, unknown_name_error

_LOOKED_AT = 12
NO_STEP_RECORDS_NOTE = (
    "The study's directory has results but no records of its steps: the results are shown as found, and it "
    "is unknown whether they belong to the current study file."
)
MissingReason = Literal["failed", "invalid", "not applicable", "no judge", "missing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MissingValue:
    """Why a row has no number on a benchmark.

    Args:
        kind: it was tried and failed, its result file is invalid, it makes no sense for this row, is answered but not
            marked for want of a judge, or has not run (or not since a change).
        reason: one line for the reader.
    """

    kind: MissingReason
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSource:
    """Everything that a report shows, before any statistics.

    Args:
        title: of the page.
        question: that the study asks; may be empty.
        notes: lines that the reader must know (what the data are in for).
        rows: in the order of the table.
        benchmarks: in the order of the columns.
        outcomes: (row, benchmark) → result or gap.
        steps: those that ran, in the order in which they began.
        study: the record of the study; None for a bare directory of results.
        directory: where it was read from.
    """

    title: str
    question: str
    notes: tuple[str, ...]
    rows: tuple[RowRecord, ...]
    benchmarks: tuple[str, ...]
    outcomes: Mapping[tuple[str, str], Result | MissingValue]
    steps: tuple[StepRecord, ...]
    study: StudyRecord | None
    directory: Path

    def results(self, benchmark: str) -> dict[str, Result]:
        """Row → result, of the rows that have numbers on a benchmark."""
        found = {row.name: self.outcomes.get((row.name, benchmark)) for row in self.rows}
        return {name: result for name, result in found.items() if isinstance(result, Result)}

    def protocol_groups(self, results: Mapping[str, Result]) -> dict[str, int]:
        """Row → 0 where it was measured as most rows were, among equals as a baseline or else the first; 1, 2, … for
        other protocols, as they come."""
        rows: dict[str, list[str]] = {}
        for name, result in results.items():
            rows.setdefault(ranking_key(result.protocol), []).append(name)
        baselines = {row.baseline for row in self.rows}
        alike = sorted(rows.values(), key=lambda names: (-len(names), baselines.isdisjoint(names)))
        ordered = [*alike[:1], *(names for names in rows.values() if names is not alike[0])]
        return {name: group for group, names in enumerate(ordered) for name in names}


def read_source(directory: str | Path, *, baseline: str | None = None) -> ReportSource:
    """Read a study's directory, or a directory of result files.

    Args:
        directory: holds ``study.json``, or ``results/``, or ``<row>/<benchmark>.json``.
        baseline: the row that the others are compared with; for a study, the study's own where None.

    Raises:
        UserError: nothing to report there, a study's record that cannot be read, or two results of the same row on the
            same benchmark.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{directory}: no such directory")
    is_study = (root / RECORD_FILE).is_file()
    source = _study_source(root, read_study_record(root)) if is_study else _plain_source(root)
    return _with_baseline(source, baseline) if baseline else source


def stale_results(results: Iterable[Result]) -> dict[Path, str]:
    """File → why, of those results that are in a study and do not belong to it as it stands now."""
    files: dict[Path, list[Result]] = {}
    for result in results:
        if result.path is not None:
            files.setdefault(enclosing_study(result.path), []).append(result)
    return {
        path: why
        for root, mine in files.items()
        if (root / RECORD_FILE).is_file()
        for path, why in _out_of_date(read_source(root), mine)
    }


def _out_of_date(source: ReportSource, results: Iterable[Result]) -> Iterator[tuple[Path, str]]:
    told = {
        source.directory / cell.result: source.outcomes[row.name, benchmark]
        for row in source.rows
        for benchmark, cell in row.cells.items()
    }
    for result in results:
        assert result.path is not None
        found = told.get(lexical_abspath(result.path))
        if found is None:
            yield result.path, "the study no longer contains its model"
        elif isinstance(found, MissingValue) and (
            found.kind == "missing" or (found.kind == "failed" and result.status == "ok")
        ):
            yield result.path, found.reason


def limit_rows(source: ReportSource) -> ReportSource:
    """The source with as many rows as can be looked at one by one: of the first seed, and not more than a dozen."""
    first = {row.but_for_seed: row for row in reversed(source.rows)}
    rows = [row for row in source.rows if row is first[row.but_for_seed]]
    return dataclasses.replace(source, rows=tuple(rows[:_LOOKED_AT]))


def _with_baseline(source: ReportSource, baseline: str) -> ReportSource:
    names = [row.name for row in source.rows]
    if baseline not in names:
        raise unknown_name_error(baseline, names, "baseline row")
    rows = tuple(dataclasses.replace(row, baseline=None if row.name == baseline else baseline) for row in source.rows)
    return dataclasses.replace(source, rows=rows)


def _study_source(root: Path, study: StudyRecord) -> ReportSource:
    records = {name: read_record(root, name) for name in study.steps}
    outcomes = {
        (row.name, benchmark): _outcome(root, study, row, benchmark, records)
        for row in study.rows
        for benchmark in study.benchmarks
    }
    copied = not any(records.values()) and any(isinstance(outcome, Result) for outcome in outcomes.values())
    ran = sorted((record for record in records.values() if record), key=lambda record: record.started)
    return ReportSource(
        title=study.title or study.name,
        question=study.question,
        notes=(*study.notes, *([NO_STEP_RECORDS_NOTE] if copied else []), *_acceptances(ran)),
        rows=study.rows,
        benchmarks=study.benchmarks,
        outcomes=outcomes,
        steps=tuple(ran),
        study=study,
        directory=root,
    )


def _acceptances(ran: Sequence[StepRecord]) -> Iterator[str]:
    """A note for each step whose outputs were made with other settings, code or files than the study has now."""
    for record in ran:
        own = [entry for entry in record.accepted if entry["changed"] not in ([], ["parents"])]  # parents have notes
        yield from (f"{record.name} was {describe_acceptance(entry)}" for entry in own)


def _outcome(
    root: Path, study: StudyRecord, row: RowRecord, benchmark: str, records: Mapping[str, StepRecord | None]
) -> Result | MissingValue:
    if benchmark in row.not_applicable:
        return MissingValue(kind="not applicable", reason=row.not_applicable[benchmark])
    cell = row.cells[benchmark]
    record = records.get(cell.step)
    blocker = _failed_ancestor(study, cell.step, records)
    if blocker is not None:
        return MissingValue(kind="failed", reason=f"step {blocker.name} failed: {_last_line(blocker)}")
    path = root / cell.result
    if record is None and any(records.values()):
        left = "there is a result, but no record of its step" if path.is_file() else "not run yet"
        return MissingValue(kind="missing", reason=left)
    if record is not None and record.key != study.steps[cell.step].key:
        return MissingValue(kind="missing", reason="not run since the study or its code changed")
    if path.is_file():
        return _of_cell(path, cell.result)
    if record is None:
        return MissingValue(kind="missing", reason="not run yet")
    if record.status == "failed":
        return MissingValue(kind="failed", reason=f"step {record.name} failed: {_last_line(record)}")
    return MissingValue(kind="missing", reason=f"its step is {record.status} and has not written it yet")


def _of_cell(path: Path, place: str) -> Result | MissingValue:
    """The result of a study's cell; a file that a copy has put there is another's."""
    row, benchmark = Path(place).parent.name, Path(place).stem
    try:
        result = read_result(path)
        if (result.model_name, result.benchmark) != (row, benchmark):
            found = f"'{result.model_name}' on '{result.benchmark}'"
            raise UserError(f"{path}: row, benchmark: expected '{row}' on '{benchmark}', got {found}")
        return _result_or_gap(result)
    except UserError as error:
        return _invalid(path, error)


def _failed_ancestor(study: StudyRecord, step: str, records: Mapping[str, StepRecord | None]) -> StepRecord | None:
    """The first step that failed, under its current key, among those that ``step`` needs."""
    for parent in study.steps[step].parents:
        record = records.get(parent)
        if record and record.status == "failed" and record.key == study.steps[parent].key:
            return record
        if found := _failed_ancestor(study, parent, records):
            return found
    return None


def _last_line(record: StepRecord) -> str:
    return record.log_tail[-1] if record.log_tail else f"exit status {record.exit_status}"


def _result_or_gap(result: Result) -> Result | MissingValue:
    if result.status == "ok" and result.metrics:
        return result if has_items(result) else dataclasses.replace(result, items=None)
    why = [
        result.missing_metrics[name]
        for name in (*result.primary, *result.missing_metrics)
        if name in result.missing_metrics
    ]
    if result.status == "ok" and why:
        return missing_reason(why[0])
    return MissingValue(kind="failed", reason=result.failure_reason or "no reason was recorded")


def missing_reason(reason: str) -> MissingValue:
    """Why a metric is absent; a missing judge, which could yet come, is told in the cell itself."""
    head, _, rest = reason.partition(": ")
    return (
        MissingValue(kind="no judge", reason=rest)
        if head == NO_JUDGE
        else MissingValue(kind="not applicable", reason=reason)
    )


def _plain_source(root: Path) -> ReportSource:
    files = result_files(root / "results" if (root / "results").is_dir() else root)
    found = [_read(file) for file in files]
    reject_duplicates((row, benchmark, file) for (row, benchmark, _), file in zip(found, files, strict=True))
    if not any(isinstance(outcome, Result) for _, _, outcome in found):
        broken = next((f"; {outcome.reason}" for _, _, outcome in found if isinstance(outcome, MissingValue)), "")
        raise UserError(f"{root}: expected study.json or result files (<row>/<benchmark>.json), found neither{broken}")
    names = list(dict.fromkeys(row for row, _, _ in found))
    benchmarks = tuple(dict.fromkeys(benchmark for _, benchmark, _ in found))
    outcomes: dict[tuple[str, str], Result | MissingValue] = {
        (name, benchmark): MissingValue(kind="missing", reason="no result file")
        for name in names
        for benchmark in benchmarks
    }
    for row, benchmark, outcome in found:
        outcomes[row, benchmark] = _result_or_gap(outcome) if isinstance(outcome, Result) else outcome
    return ReportSource(
        title=root.resolve().name,
        question="",
        notes=(),
        rows=tuple(RowRecord(name=name, encoder=name) for name in names),
        benchmarks=benchmarks,
        outcomes=outcomes,
        steps=(),
        study=None,
        directory=root,
    )


def _read(file: Path) -> tuple[str, str, Result | MissingValue]:
    """Row, benchmark and content of a result file; of one that cannot be read what the file is called, and why."""
    try:
        result = read_result(file)
    except UserError as error:
        return file.parent.name, file.stem, _invalid(file, error)
    return result.model_name, result.benchmark, result


def _invalid(file: Path, error: UserError) -> MissingValue:
    """Why a result file is not believed, its path cut short: it is in a cell of a table."""
    return MissingValue(kind="invalid", reason=str(error).replace(f"{file.parent}/", f"{file.parent.name}/"))


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` in a training's output; empty where there is none. Broken lines are omitted."""
    path = directory / "metrics.jsonl"
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
        if isinstance(entry, dict):
            lines.append(entry)
    return lines
