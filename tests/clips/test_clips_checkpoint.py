from __future__ import annotations

import dataclasses
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from power_cut import Disk, contents, failing_disk
from safetensors.torch import load_file

from clips.core.identity import RUN_ONLY, Identity, identity
from clips.errors import UserError
from clips.loader.invalid_samples import InvalidSamples
from clips.parallel.distributed import DistributedContext, start_processes
from clips.training import checkpoint as checkpointing
from clips.training.checkpoint import Checkpointer, load_tensors, verify_checkpoint
from clips.training.run_dir import (
    CHECKPOINTS_DIR,
    TrainState,
    check_trained,
    create_run_dir,
    list_checkpoints,
    read_run_config,
    read_train_state,
    remove_checkpoints,
)
from clips.typed_data import to_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPart:
    num_workers: int = dataclasses.field(default=0, metadata=RUN_ONLY)
    path: str = "x"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    output: str = dataclasses.field(metadata=RUN_ONLY)
    rate: float = 0.1
    logging_steps: int = dataclasses.field(default=10, metadata=RUN_ONLY)
    allow_changes_on_resume: tuple[str, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    data: DataPart = dataclasses.field(default_factory=DataPart)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"model.0.weight": torch.arange(12.0).reshape(4, 3) + step, "optimizer.step": torch.tensor(float(step))}


def state_of(step: int, run: Identity | None = None) -> TrainState:
    invalid = InvalidSamples()
    invalid.add([(9, "a", "b")])
    return TrainState(
        step=step,
        samples_seen=4 * step,
        seconds=1.5,
        invalid_samples=invalid,
        identity=run.values if run else {},
        flops=[0.25],
    )


def save(output: Path, step: int, run: Identity | None = None) -> Path:
    start_processes()
    with Checkpointer(output, DistributedContext()) as checkpointer:
        checkpointer.save(tensors(step), state_of(step, run), RunConfig(output=str(output)))
    return list_checkpoints(output)[-1]


def assert_holds(checkpoint: Path, step: int) -> None:
    verify_checkpoint(checkpoint)
    found = {name: torch.full_like(value, torch.nan) for name, value in tensors(step).items()}
    load_tensors(checkpoint, found)
    assert all(torch.equal(found[name], value) for name, value in tensors(step).items())
    assert read_train_state(checkpoint) == state_of(step)


def test_a_checkpoint_excludes_steps_made_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    start_processes()
    held, state, real, moved = tensors(3), state_of(3), checkpointing.save_tensors, threading.Event()

    def slow(*args: Any) -> None:
        assert moved.wait(20)
        real(*args)

    monkeypatch.setattr(checkpointing, "save_tensors", slow)
    with Checkpointer(tmp_path, DistributedContext()) as checkpointer:
        checkpointer.save(held, state, RunConfig(output="x"))
        for value in held.values():  # save has returned before anything is written
            value += 1
        state.step += 1
        assert list_checkpoints(tmp_path) == []
        moved.set()
    assert_holds(list_checkpoints(tmp_path)[0], 3)


def test_the_latest_are_kept(tmp_path: Path):
    assert list_checkpoints(tmp_path) == []
    for step in (2, 9, 5):
        save(tmp_path, step)
    kept = list_checkpoints(tmp_path)
    for path, step in zip(kept, (5, 9), strict=True):
        assert_holds(path, step)
    assert read_run_config(kept[-1])["output"] == str(tmp_path)
    remove_checkpoints(tmp_path)
    assert list_checkpoints(tmp_path) == []


def test_a_process_writes_several_files_which_are_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpointing, "_FILE_BYTES", 40)  # of 52 bytes
    checkpoint = save(tmp_path, 3)
    files = sorted(checkpoint.glob("*.safetensors"))
    assert [load_file(file).keys() for file in files] == [{"model.0.weight"}, {"optimizer.step"}]
    assert_holds(checkpoint, 3)
    files[1].unlink()
    with pytest.raises(UserError, match=f"{files[1].name}: missing"):
        verify_checkpoint(checkpoint)


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(tmp_path: Path):
    checkpoint = save(tmp_path, 3)
    (checkpoint / "another.safetensors").write_bytes(b"of the run before")
    with Checkpointer(tmp_path, DistributedContext()) as checkpointer:
        checkpointer.save(tensors(4), state_of(3), RunConfig(output=str(tmp_path)))
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert not (checkpoint / "another.safetensors").exists()
    verify_checkpoint(checkpoint)
    found = {name: torch.zeros_like(value) for name, value in tensors(4).items()}
    load_tensors(checkpoint, found)
    assert all(torch.equal(found[name], value) for name, value in tensors(4).items())


def disk_full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "name",
    ["clips.training.checkpoint.atomic_write", "torch.distributed.checkpoint.HuggingFaceStorageWriter.write_data"],
)
def test_a_crash_while_saving_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(name, disk_full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 2)
    assert [path.name for path in (tmp_path / CHECKPOINTS_DIR).iterdir()] == ["step-00000001"]
    # what a kill -9 leaves behind is not taken for a checkpoint, and goes with the next one
    (tmp_path / CHECKPOINTS_DIR / ".step-00000002.partial").mkdir()
    (tmp_path / CHECKPOINTS_DIR / ".step-00000002.partial" / "train_state.json").write_text('{"step": 2}')
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    save(tmp_path, 3)
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS_DIR).iterdir()) == ["step-00000001", "step-00000003"]


