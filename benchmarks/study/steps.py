"""One step of a study: one command with one config file, and its outputs."""

from __future__ import annotations

import dataclasses
import graphlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from clips.core.artifact import MANIFEST, find_damage, read_manifest
from clips.errors import UserError

StepKind = Literal["data", "encoder", "llava", "evaluation"]


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
class Step:
    """One command that a user could type alone.

    Args:
        name: unique in the study, such as ``encoder-clips``; also the directory under ``steps/``.
        kind: type of the output.
        command: the words before ``--config``, such as ``("clips", "train")``.
        config: the content of the step's config file.
        outputs: the directories or result files that it writes; no other step writes them.
        parents: names of the steps whose outputs the config refers to.
        needs: files outside the study that the config refers to; part of the step's key.
        hub: names on the Hub that the config refers to.
        parts: the dependencies of each output, for a step whose outputs are replaced one by one.
    """

    name: str
    kind: StepKind
    command: tuple[str, ...]
    config: Mapping[str, Any]
    outputs: tuple[Path, ...]
    parents: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()
    hub: tuple[str, ...] = ()
    parts: tuple[OutputSpec, ...] = ()

    def output_paths(self, directory: Path) -> tuple[str, ...]:
        """The outputs inside the study's directory, relative to it."""
        return tuple(path.relative_to(directory).as_posix() for path in self.outputs if path.is_relative_to(directory))

    def problems(self) -> list[str]:
        """A line for each output that is missing or hollow, and each result file that records a failure."""
        found = []
        for path in self.outputs:
            if not path.exists():
                found.append(f"{path}: not written")
            elif path.suffix == ".json":
                found += _failure(path)
            elif damage := _hollow(path):
                found.append(damage)
        return found


def _hollow(directory: Path) -> str | None:
    """Why an output is no complete artifact: a file that its manifest lists is missing or has another size."""
    if (directory / MANIFEST).is_file():
        try:
            return find_damage(directory, read_manifest(directory), contents=False)
        except UserError as error:
            return str(error)
    files = (path for path in directory.rglob("*") if path.is_file())
    return None if any(path.stat().st_size for path in files) else f"{directory}: has no content"


def _failure(path: Path) -> list[str]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{path}: not readable ({error})"]
    if isinstance(result, dict) and result.get("status") == "failed":
        return [f"{result.get('benchmark')} failed: {result.get('failure_reason')}"]
    items = path.with_name(f"{path.stem}.items.parquet")
    return [f"{items}: has no content"] if items.is_file() and not items.stat().st_size else []


def topological_order(steps: Iterable[Step]) -> list[Step]:
    """The steps, parents before children, each right before its first dependent.

    An interrupted study therefore has complete models, not only encoders.

    Raises:
        ValueError: an unknown parent, or a cycle.
    """
    by_name = {step.name: step for step in steps}
    for step in by_name.values():
        if unknown := set(step.parents) - by_name.keys():
            raise ValueError(f"step {step.name} waits for {sorted(unknown)}, which no step makes")
    graphlib.TopologicalSorter({step.name: step.parents for step in by_name.values()}).prepare()  # raises for a cycle
    ordered: dict[str, Step] = {}

    def add(step: Step) -> None:
        for parent in step.parents:
            if parent not in ordered:
                add(by_name[parent])
        ordered[step.name] = step

    have_dependents = {parent for step in by_name.values() for parent in step.parents}
    for step in by_name.values():
        if step.name not in have_dependents:
            add(step)
    return list(ordered.values())
