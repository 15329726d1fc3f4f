from __future__ import annotations

import contextlib
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
from clips_world import is_equal, metrics, stopped_at, train, trained
from safetensors.torch import save_file

from clips import train as training_commands
from clips.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.core.artifact import directory_hash, write_manifest
from clips.core.locks import lock_output
from clips.encoder import write_encoder
from clips.errors import UserError
from clips.loader import loader
from clips.method.clips_model import ModelConfig, build_model
from clips.method.recipes import RecipeConfig
from clips.train import train as train_counting_flops
from clips.training import setup as beginning
from clips.training.run_dir import CHECKPOINTS_DIR, list_checkpoints

WEIGHTS = ("open_clip_model.safetensors", "captioner.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")
    write_manifest(folder, kind="scenes", config={})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """An uninterrupted training in one process, whose FLOPs are counted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train_counting_flops(clips_world.train_config(data, output, save_steps=100))
    return output


def test_all_files_of_a_run_have_the_permissions_of_the_umask(tmp_path: Path, data: Path):
    mask = 0o027
    before = os.umask(mask)
    try:
        trained(data, tmp_path / "run", max_steps=2, save_steps=1, keep_checkpoints_after_training=True)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".yaml"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~mask)}


def test_a_run_keeps_the_order_in_which_it_began(whole: Path, data: Path, tmp_path: Path, monkeypatch, capsys):
    """Of very many shards some are shuffled together, unless the run began before that was the default."""
    config = clips_world.train_config(data, whole, save_steps=100)
    monkeypatch.setattr(loader, "MANY_SHARDS", 2)
    new = beginning.open_train_dataset(clips_world.train_config(data, tmp_path / "new"))
    assert new.order.buffer_shards == 100
    assert all(" in buffers of 100 shards" in value for value in new.hashes().values())
    old = beginning.open_train_dataset(config)
    assert old.order.buffer_shards is None
    train(config)
    assert "already trained with this config" in capsys.readouterr().err
    train(clips_world.train_config(data, tmp_path / "new", max_steps=2))
    assert beginning.open_train_dataset(clips_world.train_config(data, tmp_path / "new")).order.buffer_shards == 100
    with stopped_at(2), contextlib.suppress(SystemExit):
        train(clips_world.train_config(data, tmp_path / "stopped"))
    assert list_checkpoints(tmp_path / "stopped")
    assert beginning.open_train_dataset(clips_world.train_config(data, tmp_path / "stopped")).order.buffer_shards == 100
    monkeypatch.setattr(loader, "MANY_SHARDS", 2000)
    with stopped_at(2), contextlib.suppress(SystemExit):
        train(clips_world.train_config(data, tmp_path / "before"))
    monkeypatch.setattr(loader, "MANY_SHARDS", 2)
    train(clips_world.train_config(data, tmp_path / "before"))
    assert is_equal(tmp_path / "before", whole)


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
    assert "mfu" not in entries[-1] or torch.cuda.is_available()  # a CPU's peak is not known
    assert entries[0]["loss"] == pytest.approx(
        entries[0]["contrastive_loss"] + 2 * entries[0]["caption_loss"], rel=1e-5
    )
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["invalid_samples"] == {"count": 0, "by_reason": {}, "samples": {}, "more": 0}
    assert summary["last"] == entries[-1]
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["kind"] == "encoder"
    assert manifest["samples_seen"] == 24
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["parents"] == {"train": {"path": str(data), "hash": directory_hash(data)}}
    assert manifest["data"]["sources"][0]["samples"] == 21
    assert manifest["config"]["model"]["architecture"] == "clips-tiny"


MEANS = ("loss", "contrastive_loss", "caption_loss", "cosine_gap", "grad_norm")


def test_an_entry_has_the_means_of_its_steps_also_in_a_resumed_run(whole: Path, data: Path, tmp_path: Path):
    each = metrics(trained(data, tmp_path / "each", logging_steps=1))
    for step, entry in zip((2, 4, 6), metrics(whole), strict=True):
        for name in MEANS:
            assert entry[name] == pytest.approx((each[step - 2][name] + each[step - 1][name]) / 2), name
        for name in ("lr", "logit_scale"):
            assert entry[name] == each[step - 1][name]
    config = clips_world.train_config(data, tmp_path / "resumed", logging_steps=5, save_steps=3)
    with stopped_at(4):
        train(config)
    train(config)
    first, last = metrics(tmp_path / "resumed")
    assert (first["step"], last["step"]) == (5, 6)
    for name in MEANS:
        assert first[name] == pytest.approx(sum(entry[name] for entry in each[:5]) / 5), name
        assert last[name] == pytest.approx(each[5][name]), name


@pytest.mark.slow
def test_flops_are_the_mean_of_batches_also_after_a_resume(tmp_path: Path):
    words = "A red square. It lies on a table beside a dog, two cups and a very large green bottle."
    samples = {f"{index}": clips_world.sample(index) for index in range(12)}
    for index in range(0, 12, 3):
        captions = {**clips_world.captions(index), "synthetic_caption": words}
        samples[f"{index}"]["json"] = json.dumps(captions).encode()
    clips_world.write_shard(tmp_path / "data" / "a.tar", samples)
    fields = {"max_steps": 3, "global_batch_size": 1, "logging_steps": 1, "save_steps": 1}
    recipe = {"name": "clips", "captioner": {"max_length": 24, "num_layers": 1, "width": 32}}
    whole, resumed = (
        clips_world.train_config(tmp_path / "data", tmp_path / name, recipe=recipe, **fields)
        for name in ("whole", "resumed")
    )
    train_counting_flops(whole)
    with stopped_at(2):
        train_counting_flops(resumed)
    train_counting_flops(resumed)
    found = [[entry["flops_per_sample"] for entry in metrics(tmp_path / name)] for name in ("whole", "resumed")]
    assert found[0] == found[1]
    assert len(set(found[0])) > 1  # batches differ


def test_a_finished_run_stays_and_another_config_is_rejected(whole, data, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    left = whole / ".checkpoints" / "step-00000001"  # by a kill between the manifest and their removal
    left.mkdir(parents=True)
    train(clips_world.train_config(data, whole, logging_steps=1, save_steps=1))
    assert "already trained" in capsys.readouterr().err
    assert not left.parent.exists()
    left.mkdir(parents=True)
    sources = [{"path": str(data), "cache_dir": "/elsewhere", "max_cache_gb": 7}]
    free = {
        "data": {"sources": sources, "max_invalid_ratio": 0.3},
        "validation": {"eval_steps": 7},
        "keep_checkpoints_after_training": True,
    }
    train(clips_world.train_config(data, whole, **free))
    assert "already trained" in capsys.readouterr().err
    assert left.exists()  # as it is wanted
    shutil.rmtree(left.parent)
    sources[0]["web_caption"] = "captions"
    with pytest.raises(UserError, match=r"whole holds another run: data\.sources is"):
        train(clips_world.train_config(data, whole, **free))
    with pytest.raises(UserError, match="seed is 0 there and 1 now"):
        train(clips_world.train_config(data, whole, seed=1))
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("captioner.safetensors", None, "captioner.safetensors: missing, but manifest.json lists it; restore"),
        ("open_clip_model.safetensors", 0, "open_clip_model.safetensors: has 0 bytes, but 21,"),
        (
            "open_clip_model.safetensors",
            -1,
            "open_clip_model.safetensors: has another content than manifest.json",
        ),
        ("manifest.json", 0, "not an artifact of kind 'encoder' (manifest.json: not valid JSON"),
        ("manifest.json", -1, "not an artifact of kind 'encoder' (manifest.json: not valid JSON"),
    ],
)
def test_a_finished_run_that_lost_its_content_is_an_error_and_stays(whole, data, tmp_path, capsys, name, content, told):
    """As power cuts leave it: a file is missing, empty, or zeros in its size and with its time (-1)."""
    output = tmp_path / "whole"
    shutil.copytree(whole, output)
    status = (output / name).stat()
    (output / name).unlink() if content is None else (output / name).write_bytes(
        bytes(status.st_size if content else 0)
    )
    if content is not None:
        os.utime(output / name, ns=(status.st_mtime_ns, status.st_mtime_ns))
    before = sorted(output.rglob("*"))
    clips_world.train_config(data, output)
    assert dispatch("clips", "", COMMANDS, ["train", "--config", str(output.with_suffix(".json"))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert "remove" not in line
    assert sorted(output.rglob("*")) == before


def test_a_second_run_in_one_directory_is_rejected_and_a_killed_one_leaves_no_lock(data: Path, tmp_path: Path):
    config = clips_world.train_config(data, tmp_path / "run", save_steps=100)
    lock = tmp_path / ".run.lock"
    code = f"""
