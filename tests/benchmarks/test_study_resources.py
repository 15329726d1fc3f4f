"""Resources of steps, their launchers, the locks of GPUs and studies."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from study_engine import make, run
from study_material import SMALL

from benchmarks.study import locks
from benchmarks.study.launch import Resources, check_command, launch_command, resolve_executable
from benchmarks.study.locks import locked, take_gpus
from benchmarks.study.run import stop
from benchmarks.study.schema import parse_study
from benchmarks.study.steps import resolve_resources
from clips.errors import UserError
from clips.gpus import visible_gpus

TRAIN, LLAVA, RUN = ("clips", "train"), ("llava-bridge", "train"), ("clips-bench", "run")


def test_gpus_are_taken_whole_and_are_free_when_their_locks_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, wide = take_gpus(["0", "1", "2"], 2), take_gpus(["0", "1", "2"], 2)
    assert first is not None
    assert first[0] == {"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert wide is None  # and it keeps nothing of what is free
    other = take_gpus(["0", "GPU-a/b", "2"], 1)
    assert other is not None
    assert other[0]["CUDA_VISIBLE_DEVICES"] == "GPU-a/b"
    for lock in first[1]:
        os.close(lock)
    again = take_gpus(["0", "1", "2"], 3)
    assert again is not None
    for lock in (*other[1], *again[1]):
        os.close(lock)
    none = take_gpus(["0"], 0)
    assert none is not None
    assert (none[0]["CUDA_VISIBLE_DEVICES"], none[1]) == ("", [])


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("3,1", ["3", "1"]), ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"]), ("2,-1,0", ["2"]), ("", [])],
)
def test_the_visible_gpus_are_those_that_the_environment_shows(monkeypatch, variable, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [({"gpus": 3}, "requests 3 GPUs, and 2 are visible"), ({"nodes": 2}, "requests 2 nodes; expected a 'profile'")],
)
def test_resources_that_the_machine_lacks_are_rejected_before_anything_starts(tmp_path, monkeypatch, given, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match=f"step data {message}"):
        run(tmp_path, [dataclasses.replace(make(tmp_path, "data"), resources=Resources(**given))])
    assert not (tmp_path / ".plan.json").exists()


def test_the_resources_of_a_step_are_those_of_snakemake_and_its_plugins():
    given = Resources(processes=4, gpus=4, cpus=8, memory_gb=64, time_limit_hours=0.5)
    asked = {"gpu": 4, "gpu_manufacturer": "nvidia", "threads": 32, "mem_mb": 65536, "runtime": 30}
    assert given.snakemake() == asked
    nodes = {"nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}
    assert Resources(nodes=2, processes=8, gpus=8).snakemake() == {"gres": "gpu:8", **nodes}
    assert Resources().snakemake() == {}


TORCHRUN = "torchrun --standalone --shutdown-timeout 270 --nproc-per-node"
NODES = (
    "srun --nodes=2 --ntasks=2 --kill-on-bad-exit "
    "torchrun --nnodes 2 --rdzv-backend c10d --shutdown-timeout 270 --nproc-per-node 8"
)


@pytest.mark.parametrize(
    ("words", "resources", "expected"),
    [
        (TRAIN, Resources(), "clips train --config c"),
        (TRAIN, Resources(processes=4), f"{TORCHRUN} 4 -m clips.cli train --config c"),
        (LLAVA, Resources(), "llava-bridge train --config c --distributed.num_processes 1"),
        (LLAVA, Resources(processes=4), "llava-bridge train --config c --distributed.num_processes 4"),
        (RUN, Resources(processes=2), f"{TORCHRUN} 2 -m benchmarks run --config c"),
        (LLAVA, Resources(processes=8, nodes=2), f"{NODES} -m llava_bridge train --config c"),
    ],
)
def test_a_step_is_started_under_the_launcher_that_it_needs(monkeypatch, words, resources, expected):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert " ".join(launch_command(words, Path("c"), resources)) == expected


def test_resources_of_a_kind_are_overlaid_by_those_of_a_name(tmp_path):
    def resolved(name: str, kind: Any, config: dict[str, object]) -> Resources:
        steps = [dataclasses.replace(make(tmp_path, "llava-huge-s1"), kind="llava")]
        steps.append(dataclasses.replace(make(tmp_path, name), kind=kind, config=config))
        return resolve_resources(asked, steps)[-1]

    asked = {"llava-huge*": {"processes": 8}, "llava": {"processes": 2, "time_limit_hours": 3.5}, "data": {"cpus": 2}}
    assert resolved("llava-huge-s0", "llava", {}) == Resources(processes=8, gpus=8, time_limit_hours=3.5)
    assert resolved("llava-a", "llava", {}) == Resources(processes=2, gpus=2, time_limit_hours=3.5)
    assert resolved("data-train", "data", {}) == Resources(cpus=2)
    assert resolved("data-llm", "data", {"distributed": {"num_processes": 4}}).processes == 4
    with pytest.raises(UserError, match="did you mean 'encoder-clip-s0'"):
        resolve_resources({"encoder-clp-s0": {}}, [make(tmp_path, "encoder-clip-s0")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"executor": "slurm"}, "unknown key 'executor'"),
        ({"gpus": 8}, "unknown key 'gpus'; .*for a study, set 'resources' in its file"),
        ({"nodes": 2}, "unknown key 'nodes'; .*for a study, set 'resources' in its file"),
        ({"resources": {"encoder": {"num_gpus": 8}}}, "unknown key 'num_gpus'; did you mean 'gpus'"),
        ({"resources": {"encoder": {"num_processes": 8}}}, "unknown key 'num_processes'; did you mean 'processes'"),
        ({"resources": {"encoder": {"nproc_per_node": 8}}}, "unknown key 'nproc_per_node'; did you mean 'processes'"),
        ({"resources": {"encoder": {"nnodes": 8}}}, "unknown key 'nnodes'; did you mean 'nodes'"),
        ({"resources": {"encoder": {"process": 2}}}, "resources.encoder: .*'process'; did you mean 'processes'"),
    ],
)
def test_wrong_resources_are_rejected_naming_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        parse_study({**SMALL, **fields})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clip", "train"), "unknown program of a command 'clip'; did you mean 'clips'"),
        (("clips", "trian"), "unknown command 'clips trian'; did you mean 'clips train'"),
        (("python", "no/such/script.py"), "expected 'python FILE' with a file that exists"),
    ],
)
def test_unknown_commands_are_rejected(words, message):
    with pytest.raises(UserError, match=message):
        check_command(words)
    with pytest.raises(UserError, match="'clips export' runs in one process; got processes: 2"):
        launch_command(("clips", "export"), Path("c"), Resources(processes=2))


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from benchmarks.study.locks import locked
with locked(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
    time.sleep(0.3)
    Path(sys.argv[2], "released").touch()
"""


