"""A run's directories: whose they are, what is done already, what an interrupted run keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from bridge_world import config_file, run_cli

from clips.commandline.parsing import parse_config
from clips.core.artifact import write_manifest
from clips.errors import UserError
from llava_bridge.training import inputs, launch, run_dir
from llava_bridge.training import train as training
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.run_dir import prepare_work_dir
from llava_bridge.training.train import check_is_shared, with_precision
from llava_bridge.training.train_config import STAGE_NAMES, LlavaTrainConfig


@pytest.fixture
def path(tmp_path: Path, bridge_talk: Path, bridge_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run whose command must not come to start processes."""
    monkeypatch.setattr(training, "start_ranks", lambda *_: pytest.fail("it was started"))
    return config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))


@pytest.fixture
def config(path: Path) -> LlavaTrainConfig:
    return parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")  # type: ignore[return-value]


@pytest.fixture
def finished(config: LlavaTrainConfig, tmp_path: Path) -> LlavaTrainConfig:
    """The config of a run whose output is there."""
    done = config.with_processes(1)
    (tmp_path / "one").mkdir()
    write_manifest(tmp_path / "one", kind="llava", config=done, identity=resolve_inputs(done).identity.values)
    return done


def train(path: Path, *flags: str) -> tuple[int, str]:
    status, _, output = run_cli("train", "--config", str(path), *flags)
    return status, output


