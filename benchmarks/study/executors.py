"""Where the steps of a study run: one config class for each executor of Snakemake.

    executor: gpus
    executor: {name: slurm, partition: gpu, account: vision, time_limit_hours: 24}

To add an executor, write its config class and its entry in ``EXECUTORS``.
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

from benchmarks.study.resources import Resources
from benchmarks.study.steps import Share
from clips.errors import UserError, unknown_name_error
from clips.gpus import visible_gpus
from clips.typed_data import from_plain

_SIGNAL_SECONDS = 300  # before its time limit SLURM signals a step to save, as in scripts/slurm/train.sbatch
_MAX_SIGNAL_RATIO = 0.2  # of its time limit


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """The executor ``local``: up to ``jobs`` concurrent steps on this machine."""

    @property
    def remote(self) -> bool:
        """Whether steps run on a cluster and outlive the runner."""
        return False

    @property
    def leaves_jobs(self) -> bool:
        """Whether jobs continue when the runner is interrupted."""
        return False

    def check(self, resources: Mapping[str, Resources]) -> None:
        """Reject steps that the executor cannot run.

        Raises:
            UserError: naming the step.
        """
        for name, given in resources.items():
            if given.nodes > 1:
                raise UserError(f"resources: step {name} requests {given.nodes} nodes; expected executor: slurm")

    def limits(self, jobs: int) -> dict[str, int]:
        """Shared resource → its total amount."""
        return {"jobs": jobs}

    def demands(self, given: Resources) -> dict[str, Any]:
        """The ``resources`` of a step's rule: its part of the shared resources, and settings of the executor."""
        return {"jobs": 1}

    def flags(self, jobs: int) -> list[str]:
        """Snakemake's flags that select and configure its executor."""
        limits = self.limits(jobs)
        return ["--cores", str(sum(limits.values())), "--resources", *(f"{name}={n}" for name, n in limits.items())]

    def study_flags(self, output: Path) -> list[str]:
        """Snakemake's flags that depend on the study's directory ``output``."""
        return []

    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """Step → shared resource → the fraction that the step occupies while it runs; for estimates."""
        limits = self.limits(jobs)
        return {
            name: {shared: min(1.0, n / max(limits[shared], 1)) for shared, n in self.demands(given).items() if n}
            for name, given in resources.items()
        }

    def grace(self, given: Resources) -> float:
        """Seconds between the signal to a step to save and its termination."""
        return 20.0


@dataclass(frozen=True, kw_only=True)
class LocalConfig(ExecutorConfig):
    """No settings."""


