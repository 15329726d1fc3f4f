"""Where the steps of a study run, and what Snakemake is told about it.

    executor: gpus
    executor: {name: slurm, partition: gpu, account: vision, time_limit_hours: 24}

To add one: a config class here, and its entry in ``EXECUTORS``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.gpus import visible_gpus
from benchmarks.study.resources import Resources
from benchmarks.study.steps import Share
from clips.errors import UserError, unknown_name_error
from clips.typed_data import from_plain

_SIGNAL_SECONDS = 300  # before the end of its time a step is told to save, as by scripts/slurm/train.sbatch
_SIGNAL_RATIO = 0.2  # of its time at most


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """The executor ``local``: steps on this machine, as many at the same time as ``jobs`` of the study says."""

    @property
    def remote(self) -> bool:
        """Whether steps run elsewhere and outlive the runner."""
        return False

    @property
    def leaves_jobs(self) -> bool:
        """Whether jobs continue when the run is interrupted."""
        return False

    def check(self, resources: Mapping[str, Resources]) -> None:
        """Refuse steps that the executor cannot run.

        Raises:
            UserError: naming the step.
        """
        for name, given in resources.items():
            if given.nodes > 1:
                raise UserError(f"resources: step {name} wants {given.nodes} nodes; expected executor: slurm")

    def limits(self, jobs: int) -> dict[str, int]:
        """How much there is of each thing that steps share."""
        return {"jobs": jobs}

    def demands(self, given: Resources) -> dict[str, Any]:
        """What a step takes of these, and what else its rule's ``resources`` say."""
        return {"jobs": 1}

    def flags(self, jobs: int) -> list[str]:
        """The flags of Snakemake that choose and configure its executor."""
        limits = self.limits(jobs)
        return ["--cores", str(sum(limits.values())), "--resources", *(f"{name}={n}" for name, n in limits.items())]

    def flags_of(self, output: Path) -> list[str]:
        """Those of them that name the study, whose directory is ``output``."""
        return []

    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """How much of the executor each step takes while it runs, for estimates."""
        limits = self.limits(jobs)
        return {
            name: {thing: min(1.0, n / max(limits[thing], 1)) for thing, n in self.demands(given).items() if n}
            for name, given in resources.items()
        }

    def grace(self, given: Resources) -> float:
        """Seconds that a step has to save and end when it is asked to."""
        return 20.0


@dataclass(frozen=True, kw_only=True)
class LocalConfig(ExecutorConfig):
    """No settings."""


@dataclass(frozen=True, kw_only=True)
class GpusConfig(ExecutorConfig):
    """The GPUs of this machine: each step has its own, through CUDA_VISIBLE_DEVICES, and sees no others.

    Args:
        devices: which GPUs, as CUDA_VISIBLE_DEVICES calls them; all that are visible where empty.
    """

    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.devices)) < len(self.devices):
            raise UserError(f"devices: expected different GPUs, got {', '.join(self.devices)}")

    def check(self, resources: Mapping[str, Resources]) -> None:
        """Refuse steps that the executor cannot run.

        Raises:
            UserError: no GPU is visible, one of ``devices`` is not, or a step wants more than there are.
        """
        super().check(resources)
        visible = visible_gpus()
        if unknown := [device for device in self.devices if device not in visible]:
            raise UserError(f"executor.devices: expected some of {', '.join(visible) or 'none'}, got {unknown[0]}")
        devices = self.devices or visible
        if not devices:
            raise UserError("executor: gpus: no GPU is visible here (nvidia-smi finds none, or CUDA_VISIBLE_DEVICES "
                            "hides them)")  # fmt: skip
        for name, given in resources.items():
            if given.gpus > len(devices):
                raise UserError(f"resources: step {name} wants {given.gpus} GPUs, and {len(devices)} are visible")

    def limits(self, jobs: int) -> dict[str, int]:
        """The GPUs, and next to them ``jobs`` steps without one."""
        return {"jobs": jobs, "gpus": len(self.devices or visible_gpus())}

    def demands(self, given: Resources) -> dict[str, Any]:
        """GPUs, or one of ``jobs``."""
        return {"gpus": given.gpus} if given.gpus else {"jobs": 1}


