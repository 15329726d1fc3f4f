"""Read the input of a report: a study's directory, directories of result files, tables of items.

A study's result counts as missing, with the reason, unless its step succeeded under the study's current key. If there
are no step records at all, because the results were copied, all results are read and a note says so.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.exchange.imported import Imported, seed_suffix, tool_text
from benchmarks.exchange.item_table import SUFFIXES, read_item_tables
from benchmarks.results.formatting import join_or_count, join_with_and
from benchmarks.results.protocol import ranking_keys
from benchmarks.results.results import (
    Result,
    enclosing_study,
    has_items,
    lexical_abspath,
    read_result,
    reject_duplicates,
    result_files,
)
from benchmarks.study.state import LOG_FILE, StepKey, StepRecord, describe_acceptance, read_record, step_directory
from benchmarks.study.study_record import RECORD_FILE, RowRecord, StepPlan, StudyRecord, read_study_record
from benchmarks.tasks.mllm.judge import NO_JUDGE
from clips.commandline.progress import progress_iter
from clips.errors import UserError, unknown_name_error

_MAX_MODELS = 12
_NAMED_STEPS = 3  # in a note; more are counted
NO_STEP_RECORDS_NOTE = (
    "The study's directory has results but no records of its steps: the results are shown as found, and it "
    "is unknown whether they belong to the current study file."
)
OTHER_KIND = "a benchmark of LLaVAs for an encoder, or of encoders for a LLaVA"
MissingReason = Literal["failed", "invalid", "not applicable", "no judge", "missing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MissingValue:
    """Why a model has no number on a benchmark.

    Args:
        kind: the evaluation failed, its result file is invalid, the benchmark is not applicable to the model, the
            answers need a judge, or the evaluation is missing (not run, or not since a change).
        reason: one line for the reader.
        file: with the reason of a failure, relative to the directory of the report.
    """

    kind: MissingReason
    reason: str
    file: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSource:
    """The input of a report, before any statistics.

    Args:
        title: of the page.
        question: the study's research question; may be empty.
        notes: the study's caveats for the reader.
        rows: models in the order of the table.
        benchmarks: in the order of the columns.
        outcomes: (model, benchmark) → result, or why it is missing.
        steps: the records of the steps that ran, by start time.
        study: the record of the study; None for a directory of results.
        directory: the directory that was read.
        model_ids: display name of a model, with and without its seed → its name in files and commands; without an
            entry both are the same.
        benchmark_ids: the same for benchmarks.
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
    model_ids: Mapping[str, str] = dataclasses.field(default_factory=dict)
    benchmark_ids: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def model_id(self, row: str) -> str:
        """A model's name in files and commands."""
        return self.model_ids.get(row, row)

    def benchmark_id(self, benchmark: str) -> str:
        """A benchmark's name in files and commands."""
        return self.benchmark_ids.get(benchmark, benchmark)

    def results(self, benchmark: str) -> dict[str, Result]:
        """Model → result, of the models with numbers on a benchmark."""
        outcomes = {row.name: self.outcomes.get((row.name, benchmark)) for row in self.rows}
        return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Result)}

    def results_with_metric(self, benchmark: str, metric: str) -> dict[str, Result]:
        """Model → result, of the models with a number for one metric of a benchmark."""
        return {name: result for name, result in self.results(benchmark).items() if metric in result.metrics}

    def pairs(self, benchmark: str) -> Iterator[tuple[str, str]]:
        """Each model with a result and its baseline's, or the first model's if the report has no baseline."""
        results = self.results(benchmark)
        first = None if any(row.baseline for row in self.rows) else next(iter(results), None)
        for row in self.rows:
            other = row.baseline or first
            if row.name in results and other in results and other != row.name:
                yield row.name, other

    def is_trained(self, row: str, result: Result) -> bool:
        """Whether the study trained the model of a row's result, whose directory may have another name since."""
        record = next(each for each in self.rows if each.name == row)
        if result.frame is not None or "seed" in result.model:  # a table states seeds of trainings only
            return record.seed is not None
        return ("llava" if measures_llava(result) else "encoder") in record.artifacts

    def protocol_groups(self, results: Mapping[str, Result]) -> dict[str, int]:
        """Model → protocol group.

        Group 0 is the most frequent protocol; of equally frequent ones that of a baseline, else the one with most
        items, else the first. The other protocols are 1, 2, … in order of occurrence.
        """
        by_protocol: dict[str, list[str]] = {}
        keys = ranking_keys([result.protocol for result in results.values()])
        for name, key in zip(results, keys, strict=True):
            by_protocol.setdefault(key, []).append(name)
        baselines = {row.baseline for row in self.rows}
        groups = list(by_protocol.values())

        def order(names: list[str]) -> tuple[int, bool, int]:
            items = max(metric.n for name in names for metric in results[name].metrics.values())
            return -len(names), baselines.isdisjoint(names), -items

        main = min(groups, key=order, default=[])
        ordered = sorted(groups, key=lambda names: names is not main)
        return {name: group for group, names in enumerate(ordered) for name in names}


