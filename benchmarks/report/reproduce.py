"""Commands, versions and hashes to reproduce the numbers of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import commit_text
from benchmarks.results.results import Result


@dataclass(frozen=True, kw_only=True)
class MeasuredCell:
    """One model on one benchmark: the model's path, and hashes of the model and the protocol."""

    row: str
    benchmark: str
    model: str
    model_hash: str
    protocol_hash: str


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Commands, study file, versions, machine and hashes.

    Args:
        command: of the study; empty for a directory of results.
        steps: (name, command) of each step, in order.
        file: name of the study file.
        text: its content.
        facts: machine, code and versions, name → value.
        protocols: benchmark → protocol of its first result, name → value.
        measured: one entry per result.
    """

    command: str
    steps: tuple[tuple[str, str], ...]
    file: str
    text: str
    facts: Mapping[str, str]
    protocols: Mapping[str, Mapping[str, str]]
    measured: tuple[MeasuredCell, ...]


def reproduction_info(source: ReportSource) -> Reproduction:
    """Collect the information from the study's record and the results."""
    study = source.study
    results = [(name, row, result) for name in source.benchmarks for row, result in source.results(name).items()]
    git = {"commit": commit_text(study.git)} if study and study.git else {}
    git |= _evaluated_by(result for *_, result in results)
    versions = study.versions if study else results[0][2].versions if results else {}
    first_results = {name: result for name, _, result in reversed(results)}
    return Reproduction(
        command=f"clips-bench study run {study.file}" if study else "",
        steps=tuple((name, step.command) for name, step in study.steps.items()) if study else (),
        file=study.file if study else "",
        text=study.text if study else "",
        facts={name: str(value) for name, value in {**(study.machine if study else {}), **git, **versions}.items()},
        protocols={
            name: {key.replace("_", " "): str(value) for key, value in first_results[name].protocol.items()}
            for name in source.benchmarks
            if name in first_results
        },
        measured=tuple(
            MeasuredCell(
                row=row,
                benchmark=benchmark,
                model=result.model.get("path", ""),
                model_hash=result.model.get("hash", "")[:12],
                protocol_hash=result.fingerprint[:12],
            )
            for benchmark, row, result in results
        ),
    )


def _evaluated_by(results: Iterable[Result]) -> dict[str, str]:
    """The commits of the results with their counts; results of one study may come from several commits."""
    counts = Counter(commit_text(result.git) for result in results if result.git.get("commit"))
    commits = ", ".join(f"{commit} ({count} of {counts.total()} results)" for commit, count in counts.most_common())
    return {"evaluated by commit": commits} if counts else {}
