"""In order on this machine, ``jobs`` steps of the study at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.study.executors.base import Executor, ExecutorConfig, Site
from benchmarks.study.executors.children import Children, one_node
from benchmarks.study.resources import Resources
from benchmarks.study.steps import Share, Step


@dataclass(frozen=True, kw_only=True)
class LocalConfig(ExecutorConfig):
    """No settings: the study's ``jobs`` says how many."""

    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """Each is one of ``jobs``."""
        return {name: {"jobs": 1 / jobs} for name in resources}

    def open(self, site: Site) -> Executor:
        """Children of the runner, which all see the same devices."""
        one_node(site, "local")
        return Children(site, _Places(site.jobs), width=site.jobs)


class _Places:
    """Room for so many steps."""

    def __init__(self, count: int) -> None:
        self.free = count

    def choose(self, ready: Sequence[Step]) -> dict[str, dict[str, str]]:
        chosen: dict[str, dict[str, str]] = {step.name: {} for step in ready[: self.free]}
        self.free -= len(chosen)
        return chosen

    def give_back(self, name: str) -> None:
        self.free += 1