def read_source(*paths: str | Path, baseline: str | None = None) -> ReportSource:
    """Read a study's directory, directories of result files, tables of items, or several of these as one.

    Args:
        paths: directories that contain ``study.json``, ``results/`` or ``<model>/<benchmark>.json``; and files of
            `benchmarks.exchange.item_table`, which are read as one table.
        baseline: the model that the others are compared with; None for the study's own baselines.

    Raises:
        UserError: no results, an unreadable study record or table, several studies, or two results of one model on one
            benchmark.
    """
    sources, tables = list[ReportSource](), list[Path]()
    for path in map(Path, paths):
        if path.is_dir():
            sources.append(_study_source(path) if (path / RECORD_FILE).is_file() else _plain_source(path))
        elif path.suffix in SUFFIXES:
            tables.append(path)
        elif path.is_file():
            raise UserError(f"{path}: expected a directory, or a table of items, {' or '.join(SUFFIXES)}")
        else:
            raise UserError(f"inputs: {path}: no such file or directory")
    if tables:
        sources.append(source_of_items(read_item_tables(tables), tables[0]))
    source = _join(sources)
    seeded = {row.model: row.name for row in source.rows if row.seed is not None}
    for row in source.rows:
        if row.seed is None and row.name in seeded:  # two rows of one name would get each other's tests
            raise UserError(f"expected the seed of each result of '{row.name}', as '{seeded[row.name]}' has one")
    source = name_by_model(source)
    return with_baseline(source, baseline) if baseline else source


def source_of_items(results: Sequence[Imported], path: Path) -> ReportSource:
    """The input of a report whose results are in memory, of the table ``path``; the seeds of a model make one row."""
    rows = dict[str, RowRecord]()
    outcomes = dict[tuple[str, str], Result | MissingValue]()
    for result, _ in results:
        row = _plain_row(result, result.model["path"])
        rows[row.name] = row
        outcomes[row.name, result.benchmark] = result
    benchmarks = tuple(dict.fromkeys(benchmark for _, benchmark in outcomes))
    nothing = MissingValue(kind="missing", reason="the tables have no line")
    return ReportSource(
        title=path.stem,
        question="",
        notes=(),
        rows=tuple(rows.values()),
        benchmarks=benchmarks,
        outcomes={(row, name): outcomes.get((row, name), nothing) for row in rows for name in benchmarks},
        steps=(),
        study=None,
        directory=path.parent,
    )


def _plain_row(result: Result, model: str) -> RowRecord:
    """The row of a result outside of a study; a table may state its model's seed."""
    seed = result.model.get("seed")
    if seed is None:
        return RowRecord(name=model, encoder=model)
    return RowRecord(name=f"{model} (seed {seed})", encoder=model, seed=int(seed))


def name_by_model(source: ReportSource) -> ReportSource:
    """The source with its rows named without their seeds, if no model has several and it is no study."""
    names = {row.name: row.model for row in source.rows}
    if source.study is not None or len({*names.values()}) < len(names):
        return source
    return dataclasses.replace(
        source,
        rows=tuple(dataclasses.replace(row, name=row.model) for row in source.rows),
        outcomes={(names[row], benchmark): outcome for (row, benchmark), outcome in source.outcomes.items()},
    )


