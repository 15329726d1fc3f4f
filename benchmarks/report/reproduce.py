"""Commands, versions and hashes to reproduce the numbers of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import commit_text
from benchmarks.study.study_record import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What the section shows.

    Args:
        study: its commands, file and machine; None for a directory of results.
        facts: machine, code and versions, name → value.
        protocols: benchmark → protocol of its first result, name → value.
        measured: of each result the names of model and benchmark, the model's path, and the beginnings of the hashes of
            model and protocol.
    """

    study: StudyRecord | None
    facts: Mapping[str, str]
    protocols: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    measured: tuple[tuple[str, str, str, str, str], ...] = ()


def reproduction_info(source: ReportSource) -> Reproduction:
    """Collect the information from the study's record and the results."""
    study = source.study
    results = [(name, row, result) for name in source.benchmarks for row, result in source.results(name).items()]
    first = {name: result for name, _, result in reversed(results)}
    facts = dict(study.machine) if study else {}
    if study and study.git:
        facts["commit"] = commit_text(study.git)
    counts = Counter(commit_text(result.git) for *_, result in results if result.git.get("commit"))
    if counts:  # results of one study may come from several commits
        commits = [f"{commit} ({count} of {counts.total()} results)" for commit, count in counts.most_common()]
        facts["evaluated by commit"] = ", ".join(commits)
    facts |= study.versions if study else results[0][2].versions if results else {}
    return Reproduction(
        study=study,
        facts={name: str(value) for name, value in facts.items()},
        protocols={
            name: {key.replace("_", " "): str(value) for key, value in first[name].protocol.items()}
            for name in source.benchmarks
            if name in first
        },
        measured=tuple(
            (row, name, result.model.get("path", ""), result.model.get("hash", "")[:12], result.fingerprint[:12])
            for name, row, result in results
        ),
    )
