"""A run's directories: whose they are, what is done already, what an interrupted run keeps."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from bridge_world import config_file

from clips.commandline.parsing import parse_config
from clips.errors import UserError
from llava_bridge.cli import main
from llava_bridge.training import launch as launching
from llava_bridge.training.train_config import LlavaTrainConfig


@pytest.mark.parametrize("manifest", [None, "{}", '{"kind": "encoder", "hash": "1", "config": {}}', "[", "\xff"])
def test_an_output_of_someone_else_is_not_replaced(
    manifest: str | None, tmp_path: Path, bridge_talk: Path, bridge_encoder: Path
) -> None:
    from llava_bridge.training.train import run_train

    path = config_file(tmp_path, "mine", bridge_talk, encoder=str(bridge_encoder))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (tmp_path / "mine" / "manifest.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(UserError, match="not empty, and not an artifact of kind 'llava'"):
        run_train(parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test"))
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert not list(tmp_path.glob(".*"))


def llava_bridge(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of the command, which must not come to start processes."""
    monkeypatch.setattr(sys, "argv", ["llava-bridge", *arguments])
    monkeypatch.setattr(launching, "_deepspeed", lambda: [sys.executable, "-c", "raise SystemExit('it was launched')"])
    return main()


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, bridge_talk: Path, bridge_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from clips.core.artifact import write_manifest
    from llava_bridge.training.run_identity import run_identity

    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    config = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test").among(1)
    (tmp_path / "one").mkdir()
    write_manifest(tmp_path / "one", kind="llava", config=config, identity=run_identity(config))
    for free in (
        [],
        ["--logging_steps", "3", "--num_workers", "1", "--save_steps", "9", "--launch.num_processes", "2"],
    ):
        assert llava_bridge(monkeypatch, "train", "--config", str(path), *free) == 0
        assert "already trained with this config; nothing to do" in capsys.readouterr().err
    assert llava_bridge(monkeypatch, "train", "--config", str(path), "--align.learning_rate", "0.5") == 2
    assert "holds another run: align.learning_rate is 0.001 there and 0.5 now" in capsys.readouterr().err
    config = json.loads((tmp_path / "one" / "manifest.json").read_text())
    config["identity"]["inputs.encoder"] = "another"
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(config))
    assert llava_bridge(monkeypatch, "train", "--config", str(path)) == 2
    assert "holds another run: inputs.encoder is 'another' there" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_removes_its_own_work_directory_and_no_other_runs(
    tmp_path: Path, bridge_talk: Path, bridge_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from clips.core.artifact import write_manifest
    from llava_bridge.training.run_identity import run_identity
    from llava_bridge.training.stages import _prepare

    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    config = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test").among(1)
    (tmp_path / "one").mkdir()
    write_manifest(tmp_path / "one", kind="llava", config=config, identity=run_identity(config))
    work = tmp_path / ".one.work"
    for seed in (1, config.seed):
        work.mkdir(exist_ok=True)
        (work / "run.json").unlink(missing_ok=True)
        _prepare(work, dataclasses.replace(config, seed=seed))
        (work / "instruct/checkpoints/checkpoint-3/complete").mkdir(parents=True)
        assert llava_bridge(monkeypatch, "train", "--config", str(path)) == 0
        told = f"{work} holds an unfinished run with other settings" in capsys.readouterr().err
        assert told == work.exists() == (seed == 1)
        if told:
            shutil.rmtree(work)


@pytest.mark.parametrize("progress", ["align/model", "instruct/checkpoints/checkpoint-3/complete"])
def test_an_unfinished_run_with_other_settings_is_refused_and_kept(
    progress: str, tmp_path: Path, bridge_talk: Path, bridge_encoder: Path
) -> None:
    from llava_bridge.training.stages import _prepare

    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    config = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")
    work = tmp_path / "work"
    (work / "align/tokenizer").mkdir(parents=True)
    _prepare(work, config)
    assert not (work / "align").exists()  # of no use to anybody
    record = (work / "run.json").read_text()
    _prepare(work, dataclasses.replace(config, seed=1))  # nor was the first run's
    assert (work / "run.json").read_text() != record
    _prepare(work, config)
    (work / progress).mkdir(parents=True)
    with pytest.raises(UserError, match=r"output: .*work holds another run: seed is 0 there and 1 now"):
        _prepare(work, dataclasses.replace(config, seed=1))
    assert (work / progress).exists()
    assert (work / "run.json").read_text() == record
    (work / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: not valid JSON .*; remove .*work, and the run begins anew"):
        _prepare(work, config)


def test_an_earlier_request_to_stop_does_not_stop_processes_that_another_launcher_starts(
    tmp_path: Path, bridge_talk: Path, bridge_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_bridge.training.stages import _prepare

    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    config = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")
    stop = tmp_path / "stop"
    stop.write_text("15")
    monkeypatch.setenv(launching._COMMAND_PID, "1")
    _prepare(tmp_path, config)
    assert stop.is_file()  # that command has just asked for it
    monkeypatch.delenv(launching._COMMAND_PID)
    _prepare(tmp_path, config)
    assert not stop.exists()


def test_a_work_directory_belongs_to_one_run_and_goes_unless_it_helps_the_next(
    tmp_path: Path, bridge_talk: Path, bridge_encoder: Path
) -> None:
    from llava_bridge.training.work_dir import lock_work_dir

    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    config, work = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test"), tmp_path / ".one.work"
    with lock_work_dir(config):
        with pytest.raises(UserError, match=r"output: another run is writing .*one"), lock_work_dir(config):
            pass
        assert work.is_dir()
    assert not work.exists()

    def fail(leaving: str) -> None:
        with lock_work_dir(config):
            (work / "align" / leaving).mkdir(parents=True)
            raise UserError("align: wrong")

    for leaving, helps in (("partial", False), ("model", True)):
        with pytest.raises(UserError, match="align: wrong"):
            fail(leaving)
        assert work.exists() == helps


def test_features_are_not_kept_where_processes_must_call_the_encoder_together(
    tmp_path: Path, bridge_talk: Path, bridge_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    flags = ["--align.cache_vision_features", "true", "--launch.deepspeed", "zero3", "--launch.num_processes", "2"]
    assert llava_bridge(monkeypatch, "train", "--config", str(path), *flags) == 2
    assert "align.cache_vision_features: expected false under ZeRO-3 with several processes" in capsys.readouterr().err


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, bridge_talk: Path, bridge_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from llava_bridge.training import work_dir

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    monkeypatch.setattr(work_dir.fcntl, "flock", flock)
    with work_dir.lock_work_dir(parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")):
        assert "no locks here (No locks available); see to it that no other run writes" in capsys.readouterr().err


def test_an_output_that_one_machine_alone_sees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clips.parallel import distributed
    from llava_bridge.training.stages import _check_shared

    (tmp_path / "run.json").touch()
    _check_shared(tmp_path)
    monkeypatch.setattr(distributed, "all_gather_objects", lambda sees: [sees, False])
    with pytest.raises(UserError, match=r"output: expected a place that all machines share, but the process of rank 1"):
        _check_shared(tmp_path)


def test_the_number_of_processes_is_what_a_launcher_has_started(
    tmp_path: Path, bridge_talk: Path, bridge_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = config_file(tmp_path, "one", bridge_talk, encoder=str(bridge_encoder))
    config = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")
    assert config.among(4).launch.num_processes == 4
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert llava_bridge(monkeypatch, "train", "--config", str(path)) == 2
    assert "llm_pretrain.global_batch_size: expected a multiple of processes (3)" in capsys.readouterr().err
    assert llava_bridge(monkeypatch, "train", "--config", str(path), "--launch.num_processes", "2") == 2
    assert (
        "launch.num_processes: expected 3, as many as the launcher has started, or null, got 2"
        in capsys.readouterr().err
    )