def _join(sources: Sequence[ReportSource]) -> ReportSource:
    """Several sources as one, with the rest of a study, if one is; a model may have results in several."""
    if len(sources) == 1:
        return sources[0]
    studies = [source for source in sources if source.study is not None]
    if len(studies) > 1:
        raise UserError(f"{studies[1].directory}: expected one study, got {studies[0].directory}, too")
    rows, outcomes = dict[str, RowRecord](), dict[tuple[str, str], Result | MissingValue]()
    for source in [*studies, *(source for source in sources if source.study is None)]:
        for row in source.rows:
            rows.setdefault(row.name, row)
        for key, outcome in source.outcomes.items():
            earlier = outcomes.get(key)
            if isinstance(earlier, Result) and isinstance(outcome, Result):
                reject_duplicates((*key, result.path) for result in (earlier, outcome))
            if not isinstance(earlier, Result):
                outcomes[key] = outcome
    benchmarks = dict.fromkeys(name for source in sources for name in source.benchmarks)
    nothing = MissingValue(kind="missing", reason="no result")
    return dataclasses.replace(
        (studies or sources)[0],
        title=" and ".join(dict.fromkeys(source.title for source in sources)),
        notes=tuple(dict.fromkeys(note for source in sources for note in source.notes)),
        rows=tuple(rows.values()),
        benchmarks=tuple(benchmarks),
        outcomes={(row, name): outcomes.get((row, name), nothing) for row in rows for name in benchmarks},
    )


def with_baseline(source: ReportSource, baseline: str) -> ReportSource:
    """The source whose models are compared with a model or row; UserError if it is unknown."""
    by_seed = {row.seed: row.name for row in source.rows if baseline in (row.name, row.model)}
    if not by_seed:
        raise unknown_name_error(baseline, dict.fromkeys(row.model for row in source.rows), "baseline model")
    first = next(iter(by_seed.values()))  # of rows whose seed the baseline lacks
    rows = tuple(
        dataclasses.replace(row, baseline=None if row.name in by_seed.values() else by_seed.get(row.seed, first))
        for row in source.rows
    )
    return dataclasses.replace(source, rows=rows)


def stale_results(results: Iterable[Result]) -> dict[Path, str]:
    """File → reason, of the results inside a study that its current version does not contain."""
    by_study: dict[Path, list[Result]] = {}
    for result in results:
        if result.path is not None:
            by_study.setdefault(enclosing_study(result.path), []).append(result)
    stale: dict[Path, str] = {}
    for root, own in by_study.items():
        if not (root / RECORD_FILE).is_file():
            continue
        source = read_source(root)
        outcomes = {
            source.directory / cell.result: source.outcomes[row.name, benchmark]
            for row in source.rows
            for benchmark, cell in row.cells.items()
        }
        for result in own:
            assert result.path is not None
            outcome = outcomes.get(lexical_abspath(result.path))
            if outcome is None:
                stale[result.path] = "the study no longer contains its model"
            elif isinstance(outcome, MissingValue) and (
                outcome.kind == "missing" or (outcome.kind == "failed" and result.status == "ok")
            ):
                stale[result.path] = outcome.reason
    return stale


def limit_rows(source: ReportSource) -> ReportSource:
    """The source with the first seed of at most 12 models, for sections that show each model by itself."""
    first_seeds = {row.but_for_seed: row for row in reversed(source.rows)}
    rows = [row for row in source.rows if row is first_seeds[row.but_for_seed]]
    return dataclasses.replace(source, rows=tuple(rows[:_MAX_MODELS]))


def _study_source(root: Path) -> ReportSource:
    study = read_study_record(root)
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
        notes=(*study.notes, *([NO_STEP_RECORDS_NOTE] if copied else []), *describe_acceptances(ran)),
        rows=study.rows,
        benchmarks=study.benchmarks,
        outcomes=outcomes,
        steps=tuple(ran),
        study=study,
        directory=root,
    )