@dataclass(frozen=True, kw_only=True)
class RemoteConfig(ExecutorConfig):
    """What executors share whose jobs run elsewhere.

    Args:
        max_jobs: jobs at the same time.
        retries: how often a job is submitted again that was interrupted, to resume from its checkpoint.
        cancel_on_interrupt: whether Ctrl-C cancels the jobs. Else they continue, and the next run waits for them.
    """

    max_jobs: int = 256
    retries: int = 3
    cancel_on_interrupt: bool = False

    def __post_init__(self) -> None:
        if self.max_jobs < 1:
            raise UserError(f"max_jobs: expected at least 1, got {self.max_jobs}")
        if self.retries < 0:
            raise UserError(f"retries: expected 0 or more, got {self.retries}")

    @property
    def remote(self) -> bool:
        """They do."""
        return True

    @property
    def leaves_jobs(self) -> bool:
        """Unless they are to be cancelled."""
        return not self.cancel_on_interrupt

    def limits(self, jobs: int) -> dict[str, int]:
        """The jobs, should the cluster be free; how long its queue is nobody knows."""
        return {"jobs": self.max_jobs}

    def flags(self, jobs: int) -> list[str]:
        """The flags of Snakemake that choose and configure its executor."""
        return ["--jobs", str(self.max_jobs), "--retries", str(self.retries)]

    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """Each is one of ``max_jobs``."""
        return {name: {"jobs": 1 / self.max_jobs} for name in resources}


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(RemoteConfig):
    """Jobs of a SLURM cluster, by Snakemake's plugin.

    Args:
        max_jobs: jobs at the same time.
        retries: how often a job is submitted again that was interrupted, to resume from its checkpoint.
        cancel_on_interrupt: whether Ctrl-C cancels the jobs. Else they continue, and the next run waits for them.
        partition: where to run; SLURM's default where not given, as all that follows.
        account: who pays.
        qos: quality of service.
        constraint: features that nodes must have.
        time_limit_hours: time limit of steps whose ``resources`` say none.
        setup: lines of shell before each job, ``module load cuda`` for instance.
        additional_parameters: any other option of sbatch → its value, for instance ``{exclude: "node[7-9]", nice:
            100}``.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_limit_hours: float = 24.0
    setup: tuple[str, ...] = ()
    additional_parameters: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.time_limit_hours < 1e5:
            raise UserError(f"time_limit_hours: expected more than 0, got {self.time_limit_hours}")

    def check(self, resources: Mapping[str, Resources]) -> None:
        """Any step may run there.

        Raises:
            UserError: Snakemake's plugin is not installed, or no jobs are submitted from this machine.
        """
        _require_plugin("slurm")
        for program in ("sbatch", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise UserError(f"executor: slurm: no program '{program}' here; run the study where jobs are submitted")

    def flags(self, jobs: int) -> list[str]:
        """The flags of Snakemake that choose and configure its executor."""
        words = ["--executor", "slurm", "--slurm-init-seconds-before-status-checks", "5"]
        return [*super().flags(jobs), *words, "--slurm-status-command", "sacct" if _has_accounting() else "squeue"]

    def flags_of(self, output: Path) -> list[str]:
        """The names of the jobs, by which the next run finds them."""
        return ["--slurm-jobname-prefix", self.job_prefix(output)]

    def job_prefix(self, output: Path) -> str:
        """What the names of a study's jobs begin with."""
        return f"clips_{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:10]}"

    def grace(self, given: Resources) -> float:
        """Most of the time between SLURM's signal and the end of the job."""
        return 0.8 * self._signal_seconds(given)

    def _signal_seconds(self, given: Resources) -> int:
        return min(_SIGNAL_SECONDS, round(_SIGNAL_RATIO * 3600 * (given.time_limit_hours or self.time_limit_hours)))

    def demands(self, given: Resources) -> dict[str, Any]:
        """One job; its size as Snakemake's SLURM plugin names it: one task on each node starts the node's processes."""
        options = {"signal": f"TERM@{self._signal_seconds(given)}", **self.additional_parameters}
        nodes = {"nodes": given.nodes, "tasks": given.nodes, "tasks_per_gpu": 0, "mpi": "srun"}
        asked = {
            "jobs": 1,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "runtime": max(1, round((given.time_limit_hours or self.time_limit_hours) * 60)),
            "cpus_per_task": given.cpus * given.processes if given.cpus else None,
            "mem_mb": round(given.memory_gb * 1024) if given.memory_gb else 0,
            "gres": f"gpu:{given.gpus}" if given.gpus else None,
            "slurm_extra": " ".join(f"--{name}={shlex.quote(str(value))}" for name, value in options.items()),
            **(nodes if given.nodes > 1 else {}),
        }
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig(RemoteConfig):
    """Pods of a Kubernetes cluster, by Snakemake's plugin.

    The study's directory, the data and the code lie on volumes that the pods see at the same path.

    Args:
        image: container image with the suite and Snakemake.
        max_jobs: jobs at the same time.
        retries: how often a job is submitted again that was interrupted, to resume from its checkpoint.
        cancel_on_interrupt: whether Ctrl-C cancels the jobs. Else they continue, and the next run waits for them.
        namespace: where the pods run.
        volumes: persistent volume claim → the path at which pods mount it.
    """

    image: str = ""
    namespace: str = "default"
    volumes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image:
            raise UserError("image: expected a container image with the suite")

    def check(self, resources: Mapping[str, Resources]) -> None:
        """Refuse steps that the executor cannot run.

        Raises:
            UserError: a step wants several nodes, or Snakemake's plugin is not installed.
        """
        super().check(resources)
        _require_plugin("kubernetes")

    def flags(self, jobs: int) -> list[str]:
        """The flags of Snakemake that choose and configure its executor."""
        volumes = [f"{claim}:{path}" for claim, path in self.volumes.items()]
        mounts = ["--kubernetes-persistent-volumes", *volumes] if volumes else []
        place = ["--kubernetes-namespace", self.namespace, "--container-image", self.image]
        return [*super().flags(jobs), "--executor", "kubernetes", *place, *mounts]

    def flags_of(self, output: Path) -> list[str]:
        """Where the markers of finished steps go, which the plugin does not take from a shared disk as they are."""
        return ["--default-storage-provider", "fs", "--default-storage-prefix", str(output.resolve() / ".markers")]

    def demands(self, given: Resources) -> dict[str, Any]:
        """One job; its size as Snakemake's Kubernetes plugin names it."""
        asked = {"jobs": 1, "gpu": given.gpus or None, "gpu_manufacturer": "nvidia" if given.gpus else None}
        asked["mem_mb"] = round(given.memory_gb * 1024) if given.memory_gb else None
        return {name: value for name, value in asked.items() if value is not None}