@pytest.mark.parametrize("manifest", [None, "{}", '{"kind": "encoder", "hash": "1", "config": {}}', "[", "\xff"])
def test_an_output_of_someone_else_is_not_replaced(manifest: str | None, path: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (tmp_path / "one" / "manifest.json").write_text(manifest, encoding="latin-1")
    status, output = train(path)
    assert status == 2
    assert "not empty, and not an artifact of kind 'llava'" in output
    assert (tmp_path / "one" / "thesis.txt").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_is_known_on_any_number_of_gpus(finished, path, monkeypatch):
    monkeypatch.setattr(inputs, "visible_gpus", lambda: ["0", "1", "2"])  # which do not divide the batch
    assert finished.align.global_batch_size % 3
    status, output = train(path)
    assert status == 0
    assert "already trained with this config; nothing to do" in output


def test_a_finished_run_is_not_changed(finished: LlavaTrainConfig, path: Path, tmp_path: Path) -> None:
    for free in (
        [],
        ["--logging_steps", "3", "--num_workers", "1", "--save_steps", "9", "--distributed.num_processes", "2"],
    ):
        status, output = train(path, *free)
        assert status == 0
        assert "already trained with this config; nothing to do" in output
    status, output = train(path, "--align.learning_rate", "0.5")
    assert status == 2
    assert "holds another run: align.learning_rate is 0.001 there and 0.5 now" in output
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    manifest["identity"]["inputs.encoder"] = "another"
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest))
    status, output = train(path)
    assert status == 2
    assert "holds another run: inputs.encoder is 'another' there" in output
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "has 0 bytes, but 7"), (bytes(7), "has another content"), (None, "missing")]
)
def test_a_finished_run_that_lost_its_weights_is_an_error_and_stays(content, reason, config, path, tmp_path):
    done, weights = config.with_processes(1), tmp_path / "one" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    write_manifest(weights.parent, kind="llava", config=done, identity=resolve_inputs(done).identity.values)
    assert train(path)[0] == 0
    weights.unlink() if content is None else weights.write_bytes(content)
    status, output = train(path)
    assert status == 2
    (line,) = output.splitlines()
    assert f"{weights}: {reason}" in line
    assert "remove" not in line
    assert (weights.parent / "manifest.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_removes_its_own_work_directory_and_no_other_runs(finished, path, tmp_path):
    work = tmp_path / ".one.work"
    for seed in (1, finished.seed):
        work.mkdir(exist_ok=True)
        (work / "run.json").unlink(missing_ok=True)
        prepare_work_dir(resolve_inputs(dataclasses.replace(finished, seed=seed)))
        (work / "instruct/checkpoints/checkpoint-3/complete").mkdir(parents=True)
        status, output = train(path)
        assert status == 0
        assert (f"{work} has an unfinished run with other settings" in output) == work.exists() == (seed == 1)
        if seed == 1:
            shutil.rmtree(work)


@pytest.mark.parametrize("progress", ["align/model", "instruct/checkpoints/checkpoint-3/complete"])
def test_an_unfinished_run_with_other_settings_is_rejected_and_stays(progress, config, tmp_path):
    work = tmp_path / ".one.work"
    (work / "align/tokenizer").mkdir(parents=True)
    prepare_work_dir(resolve_inputs(config))
    assert not (work / "align").exists()  # of no use to anybody
    record = (work / "run.json").read_text()
    prepare_work_dir(resolve_inputs(dataclasses.replace(config, seed=1)))  # nor was the first run's
    assert (work / "run.json").read_text() != record
    prepare_work_dir(resolve_inputs(config))
    (work / progress).mkdir(parents=True)
    with pytest.raises(UserError, match=r"output: .*work holds another run: seed is 0 there and 1 now"):
        prepare_work_dir(resolve_inputs(dataclasses.replace(config, seed=1)))
    assert (work / progress).exists()
    assert (work / "run.json").read_text() == record
    (work / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: not valid JSON .*; remove .*work to start from scratch"):
        prepare_work_dir(resolve_inputs(config))


def test_faults_of_the_last_stages_data_are_found_before_the_first_is_trained(config, bridge_talk, tmp_path):
    rows = json.loads((bridge_talk / "talk.json").read_text())
    for row in rows:
        row["conversations"][0]["value"] = row["conversations"][0]["value"].replace("<image>", "")
    (tmp_path / "unmarked.json").write_text(json.dumps(rows))
    (good,) = config.instruct.data
    bad = dataclasses.replace(good, path=str(tmp_path / "unmarked.json"), image_root=str(bridge_talk))
    config = dataclasses.replace(config, instruct=dataclasses.replace(config.instruct, data=[bad]))
    (tmp_path / ".one.work").mkdir()
    with pytest.raises(UserError, match=r"^instruct\.data: 16 of 16 .* 16 × 1 images but 0 <image>.*conversations"):
        prepare_work_dir(resolve_inputs(config))
    mixed = dataclasses.replace(config.instruct, data=[good, bad])
    prepare_work_dir(resolve_inputs(dataclasses.replace(config, instruct=mixed, max_invalid_ratio=0.5)))


def test_a_work_directory_belongs_to_one_run_and_goes_unless_it_helps_the_next(config, tmp_path, monkeypatch, capsys):
    work = tmp_path / ".one.work"
    with run_dir.lock_work_dir(resolve_inputs(config)):
        with (
            pytest.raises(UserError, match=r"output: another run is writing .*one"),
            run_dir.lock_work_dir(resolve_inputs(config)),
        ):
            pass
        assert work.is_dir()
    assert not work.exists()

    def fail(leaving: str) -> None:
        with run_dir.lock_work_dir(resolve_inputs(config)):
            (work / "align" / leaving).mkdir(parents=True)
            raise UserError("align: wrong")

    for leaving, helps in (("partial", False), ("model", True)):
        with pytest.raises(UserError, match="align: wrong"):
            fail(leaving)
        assert work.exists() == helps

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("clips.core.locks.fcntl.flock", flock)
    with run_dir.lock_work_dir(resolve_inputs(config)):
        assert "no locks here (No locks available); ensure that no other run writes" in capsys.readouterr().err


def test_an_output_that_only_one_machine_sees_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clips.parallel import distributed

    (tmp_path / "run.json").touch()
    check_is_shared(tmp_path)
    monkeypatch.setattr(distributed, "all_gather_objects", lambda sees: [sees, False])
    with pytest.raises(UserError, match=r"output: expected a directory shared by all nodes, but the process of rank 1"):
        check_is_shared(tmp_path)


def test_a_run_keeps_its_precision_on_other_hardware(config, tmp_path, monkeypatch, capsys) -> None:
    from clips.model import compute

    found, auto = [], dataclasses.replace(config, precision="auto")
    for precision in ("fp32", "bf16", "fp32"):
        monkeypatch.setattr(compute, "resolve_precision", lambda *_, kind=precision: (kind, "as it is"))
        found.append(with_precision(auto, tmp_path).precision)
        if precision == "bf16":  # the first one left no progress
            (tmp_path / "align/model").mkdir(parents=True)
    assert found == ["fp32", "bf16", "bf16"]
    reasons = ("fp32 (as it is)", "bf16 (as it is)", "bf16 (as before)")
    assert capsys.readouterr().err == "".join(f"precision: {each}\n" for each in reasons)
    assert with_precision(config, tmp_path).precision == config.precision == "fp32"


@pytest.mark.parametrize(("visible", "count"), [("", "null"), ("5", "null"), ("4,7", "2"), ("0,1,2", "3")])
def test_each_visible_gpu_gets_a_process(visible: str, count: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(training, "start_ranks", lambda count, _: started.append(count) or contextlib.nullcontext())
    monkeypatch.setattr(launch, "init_process_group", lambda: None)
    monkeypatch.setattr(training, "run_stages", lambda *_: None)
    started: list[int] = []
    batch = [word for name in STAGE_NAMES for word in (f"--{name}.global_batch_size", "6")]
    status, output = train(path, *batch)
    assert (status, started) == (0, [1 if count == "null" else int(count)]), output
    assert (f"distributed.num_processes: {count}, one for each visible GPU" in output) == (count != "null")
    train(path, *batch, "--distributed.num_processes", "1")
    assert started[1:] == [1]
    status, output = train(path, *batch, "--distributed.num_processes", "6")
    if visible:
        gpus = visible.count(",") + 1
        assert (status, output.count("\n")) == (2, 1)
        assert f"distributed.num_processes: expected at most {gpus}, one for each visible GPU, got 6" in output
    else:
        assert (status, started[2:]) == (0, [6])  # on the CPU


def test_the_number_of_processes(path: Path, config: LlavaTrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what a launcher has started."""
    assert config.with_processes(4).distributed.num_processes == 4
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    status, output = train(path)
    assert status == 2
    assert "align.global_batch_size: expected a multiple of processes (3)" in output
    status, output = train(path, "--distributed.num_processes", "2")
    assert status == 2
    assert "distributed.num_processes: expected 3, the number of the launcher's processes, or null, got 2" in output


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3"}, 3),
        ({"RANK": "1", "LOCAL_RANK": "1"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"LOCAL_RANK": "0"}, None),
    ],
)
def test_half_a_launchers_environment_is_none(monkeypatch: pytest.MonkeyPatch, given, expected) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launch.launcher_world_size() == expected
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="set without LOCAL_RANK"):
        launch.launcher_world_size()


@pytest.mark.parametrize("threads", [None, "3"])
def test_the_environment_of_the_processes(threads, path, tmp_path, monkeypatch):
    """As by a launcher; the allocator's options are those of any command."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    started: list[Any] = []
    monkeypatch.setattr(training, "start_ranks", launch.start_ranks)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # else nvidia-smi is started, too
    monkeypatch.setattr(launch.subprocess, "Popen", lambda words, env, **_: started.append((words, dict(env))) or ENDED)
    monkeypatch.setattr(launch, "init_process_group", lambda: None)
    monkeypatch.setattr(training, "run_stages", lambda *_: started.append(([], dict(os.environ))))
    monkeypatch.setattr(launch.os, "cpu_count", lambda: 12)
    with mock.patch.dict(os.environ):
        status, output = train(path, "--distributed.num_processes", "2")
    assert status == 0, output
    (words, other), (_, own) = started
    assert words[1:-1] == ["-m", "llava_bridge", "train", "--config"]
    assert (own["RANK"], own["LOCAL_RANK"], other["RANK"], other["LOCAL_RANK"]) == ("0", "0", "1", "1")
    for each in (own, other):
        assert (each["WORLD_SIZE"], each["MASTER_ADDR"]) == ("2", "127.0.0.1")
        assert each["MASTER_PORT"] == own["MASTER_PORT"]
        assert each["OMP_NUM_THREADS"] == (threads or "6")
        assert each["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


ENDED = SimpleNamespace(poll=lambda: 0, wait=lambda timeout=None: 0, kill=lambda: None)