def describe_acceptances(ran: Sequence[StepRecord]) -> Iterator[str]:
    """A note for accepted steps whose settings, files or command version have changed since they ran."""
    steps: dict[str, list[str]] = {}
    for record in ran:
        own = [entry for entry in record.accepted if entry["changed"] not in ([], ["parents"])]  # parents have notes
        for entry in own:
            steps.setdefault(describe_acceptance(entry), []).append(record.name)
    for text, names in steps.items():
        shown = names if len(names) <= _NAMED_STEPS else [f"{len(names)} steps ({names[0]} and others)"]
        yield f"{join_with_and(shown)} {'was' if len(names) == 1 else 'were'} {text}"


def _outcome(
    root: Path, study: StudyRecord, row: RowRecord, benchmark: str, records: Mapping[str, StepRecord | None]
) -> Result | MissingValue:
    if benchmark in row.not_applicable:
        return MissingValue(kind="not applicable", reason=row.not_applicable[benchmark])
    cell = row.cells[benchmark]
    record = records.get(cell.step)
    if failed := _failed_ancestor(study, cell.step, records):
        return _failed_step(failed)
    path = root / cell.result
    if record is None and any(records.values()):
        reason = "there is a result, but no record of its step" if path.is_file() else "not run yet"
        return MissingValue(kind="missing", reason=reason)
    if record is not None and not _is_current(study.steps[cell.step], record):
        return MissingValue(kind="missing", reason="not run since the study or the version of its command changed")
    if path.is_file():
        try:
            result = read_result(path)
            expected, stated = (path.parent.name, path.stem), (result.model_name, result.benchmark)
            if stated != expected:  # a copied file
                one, other = (f"'{model}' on '{name}'" for model, name in (expected, stated))
                raise UserError(f"{path}: model_name, benchmark: expected {one}, got {other}")
        except UserError as error:
            return _invalid(path, error)
        return _complete_or_missing(result, root)
    if record is None:
        return MissingValue(kind="missing", reason="not run yet")
    if record.status == "failed":
        return _failed_step(record)
    return MissingValue(kind="missing", reason=f"its step is {record.status} and has not written it yet")


def _failed_ancestor(study: StudyRecord, step: str, records: Mapping[str, StepRecord | None]) -> StepRecord | None:
    """The first failed step, under its current key, among the ancestors of ``step``."""
    for parent in study.steps[step].parents:
        record = records.get(parent)
        if record and record.status == "failed" and _is_current(study.steps[parent], record):
            return record
        if failed := _failed_ancestor(study, parent, records):
            return failed
    return None


def _is_current(plan: StepPlan, record: StepRecord) -> bool:
    """Whether a step's record was written under its current key, and no module of a user's script has changed since."""
    return StepKey(key=plan.key, parts=plan.parts).matches(record)


def _failed_step(record: StepRecord) -> MissingValue:
    last_line = record.log_tail[-1] if record.log_tail else f"exit status {record.exit_status}"
    log = str(step_directory(Path(), record.name) / LOG_FILE)
    return MissingValue(kind="failed", reason=f"step {record.name} failed: {last_line}", file=log)


def _complete_or_missing(result: Result, root: Path) -> Result | MissingValue:
    if result.status == "ok" and result.metrics:
        return result if has_items(result) else dataclasses.replace(result, items=None)
    names = [name for name in (*result.primary, *result.missing_metrics) if name in result.missing_metrics]
    if result.status == "ok" and names:
        return missing_reason(result.missing_metrics[names[0]])
    file = str(result.path.relative_to(root)) if result.path else ""
    return MissingValue(kind="failed", reason=result.failure_reason or "no reason was recorded", file=file)


def missing_reason(reason: str) -> MissingValue:
    """Why a metric is missing: ``no judge`` if a judge could still score it, else ``not applicable``."""
    prefix, _, detail = reason.partition(": ")
    if prefix == NO_JUDGE:
        return MissingValue(kind="no judge", reason=detail)
    return MissingValue(kind="not applicable", reason=reason)


