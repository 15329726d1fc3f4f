"""Trackers of a LLaVA's training, and each stage's own optimizer, schedule and DeepSpeed settings."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bridge_world
import pytest

from clips.core.run_log import RunLog
from clips.errors import UserError
from clips.loader.invalid_samples import InvalidSamples
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig
from llava_bridge.training.trainer import StageProgress


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        self.logged.append((step, dict(entry)))

    def finish(self) -> None: ...


def test_steps_continue_from_stage_to_stage_and_a_lost_attempt_is_logged_again(tmp_path: Path) -> None:
    recorder = Recorder()

    def log(stage: str, first: int, steps: range) -> None:
        progress = StageProgress(stage, 4, RunLog(tmp_path, [recorder]), 0.0)
        progress.begin(first, 4)
        for step in steps:
            progress.log(step, {"loss": 1 / step, "learning_rate": 0.1})

    log("align", 0, range(1, 5))
    log("instruct", 0, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "instruct", "st')  # a full disk, or a crash
    log("instruct", 1, range(2, 4))  # resumed from step 1
    assert [step for step, _ in recorder.logged] == [1, 2, 3, 4, 5, 6, 6, 7]
    last = recorder.logged[-1][1]
    assert (last["instruct/loss"], last["instruct/lr"], last["instruct/samples_seen"]) == (1 / 3, 0.1, 12)
    assert not [name for name in last if not name.startswith("instruct/")]
    assert "instruct/grad_norm" not in last


def test_every_number_of_hf_trainers_log_is_logged(tmp_path: Path) -> None:
    """With a value that is new there, and the epochs of the data, of which HF's Trainer would count one."""
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import CallbackHandler

    from llava_bridge.training.trainer import StageCallback, StageTrainer

    recorder = Recorder()
    progress = StageProgress("instruct", 4, RunLog(tmp_path, [recorder]), 0.0)
    progress.begin(0, 9)
    nobody: Any = SimpleNamespace(of_any_process=lambda *_: 0)
    callback = StageCallback(progress, InvalidSamples, {}, 320, nobody, lambda: None)
    trainer = StageTrainer.__new__(StageTrainer)
    trainer.args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    trainer.stage, trainer.train_dataset = StageConfig(global_batch_size=4), range(8)  # type: ignore[assignment]
    trainer.state, trainer.control = TrainerState(global_step=3, max_steps=9, epoch=3 / 9), TrainerControl()
    trainer.callback_handler = CallbackHandler([callback], None, None, None, None)
    trainer.log({"loss": 0.5, "learning_rate": 0.1, "entropy": 2, "grad_norm": None, "note": "text"})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    expected = {"loss": 0.5, "lr": 0.1, "entropy": 2, "epoch": 1.5}
    assert row.keys() == expected.keys() | {"stage", "step", "samples_seen", "samples_per_second", "time"}
    assert row.items() >= expected.items()
    assert recorder.logged[0][1].items() >= {f"instruct/{name}": value for name, value in expected.items()}.items()


def config(stage: Mapping[str, Any], **fields: Any) -> LlavaTrainConfig:
    data = [ConversationSourceConfig(path="talk.json")]
    stages = {name: StageConfig(data=data, max_steps=10, **stage) for name in ("align", "instruct")}
    return LlavaTrainConfig(output="x", encoder="e", llm="l", precision="fp32", **stages, **fields)


