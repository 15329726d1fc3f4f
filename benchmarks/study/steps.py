"""One step of a study: one command with one config file, its outputs, its key and its resources."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.study.resources import Resources, StepKind
from clips.core.artifact import MANIFEST, find_damage, read_manifest
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.study.state import StepRecord

MODULES, PARENT_MODULES = "modules", "modules of parents"
MODULE_PARTS = {MODULES, PARENT_MODULES}
"""Parts that are compared in addition to the key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """The dependencies of one output of a step; an output whose dependencies did not change stays in place.

    Args:
        output: the output.
        config: the part of the step's config that it depends on.
        parents: names of the steps that this part refers to.
        needs: files outside the study that it refers to.
        hub: names on the Hub that it refers to.
    """

    output: Path
    config: Mapping[str, Any]
    parents: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()
    hub: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepKey:
    """The key of a step and the hashes of its parts, see ``state.with_keys``.

    Args:
        key: a hash of all dependencies of the step but modules.
        outputs: file name → key, of outputs that have their own dependencies.
        parts: ``command``, ``version``, ``config``, ``parents``, ``files``, ``modules`` and ``modules of parents`` → a
            short hash, which shows changes.
    """

    key: str = ""
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def matches(self, record: StepRecord) -> bool:
        """Whether a step's record was written under this key, and no module has changed since."""
        return record.key == self.key and MODULE_PARTS.isdisjoint(self.changes(record))

    def changes(self, record: StepRecord) -> list[str]:
        """The parts that differ from those of a step's record; a part that the record lacks does not."""
        return [name for name, part in self.parts.items() if record.parts.get(name, part) != part]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command that a user could type alone.

    Args:
        name: unique in the study, such as ``encoder-clips``; also the directory under ``steps/``.
        kind: type of the output.
        command: the words before ``--config``, such as ``("clips", "train")``.
        config: the content of the step's config file.
        outputs: the directories or result files that it writes; no other step writes them.
        study: the study's directory.
        parents: names of the steps whose outputs the config refers to.
        needs: files outside the study that the config refers to; part of the step's key.
        hub: names on the Hub that the config refers to.
        parts: the dependencies of each output, for a step whose outputs are replaced one by one.
        key: the current one; empty until ``state.with_keys``.
        resources: of its job.
    """

    name: str
    kind: StepKind
    command: tuple[str, ...]
    config: Mapping[str, Any]
    outputs: tuple[Path, ...]
    study: Path
    parents: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()
    hub: tuple[str, ...] = ()
    parts: tuple[OutputSpec, ...] = ()
    key: StepKey = dataclasses.field(default_factory=StepKey)
    resources: Resources = dataclasses.field(default_factory=Resources)

    @property
    def directory(self) -> Path:
        """The directory of its config, log and record."""
        return step_directory(self.study, self.name)

    def output_paths(self) -> tuple[str, ...]:
        """The outputs inside the study's directory, relative to it."""
        inside = (path for path in self.outputs if path.is_relative_to(self.study))
        return tuple(path.relative_to(self.study).as_posix() for path in inside)

    def problems(self) -> list[str]:
        """A line for each output that is missing or hollow, and each result file that records a failure."""
        return list(filter(None, map(_problem, self.outputs)))


def step_directory(study: Path, name: str) -> Path:
    """The directory of a step's config, log and record."""
    return study / "steps" / name


def _problem(output: Path) -> str | None:
    if not output.exists():
        return f"{output}: not written"
    if output.suffix == ".json":
        try:
            result = json.loads(output.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{output}: not readable ({error})"
        if isinstance(result, dict) and result.get("status") == "failed":
            return f"{result.get('benchmark')} failed: {result.get('failure_reason')}"
        items = output.with_name(f"{output.stem}.items.parquet")
        return f"{items}: has no content" if items.is_file() and not items.stat().st_size else None
    if (output / MANIFEST).is_file():
        try:
            return find_damage(output, read_manifest(output), contents=False)
        except UserError as error:
            return str(error)
    files = (path for path in output.rglob("*") if path.is_file())
    return None if any(path.stat().st_size for path in files) else f"{output}: has no content"