def measuring_tool(result: Result) -> str:
    """``"lmms-eval, version 0.7.3"``; empty for this suite."""
    return tool_text(result.measured_elsewhere) if result.measured_elsewhere else ""


def measures_llava(result: Result) -> bool:
    """Whether a benchmark of LLaVAs was run, not one of encoders."""
    return result.benchmark_type == "mllm" or (result.benchmark_type == "choice" and "prompt" in result.protocol)


def _plain_source(root: Path) -> ReportSource:
    files = result_files(root / "results" if (root / "results").is_dir() else root)
    loaded: list[tuple[str, str, Result | MissingValue]] = []
    rows = dict[str, RowRecord]()
    for file in progress_iter(files, "reading", "results"):
        try:
            result = read_result(file)
            row = _plain_row(result, result.model_name.removesuffix(seed_suffix(result.model.get("seed"))))
            loaded.append((row.name, result.benchmark, result))
        except UserError as error:
            row = RowRecord(name=file.parent.name, encoder=file.parent.name)
            loaded.append((row.name, file.stem, _invalid(file, error)))
        rows.setdefault(row.name, row)
    reject_duplicates((name, benchmark, file) for (name, benchmark, _), file in zip(loaded, files, strict=True))
    if not any(isinstance(outcome, Result) for _, _, outcome in loaded):
        invalid = next((f"; {outcome.reason}" for _, _, outcome in loaded if isinstance(outcome, MissingValue)), "")
        raise UserError(
            f"{root}: expected study.json or result files (<model>/<benchmark>.json), found neither{invalid}; "
            "docs/item-tables.md says how to read other harnesses' scores"
        )
    benchmarks = tuple(dict.fromkeys(benchmark for _, benchmark, _ in loaded))
    kinds: dict[tuple[str, str], set[bool]] = {}  # whether a row's, and a benchmark's, results are of LLaVAs
    for name, benchmark, outcome in loaded:
        # A failed result and a published one do not tell it: they lack a protocol.
        if isinstance(outcome, Result) and outcome.status == "ok" and not outcome.measured_elsewhere:
            kinds.setdefault(("row", name), set()).add(measures_llava(outcome))
            kinds.setdefault(("benchmark", benchmark), set()).add(measures_llava(outcome))
    outcomes: dict[tuple[str, str], Result | MissingValue] = {}
    rows_are_both = any(len(sorts) > 1 for (what, _), sorts in kinds.items() if what == "row")
    for name, benchmark in itertools.product(rows, benchmarks):
        measured, needed = kinds.get(("row", name), set()), kinds.get(("benchmark", benchmark), set())
        # Of an encoder and a LLaVA in one directory, each lacks the other's benchmarks by nature, unless rows are both.
        by_nature = len(measured) == len(needed) == 1 and measured != needed and not rows_are_both
        outcomes[name, benchmark] = (
            MissingValue(kind="not applicable", reason=OTHER_KIND)
            if by_nature
            else MissingValue(kind="missing", reason="no result file")
        )
    for name, benchmark, outcome in loaded:
        outcomes[name, benchmark] = _complete_or_missing(outcome, root) if isinstance(outcome, Result) else outcome
    results = [outcome for *_, outcome in loaded if isinstance(outcome, Result)]
    stale, by_reason = stale_results(results), dict[str, list[str]]()  # the directory may be that of a study
    for result in results:
        if result.path in stale:
            by_reason.setdefault(stale[result.path], []).append(f"{result.model_name} on {result.benchmark}")
    return ReportSource(
        title=root.resolve().name,
        question="",
        notes=tuple(f"Out of date: {join_or_count(each, 'results')}: {why}." for why, each in by_reason.items()),
        rows=tuple(rows.values()),
        benchmarks=benchmarks,
        outcomes=outcomes,
        steps=(),
        study=None,
        directory=root,
    )


def _invalid(file: Path, error: UserError) -> MissingValue:
    """The error of a result file, with a short path that fits into a cell of a table."""
    return MissingValue(kind="invalid", reason=str(error).replace(f"{file.parent}/", f"{file.parent.name}/"))
