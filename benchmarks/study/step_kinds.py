"""``STEP_KINDS``: what the steps of a kind share; a new kind is an entry here.

Its steps are added to a plan in ``steps.py``, from a key of the study file in ``schema.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clips.method.recipes import RECIPES

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """The steps of a kind.

    Args:
        command: the words before ``--config``; empty if each step names its own.
        module: what torchrun runs in each of several processes.
        starts_processes: whether the command starts its processes itself, on one node.
        usual_seconds: of a step that has not run yet, for the order in which steps start.
        uses_gpus: whether a process gets a GPU by default.
        trains: whether it trains a model: settings that do not change its output are not in its key, and its data are
            training data.
        evaluates: whether it evaluates one: it reuses cached model outputs, and its log counts within a phase.
        is_rerun: whether ``study rerun`` includes it unless steps are named.
        stages: names of the parts of a config that its log counts one by one.
        cost: config → time of a sample, relative to others of this kind.
        benchmarks: checked config → the benchmarks whose data are checked before the study starts.
        sources: checked config → likewise the sources of training data.
    """

    command: Words = ()
    module: str = ""
    starts_processes: bool = False
    usual_seconds: float
    uses_gpus: bool = True
    trains: bool = False
    evaluates: bool = False
    is_rerun: bool = True
    stages: tuple[str, ...] = ()
    cost: Callable[[Mapping[str, Any]], float] = lambda config: 1.0
    benchmarks: Callable[[Any], Iterable[Any]] = lambda config: ()
    sources: Callable[[Any], Iterable[Any]] = lambda config: ()


def _cost_of_recipe(config: Mapping[str, Any]) -> float:
    """With a captioner a sample takes about twice as long; an untrained encoder takes no time."""
    recipe = config.get("recipe", {})
    spec = RECIPES.get(recipe.get("name", "clips")) if isinstance(recipe, dict) else None
    return 0.0 if config.get("max_steps") == 0 else 2.0 if spec and spec.captioning else 1.0


STEP_KINDS: Mapping[str, StepKind] = {
    "data": StepKind(usual_seconds=60, uses_gpus=False, is_rerun=False),
    "encoder": StepKind(
        command=("clips", "train"),
        module="clips.cli",
        usual_seconds=600,
        trains=True,
        cost=_cost_of_recipe,
        sources=lambda config: config.data.sources,
    ),
    "llava": StepKind(
        command=("llava-bridge", "train"),
        module="llava_bridge",
        starts_processes=True,
        usual_seconds=600,
        trains=True,
        stages=("align", "instruct"),
    ),
    "evaluation": StepKind(
        command=("clips-bench", "run"),
        module="benchmarks",
        usual_seconds=120,
        evaluates=True,
        benchmarks=lambda config: config.benchmarks,
    ),
}


def kind_of(words: Words) -> StepKind | None:
    """The kind whose command these words are; None for a script, or a command that only ``data`` steps run."""
    return next((kind for kind in STEP_KINDS.values() if kind.command == words), None)
