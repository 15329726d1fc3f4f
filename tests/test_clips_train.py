from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips_world
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.report.cost_figures import TrainingRuns, encoder_flops
from clips import train as training
from clips.core.artifact import directory_hash, write_manifest
from clips.errors import UserError
from clips.method.clips_model import ModelConfig, build_model
from clips.method.recipes import RecipeConfig
from clips.train import train, train_step
from clips.training import setup as beginning
from clips.training.train_state import CHECKPOINTS_DIR, list_checkpoints

WEIGHTS = ("open_clip_model.safetensors", "captioner.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")
    write_manifest(folder, kind="scenes", config={})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """An uninterrupted training in one process."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(clips_world.train_config(data, output))
    return output


def weights(output: Path) -> dict[str, torch.Tensor]:
    return {f"{name}/{key}": value for name in WEIGHTS for key, value in load_file(output / name).items()}


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


# ---- a whole run


def test_all_files_of_a_run_have_the_permissions_of_the_umask(tmp_path: Path, data: Path):
    mask = 0o027
    before = os.umask(mask)
    try:
        config = clips_world.train_config(data, tmp_path / "run")
        train(dataclasses.replace(config, max_steps=2, save_steps=1, keep_checkpoints_after_training=True))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".yaml"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~mask)}


def test_a_run_leaves_an_encoder_directory_with_its_records(whole: Path, data: Path):
    assert {path.name for path in whole.iterdir()} == {
        *WEIGHTS,
        *("open_clip_config.json", "captioner_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
        *("README.md", "manifest.json", "metrics.jsonl", "summary.json", "config.yaml"),
    }
    entries = metrics(whole)
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert [entry["samples_seen"] for entry in entries] == [8, 16, 24]
    assert {"loss", "contrastive_loss", "caption_loss", "lr", "logit_scale", "grad_norm", "time"} <= entries[0].keys()
    assert all(entry["flops_per_sample"] > 0 for entry in entries)
    by_entry = sum(8 * entry["flops_per_sample"] for entry in entries)
    assert encoder_flops(TrainingRuns(encoder=whole)) == pytest.approx(by_entry)
    assert "mfu" not in entries[-1]  # a CPU's peak is not known
    assert entries[0]["loss"] == pytest.approx(
        entries[0]["contrastive_loss"] + 2 * entries[0]["caption_loss"], rel=1e-5
    )
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["bad_samples"] == {"count": 0, "by_reason": {}, "samples": {}, "more": 0}
    assert summary["last"] == entries[-1]
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["kind"] == "encoder"
    assert manifest["samples_seen"] == 24
    assert manifest["parents"] == {"train": {"path": str(data), "hash": directory_hash(data, recorded=False)}}
    assert manifest["data"]["sources"][0]["samples"] == 21
    assert manifest["config"]["model"]["architecture"] == "clips-tiny"


MEANS = ("loss", "contrastive_loss", "caption_loss", "cosine_gap", "grad_norm")


def test_an_entry_has_the_means_of_its_steps_also_in_a_resumed_run(whole: Path, data: Path, tmp_path: Path):
    train(clips_world.train_config(data, tmp_path / "each", logging_steps=1))
    each = metrics(tmp_path / "each")
    for step, entry in zip((2, 4, 6), metrics(whole), strict=True):
        for name in MEANS:
            assert entry[name] == pytest.approx((each[step - 2][name] + each[step - 1][name]) / 2), name
        assert {name: entry[name] for name in ("lr", "logit_scale")} == {
            name: each[step - 1][name] for name in ("lr", "logit_scale")
        }
    config = clips_world.train_config(data, tmp_path / "resumed", logging_steps=5, save_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", stop_at(4))
        with pytest.raises(InterruptedError):
            train(config)
    train(config)
    first, last = metrics(tmp_path / "resumed")
    assert (first["step"], last["step"]) == (5, 6)
    for name in MEANS:
        assert first[name] == pytest.approx(sum(entry[name] for entry in each[:5]) / 5), name
        assert last[name] == pytest.approx(each[5][name]), name


def test_flops_are_the_mean_of_batches_and_go_on_from_those_before(tmp_path: Path):
    words = "A red square. It lies on a table beside a dog, two cups and a very large green bottle."
    samples = {f"{index}": clips_world.sample(index) for index in range(12)}
    for index in range(0, 12, 3):
        captions = {**clips_world.captions(index), "synthetic_caption": words}
        samples[f"{index}"]["json"] = json.dumps(captions).encode()
    clips_world.write_shard(tmp_path / "data" / "a.tar", samples)
    for name, stop in (("whole", None), ("resumed", 3)):
        fields = {"max_steps": 4, "global_batch_size": 1, "logging_steps": 1, "save_steps": 1}
        recipe = {"name": "clips", "captioner": {"max_length": 24, "num_layers": 1}}
        config = clips_world.train_config(tmp_path / "data", tmp_path / name, recipe=recipe, **fields)
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                patch.setattr(training, "train_step", stop_at(stop))
            with pytest.raises(InterruptedError) if stop else contextlib.nullcontext():
                train(config)
        if stop:
            train(config)
    found = {name: [entry["flops_per_sample"] for entry in metrics(tmp_path / name)] for name in ("whole", "resumed")}
    assert found["resumed"] == found["whole"]
    assert len(set(found["whole"])) > 1  # batches are unlike


def test_a_finished_run_is_left_alone_and_another_config_refused(
    whole: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    train(clips_world.train_config(data, whole, logging_steps=1, save_steps=1))
    assert "already trained" in capsys.readouterr().err
    sources = [{"path": str(data), "cache_dir": "/elsewhere", "max_cache_gb": 7}]
    free = {
        "data": {"sources": sources, "max_invalid_ratio": 0.3},
        "validation": {"eval_steps": 7},
        "keep_checkpoints_after_training": True,
    }
    train(clips_world.train_config(data, whole, **free))
    assert "already trained" in capsys.readouterr().err
    sources[0]["web_caption"] = "captions"
    with pytest.raises(UserError, match=r"whole holds another run: data\.sources is"):
        train(clips_world.train_config(data, whole, **free))
    with pytest.raises(UserError, match="seed is 0 there and 1 now"):
        train(clips_world.train_config(data, whole, seed=1))
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_an_unfinished_run_may_change_what_it_is_told_it_may(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "train_step", stop_at(4))
    with pytest.raises(InterruptedError):
        train(clips_world.train_config(data, tmp_path / "run"))
    monkeypatch.undo()
    slower = {"optimizer": {"learning_rate": 0.0005}}
    with pytest.raises(UserError, match=r"optimizer\.learning_rate is 0\.001 there and 0\.0005 now"):
        train(clips_world.train_config(data, tmp_path / "run", **slower))
    for interrupted in (True, False):  # before it has come to another checkpoint
        with pytest.MonkeyPatch.context() as patch:
            if interrupted:
                patch.setattr(training, "train_step", stop_at(4))
            with pytest.raises(InterruptedError) if interrupted else contextlib.nullcontext():
                train(
                    clips_world.train_config(
                        data, tmp_path / "run", **slower, allow_changes_on_resume=["optimizer.learning_rate"]
                    )
                )
        if interrupted:  # what it did not come to keep is no run to go on with
            with pytest.raises(UserError, match=r"learning_rate is 0\.001 there and 0\.0005 now"):
                train(clips_world.train_config(data, tmp_path / "run", **slower))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["changes"] == ["from step 5: optimizer.learning_rate 0.001 → 0.0005"]
    with pytest.raises(UserError, match="another run"):  # it is finished
        train(clips_world.train_config(data, tmp_path / "run", allow_changes_on_resume=["optimizer.learning_rate"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"allow_changes_on_resume": ["seed"]},
            "allow_changes_on_resume: expected fields that begin with optimizer., precision; got seed",
        ),
        (
            {
                "model": {"architecture": "clips-tiny", "cache_trunk_features": True, "lock_image": True},
                "data": {"sources": [{"path": "x"}], "augment": {"crop_scale_min": 1.0}},
                "distributed": {"strategy": "fsdp"},
            },
            "model.cache_trunk_features: expected false where parameters are in shards",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(tmp_path: Path, fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        clips_world.train_config(tmp_path / "data", tmp_path / "run", **fields)


def test_nothing_is_written_over(data: Path, tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="precious: not empty"):
        train(clips_world.train_config(data, tmp_path / "precious"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file: a file is in the way"):
        train(clips_world.train_config(data, tmp_path / "file"))


def test_a_mistake_found_late_leaves_nothing_behind(data: Path, tmp_path: Path):
    model = {"architecture": "clips-tinyvit", "image_size": 64, "pretrained_trunk": str(tmp_path / "gone.safetensors")}
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file"):
        train(clips_world.train_config(data, tmp_path / "run", model=model))
    assert not (tmp_path / "run").exists()


def test_the_trunk_is_a_parent_and_must_stay_the_same(data: Path, tmp_path: Path):
    trunk = tmp_path / "trunk.safetensors"
    model = {"architecture": "clips-tinyvit", "image_size": 32, "pretrained_trunk": str(trunk)}
    fresh = build_model(ModelConfig(architecture="clips-tinyvit", image_size=32), RecipeConfig(name="clip"), 0)
    weights = fresh.clip.visual.trunk.state_dict()
    save_file(weights, trunk)
    started, finished = (
        clips_world.train_config(data, tmp_path / name, max_steps=steps, model=model, recipe={"name": "clip"})
        for name, steps in (("started", 3), ("finished", 0))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", stop_at(2))
        with pytest.raises(InterruptedError):
            train(started)
    train(finished)
    parents = json.loads((tmp_path / "finished" / "manifest.json").read_text())["parents"]
    assert parents["pretrained_trunk"] == {"path": str(trunk), "hash": directory_hash(trunk)}
    save_file({name: value + 1 for name, value in weights.items()}, trunk)
    for config in (started, finished):
        with pytest.raises(UserError, match=r"inputs\.pretrained_trunk is"):
            train(config)


def test_no_steps_write_the_untrained_encoder(data: Path, tmp_path: Path):
    config = clips_world.train_config(data, tmp_path / "untrained", max_steps=0, seed=4)
    train(config)
    fresh = build_model(config.model, config.recipe, 4)
    saved = load_file(tmp_path / "untrained" / "open_clip_model.safetensors")
    assert saved.keys() == fresh.clip.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in fresh.clip.state_dict().items())
    assert not (tmp_path / "untrained" / "metrics.jsonl").exists()


def test_it_learns(data: Path, tmp_path: Path):
    small = clips_world.write_shards(tmp_path / "small", (7,))
    still = {"sources": [{"path": str(small)}], "augment": {"crop_scale_min": 1.0}}
    fields = {"max_steps": 40, "global_batch_size": 7, "logging_steps": 1, "recipe": {"name": "clip"}}
    train(clips_world.train_config(small, tmp_path / "learned", data=still, **fields))
    losses = [entry["loss"] for entry in metrics(tmp_path / "learned")]
    assert losses[0] > 0.8 * math.log(7)
    assert losses[-1] < 0.5 * losses[0]


# ---- interruptions and processes


def start(log: Path, *command: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-m", *command], env=environment, stderr=stream)


def test_killed_in_mid_run_and_resumed_is_the_same_run(whole: Path, data: Path, tmp_path: Path):
    output = tmp_path / "killed"
    steps = 6
    config = clips_world.train_config(data, output, save_steps=1)
    process = start(tmp_path / "log", "clips.cli", "train", "--config", str(output.with_suffix(".json")))
    deadline = time.monotonic() + 200
    while len(list_checkpoints(output)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert (output / CHECKPOINTS_DIR).is_dir()
    assert not (output / "manifest.json").exists()
    with (output / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "loss": 1}\n{"st')  # logged after the last checkpoint; torn
    train(config)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(output).items())
    assert [entry["step"] for entry in metrics(output)] == [2, 4, steps]
    assert [entry["loss"] for entry in metrics(output)] == [entry["loss"] for entry in metrics(whole)]
    assert not (output / CHECKPOINTS_DIR).exists()


def test_the_batch_is_divided_evenly_or_not_at_all(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(beginning, "start_processes", lambda **_: SimpleNamespace(count=3))
    with pytest.raises(UserError, match="global_batch_size: expected a multiple of the 3 processes, got 4"):
        train(clips_world.train_config(data, tmp_path / "three"))


def stop_at(step: int) -> Any:
    def stopping(run: training.TrainRun, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        if run.loop.step == step:
            raise InterruptedError
        return train_step(run, batch)

    return stopping


def test_a_full_disk_in_mid_run_is_told_and_the_run_goes_on_later(whole: Path, data: Path, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300M", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    try:
        from clips.cli import COMMANDS
        from clips.commandline.commands import dispatch

        clips_world.train_config(data, disk / "run")
        (disk / "ballast").write_bytes(bytes(120 << 20))
        arguments = ["train", "--config", str(disk / "run.json")]
        assert dispatch("clips", "", COMMANDS, arguments) == 2
        assert not (disk / "run" / "manifest.json").exists()
        (disk / "ballast").unlink()
        assert dispatch("clips", "", COMMANDS, arguments) == 0
        expected = weights(whole)
        assert all(torch.equal(value, expected[name]) for name, value in weights(disk / "run").items())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_is_odd_about_the_data_is_said_and_validation_looked_at_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = {"path": str(data), "synthetic_caption": None}
    validation = {"source": {"path": str(tmp_path / "gone.tar")}}
    with pytest.raises(UserError, match=r"gone\.tar: no such file"):
        train(clips_world.train_config(data, tmp_path / "run", validation=validation))
    assert not (tmp_path / "run").exists()
    fields = {"data": {"sources": [source]}, "max_steps": 1, "global_batch_size": 30}
    validation = {"eval_steps": 1, "num_samples": 5, "source": {"path": str(data)}}
    train(clips_world.train_config(data, tmp_path / "run", validation=validation, **fields))
    said = capsys.readouterr().err
    assert "none has synthetic captions; recipe clips takes web captions in their place" in said
    assert "global_batch_size: 30 of 21 samples: an image comes several times in a step" in said
    assert re.search(r"T→I R@1 web \d+\.\d, partial \d+\.\d, whole \d+\.\d", said)
    train(clips_world.train_config(data, tmp_path / "web", recipe={"name": "clip"}, **fields))
    assert "none has synthetic" not in capsys.readouterr().err
