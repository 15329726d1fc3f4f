"""Side by side over the GPUs of this machine: each running step has its own, and sees no others.

A step waits until as many are free as it asks for. Steps that come behind it in the study wait as well if they want a
GPU: else narrow steps would take each one that becomes free, and a wide step would wait until the last of them is done.
Steps that want none (of the kind ``data``, or ``gpus: 0``) go on meanwhile, ``jobs`` of the study at the same time.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.study.executors.base import Executor, ExecutorConfig, Site
from benchmarks.study.executors.children import Children, one_node
from benchmarks.study.resources import Resources
from benchmarks.study.steps import Share, Step
from clips.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class GpusConfig(ExecutorConfig):
    """Settings of the executor ``gpus``.

    Args:
        devices: which GPUs, as CUDA_VISIBLE_DEVICES calls them; all that are visible where empty.
    """

    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.devices)) < len(self.devices):
            raise UserError(f"devices: expected different GPUs, got {', '.join(self.devices)}")

    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """Of each its GPUs, or beside them one of ``jobs`` where it wants none; where no GPU is visible it is alone."""
        count = len(self.devices or visible_devices())
        return {
            name: {"gpus": min(1.0, wanted.gpus / max(count, 1))} if wanted.gpus else {"jobs": 1 / jobs}
            for name, wanted in resources.items()
        }

    def open(self, site: Site) -> Executor:
        """Children of the runner, each with GPUs of its own.

        Raises:
            UserError: no GPU is visible, one of ``devices`` is not, or a step wants more than there are.
        """
        one_node(site, "gpus")
        visible = visible_devices()
        if unknown := [device for device in self.devices if device not in visible]:
            raise UserError(f"executor.devices: expected some of {', '.join(visible) or 'none'}, got {unknown[0]}")
        devices = list(self.devices or visible)
        if not devices:
            raise UserError("executor: gpus: no GPU is visible here (nvidia-smi finds none, or CUDA_VISIBLE_DEVICES "
                            "hides them)")  # fmt: skip
        return Children(site, Devices(site, devices), width=len(devices))


class Devices:
    """Which GPUs are whose.

    Args:
        site: of the study.
        devices: what is handed out, as CUDA_VISIBLE_DEVICES calls them.

    Raises:
        UserError: a step wants more than there are.
    """

    def __init__(self, site: Site, devices: list[str]) -> None:
        self.site, self.devices = site, devices
        self.free, self.places = list(devices), site.jobs
        self.taken: dict[str, list[str]] = {}
        for name, resources in site.resources.items():
            if resources.gpus > len(devices):
                raise UserError(f"resources: step {name} wants {resources.gpus} GPUs, and {len(devices)} are visible")

    def choose(self, ready: Sequence[Step]) -> dict[str, dict[str, str]]:
        """Step → the environment in which it sees its own GPUs, of those that can start."""
        chosen = {}
        short = False
        for step in ready:
            wanted = self.site.resources[step.name].gpus
            if wanted == 0 and self.places:
                self.places -= 1
                chosen[step.name] = self._environment(step.name, 0)
            elif wanted and not short and wanted <= len(self.free):
                chosen[step.name] = self._environment(step.name, wanted)
            elif wanted:
                short = True  # what becomes free is for this one
        return chosen

    def _environment(self, name: str, count: int) -> dict[str, str]:
        self.taken[name], self.free = self.free[:count], self.free[count:]
        order = {} if VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # nvidia-smi's numbers
        return {VISIBLE: ",".join(self.taken[name]), **order}

    def give_back(self, name: str) -> None:
        """The step has ended."""
        returned = self.taken.pop(name)
        self.places += not returned
        self.free = [device for device in self.devices if device in {*self.free, *returned}]


def visible_devices() -> list[str]:
    """The GPUs that a program started here would see, as CUDA_VISIBLE_DEVICES calls them: numbers or UUIDs.

    CUDA reads that variable up to the first entry that is no device; without it all are visible.
    """
    if VISIBLE in os.environ:
        named = [entry.strip() for entry in os.environ[VISIBLE].split(",")]
        return list(itertools.takewhile(lambda entry: entry not in {"", "-1"}, named))
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.split()