import os, sys
from pathlib import Path
from clips.core.locks import lock_output
with lock_output(Path({str(lock)!r}), "run"):
    if os.fork() == 0:  # as a DataLoader's worker, which notices the end of its process after seconds
        print("locked", flush=True)  # here, since a fork has closed its copy of the lock only when it runs
        sys.stdin.read()
        os._exit(0)
    sys.stdin.read()  # both wait for the end of the test, however long that takes
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=r"^output: another run is writing .*run$"):
            train(config)
        assert not (tmp_path / "run").exists()
        owner.kill()
        owner.wait()
        train(config)
    assert not lock.exists()


def test_an_output_whose_parent_cannot_be_written_is_trained_without_a_lock(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "scratch" / "run"
    run.mkdir(parents=True)
    config = clips_world.train_config(data, run, save_steps=100)
    monkeypatch.setattr(training_commands.os, "access", lambda path, _: Path(path) != run.parent)  # root may write all
    monkeypatch.setattr(training_commands, "lock_output", None)
    train(config)
    assert (run / "manifest.json").is_file()
    assert f"{run.parent}: no lock" in capsys.readouterr().err


def test_an_unfinished_run_may_change_the_stated_settings(data: Path, tmp_path: Path):
    run = tmp_path / "run"
    with stopped_at(4):
        train(clips_world.train_config(data, run))
    slower = {"optimizer": {"learning_rate": 0.0005}}
    allowed = clips_world.train_config(data, run, **slower, allow_changes_on_resume=["optimizer.learning_rate"])
    with stopped_at(4):  # before another checkpoint: a run without one cannot be resumed
        train(allowed)
    with pytest.raises(UserError, match=r"optimizer\.learning_rate is 0\.001 there and 0\.0005 now"):
        train(clips_world.train_config(data, run, **slower))
    train(allowed)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["changes"] == ["from step 5: optimizer.learning_rate 0.001 → 0.0005"]
    with pytest.raises(UserError, match="another run"):  # it is finished
        train(clips_world.train_config(data, run, allow_changes_on_resume=["optimizer.learning_rate"]))


def test_a_run_keeps_its_precision_on_other_hardware(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for fast in (True, False):  # the hardware of the first two steps, and of the others
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        config = clips_world.train_config(data, tmp_path / "run", precision="auto", max_steps=3)
        with stopped_at(2) if fast else contextlib.nullcontext():
            train(config)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allow_changes_on_resume": ["seed"]}, "expected fields that begin with optimizer., precision; got seed"),
        (
            {
                "model": {"architecture": "clips-tiny", "cache_trunk_features": True, "lock_image": True},
                "data": {"sources": [{"path": "x"}], "augment": {"crop_scale_min": 1.0}},
                "distributed": {"strategy": "fsdp"},
            },
            "model.cache_trunk_features: expected false with sharded parameters",
        ),
    ],
)
def test_impossible_settings_are_rejected_before_training(tmp_path: Path, fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        clips_world.train_config(tmp_path / "data", tmp_path / "run", **fields)


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
    with stopped_at(2):
        train(started)
    train(finished)
    parents = json.loads((tmp_path / "finished" / "manifest.json").read_text())["parents"]
    assert parents["pretrained_trunk"] == {"path": str(trunk), "hash": directory_hash(trunk)}
    save_file({name: value + 1 for name, value in weights.items()}, trunk)
    for config in (started, finished):
        with pytest.raises(UserError, match=r"inputs\.pretrained_trunk is"):
            train(config)


def test_a_run_resumes_on_the_same_data_only(tmp_path: Path):
    """On more samples the order would be another one, and the record would state the new data for all steps."""
    data, more = clips_world.write_shards(tmp_path / "data"), clips_world.write_shards(tmp_path / "more", (9, 7, 5, 30))
    started, finished = (clips_world.train_config(data, tmp_path / name) for name in ("started", "finished"))
    with stopped_at(4):
        train(started)
    train(finished)
    shutil.copytree(data, tmp_path / "copy")
    shutil.rmtree(data)
    more.rename(data)
    for config in (started, finished):
        with pytest.raises(UserError, match=r"holds another run: inputs\.data\.sources\[0\] is"):
            train(config)
    shutil.rmtree(data)
    (tmp_path / "copy").rename(data)
    train(started)
    assert is_equal(tmp_path / "started", tmp_path / "finished")


def test_a_run_of_a_mixture_resumes_in_the_same_order_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without weights a run has no order of a mixture: a new one makes it no other run."""
    one, two = (clips_world.write_shards(tmp_path / name, sizes) for name, sizes in (("one", (9, 7)), ("two", (5,))))
    mixed = {"sources": [{"path": str(one), "weight": 3}, {"path": str(two), "weight": 1}]}
    joined = {"sources": [{"path": str(one)}, {"path": str(two)}]}
    alone = {"sources": [{"path": str(one), "weight": 3}]}
    configs = {
        name: clips_world.train_config(one, tmp_path / f"{name} run", data=data)
        for name, data in {"mixed": mixed, "joined": joined, "alone": alone}.items()
    }
    for config in configs.values():
        with stopped_at(4):
            train(config)
    monkeypatch.setattr("clips.loader.loader.MIXTURE_ORDER", 3)
    for name in ("joined", "alone"):
        train(configs[name])
    with pytest.raises(
        UserError, match=r"another run: inputs\.data\.sources\[0\] is '.*2 of mixtures' there and '.*3 of mixtures' now"
    ):
        train(configs["mixed"])
    monkeypatch.undo()
    train(configs["mixed"])
    assert is_equal(tmp_path / "mixed run", trained(one, tmp_path / "whole", data=mixed))


def test_no_steps_write_the_untrained_encoder(data: Path, tmp_path: Path):
    config = clips_world.train_config(data, tmp_path / "untrained", max_steps=0, seed=4)
    train(config)
    write_encoder(build_model(config.model, config.recipe, 4), tmp_path / "fresh")
    assert is_equal(tmp_path / "untrained", tmp_path / "fresh")
    assert not (tmp_path / "untrained" / "metrics.jsonl").exists()


def test_it_learns(tmp_path: Path):
    small = clips_world.write_shards(tmp_path / "small", (7,))
    still = {"sources": [{"path": str(small)}], "augment": {"crop_scale_min": 1.0}}
    fields = {"max_steps": 40, "global_batch_size": 7, "logging_steps": 1, "recipe": {"name": "clip"}}
    losses = [entry["loss"] for entry in metrics(trained(small, tmp_path / "learned", data=still, **fields))]
    assert losses[0] > 0.8 * math.log(7)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_killed_in_mid_run_and_resumed_is_the_same_run(whole: Path, data: Path, tmp_path: Path):
    output = tmp_path / "killed"
    config = clips_world.train_config(data, output, save_steps=1)
    command = [sys.executable, "-m", "clips.cli", "train", "--config", str(output.with_suffix(".json"))]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=log)
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
    assert is_equal(output, whole)
    assert [(entry["step"], entry["loss"]) for entry in metrics(output)] == [
        (entry["step"], entry["loss"]) for entry in metrics(whole)
    ]
    assert not (output / CHECKPOINTS_DIR).exists()


@pytest.mark.parametrize("then", [False, True])
@pytest.mark.parametrize("now", [False, True])
def test_a_run_killed_after_its_manifest_leaves_no_checkpoints(whole: Path, data: Path, tmp_path, then, now):
    """Before: they stayed forever, as the same command had nothing to do. Those that the user keeps stay."""
    output, keep = tmp_path / "run", "keep_checkpoints_after_training"
    shutil.copytree(whole, output)
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["config"][keep] = then
    (output / "manifest.json").write_text(json.dumps(manifest))
    leftovers = [output / CHECKPOINTS_DIR / "step-00000004", output / f"{CHECKPOINTS_DIR}.partial" / "step-00000002"]
    for leftover in leftovers:
        leftover.mkdir(parents=True)
    config = clips_world.train_config(data, output, **{keep: now})
    with lock_output(tmp_path / ".run.lock", output):  # as the run that has just written the manifest
        train(config)
    assert all(path.is_dir() for path in leftovers)
    train(config)
    assert [path.is_dir() for path in leftovers] == [then or now] * 2


def test_the_batch_is_divided_evenly_or_not_at_all(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(beginning, "start_processes", lambda **_: SimpleNamespace(count=3))
    with pytest.raises(UserError, match="global_batch_size: expected a multiple of the 3 processes, got 4"):
        train(clips_world.train_config(data, tmp_path / "three"))


def test_a_full_disk_during_a_run_is_reported_and_the_run_resumes_later(whole: Path, data: Path, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200M", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        config = clips_world.train_config(data, disk / "run")
        (disk / "ballast").write_bytes(bytes(120 << 20))
        with pytest.raises(OSError, match="No space left"):
            train(config)
        assert not (disk / "run" / "manifest.json").exists()
        (disk / "ballast").unlink()
        train(config)
        assert is_equal(disk / "run", whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_unusual_data_is_reported_and_validation_checked_first(data, tmp_path, capsys):
    validation = {"source": {"path": str(tmp_path / "gone.tar")}}
    with pytest.raises(UserError, match=r"gone\.tar: no such file"):
        train(clips_world.train_config(data, tmp_path / "run", validation=validation))
    assert not (tmp_path / "run").exists()
    sources = [{"path": str(data), "synthetic_caption": None}]
    fields = {"data": {"sources": sources}, "max_steps": 1, "global_batch_size": 30}
    validation = {"eval_steps": 1, "num_samples": 5, "source": {"path": str(data)}}
    trained(data, tmp_path / "run", validation=validation, **fields)
    said = capsys.readouterr().err
    told = (
        "data.sources: none has synthetic captions; recipe clips uses web captions instead: its contrast is that of "
        "recipe clip, its captioner predicts the caption that it reads; use recipe clip\n"
    )
    assert told in said
    assert "global_batch_size: 30 of 21 samples: an image occurs several times in a step" in said
    assert re.search(r"T→I R@1 web \d+\.\d, partial \d+\.\d, whole \d+\.\d", said)
    trained(data, tmp_path / "web", recipe={"name": "clip"}, **fields)
    assert "none has synthetic" not in capsys.readouterr().err
    # one caption for each image, as in BLIP's list of CC3M
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(clips_world.draw_image(int(name[0])))
    (tmp_path / "rows.json").write_text(json.dumps([{"image": f"{n}.png", "caption": f"photo {n}"} for n in (0, 1)]))
    sources = [{"path": str(tmp_path / "rows.json"), "format": "list"}]
    trained(data, tmp_path / "single", data={"sources": sources}, max_steps=1, global_batch_size=2)
    assert told in capsys.readouterr().err
