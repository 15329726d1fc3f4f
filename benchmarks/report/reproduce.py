"""What a reader needs to make the same numbers again, and to know exactly what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import commit_text
from benchmarks.results.results import Result


@dataclass(frozen=True, kw_only=True)
class MeasuredCell:
    """One model on one benchmark: hashes of the model and of the protocol."""

    row: str
    benchmark: str
    model: str
    model_hash: str
    protocol_hash: str


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Commands, study file, versions, machine and hashes.

    Args:
        command: the one command that makes everything.
        steps: (name, command) of the single steps, in order.
        file: the study file's name.
        text: its content.
        facts: what it ran on and with, name → value.
        protocols: benchmark → its protocol, name → value, as in its first result.
        measured: one entry a result.
    """

    command: str
    steps: tuple[tuple[str, str], ...]
    file: str
    text: str
    facts: Mapping[str, str]
    protocols: Mapping[str, Mapping[str, str]]
    measured: tuple[MeasuredCell, ...]


def reproduction_info(source: ReportSource) -> Reproduction:
    """Collect it from the study's record and from the results."""
    study = source.study
    results = [(name, row, result) for name in source.benchmarks for row, result in source.results(name).items()]
    versions = dict(study.versions) if study else dict(results[0][2].versions) if results else {}
    state = study.git if study else {}
    git = {"commit": commit_text(state)} if state else {}
    git |= _evaluated_by(result for *_, result in results)
    return Reproduction(
        command=f"clips-bench study run {study.file}" if study else "",
        steps=tuple((name, step.command) for name, step in study.steps.items()) if study else (),
        file=study.file if study else "",
        text=study.text if study else "",
        facts={name: str(value) for name, value in {**(study.machine if study else {}), **git, **versions}.items()},
        protocols=_protocols(source),
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
    """The commits that made the results, each with how many: a study whose code has changed has results of several."""
    made = Counter(commit_text(result.git) for result in results if result.git.get("commit"))
    told = ", ".join(f"{code} ({count} of {made.total()} results)" for code, count in made.most_common())
    return {"evaluated by commit": told} if made else {}


def _protocols(source: ReportSource) -> dict[str, dict[str, str]]:
    found = {}
    for name in source.benchmarks:
        results = list(source.results(name).values())
        if results:
            found[name] = {key.replace("_", " "): str(value) for key, value in results[0].protocol.items()}
    return found
