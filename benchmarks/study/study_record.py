"""``study.json``, from which a report reads a study: its rows, columns, figures, names, steps and machine."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clips.core.durable import atomic_write
from clips.errors import UserError, unknown_name_error
from clips.safe_text import redact, strip_control_chars
from clips.text_files import read_json
from clips.typed_data import from_plain, to_plain

RECORD_FILE = "study.json"
SCHEMA = 2
EXCLUDED_FROM_BENCHMARK = "this benchmark is for other models"
NO_LLAVA = "no LLaVA of this encoder"
NO_TEXT_TOWER = "no text tower"
UNKNOWN_TEXT_TOWER = "text tower not known before the download; name a directory"
EXISTING_LLAVA_NO_ENCODER = "an existing LLaVA; its encoder is not evaluated"


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """The source of one result: the step that writes it, and its file relative to the study's directory."""

    step: str
    result: str


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """One row of the table: a model, where its results are, and why it has none in a column."""

    name: str
    encoder: str  # its name in the study
    llm: str | None = None
    llava_variant: str | None = None  # None if the study defines none
    seed: int | None = None  # of its trainings; None if nothing is trained
    baseline: str | None = None  # the row that it is compared with; None for a baseline itself
    spec: str = ""  # location of the encoder: a directory in the study, or the source of a pretrained one
    cells: Mapping[str, CellRecord] = field(default_factory=dict)  # benchmark → source of its result
    not_applicable: Mapping[str, str] = field(default_factory=dict)  # benchmark → why the row has no result there
    artifacts: Mapping[str, str] = field(default_factory=dict)  # "encoder", "llava" → directory in the study's
    sweep_settings: Mapping[str, Any] = field(default_factory=dict)  # dotted field → value that `sweep` gave
    sweep_name: str = ""  # the entry with `sweep`
    group: str = ""  # heading above the row; a report sets it, see `Display`

    @property
    def model(self) -> str:
        """The name without the seed."""
        return self.name.removesuffix(f" (seed {self.seed})")

    @property
    def but_for_seed(self) -> tuple[str | None, ...]:
        """A key that rows share if they differ in their seed only."""
        return self.encoder, self.llm, self.llava_variant


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """A figure of the report: a score against a setting, one curve for each combination of the other settings.

    Args:
        benchmark: whose primary metrics are drawn, one panel each.
        encoders: the entry with ``sweep`` whose encoders are the points.
        x: the setting of the horizontal axis, one of the sweep's, with numbers as values.
        reference_lines: names of encoders drawn as horizontal lines.
        title: of the figure; by default the entry's name.
        label: of the axis; by default the setting's name.
    """

    benchmark: str
    encoders: str
    x: str
    reference_lines: tuple[str, ...] = ()
    title: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Display:
    """Display names and groups of a report; any text, which every format escapes.

    Files, columns of data, tests and commands keep the names of the study or of the results.

    Args:
        models: model → its display name; a model is a row of the table without its seed, or an encoder, for all of
            its LLaVAs.
        benchmarks: benchmark → its display name.
        groups: heading → the models below it: names as in ``models``, names of entries with ``sweep``, or patterns.
            Models of no group come first.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = [(f"display.models.{name}", text) for name, text in self.models.items()]
        texts += [(f"display.benchmarks.{name}", text) for name, text in self.benchmarks.items()]
        for where, text in texts + [("display.groups", heading) for heading in self.groups]:
            if not strip_control_chars(text).strip():
                raise UserError(f"{where}: expected a text, got {text!r}")

    def check(self, rows: Sequence[RowRecord], benchmarks: Collection[str]) -> None:
        """Reject unknown and ambiguous names.

        Raises:
            UserError: an unknown model or benchmark, a pattern without a match, a model in two groups, or two models or
                benchmarks with one display name.
        """
        models = list(dict.fromkeys(name for row in rows for name in (row.model, row.encoder)))
        for what, known in (("models", models), ("benchmarks", benchmarks)):
            for name in getattr(self, what):
                if name not in known:
                    raise unknown_name_error(name, known, f"name in 'display.{what}'")
        for pattern in (pattern for patterns in self.groups.values() for pattern in patterns):
            if not any(_matches(pattern, row) for row in rows):
                raise unknown_name_error(pattern, models, "name in 'display.groups'")
        for row in rows:
            self.heading(row)
        self.row_names(rows)
        self.benchmark_names(benchmarks)

    def row_names(self, rows: Iterable[RowRecord]) -> dict[str, str]:
        """Row → its display name, with the seed if the row has one; UserError for two rows with one name."""
        names = {}
        for row in rows:
            of_encoder = self.models.get(row.encoder, row.encoder) + row.model.removeprefix(row.encoder)
            names[row.name] = self.models.get(row.model, of_encoder) + row.name.removeprefix(row.model)
        return _without_duplicates(names, "models")

    def benchmark_names(self, benchmarks: Iterable[str]) -> dict[str, str]:
        """Benchmark → its display name; UserError for two benchmarks with one name."""
        return _without_duplicates({name: self.benchmarks.get(name, name) for name in benchmarks}, "benchmarks")

    def heading(self, row: RowRecord) -> str:
        """The heading above a row, empty for a row of no group; UserError for one in two groups."""
        headings = [heading for heading, names in self.groups.items() if any(_matches(name, row) for name in names)]
        if len(headings) > 1:
            raise UserError(
                f"display.groups: '{row.model}' is in '{headings[0]}' and in '{headings[1]}'; expected one group"
            )
        return headings[0] if headings else ""


def _matches(pattern: str, row: RowRecord) -> bool:
    names = (row.model, row.encoder, row.sweep_name)
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names if name)


def _without_duplicates(names: dict[str, str], what: str) -> dict[str, str]:
    first: dict[str, str] = {}
    for name, text in names.items():
        shown = " ".join(strip_control_chars(text).split())
        if shown in first:
            raise UserError(f"display.{what}: '{first[shown]}' and '{name}' have the same display name '{shown}'")
        first[shown] = name
    return {name: shown for shown, name in first.items()}


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One planned step: type of its outputs, command, key with the hashes of its parts, and parents."""

    kind: str
    command: str
    key: str
    parents: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """The resolved study."""

    name: str
    title: str
    question: str
    notes: tuple[str, ...]
    file: str  # as given on the command line
    text: str  # of the file
    rows: tuple[RowRecord, ...]
    benchmarks: tuple[str, ...]
    steps: Mapping[str, StepPlan]  # parents before children
    figures: tuple[FigureSpec, ...] = ()
    reference_results: tuple[str, ...] = ()
    display: Display = field(default_factory=Display)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def write_study_record(output: Path, record: StudyRecord) -> None:
    """Write ``study.json`` atomically, unless its content is the same."""
    text = json.dumps(redact(to_plain(record)), indent=2, ensure_ascii=False) + "\n"
    path = output / RECORD_FILE
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        atomic_write(path, text)


def read_study_record(output: Path) -> StudyRecord:
    """Read ``study.json``; UserError if it is missing, invalid, or written by a newer version."""
    path = output / RECORD_FILE
    if not path.is_file():
        raise UserError(f"{path}: no study was run here")
    content = read_json(path)
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path}: written by a newer version (schema {schema}; this one reads {SCHEMA})")
    return from_plain(StudyRecord, content, what=f"{path}: not a study record")
