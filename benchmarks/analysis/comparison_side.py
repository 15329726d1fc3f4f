"""One side of a comparison: a model, a directory of results or a study, with its provenance."""

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

_MAX_LISTED = 4


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
    rows: dict[str, dict[str, Result]] = {}
    gaps = []
    for name, row in found.items():
        for benchmark, result in row.items():
            if result.path in old:
                gaps.append(f"{result.model_name} on {benchmark}: {old[result.path]}")
            else:
                rows.setdefault(name, {})[benchmark] = result
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
        raise UserError(f"{field}: {path}: no result belongs to the current study ({'; '.join(gaps[:1])})")
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
    """As text, differences of the two sides other than numbers."""
    for name in dict.fromkeys([*first.facts, *second.facts]):
        if first.facts.get(name) != second.facts.get(name):
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
        more = f" and {len(changed) - _MAX_LISTED} more lines" if len(changed) > _MAX_LISTED else ""
        yield f"The study files differ: {', '.join(changed[:_MAX_LISTED])}{more}."