def test_a_second_runner_waits_where_it_is_asked_to(tmp_path, monkeypatch):
    words = [sys.executable, "-c", HOLDER, str(Path(__file__).parents[2]), str(tmp_path)]
    said: list[str] = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="wait for it with --wait_for_lock true"), locked(tmp_path):
            pass
        monkeypatch.setattr(locks, "log_info", lambda line: (said.append(line), first.stdin.close()))  # type: ignore[union-attr]
        with locked(tmp_path, wait=True):
            assert (tmp_path / "released").exists()
    assert said == [f"{tmp_path}: another runner (process {first.pid}) is at work here; waiting"]


def test_torchrun_s_workers_end_with_the_runner_s_patience(tmp_path):
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    worker = f"{deaf}; print('up', flush=True); time.sleep(99)"
    start = f"p = subprocess.Popen([sys.executable, '-c', {worker!r}], start_new_session=True)"
    launcher = f"{deaf}; {start}; print(p.pid, flush=True); time.sleep(99)"
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-c", launcher], stdout=log, start_new_session=True)
    while len(told := (tmp_path / "log").read_text(encoding="utf-8").split()) < 2:
        time.sleep(0.02)
    pid = next(int(word) for word in told if word.isdecimal())
    stop(child, 0.2)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_torchrun_on_several_nodes_meets_on_the_first_node_of_its_job(tmp_path, monkeypatch):
    from torch.distributed.run import get_args_parser

    names = tmp_path / "scontrol"
    names.write_text("#!/bin/sh\nprintf 'n7\\nn8\\n'\n", encoding="utf-8")
    names.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "n[7-8]"}.items():
        monkeypatch.setenv(name, value)
    words = resolve_executable(launch_command(TRAIN, Path("c"), Resources(processes=8, nodes=2)))
    assert words[:4] == ["srun", "--nodes=2", "--ntasks=2", "--kill-on-bad-exit"]
    assert words[4:7] == [sys.executable, "-m", "torch.distributed.run"]
    parsed = get_args_parser().parse_args(words[7:])
    assert (parsed.nnodes, parsed.nproc_per_node) == ("2", "8")
    assert (parsed.rdzv_backend, parsed.rdzv_id) == ("c10d", "1234567")
    host, port = parsed.rdzv_endpoint.split(":")
    assert host == "n7"
    assert 20_000 <= int(port) < 32_000
