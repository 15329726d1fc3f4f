"""``study.json``: the study as resolved, its rows, columns, steps and keys; for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.steps import Share
from benchmarks.study.sweep import FigureSpec
from clips.core.artifact import atomic_write
from clips.errors import UserError
from clips.redaction import redact
from clips.serialization import to_plain

RECORD_FILE = "study.json"
EXCLUDED_FROM_BENCHMARK = "this benchmark is for other rows"
NO_LLAVA = "no LLaVA in this row"
EXISTING_LLAVA_NO_ENCODER = "a LLaVA that was there already; its encoder is not asked"
SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """Where one number comes from: the step that makes it and its result file, relative to the study's directory."""

    step: str
    result: str


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """One row of the table.

    Args:
        name: unique.
        encoder: its name in the study.
        llm: name of the LLM; None where the row has none.
        llava_variant: name of the way in which its LLaVA was trained; None where the study names none.
        seed: of everything trained for it; None where nothing is.
        baseline: the row that it is compared with; None for a baseline itself.
        spec: what ``encoder`` stands for: a directory in the study, or where a pretrained one comes from.
        cells: benchmark → where its number comes from.
        not_applicable: benchmark → why this row has no number there by its nature.
        sweep_settings: the encoder's own values where an entry with ``sweep`` made it: dotted field → value.
        sweep_name: name of that entry; empty otherwise.
        artifacts: ``"encoder"``, ``"llm"`` and ``"llava"`` → directory relative to the study's, of what was trained.
    """

    name: str
    encoder: str
    llm: str | None = None
    llava_variant: str | None = None
    seed: int | None = None
    baseline: str | None = None
    spec: str = ""
    cells: Mapping[str, CellRecord] = field(default_factory=dict)
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    sweep_settings: Mapping[str, Any] = field(default_factory=dict)
    sweep_name: str = ""

    @property
    def but_for_seed(self) -> tuple[str | None, ...]:
        """What rows that differ in their seed alone have in common."""
        return self.encoder, self.llm, self.llava_variant


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step as planned: what it makes, its command, key and parents, and how much of the executor it takes."""

    kind: str
    command: str
    key: str
    parents: tuple[str, ...] = ()
    executor_share: Share = field(default_factory=lambda: {"jobs": 1.0})


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """The whole study as resolved.

    Args:
        name: of the study.
        title: of the report.
        question: that it asks.
        notes: what the reader must know.
        file: the study file, as given on the command line.
        text: its content.
        rows: in the order of the table.
        benchmarks: in the order of the columns.
        figures: of the report.
        reference_results: rows of others beside it.
        steps: name → plan, parents before children.
        machine: what it ran on, see ``machine.describe_machine``.
        versions: of the libraries.
        git: commit and whether the tree was dirty.
        schema: version of this layout.
    """

    name: str
    title: str
    question: str
    notes: tuple[str, ...]
    file: str
    text: str
    rows: tuple[RowRecord, ...]
    benchmarks: tuple[str, ...]
    steps: Mapping[str, StepPlan]
    figures: tuple[FigureSpec, ...] = ()
    reference_results: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def write_study_record(output: Path, record: StudyRecord) -> None:
    """Write ``study.json`` whole, unless it says the same already."""
    text = json.dumps(redact(to_plain(record)), indent=2, ensure_ascii=False) + "\n"
    path = output / RECORD_FILE
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        atomic_write(path, text)


def read_study_record(output: Path) -> StudyRecord:
    """Read ``study.json``.

    Raises:
        UserError: it is missing, broken, or written by a newer version.
    """
    path = output / RECORD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise UserError(f"{path}: written by a newer version (schema {content['schema']}; this one reads {SCHEMA})")
        rows = tuple(
            RowRecord(**row | {"cells": {name: CellRecord(**cell) for name, cell in row["cells"].items()}})
            for row in content["rows"]
        )
        steps = {
            name: StepPlan(**step | {"parents": tuple(step["parents"])}) for name, step in content["steps"].items()
        }
        figures = [
            FigureSpec(**figure | {"reference_lines": tuple(figure["reference_lines"])})
            for figure in content.get("figures", [])
        ]
        lists: dict[str, Any] = {"figures": tuple(figures)} | {
            name: tuple(content.get(name, ())) for name in ("notes", "benchmarks", "reference_results")
        }
        return StudyRecord(**content | {"rows": rows, "steps": steps, **lists})
    except FileNotFoundError:
        raise UserError(f"{path}: no study was run here") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a study record ({type(error).__name__}: {error})") from None