@dataclass(frozen=True, kw_only=True)
class GpusConfig(ExecutorConfig):
    """The GPUs of this machine: each step sees its own GPUs only, through CUDA_VISIBLE_DEVICES.

    Args:
        devices: the GPUs to use, as in CUDA_VISIBLE_DEVICES; all visible ones if empty.
    """

    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.devices)) < len(self.devices):
            raise UserError(f"devices: expected different GPUs, got {', '.join(self.devices)}")

    def check(self, resources: Mapping[str, Resources]) -> None:
        """Reject steps that the executor cannot run.

        Raises:
            UserError: no GPU is visible, one of ``devices`` is not, or a step requests too many.
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
                raise UserError(f"resources: step {name} requests {given.gpus} GPUs, and {len(devices)} are visible")

    def limits(self, jobs: int) -> dict[str, int]:
        """The GPUs, and ``jobs`` concurrent steps without a GPU."""
        return {"jobs": jobs, "gpus": len(self.devices or visible_gpus())}

    def demands(self, given: Resources) -> dict[str, Any]:
        """GPUs, or one of ``jobs`` for a step without a GPU."""
        return {"gpus": given.gpus} if given.gpus else {"jobs": 1}


@dataclass(frozen=True, kw_only=True)
class RemoteConfig(ExecutorConfig):
    """Settings of the executors whose jobs run on a cluster.

    Args:
        max_jobs: maximum number of concurrent jobs.
        retries: how often an interrupted job is submitted again, to resume from its checkpoint.
        cancel_on_interrupt: cancel jobs on Ctrl-C; by default they continue, and the next ``study run`` waits for them.
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
        """Always."""
        return True

    @property
    def leaves_jobs(self) -> bool:
        """Unless the config cancels them."""
        return not self.cancel_on_interrupt

    def limits(self, jobs: int) -> dict[str, int]:
        """The jobs, as if the cluster's queue were empty."""
        return {"jobs": self.max_jobs}

    def flags(self, jobs: int) -> list[str]:
        """Snakemake's flags that select and configure its executor."""
        return ["--jobs", str(self.max_jobs), "--retries", str(self.retries)]

    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """Each step occupies one of ``max_jobs``."""
        return {name: {"jobs": 1 / self.max_jobs} for name in resources}


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(RemoteConfig):
    """Jobs of a SLURM cluster, through Snakemake's plugin.

    Args:
        partition: of the jobs; by default SLURM's, as for the following fields.
        account: that is charged.
        qos: quality of service.
        constraint: required node features.
        time_limit_hours: default time limit of a step, overridden by its ``resources``.
        setup: shell lines before each job, such as ``module load cuda``.
        additional_parameters: any other option of sbatch → its value, such as ``{exclude: "node[7-9]", nice: 100}``.
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
        """Check that this machine can submit jobs; SLURM accepts any step.

        Raises:
            UserError: Snakemake's plugin or a SLURM command is not installed.
        """
        _require_plugin("slurm")
        for program in ("sbatch", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise UserError(f"executor: slurm: no program '{program}' here; run the study where jobs are submitted")

    def flags(self, jobs: int) -> list[str]:
        """Snakemake's flags that select and configure its executor."""
        words = ["--executor", "slurm", "--slurm-init-seconds-before-status-checks", "5"]
        return [*super().flags(jobs), *words, "--slurm-status-command", "sacct" if _has_accounting() else "squeue"]

    def study_flags(self, output: Path) -> list[str]:
        """The prefix of the job names, by which the next ``study run`` finds the jobs."""
        return ["--slurm-jobname-prefix", self.job_prefix(output)]

    def job_prefix(self, output: Path) -> str:
        """The prefix of the names of a study's jobs."""
        return f"clips_{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:10]}"

    def grace(self, given: Resources) -> float:
        """Most of the time between SLURM's signal and the end of the job."""
        return 0.8 * self._signal_seconds(given)

    def _signal_seconds(self, given: Resources) -> int:
        return min(_SIGNAL_SECONDS, round(_MAX_SIGNAL_RATIO * 3600 * (given.time_limit_hours or self.time_limit_hours)))

    def demands(self, given: Resources) -> dict[str, Any]:
        """One job and its size, in terms of Snakemake's SLURM plugin; one task on each node starts its processes."""
        options = {"signal": f"TERM@{self._signal_seconds(given)}", **self.additional_parameters}
        nodes = {"nodes": given.nodes, "tasks": given.nodes, "tasks_per_gpu": 0, "mpi": "srun"}
        demands = {
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
        return {name: value for name, value in demands.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig(RemoteConfig):
    """Pods of a Kubernetes cluster, through Snakemake's plugin.

    The study's directory, the data and the code are on volumes that all pods mount at the same path.

    Args:
        image: container image with the suite and Snakemake.
        namespace: of the pods.
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
        """Reject steps that the executor cannot run.

        Raises:
            UserError: a step requests several nodes, or Snakemake's plugin is not installed.
        """
        super().check(resources)
        _require_plugin("kubernetes")

    def flags(self, jobs: int) -> list[str]:
        """Snakemake's flags that select and configure its executor."""
        volumes = [f"{claim}:{path}" for claim, path in self.volumes.items()]
        mounts = ["--kubernetes-persistent-volumes", *volumes] if volumes else []
        pods = ["--kubernetes-namespace", self.namespace, "--container-image", self.image]
        return [*super().flags(jobs), "--executor", "kubernetes", *pods, *mounts]

    def study_flags(self, output: Path) -> list[str]:
        """The storage of the markers of finished steps; the plugin rejects plain paths on a shared disk."""
        return ["--default-storage-provider", "fs", "--default-storage-prefix", str(output.resolve() / ".markers")]

    def demands(self, given: Resources) -> dict[str, Any]:
        """One job and its size, in terms of Snakemake's Kubernetes plugin."""
        demands = {"jobs": 1, "gpu": given.gpus or None, "gpu_manufacturer": "nvidia" if given.gpus else None}
        demands["threads"] = given.cpus * given.processes if given.cpus else None  # the pod requests as many cores
        demands["mem_mb"] = round(given.memory_gb * 1024) if given.memory_gb else None
        return {name: value for name, value in demands.items() if value is not None}


def _has_accounting() -> bool:
    """Whether ``sacct`` answers: it may be installed on a cluster without accounting."""
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
    """The executor of a study file, given as a name or as a mapping with ``name`` and settings.

    Raises:
        UserError: an unknown executor, an unknown setting, a value of the wrong type.
    """
    settings = {"name": content} if isinstance(content, str) else content
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise UserError(f"executor: expected one of {', '.join(EXECUTORS)}, or a mapping with its name, got "
                        f"{content!r:.80}")  # fmt: skip
    if settings["name"] not in EXECUTORS:
        raise unknown_name_error(settings["name"], EXECUTORS, "executor")
    fields = {key: value for key, value in settings.items() if key != "name"}
    return from_plain(EXECUTORS[settings["name"]], fields, what="executor")
