from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from clips.checkpoint import (
    CHECKPOINTS,
    LoopState,
    checkpoints,
    is_finished,
    load_weights,
    read_loop,
    read_run_config,
    record_run,
    remove_checkpoints,
    restore,
    save_checkpoint,
)
from clips.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPart:
    workers: int = 0
    path: str = "x"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    output: str
    rate: float = 0.1
    log_every: int = 10
    data: DataPart = dataclasses.field(default_factory=DataPart)


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for step in range(steps):
        one_step(model, optimizer, step)
    return model, optimizer


def one_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    model(torch.arange(12.0).reshape(4, 3).roll(step, 0) ** 0.5).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(output: Path, step: int, keep: int = 2) -> Path:
    model, optimizer = trained(step)
    loop = LoopState(step=step, samples_seen=4 * step, seconds=1.5, bad={"a": "b"})
    return save_checkpoint(output, model, optimizer, loop, RunConfig(output=str(output)), keep=keep)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path):
    save(tmp_path, 3)
    model, optimizer = trained(0)
    assert restore(tmp_path, model, optimizer) == LoopState(step=3, samples_seen=12, seconds=1.5, bad={"a": "b"})
    for step in (3, 4):
        one_step(model, optimizer, step)
    expected, _ = trained(5)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_without_a_checkpoint_it_starts_fresh(tmp_path: Path):
    model, optimizer = trained(0)
    assert restore(tmp_path, model, optimizer) == LoopState()


def test_the_latest_are_kept(tmp_path: Path):
    for step in (2, 9, 5):
        save(tmp_path, step)
    kept = checkpoints(tmp_path)
    assert [read_loop(path).step for path in kept] == [5, 9]
    assert read_run_config(kept[-1])["output"] == str(tmp_path)
    remove_checkpoints(tmp_path)
    assert checkpoints(tmp_path) == []


def test_a_crash_while_saving_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clips.checkpoint.write_file", fail)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 2)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000001"]
    # what a kill -9 leaves behind is not taken for a checkpoint
    (tmp_path / CHECKPOINTS / ".step-00000002.partial").mkdir()
    (tmp_path / CHECKPOINTS / ".step-00000002.partial" / "loop.json").write_text('{"step": 2}')
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "absent", "header"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, name: str, damage: str):
    path = save(tmp_path, 1) / name
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-8] if damage == "cut" else b"\xff" + content[1:])
    with pytest.raises(UserError, match=rf"step-00000001/{name}: cannot be loaded \(.*\); remove this checkpoint"):
        restore(tmp_path, *trained(0))


def test_weights_of_another_model_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"model.safetensors: cannot be loaded \(.*size mismatch"):
        load_weights(save(tmp_path, 1), torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4)))


def test_a_run_keeps_to_its_config_once_there_is_something_to_lose(tmp_path: Path):
    output = tmp_path / "run"
    config = RunConfig(output=str(output))
    other = dataclasses.replace(config, rate=0.2, data=DataPart(path="y"))
    assert is_finished(output, config, {}) is False
    assert not output.exists()
    record_run(output, config)
    assert is_finished(output, other, {}) is False
    save(output, 1)
    free = dataclasses.replace(config, output="elsewhere", log_every=3, data=DataPart(workers=4))
    assert is_finished(output, free, {}) is False
    with pytest.raises(UserError, match=r"another config: data\.path is 'x' there and 'y' now and 1 more; choose"):
        is_finished(output, other, {})
    remove_checkpoints(output)
    (output / "manifest.json").write_text('{"kind": "encoder"}')
    assert is_finished(output, config, {}) is True
    with pytest.raises(UserError, match="another config"):
        is_finished(output, other, {})


def test_a_place_that_cannot_hold_a_run_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"below/config\.yaml: cannot write here"):
        record_run(tmp_path / "file" / "below", RunConfig(output="x"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: not valid YAML"):
        read_run_config(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match=r"config\.yaml: not valid YAML"):
        read_run_config(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("- a")
    with pytest.raises(UserError, match=r"config\.yaml: expected the config of a training run"):
        read_run_config(tmp_path / "run")
    with pytest.raises(UserError, match="expected the output of `clips train`"):
        read_run_config(tmp_path)


def test_only_what_training_wrote_is_taken_for_a_run(tmp_path: Path):
    output = tmp_path / "mine"
    config = RunConfig(output=str(output))
    output.mkdir()
    (output / "config.yaml").write_text("rate: 0.1\n")  # a part of the fields: not a run's record
    with pytest.raises(UserError, match="mine: exists and is not a training run"):
        is_finished(output, config, {})
    record_run(output, config)
    (output / "metrics.jsonl").write_text("")
    assert is_finished(output, config, {}) is False
    (output / "README.md").write_text("mine")
    with pytest.raises(UserError, match="mine: exists and is not a training run"):
        is_finished(output, config, {})
    save(output, 1)
    assert is_finished(output, config, {}) is False
    (output / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(UserError, match="mine: exists and is not a training run"):
        is_finished(output, config, {})


@pytest.mark.parametrize("content", ["{", "[]", '{"stp": 1}', '{"step": null}', '{"step": 1, "inputs": 3}', "\xff"])
def test_a_broken_record_of_a_checkpoint_is_named(tmp_path: Path, content: str):
    (save(tmp_path, 1) / "loop.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"step-00000001/loop\.json: broken \(.*\); remove this checkpoint"):
        restore(tmp_path, *trained(0))


def test_a_run_goes_on_with_the_inputs_it_began_with(tmp_path: Path):
    model, optimizer = trained(1)
    config = RunConfig(output=str(tmp_path))
    record_run(tmp_path, config)
    save_checkpoint(tmp_path, model, optimizer, LoopState(step=1, inputs={"trunk": "a"}), config, keep=1)
    assert is_finished(tmp_path, config, {"trunk": "a"}) is False
    with pytest.raises(UserError, match="read other content from trunk than it has now"):
        is_finished(tmp_path, config, {"trunk": "b"})