def test_a_stage_has_its_own_optimizer_schedule_and_deepspeed_json(tmp_path: Path, monkeypatch) -> None:
    from llava_bridge.training.trainer import training_arguments

    monkeypatch.setenv("WORLD_SIZE", "1")
    found = training_arguments(bridge_world.inputs_of(config({})), "align", 10, tmp_path)
    assert (found.lr_scheduler_type, found.optim, found.deepspeed["zero_optimization"]["stage"]) == (
        "cosine",
        "adamw_torch_fused",
        2,
    )
    found = training_arguments(
        bridge_world.inputs_of(config({"micro_batch_size": 4, "warmup_ratio": 0.25})), "align", 10, tmp_path
    )
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps, found.warmup_steps) == (4, 8, 3)
    found = training_arguments(
        bridge_world.inputs_of(config({"learning_rate": 3e-4, "adam_beta2": 0.95})), "align", 10, tmp_path
    )
    assert (found.learning_rate, found.adam_beta1, found.adam_beta2, found.max_grad_norm) == (3e-4, 0.9, 0.95, 1.0)
    own = config({"optim": "adamw_torch", "lr_scheduler_type": "linear", "deepspeed": "zero3"})
    found = training_arguments(bridge_world.inputs_of(own), "instruct", 10, tmp_path)
    assert (found.lr_scheduler_type, found.optim, found.deepspeed["zero_optimization"]["stage"]) == (
        "linear",
        "adamw_torch",
        3,
    )
    theirs = tmp_path / "zero3_offload.json"
    theirs.write_text(json.dumps(bridge_world.LLAVA_ZERO3_OFFLOAD))
    found = training_arguments(bridge_world.inputs_of(config({"deepspeed": str(theirs)})), "align", 10, tmp_path)
    assert not {"optimizer", "scheduler"} & found.deepspeed.keys()
    theirs.write_text('{"zero_optimization": {"stage": 2}, "bf16": {}}')
    found = training_arguments(bridge_world.inputs_of(config({"deepspeed": str(theirs)})), "align", 10, tmp_path)
    stated = found.hf_deepspeed_config.config
    assert (stated["gradient_clipping"], stated["train_batch_size"], stated["bf16"]["enabled"]) == (1.0, 32, False)


def test_a_missing_package_is_reported_before_the_training(tmp_path: Path, monkeypatch, bridge_talk) -> None:
    from llava_bridge.training.train import run_train

    monkeypatch.setattr("llava_bridge.training.train.resolve_inputs", bridge_world.inputs_of)
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    with pytest.raises(UserError, match=r"^report_to: expected the package trackio to be installed"):
        run_train(config({}, report_to=("trackio",)))


def test_a_run_is_finished_without_the_files_of_a_tensorboard_that_failed(tmp_path: Path, monkeypatch) -> None:
    from llava_bridge.training import train

    monkeypatch.setattr(train, "write_manifest", lambda *_, **__: None)
    summary = {"steps": 1, "samples_seen": 1, "loss": 1.0, "seconds": 1.0, "invalid_samples": {"count": 0}}
    for stage in ("align", "instruct"):
        (tmp_path / ".llava.work" / stage / "model").mkdir(parents=True)
        (tmp_path / ".llava.work" / stage / "model" / "stage.json").write_text(json.dumps(summary))
    (tmp_path / ".llava.work" / "metrics.jsonl").touch()
    finished = dataclasses.replace(config({}, report_to=("tensorboard",)), output=str(tmp_path / "llava"))
    train.write_output(bridge_world.inputs_of(finished))
    assert {path.name for path in (tmp_path / "llava").iterdir()} == {"metrics.jsonl", "README.md"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("trackers", [("tensorboard", "wandb"), ("trackio",)])  # trackio needs an earlier Pillow
def test_both_stages_in_one_run_of_each_tracker(trackers, tmp_path, bridge_encoder, bridge_llm, bridge_talk):
    for name in trackers:
        pytest.importorskip(name)
    stage = {"data": bridge_world.source(bridge_talk), "max_steps": 3, "global_batch_size": 4}
    path = bridge_world.config_file(
        tmp_path,
        "run",
        bridge_talk,
        stages=["align", "instruct"],
        encoder=str(bridge_encoder),
        llm=str(bridge_llm),
        align=StageConfig(**stage, optim="adamw_torch", lr_scheduler_type="constant_with_warmup", warmup_ratio=0.0),
        instruct=StageConfig(**stage, deepspeed="zero3"),
        report_to=trackers,
    )
    places = {"WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    bridge_world.train(path, WANDB_MODE="offline", **places)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["align"] * 3 + ["instruct"] * 3
    assert len({row["lr"] for row in rows[:3]}) == 1  # constant
    losses = {number: row["loss"] for number, row in enumerate(rows, 1)}
    if "trackio" in trackers:
        (database,) = (tmp_path / "trackio").glob("*.db")
        with sqlite3.connect(database) as connection:
            logged = connection.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
        numbers = {step: json.loads(content) for _, step, content in logged}
        assert len({run for run, _, _ in logged}) == 1
        assert {step: each.get("align/loss", each.get("instruct/loss")) for step, each in numbers.items()} == losses
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = {event.step: event.value for stage in ("align", "instruct") for event in events.Scalars(f"{stage}/loss")}
    assert found == pytest.approx(losses)
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
