"""The SLURM scripts, with a srun that starts the tasks of two nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bridge_world
import clips_world
import pytest

from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training import launch as launching
from llava_bridge.training.train_config import DistributedConfig, StageConfig

SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
until compgen -G "run/.checkpoints/step-*" > /dev/null || [ -z "$EVENT" ] || ! kill -0 "$tasks"; do sleep 0.1; done
[ "$EVENT" != preemption ] || kill -TERM "${tasks[@]}"
[ "$EVENT" != crash ] || kill -KILL $(pgrep -P "${tasks[1]}")
status=0
for node in 0 1; do wait -n || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost || echo "scontrol $@"
"""


def sbatch(script: str, directory: Path, *arguments: str, event: str = "", **programs: str) -> tuple[int, str]:
    """Run a script as SLURM runs it on two nodes with a GPU each; its status, and what it wrote.

    Args:
        script: its name.
        directory: where it was queued, whose ``run`` is the output.
        arguments: of the script.
        event: what happens once there is a checkpoint: preemption (SLURM takes the nodes away), crash (of a process).
        programs: name → text of other programs to find.
    """
    (directory / "bin").mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, **programs}.items():
        (directory / "bin" / name).write_text(text)
        (directory / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    path = f"{directory / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    port = str(launching.free_port())
    slurm |= {"SLURM_CPUS_PER_TASK": "1", "EVENT": event}
    log = directory / {"llava.sbatch": "llava-7.log", "train.sbatch": "clips-7.log"}[script]
    with log.open("a") as file:
        done = subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            cwd=directory,
            env={**os.environ, **slurm, "PATH": path, "MASTER_PORT": port},
            stdout=file,
            stderr=file,
            timeout=400,
            check=False,
        )
    return done.returncode, log.read_text()


def test_deepspeed_reads_the_example_of_its_hosts() -> None:
    example = Path(__file__).parents[2] / "scripts" / "deepspeed" / "hostfile.example"
    script = f"from deepspeed.launcher.runner import fetch_hostfile; print(dict(fetch_hostfile({str(example)!r})))"
    done = bridge_world.run_python("-c", script)
    assert done.stdout.splitlines()[-1:] == [str({f"node-{number}": 8 for number in range(1, 5)})], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_two_nodes_train_one_llava(way, tmp_path, bridge_encoder, bridge_llm, bridge_talk):
    stage = StageConfig(
        data=[ConversationSourceConfig(path=str(bridge_talk / "talk.json"))], max_steps=2, global_batch_size=4
    )
    path = bridge_world.config_file(
        tmp_path,
        "run",
        bridge_talk,
        stages=["instruct"],
        encoder=str(bridge_encoder),
        llm=str(bridge_llm),
        instruct=stage,
        distributed=DistributedConfig(deepspeed=way),
    )
    status, printed = sbatch("llava.sbatch", tmp_path, "--config", str(path))
    assert status == 0, printed[-3000:]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["distributed"]["num_processes"] == 2
    assert printed.count("wrote ") == 1  # by one of the two
    assert "requeue" not in printed


@pytest.mark.slow
def test_two_nodes_train_one_encoder_and_resume_after_a_preemption(tmp_path: Path) -> None:
    data = clips_world.write_shards(tmp_path / "data")
    config = tmp_path / "run.json"
    config.write_text(clips_world.config_text(data, tmp_path / "run", max_steps=40))
    status, printed = sbatch("train.sbatch", tmp_path, "--config", str(config), event="preemption")
    assert status != 0
    assert printed.count("scontrol requeue 7") == 1, printed[-3000:]
    assert not (tmp_path / "run" / "manifest.json").exists()
    before = len(printed)
    status, printed = sbatch("train.sbatch", tmp_path, "--config", str(config))
    assert status == 0, printed[-3000:]
    assert "resuming from step" in printed[before:]
    assert printed.count("scontrol requeue 7") == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["samples_seen"] == 40 * 4
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 41, 2))


@pytest.mark.slow
def test_processes_start_again_after_a_crash_but_not_after_a_users_error(tmp_path: Path) -> None:
    data = clips_world.write_shards(tmp_path / "data")
    config = tmp_path / "run.json"
    config.write_text(clips_world.config_text(data, tmp_path / "run", max_steps=40))
    status, printed = sbatch("train.sbatch", tmp_path, "--config", str(config), event="crash")
    assert status == 0, printed[-3000:]
    assert "resuming from step" in printed
    assert "requeue" not in printed
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 41, 2))
    before = len(printed)
    status, printed = sbatch("train.sbatch", tmp_path, "--config", str(config), "--max_steps", "41")
    assert status != 0
    assert printed[before:].count("max_steps: was 40, is 41") <= 2, printed[before:]  # of two processes, each once
    assert "requeue" not in printed


@pytest.mark.parametrize(
    ("script", "line", "again"),
    [
        ("llava.sbatch", "instruct: stopped after step 4; the same command resumes it", True),
        ("llava.sbatch", "RuntimeError: out of memory", False),
        ("train.sbatch", "run: stopped and saved after step 4; the same command resumes from there", True),
        ("train.sbatch", "RuntimeError: out of memory", False),
    ],
)
def test_only_a_training_that_was_stopped_is_queued_again(script: str, line: str, again: bool, tmp_path: Path) -> None:
    torchrun = f"#!/bin/bash\necho '{line}'\necho Traceback\nexit 1\n"
    status, printed = sbatch(script, tmp_path, torchrun=torchrun)
    assert status == 1
    assert ("scontrol requeue 7" in printed) == again
    _, printed = sbatch(script, tmp_path, torchrun="#!/bin/bash\nexit 1\n")  # what was written before does not count
    assert printed.count("scontrol requeue 7") == again


@pytest.mark.parametrize("script", ["llava.sbatch", "train.sbatch"])
def test_every_node_starts_a_process_for_each_gpu(script: str, tmp_path: Path) -> None:
    torchrun = "#!/bin/bash\nprintf '%s|' \"$@\" > $SLURM_NODEID.txt\n"
    status, _ = sbatch(script, tmp_path, "--config", "two words.yaml", "--seed", "3", torchrun=torchrun)
    assert status == 0
    for node in "01":
        told = (tmp_path / f"{node}.txt").read_text()
        assert f"--nnodes|2|--node-rank|{node}|--nproc-per-node|1|--max-restarts|3|" in told
        assert told.endswith("|train|--config|two words.yaml|--seed|3|")
