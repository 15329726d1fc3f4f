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
from benchmarks.study.rows import RowRecord
from benchmarks.study.sweep import FigureSpec
from clips.core.artifact import atomic_write
from clips.core.parent_death import usable_cores
from clips.errors import UserError
from clips.safe_text import redact
from clips.typed_data import from_plain, to_plain

RECORD_FILE = "study.json"
SCHEMA = 2


def describe_machine() -> dict[str, str]:
    """Property → value for this machine, without unknown ones and without the names of host and user."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        processor = platform.processor()
    try:
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        memory = ""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        listed = ""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": str(usable_cores()),
        "memory": memory,
        "accelerators": "; ".join(line.strip() for line in listed.splitlines() if line.strip()) or "none",
    }
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One planned step: type of its outputs, command, key and parents."""

    kind: str
    command: str
    key: str
    parents: tuple[str, ...] = ()


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