def _has_accounting() -> bool:
    """Whether the cluster's accounting answers; ``sacct`` is installed where it does not, too."""
    try:
        return subprocess.run(["sacct", "--noheader"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _require_plugin(name: str) -> None:
    if importlib.util.find_spec(f"snakemake_executor_plugin_{name}") is None:
        raise UserError(f"executor: {name} needs a plugin of Snakemake; pip install 'clips-suite[{name}]'")


EXECUTORS: Mapping[str, type[ExecutorConfig]] = {
    "local": LocalConfig,
    "gpus": GpusConfig,
    "slurm": SlurmConfig,
    "kubernetes": KubernetesConfig,
}


def executor_config(content: Any) -> ExecutorConfig:
    """The executor that a study file names, alone or with settings of its own.

    Raises:
        UserError: no such executor, an unknown setting, a value of the wrong kind.
    """
    settings = {"name": content} if isinstance(content, str) else content
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise UserError(f"executor: expected one of {', '.join(EXECUTORS)}, or a mapping with its name, got "
                        f"{content!r:.80}")  # fmt: skip
    if settings["name"] not in EXECUTORS:
        raise unknown_name_error(settings["name"], EXECUTORS, "executor")
    own = {key: value for key, value in settings.items() if key != "name"}
    return from_plain(EXECUTORS[settings["name"]], own, what="executor")