def test_a_checkpoint_is_on_the_disk_with_the_log_up_to_it(tmp_path: Path):
    save(tmp_path, 1)
    with Disk(tmp_path).recording() as disk:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
        save(tmp_path, 2)
    left, written = disk.contents(), contents(tmp_path)
    names = [name for name in written if "step-00000002" in name]
    assert len(names) >= 4
    assert {name: left.get(name) for name in (*names, "metrics.jsonl")} == {
        name: written[name] for name in (*names, "metrics.jsonl")
    }


@pytest.mark.parametrize("error", [errno.EIO, errno.EFBIG, errno.EMFILE])
def test_an_error_of_the_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path, monkeypatch, error):
    save(tmp_path, 1)

    def save_another(checkpointer: Checkpointer) -> None:
        checkpointer.save(tensors(2), TrainState(step=2), RunConfig(output="x"))
        checkpointer.wait()

    with Checkpointer(tmp_path, DistributedContext()) as checkpointer:
        with failing_disk(error, monkeypatch), pytest.raises(UserError) as raised:
            save_another(checkpointer)
        assert str(raised.value).endswith(f"cannot write here ({os.strerror(error)})")
        assert "\n" not in str(raised.value)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert_holds(list_checkpoints(tmp_path)[0], 1)


@pytest.mark.parametrize("damage", ["flipped", "cut", "absent"])
@pytest.mark.parametrize("kind", ["*.safetensors", "train_state.json"])
def test_a_damaged_checkpoint_is_rejected_by_name(tmp_path: Path, kind: str, damage: str):
    checkpoint = save(tmp_path, 1)
    (path,) = checkpoint.glob(kind)
    content = bytearray(path.read_bytes())
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-8])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"step-00000001/{path.name}: .*; remove this checkpoint to resume without it"):
        verify_checkpoint(checkpoint)


def test_weights_of_another_model_are_rejected(tmp_path: Path):
    checkpoint = save(tmp_path, 1)
    for other in ({"model.0.weight": torch.zeros(4, 2)}, {"model.1.weight": torch.zeros(4, 3)}):
        with pytest.raises(UserError, match=r"step-00000001: model\.\d\.weight is missing or has another shape"):
            load_tensors(checkpoint, other)


def known(config: RunConfig, **inputs: str) -> Identity:
    return identity("clips train", config, inputs)


def begun(config: RunConfig, step: int = 0, **inputs: str) -> Identity:
    """A run that was stopped before its first checkpoint, or at one."""
    create_run_dir(config, known(config, **inputs))
    if step:
        save(Path(config.output), step, run=known(config, **inputs))
    return known(config, **inputs)


def test_settings_and_inputs_are_fixed_after_the_first_checkpoint(tmp_path: Path):
    config = RunConfig(output=str(tmp_path / "run"))
    other = dataclasses.replace(config, rate=0.2, data=DataPart(path="y"))
    assert check_trained(config, known(config)) is False
    assert not (tmp_path / "run").exists()
    begun(config)
    assert check_trained(other, known(other)) is False
    begun(config, step=1, trunk="a")
    free = dataclasses.replace(config, output="elsewhere", logging_steps=3, data=DataPart(num_workers=4))
    for same in (known(free, trunk="a"), known(config)):  # a trunk that was loaded may be gone
        assert check_trained(config, same) is False
    with pytest.raises(UserError, match=r"run: data\.path is 'x' there and 'y' now and 1 more; choose"):
        check_trained(other, known(other))
    with pytest.raises(UserError, match=r"inputs\.trunk is 'a' there and 'b' now"):
        check_trained(config, known(config, trunk="b"))
    allowed = dataclasses.replace(config, rate=0.2, allow_changes_on_resume=("rate",))
    assert check_trained(allowed, known(allowed)) is False


def test_a_setting_that_may_change_is_not_the_start_of_another(tmp_path: Path):
    config = RunConfig(output=str(tmp_path / "run"), allow_changes_on_resume=("ra", "dat", "output"))
    begun(config, step=1)
    for other in (dataclasses.replace(config, rate=0.2), dataclasses.replace(config, data=DataPart(path="y"))):
        with pytest.raises(UserError, match="holds another run"):
            check_trained(other, known(other))
    section = dataclasses.replace(config, data=DataPart(path="y"), allow_changes_on_resume=("data",))
    assert check_trained(section, known(section)) is False


def test_the_config_of_a_checkpoint_may_be_edited(tmp_path: Path):
    checkpoint = save(tmp_path, 1)
    (checkpoint / "config.yaml").write_text("edited: true\n")
    assert_holds(checkpoint, 1)


def test_only_outputs_of_training_count_as_a_run(tmp_path: Path):
    config = RunConfig(output=str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(to_yaml(config))
    for manifest in (None, '{"name": "a web app"}', '{"kind": "llava", "hash": "0"}'):
        if manifest:
            (tmp_path / "mine" / "manifest.json").write_text(manifest)
        with pytest.raises(UserError, match="mine: not empty, and not an artifact of kind 'encoder'"):
            check_trained(config, known(config))


@pytest.mark.parametrize("content", ["{", "[]", '{"stp": 1}', '{"step": null}', '{"step": 1, "identity": 3}', "\xff"])
def test_a_broken_record_of_a_checkpoint_is_named(tmp_path: Path, content: str):
    checkpoint = save(tmp_path, 1)
    (checkpoint / "train_state.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"step-00000001/train_state\.json: broken \(.*\); remove this checkpoint"):
        read_train_state(checkpoint)


def test_a_checkpoint_without_its_record_is_named_instead_of_ignored(tmp_path: Path):
    config = RunConfig(output=str(tmp_path))
    create_run_dir(config, known(config))
    (save(tmp_path, 1) / "train_state.json").unlink()
    with pytest.raises(UserError, match=r"step-00000001/train_state\.json: broken \(.*No such file.*\); remove this"):
        check_trained(config, known(config))
