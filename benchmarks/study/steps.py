"""One step of a study: one command with one config file, and the outputs that it leaves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

StepKind = Literal["data", "encoder", "llm", "llava", "evaluation"]
Share = Mapping[str, float]
"""What a step takes of its executor: its GPUs, or a place among the ``jobs``, as parts of all that there are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """What one output of a step depends on, where a step has several that can be kept one by one.

    Args:
        output: the output.
        config: the part of the step's config that it depends on.
        parents: names of the steps that this part of the config refers to.
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
        name: unique in the study; also the directory under ``steps/``. For instance ``encoder-clips``.
        kind: what is made; steps of one kind take similar time and are drawn in one color.
        command: the words before ``--config``, for instance ``("clips", "train")``.
        config: the whole content of the step's config file.
        outputs: what exists when the step has succeeded, directories or result files; nothing else writes them.
        parents: names of the steps whose outputs the config refers to.
        needs: files outside the study that the config refers to (they are part of the step's key).
        hub: names on the Hub that the config refers to.
        parts: one for each output, where a change that concerns one output shall leave the others in place.
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

    def problems(self) -> list[str]:
        """What is wrong with the outputs, a line each: missing ones, and result files that record a failure."""
        found = []
        for path in self.outputs:
            if not path.exists():
                found.append(f"{path}: not written")
            elif path.suffix == ".json":
                found += _failure(path)
        return found


def _failure(path: Path) -> list[str]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{path}: not readable ({error})"]
    if isinstance(result, dict) and result.get("status") == "failed":
        return [f"{result.get('benchmark')} failed: {result.get('reason')}"]
    return []


def topological_order(steps: Iterable[Step]) -> list[Step]:
    """The steps, parents before children, otherwise in the order given.

    Raises:
        ValueError: a parent that is not among the steps, or a circle.
    """
    waiting = {step.name: step for step in steps}
    known = set(waiting)
    for step in waiting.values():
        if unknown := set(step.parents) - known:
            raise ValueError(f"step {step.name} waits for {sorted(unknown)}, which nothing makes")
    ordered: list[Step] = []
    done: set[str] = set()
    while waiting:
        ready = [step for step in waiting.values() if done.issuperset(step.parents)]
        if not ready:
            raise ValueError(f"these steps wait for each other: {sorted(waiting)}")
        for step in ready:
            ordered.append(waiting.pop(step.name))
            done.add(step.name)
    return ordered


def time_left(steps: Sequence[Step], rests: Mapping[str, float], shares: Mapping[str, Share]) -> float:
    """Seconds until all steps are done: as the executor has room for them, and no step before its parents.

    Args:
        steps: of the study.
        rests: of those that are not done, what each still takes.
        shares: how much of the executor each takes meanwhile, see ``ExecutorConfig.shares``.
    """
    ends: dict[str, float] = {}
    for step in topological_order(steps):
        ends[step.name] = rests.get(step.name, 0.0) + max((ends[parent] for parent in step.parents), default=0.0)
    busy: dict[str, float] = {}
    for name, rest in rests.items():
        for room, part in shares[name].items():
            busy[room] = busy.get(room, 0.0) + rest * part
    return max(0.0, *busy.values(), *ends.values())
