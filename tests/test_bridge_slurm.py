"""The bridge's SLURM script, with a srun that starts the tasks of two nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bridge_world
import pytest

from llava_bridge.data import DataConfig
from llava_bridge.training import launch as launching
from llava_bridge.training.config import LaunchConfig, StageConfig

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm" / "llava.sbatch"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & done
status=0
for node in 0 1; do wait -n || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost || echo "scontrol $@"
"""


def sbatch(directory: Path, *arguments: str, **programs: str) -> tuple[int, str]:
    """Run the script as SLURM runs it on two nodes with a GPU each; its status, and what it wrote."""
    (directory / "bin").mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, **programs}.items():
        (directory / "bin" / name).write_text(text)
        (directory / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    path = f"{directory / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    port = str(launching._free_port())
    log = directory / "llava-7.log"
    with log.open("a") as file:
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            cwd=directory,
            env={**os.environ, **slurm, "SLURM_CPUS_PER_TASK": "1", "PATH": path, "MASTER_PORT": port},
            stdout=file,
            stderr=file,
            timeout=400,
            check=False,
        )
    return done.returncode, log.read_text()


def test_deepspeed_reads_the_example_of_its_hosts() -> None:
    example = Path(__file__).parents[1] / "scripts" / "deepspeed" / "hostfile.example"
    script = f"from deepspeed.launcher.runner import fetch_hostfile; print(dict(fetch_hostfile({str(example)!r})))"
    done = bridge_world.run_python("-c", script)
    assert done.stdout.splitlines()[-1:] == [str({f"node-{number}": 8 for number in range(1, 5)})], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["deepspeed", "fsdp"])
def test_two_nodes_train_one_llava(
    way: str, tmp_path: Path, bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path
) -> None:
    stage = StageConfig(data=[DataConfig(path=str(bridge_talk / "talk.json"))], steps=2, batch_size=4)
    path = bridge_world.config_file(
        tmp_path,
        "run",
        bridge_talk,
        stages=["instruct"],
        encoder=str(bridge_encoder),
        llm=str(bridge_llm),
        instruct=stage,
        launch=LaunchConfig(parallel=way),  # type: ignore[arg-type]
    )
    status, printed = sbatch(tmp_path, "--config", str(path))
    assert status == 0, printed[-3000:]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["launch"]["processes"] == 2
    assert printed.count("wrote ") == 1  # by one of the two
    assert "requeue" not in printed


@pytest.mark.parametrize(
    ("line", "again"),
    [("instruct: stopped after step 4; the same command goes on", True), ("RuntimeError: out of memory", False)],
)
def test_only_a_training_that_was_stopped_is_queued_again(line: str, again: bool, tmp_path: Path) -> None:
    torchrun = f"#!/bin/bash\necho '{line}'\necho Traceback\nexit 1\n"
    status, printed = sbatch(tmp_path, torchrun=torchrun)
    assert status == 1
    assert ("scontrol requeue 7" in printed) == again
    _, printed = sbatch(tmp_path, torchrun="#!/bin/bash\nexit 1\n")  # what an earlier attempt wrote does not count
    assert printed.count("scontrol requeue 7") == again
