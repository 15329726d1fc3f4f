"""One side of a comparison: a row, a directory of results or a study, with what it was made by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.report.load_results import MissingValue, ReportSource, read_source, stale_results
from benchmarks.results.formatting import commit_text
from benchmarks.results.results import Result
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK, RECORD_FILE
from benchmarks.tasks.sizes import parts
from clips.errors import UserError

_LISTED = 4  # of what differs; more say less


@dataclass(frozen=True, kw_only=True)
class ComparisonSide:
    """What was read of a directory.

    Args:
        name: a study's name, otherwise the directory as given.
        rows: row → benchmark → result; of a study only what belongs to it as it stands now.
        gaps: in words, cells of a study that have no number.
        facts: what the results were made by and when, name → value.
        study: a study's file; empty otherwise.
    """

    name: str
    rows: Mapping[str, Mapping[str, Result]]
    gaps: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    study: str = ""


def read_side(path: str, field: str) -> ComparisonSide:
    """Read a study, or results.

    Raises:
        UserError: no such directory, no results in it, or one that cannot be read.
    """
    if (Path(path) / RECORD_FILE).is_file():
        return _of_study(read_source(path), path, field)
    found = find_results_by_row(path, field)
    old = stale_results(result for row in found.values() for result in row.values())
    gaps = [f"{result.model_name} on {result.benchmark}: {old[result.path]}"
            for row in found.values() for result in row.values() if result.path in old]  # fmt: skip
    rows = {
        name: {benchmark: result for benchmark, result in row.items() if result.path not in old}
        for name, row in found.items()
    }
    rows = {name: row for name, row in rows.items() if row}
    if not rows:
        raise UserError(f"{field}: {path}: no result is up to date ({'; '.join(gaps[:1])})")
    return ComparisonSide(name=path, rows=rows, gaps=tuple(gaps), facts=_facts(rows))


def _of_study(source: ReportSource, path: str, field: str) -> ComparisonSide:
    rows: dict[str, dict[str, Result]] = {}
    gaps = []
    for (row, benchmark), outcome in source.outcomes.items():
        if isinstance(outcome, Result):
            rows.setdefault(row, {})[benchmark] = dataclasses.replace(outcome, model_name=row)
        elif (
            isinstance(outcome, MissingValue)
            and outcome.kind != "not applicable"
            and outcome.reason != EXCLUDED_FROM_BENCHMARK
        ):
            gaps.append(f"{row} on {benchmark}: {outcome.kind}: {outcome.reason}")
    study = source.study
    assert study is not None
    if not rows:
        raise UserError(f"{field}: {path}: no result belongs to this study as it stands ({'; '.join(gaps[:1])})")
    machine = {f"machine's {name}": str(value) for name, value in study.machine.items()}
    return ComparisonSide(
        name=f"{source.title} ({path})", rows=rows, gaps=tuple(gaps), facts=_facts(rows) | machine, study=study.text
    )


def _facts(rows: Mapping[str, Mapping[str, Result]]) -> dict[str, str]:
    results = [result for row in rows.values() for result in row.values()]
    versions: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items():
            versions.setdefault(name, set()).add(version)
    days = sorted(result.created[:10] for result in results)
    commits = sorted({commit_text(result.git) or "not known" for result in results})
    return {
        "measured on": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "commit": ", ".join(commits),
        **{name: ", ".join(sorted(found)) for name, found in versions.items()},
    }


def describe_run_differences(first: ComparisonSide, second: ComparisonSide) -> Iterator[str]:
    """In words, how two sides differ besides their numbers."""
    names = dict.fromkeys([*first.facts, *second.facts])
    differing = [name for name in names if first.facts.get(name) != second.facts.get(name)]
    for name in differing:
        one, other = (side.facts.get(name) or "not stated" for side in (first, second))
        yield f"{name[0].upper()}{name[1:]}: A {one}, B {other}."
    for letter, side in (("A", first), ("B", second)):
        for part in parts(result for row in side.rows.values() for result in row.values()):
            yield f"{letter} has a part of {part}."
    if first.study and second.study and first.study != second.study:
        yield from _study_files(first.study, second.study)


def _study_files(first: str, second: str) -> Iterator[str]:
    import difflib

    lines = [line for line in difflib.ndiff(first.splitlines(), second.splitlines()) if line[:2] in {"- ", "+ "}]
    changed = [f"{'A' if line[0] == '-' else 'B'} `{line[2:].strip()}`" for line in lines if line[2:].strip()]
    if changed:
        more = f" and {len(changed) - _LISTED} lines more" if len(changed) > _LISTED else ""
        yield f"The study files differ: {', '.join(changed[:_LISTED])}{more}."
