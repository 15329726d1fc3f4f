"""Executors on one machine, launchers, resources."""

from __future__ import annotations

import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from study_material import SMALL
from test_study_runner import FAKE, Quiet, keys_of, make

from benchmarks.study import lock, runner
from benchmarks.study.executors import gpus
from benchmarks.study.executors.base import Site
from benchmarks.study.executors.catalogue import executor_config
from benchmarks.study.executors.gpus import Devices, GpusConfig
from benchmarks.study.executors.local import LocalConfig
from benchmarks.study.lock import locked
from benchmarks.study.programs import launched
from benchmarks.study.reading import study_from
from benchmarks.study.resources import Resources, check_patterns, resources_of
from benchmarks.study.runner import run_steps
from benchmarks.study.state import read_record
from benchmarks.study.steps import Step
from clips.errors import UserError


def step(name: str, kind: str = "encoder", **config: object) -> Step:
    return Step(name=name, kind=kind, command=("clips", "train"), config=config, outputs=())  # type: ignore[arg-type]


def site(tmp_path: Path, jobs: int = 1, **wanted: int) -> Site:
    resources = {name: Resources(gpus=count) for name, count in wanted.items()}
    return Site(output=tmp_path, jobs=jobs, lock=0, resources=resources)


def test_each_step_has_gpus_of_its_own_and_a_wide_one_is_not_overtaken(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    wanted = {"one": 1, "two": 1, "wide": 3, "late": 1, "cpu": 0, "cpu2": 0}
    devices = Devices(site(tmp_path, **wanted), ["0", "1", "2"])
    ready = {name: step(name) for name in wanted}

    first = devices.choose([ready[name] for name in ("one", "wide", "two", "cpu", "cpu2")])
    assert {name: found["CUDA_VISIBLE_DEVICES"] for name, found in first.items()} == {"one": "0", "cpu": ""}
    assert first["one"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert devices.choose([ready["wide"], ready["late"]]) == {}  # what is free waits for the wide one
    devices.give_back("one")
    assert devices.choose([ready["wide"], ready["late"]])["wide"]["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    devices.give_back("wide")
    devices.give_back("cpu")
    found = devices.choose([ready["late"], ready["two"], ready["cpu2"]])
    assert [found[name]["CUDA_VISIBLE_DEVICES"] for name in ("late", "two", "cpu2")] == ["0", "1", ""]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("3,1", ["3", "1"]), ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"]), ("2,-1,0", ["2"]), ("", [])],
)
def test_the_visible_gpus_are_those_that_the_environment_shows(monkeypatch, variable, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert gpus.visible_devices() == expected


def test_what_the_machine_cannot_give_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match="step llava wants 3 GPUs, and 2 are visible"):
        GpusConfig().open(site(tmp_path, llava=3))
    with pytest.raises(UserError, match=r"executor.devices: expected some of 4, 5, got 0"):
        GpusConfig(devices=("0",)).open(site(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="no GPU is visible here"):
        GpusConfig().open(site(tmp_path))
    two = Site(output=tmp_path, jobs=1, lock=0, resources={"llava": Resources(nodes=2)})
    with pytest.raises(UserError, match="step llava wants 2 nodes, and executor local has one; expected executor: sl"):
        LocalConfig().open(two)


def test_a_failed_step_stops_its_branch_only_and_steps_see_their_gpus_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    script = "import os, sys; print('sees', os.environ['CUDA_VISIBLE_DEVICES'], flush=True);"
    script += f"sys.argv[:1] = []; exec(open({str(FAKE)!r}).read())"
    monkeypatch.setattr(runner, "executable", lambda words: [sys.executable, "-c", script, "fake", *words])
    steps = [
        make(tmp_path, "bad", fail="no such weights"),
        make(tmp_path, "good", sleep=0.3),
        make(tmp_path, "after-bad", "bad"),
        make(tmp_path, "wide", "good"),
    ]
    wanted = {"bad": 1, "good": 1, "after-bad": 1, "wide": 2}
    with locked(tmp_path) as held:
        summary = run_steps(
            steps,
            lambda: keys_of(steps),
            tmp_path,
            lock=held,
            jobs=1,
            observer=Quiet(),
            executor=GpusConfig(),
            resources={name: Resources(gpus=count) for name, count in wanted.items()},
        )
    assert (summary.done, summary.failed, summary.blocked) == (("good", "wide"), ("bad",), ("after-bad",))
    saw = {name: (tmp_path / "steps" / name / "log.txt").read_text(encoding="utf-8").split("\n")[0] for name in wanted
           if name != "after-bad"}  # fmt: skip
    assert saw == {"bad": "sees 6", "good": "sees 7", "wide": "sees 6,7"}
    record = read_record(tmp_path, "bad")
    assert record is not None
    assert record.log_tail[-1] == "no such weights"


TRAIN, LLAVA, RUN = ("clips", "train"), ("llava-bridge", "train"), ("clips-bench", "run")


@pytest.mark.parametrize(
    ("words", "resources", "expected"),
    [
        (TRAIN, Resources(), "clips train --config c"),
        (
            TRAIN,
            Resources(processes=4),
            "torchrun --standalone --shutdown-timeout 270 --nproc-per-node 4 -m clips.cli train --config c",
        ),
        (LLAVA, Resources(processes=4), "llava-bridge train --config c --launch.processes 4"),
        (
            RUN,
            Resources(processes=2),
            "torchrun --standalone --shutdown-timeout 270 --nproc-per-node 2 -m benchmarks run --config c",
        ),
        (
            LLAVA,
            Resources(processes=8, nodes=2),
            "torchrun --nnodes 2 --rdzv-backend c10d --shutdown-timeout 270 --nproc-per-node 8 "
            "-m llava_bridge train --config c",
        ),
    ],
)
def test_a_step_is_started_under_the_launcher_that_it_needs(words, resources, expected):
    assert " ".join(launched(words, Path("c"), resources)) == expected


def test_a_command_that_nobody_can_share_is_refused():
    with pytest.raises(UserError, match="'clips scenes' runs in one process; got processes: 2"):
        launched(("clips", "scenes"), Path("c"), Resources(processes=2))


def test_resources_of_a_kind_are_overlaid_by_those_of_a_name():
    asked = {"llava-huge*": {"processes": 8}, "llava": {"processes": 2, "hours": 3.5}, "data": {"cpus": 2}}
    assert resources_of(asked, step("llava-huge-s0", "llava")) == Resources(processes=8, gpus=8, hours=3.5)
    assert resources_of(asked, step("llava-a", "llava")) == Resources(processes=2, gpus=2, hours=3.5)
    assert resources_of(asked, step("data-train", "data")) == Resources(cpus=2)
    own = step("llm-tiny", "llm", launch={"processes": 4})
    assert resources_of(asked, own).processes == 4
    with pytest.raises(UserError, match="did you mean 'encoder-clip-s0'"):
        check_patterns({"encoder-clp-s0": {}}, [step("encoder-clip-s0")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"executor": "slrm"}, "unknown executor 'slrm'; did you mean 'slurm'"),
        (
            {"executor": {"name": "slurm", "partitoin": "gpu"}},
            "executor: unknown key 'partitoin'; did you mean 'partition'",
        ),
        ({"executor": {"name": "slurm", "hours": "long"}}, "executor: hours: expected a number, got 'long'"),
        ({"executor": {"name": "slurm", "hours": 0}}, "executor: hours: expected more than 0, got 0"),
        (
            {"executor": {"name": "slurm", "setup": "module load"}},
            "executor: setup: expected a list, each item a string, got 'module load'",
        ),
        (
            {"executor": {"name": "slurm", "options": {"x": [1]}}},
            "executor: options.x: expected a string or an integer, got [1]",
        ),
        ({"executor": {"name": "slurm", "cancel": 1}}, "executor: cancel: expected true or false, got 1"),
        ({"executor": ["local"]}, "executor: expected one of local, gpus, slurm, or a mapping with its name, got ["),
        (
            {"resources": {"encoder": {"process": 2}}},
            "resources.encoder: unknown key 'process'; did you mean 'processes'",
        ),
        ({"resources": {"encoder": {"processes": 0}}}, "resources.encoder: processes: expected at least 1, got 0"),
        ({"resources": {"encoder": {"gpus": "all"}}}, "resources.encoder: gpus: expected an integer, got 'all'"),
        ({"resources": {"encoder": {"hours": float("nan")}}}, "resources.encoder: hours: expected more than 0"),
        ({"resources": [1]}, "resources: expected a mapping"),
    ],
)
def test_a_wrong_executor_or_resource_is_told_with_its_field(fields, message):
    with pytest.raises(UserError) as refused:
        study_from({**SMALL, **fields})
    assert message in str(refused.value)


def test_an_executor_is_named_alone_or_with_its_settings():
    assert executor_config("gpus") == GpusConfig()
    assert executor_config({"name": "gpus", "devices": ["1"]}) == GpusConfig(devices=("1",))
    assert study_from(SMALL).executor == LocalConfig()


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from benchmarks.study.lock import locked
with locked(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
    time.sleep(0.3)
    Path(sys.argv[2], "released").touch()
"""


def test_a_second_runner_waits_where_it_is_asked_to(tmp_path, monkeypatch):
    words = [sys.executable, "-c", HOLDER, str(Path(__file__).parents[1]), str(tmp_path)]
    said: list[str] = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="wait for it with --wait true"), locked(tmp_path):
            pass
        monkeypatch.setattr(lock, "say", lambda line: (said.append(line), first.stdin.close()))  # type: ignore[union-attr]
        with locked(tmp_path, wait=True):
            assert (tmp_path / "released").exists()
    who = f"another runner (process {first.pid}) or a step it left behind"
    assert said == [f"{tmp_path}: {who} is at work here; waiting"]


def test_torchrun_s_workers_end_with_the_runner_s_patience(tmp_path):
    from benchmarks.study.executors.children import start_child, stop_children

    worker = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    launcher = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    launcher += (
        f"p = subprocess.Popen([sys.executable, '-c', {worker!r}], start_new_session=True); print(p.pid, flush=True);"
    )
    launcher += "time.sleep(99)"
    with (tmp_path / "log").open("wb") as log:
        child = start_child([sys.executable, "-c", launcher], log, {})
    while len(told := (tmp_path / "log").read_text(encoding="utf-8").split()) < 2:
        time.sleep(0.02)
    pid = next(int(word) for word in told if word.isdecimal())
    stop_children([child], 0.2)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_torchrun_on_several_nodes_is_told_by_the_environment_where_to_meet(tmp_path, monkeypatch):
    from torch.distributed.run import get_args_parser

    from benchmarks.study.executors.base import Job
    from benchmarks.study.executors.job import _rendezvous

    resources = Resources(processes=8, nodes=2)
    words = launched(TRAIN, Path("c"), resources)
    job = Job(step=step("a"), resources=resources, words=words, directory=tmp_path, append=False, threads=1, token="t")
    place = types.SimpleNamespace(node=1, raw_job_id="1234567", hostnames=["n7", "n8"])
    for name, value in _rendezvous(place, job).items():
        monkeypatch.setenv(name, value)
    parsed = get_args_parser().parse_args(list(words[1:]))
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.node_rank) == ("2", "8", 1)
    assert (parsed.rdzv_backend, parsed.rdzv_id) == ("c10d", "1234567")
    host, port = parsed.rdzv_endpoint.split(":")
    assert host == "n7"
    assert 20_000 <= int(port) < 32_000
