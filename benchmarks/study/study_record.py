"""``study.json``: the resolved study with its rows, columns, steps, keys and machine, for the report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.display import Display
from benchmarks.study.steps import Share
from benchmarks.study.sweep import FigureSpec
from clips.core.artifact import atomic_write
from clips.errors import UserError
from clips.safe_text import redact
from clips.typed_data import from_plain, to_plain


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, str]:
    """Property → value for this machine, without unknown ones and without the names of host and user."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(available_cores()),
        "memory": _memory(),
        "accelerators": _accelerators(),
    }
    return {name: value for name, value in found.items() if value}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return ""
    return f"{total / 2**30:.0f} GiB"


def _accelerators() -> str:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return "none"
    return "; ".join(line.strip() for line in listed.splitlines() if line.strip()) or "none"


RECORD_FILE = "study.json"
EXCLUDED_FROM_BENCHMARK = "this benchmark is for other models"
NO_LLAVA = "no LLaVA of this encoder"
NO_TEXT_TOWER = "no text tower"
UNKNOWN_TEXT_TOWER = "text tower not known before the download; name a directory"
EXISTING_LLAVA_NO_ENCODER = "an existing LLaVA; its encoder is not evaluated"
SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """The source of one result: the step that writes it, and its file relative to the study's directory."""

    step: str
    result: str


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """One row of the table.

    Args:
        name: unique.
        encoder: its name in the study.
        llm: name of the LLM; None for a row without one.
        llava_variant: name of the LLaVA variant; None if the study defines none.
        seed: of its trainings; None if nothing is trained.
        baseline: the row that it is compared with; None for a baseline itself.
        spec: location of the encoder: a directory in the study, or the source of a pretrained one.
        cells: benchmark → source of its result.
        not_applicable: benchmark → why the row has no result there.
        sweep_settings: dotted field → value that ``sweep`` gave to the encoder.
        sweep_name: name of the entry with ``sweep``; empty without one.
        group: heading above the row; empty without one. A report sets it, see `display.Display`.
        artifacts: ``"encoder"``, ``"llm"`` and ``"llava"`` → directory of the trained model, relative to the study's.
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
    group: str = ""

    @property
    def model(self) -> str:
        """The name without the seed."""
        return self.name.removesuffix(f" (seed {self.seed})")

    @property
    def but_for_seed(self) -> tuple[str | None, ...]:
        """A key that rows share if they differ in their seed only."""
        return self.encoder, self.llm, self.llava_variant


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One planned step: type of its outputs, command, key, parents, and the fraction of the executor it occupies."""

    kind: str
    command: str
    key: str
    parents: tuple[str, ...] = ()
    executor_share: Share = field(default_factory=lambda: {"jobs": 1.0})


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """The resolved study.

    Args:
        name: of the study.
        title: of the report.
        question: that the study answers.
        notes: caveats.
        file: the study file, as given on the command line.
        text: content of the study file.
        rows: in the order of the table.
        benchmarks: in the order of the columns.
        figures: of the report.
        reference_results: models of papers, shown next to the table.
        display: names and groups of the report.
        steps: name → plan, parents before children.
        machine: see `study_record.describe_machine`.
        versions: of the libraries.
        git: commit and whether it had uncommitted changes.
        schema: version of this format.
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
    """Read ``study.json``.

    Raises:
        UserError: it is missing, invalid, or written by a newer version.
    """
    path = output / RECORD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise UserError(f"{path}: written by a newer version (schema {content['schema']}; this one reads {SCHEMA})")
    except FileNotFoundError:
        raise UserError(f"{path}: no study was run here") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a study record ({type(error).__name__}: {error})") from None
    return from_plain(StudyRecord, content, what=f"{path}: not a study record")
