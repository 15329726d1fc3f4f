"""The training step: the gradient of a batch, computed at once or in parts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import clips_world
import pytest
import torch
from clips_world import is_equal, metrics, tensors_of, train, trained

from clips import train as training
from clips.commandline.signals import STOP_SIGNALS, graceful_shutdown
from clips.core import run_log
from clips.core.run_log import RunLog
from clips.errors import UserError
from clips.loader.loader import iterate_batches
from clips.method.optimizer import OptimizerConfig, scheduled_lr
from clips.parallel.distributed import DistributedContext
from clips.parallel.parallel_model import ModelEma, ParallelModel
from clips.train import compute_gradients, export_model, prepare_batch, read_metrics, train_step
from clips.training.run_dir import TrainState, list_checkpoints
from clips.training.setup import TrainRun, open_train_dataset, setup_run
from clips.training.train_config import DistributedConfig


@pytest.fixture
def listening():
    """Signals as a shell's foreground has them; its background jobs ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def gradient_of(data: Path, output: Path, **fields: object) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses of the first batch of seven, and the gradient by each parameter."""
    config = clips_world.train_config(data, output, global_batch_size=7, precision="fp32", **fields)
    run = setup_run(config, open_train_dataset(config))
    run.model.train()
    batch = next(iterate_batches(run.data, first_step=0, last_step=1))
    batch.pop("invalid_samples")
    torch.manual_seed(0)
    losses, _ = compute_gradients(run, prepare_batch(batch, run))
    found = {name: value.grad for name, value in run.encoder.named_parameters() if value.grad is not None}
    return {name: float(value.detach()) for name, value in losses.items()}, found


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "clips", "captioner": {"max_length": 12, "num_layers": 1, "max_loss_tokens": 4, "width": 32}},
        {"name": "coca", "captioner": {"max_length": 12, "num_layers": 1}},
        {"name": "clip", "loss": "sigmoid"},
    ],
)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(data: Path, tmp_path: Path, recipe: dict, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # by which a GPU computes convolutions
    losses, whole = gradient_of(data, tmp_path / "whole", recipe=recipe)
    for size in (1, 3):
        again, parts = gradient_of(data, tmp_path / f"{size}", micro_batch_size=size, recipe=recipe)
        assert parts.keys() == whole.keys()
        assert again == pytest.approx(losses, rel=1e-5)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, atol=5e-6, rtol=1e-4, msg=name)


def test_both_passes_draw_the_same_random_numbers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []
    real = training.forward
    monkeypatch.setattr(
        training, "forward", lambda *args, **options: seen.append(torch.rand(3)) or real(*args, **options)
    )
    gradient_of(data, tmp_path / "run", micro_batch_size=3)
    first, second = seen[:3], seen[3:]
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert not torch.equal(first[0], first[1])


def test_each_step_of_each_process_draws_its_own_random_numbers():
    drawn = []
    for seed, step, rank in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0)):
        training.seed_step(seed, step, rank)
        drawn.append(float(torch.rand(())))
    assert (len(set(drawn)), drawn[0]) == (4, drawn[4])


def test_counts_are_copied_into_an_average():
    norm = torch.nn.BatchNorm1d(2)
    average = ModelEma(0.75, norm.state_dict())
    for _ in range(3):
        norm(torch.randn(4, 2))
        average.update(norm.state_dict())
    assert average.state["num_batches_tracked"].item() == 3
    assert not torch.equal(average.state["running_mean"], norm.running_mean)


def test_an_average_of_the_weights_is_exported_and_resumed(data: Path, tmp_path: Path):
    run, again = tmp_path / "run", tmp_path / "again"
    config = clips_world.train_config(data, run, ema_decay=0.5, keep_checkpoints_after_training=True)
    train(config)
    held, name = tensors_of(list_checkpoints(run)[-1]), "visual.conv1.weight"
    assert not torch.equal(tensors_of(run)[name], held[f"model.clip.{name}"])

    shutil.copytree(run / ".checkpoints", again / ".checkpoints")
    shutil.rmtree(list_checkpoints(again)[-1])
    shutil.copy(run / "config.yaml", again)
    train(dataclasses.replace(config, output=str(again)))
    assert is_equal(run, again)


def test_the_average_is_the_exponential_one(data: Path, tmp_path: Path):
    config = clips_world.train_config(data, tmp_path / "run", ema_decay=0.75)
    run = setup_run(config, open_train_dataset(config))
    run.model.train()
    expected = None
    for batch in iterate_batches(run.data, first_step=0, last_step=3):
        batch.pop("invalid_samples")
        train_step(run, prepare_batch(batch, run))
        now = run.encoder.clip.text_projection.detach().clone()
        expected = now if expected is None else 0.75 * expected + 0.25 * now
        run.state.step += 1
    torch.testing.assert_close(export_model(run).clip.text_projection, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_metrics_go_to_weights_and_biases_and_tensorboard_too(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    entries = metrics(trained(data, tmp_path / "run", max_steps=4, report_to=("wandb", "tensorboard")))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    store, logged = DataStore(), {}
    store.open_for_scan(str(file))
    while (content := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(content)
        for item in record.history.item:
            logged.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    assert logged["loss"] == [entry["loss"] for entry in entries]
    assert logged["_step"] == [entry["step"] for entry in entries]

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    told = {entry.step: entry.value for entry in events.Scalars("loss")}
    assert told == pytest.approx({entry["step"]: entry["loss"] for entry in entries})
    assert "cosine_gap" in events.Tags()["scalars"]


class Broken:
    """A tracker whose service has gone."""

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        raise ConnectionResetError("gone")

    finish = None  # never called


def no_key(*_: Any) -> NoReturn:
    raise ValueError("no API key")


def test_a_tracker_that_fails_or_cannot_be_opened_is_dropped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_log, "check_trackers", lambda names: None)
    monkeypatch.setitem(run_log.TRACKERS, "wandb", no_key)
    monkeypatch.setitem(run_log.TRACKERS, "trackio", lambda *_: Broken())
    config = clips_world.train_config(tmp_path, tmp_path / "run", report_to=("wandb", "trackio"))
    with RunLog.of(config, tmp_path, writes=True) as log:
        for step in (1, 2):
            log.write({"step": step, "loss": 1.0}, step)
    assert capsys.readouterr().err.splitlines() == [
        "report_to: wandb failed (no API key) and is not used any more",
        "report_to: Broken failed (gone) and is not used any more",
    ]
    assert len(metrics(tmp_path)) == 2


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
)
def test_a_stopped_run_saves_and_resumes_exactly(data, tmp_path, monkeypatch, capsys, number, status):
    real = training.train_step

    def step_and_signal(run, batch):  # type: ignore[no-untyped-def]
        values = real(run, batch)
        if run.state.step == 2:  # in the middle of the third step
            os.kill(os.getpid(), number)
        return values

    config = clips_world.train_config(data, tmp_path / "stopped", save_steps=100)
    monkeypatch.setattr(training, "train_step", step_and_signal)
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == status
    assert "stopped and saved after step 3" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(tmp_path / "stopped")] == ["step-00000003"]
    monkeypatch.setattr(training, "train_step", real)
    train(config)
    assert is_equal(tmp_path / "stopped", trained(data, tmp_path / "whole"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(("number", "later"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, None)])
def test_a_second_ctrl_c_ends_at_once_but_not_the_launchers_echo_nor_a_second_sigterm(monkeypatch, number, later):
    with graceful_shutdown() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.of_any_process(torch.device("cpu")) == number
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 3)
        with pytest.raises(later) if later else contextlib.nullcontext():
            os.kill(os.getpid(), number)


class FakeModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(
        self, batch: dict[str, torch.Tensor], *, bf16: bool = False, captions: bool = True
    ) -> dict[str, torch.Tensor]:
        return {"value": (self.weight * batch["image"]).sum(), "logit_scale": torch.tensor(10.0)}

    def no_decay_names(self) -> set[str]:
        return set()

    def clamp_logit_scale(self) -> None:
        self.clamped = True


def fake_run(monkeypatch: pytest.MonkeyPatch, factors: list[float], **optim: Any) -> Any:
    """A run whose loss is the model's output times each of ``factors`` in turn."""

    def compute_losses(_: Any, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": outputs["value"] * factors.pop(0)}

    monkeypatch.setattr("clips.train.compute_losses", compute_losses)
    model = FakeModel()
    config = SimpleNamespace(
        micro_batch_size=None,
        global_batch_size=4,
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_ratio=0, **optim),
    )
    return SimpleNamespace(
        model=model,
        recipe=None,
        parallel=ParallelModel(model, DistributedConfig(), config.optimizer, DistributedContext()),  # type: ignore[arg-type]
        processes=DistributedContext(),
        state=TrainState(step=7),
        average=None,
        steps=10,
        config=config,
        precision="fp32",
    )


@pytest.mark.parametrize(("factor", "x"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1e30, 1e30)])
def test_a_non_finite_loss_or_gradient_stops_before_the_optimizer_moves(monkeypatch, factor: float, x: float):
    run = fake_run(monkeypatch, [1.0, factor, 1.0])
    read_metrics([train_step(run, {"image": torch.ones(2)})])
    before, moments = run.model.weight.clone(), run.parallel.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    assert not torch.equal(before, torch.ones(2))
    run.state.step = 8
    metrics = [train_step(run, {"image": torch.full((2,), x)}), train_step(run, {"image": torch.ones(2)})]
    with pytest.raises(UserError, match=r"^step 9: .*(loss|grad_norm) is (nan|inf)"):
        read_metrics(metrics)
    assert torch.equal(run.model.weight, before)  # of the second step neither
    assert torch.equal(run.parallel.optimizer.state_dict()["state"][0]["exp_avg"], moments)


def test_a_step_reports_and_clips_the_gradient(monkeypatch: pytest.MonkeyPatch):
    run = fake_run(monkeypatch, [1.0], max_grad_norm=0.5)
    seen: list[torch.Tensor] = []
    run.parallel.optimizer.register_step_pre_hook(lambda *_: seen.append(run.model.weight.grad.clone()))
    (values,) = read_metrics([train_step(run, {"image": torch.tensor([3.0, 4.0])})])
    assert values["loss"] == 7.0
    assert values["grad_norm"] == 5.0
    assert values["logit_scale"] == 10.0
    assert values["lr"] == scheduled_lr(7, 10, run.config.optimizer, run.config.global_batch_size)
    assert torch.allclose(seen[0], torch.tensor([0.3, 0.4]), atol=1e-6)
    assert run.model.clamped
    assert run.model.weight.grad is None


def test_images_are_normalized_by_the_mean_and_std_of_the_tower():
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.0, 0.0], [0.5, 1.0, 2.0]))
    model = SimpleNamespace(cache_trunk_features=False)
    run: Any = SimpleNamespace(processes=DistributedContext(), mean=mean, std=std)
    run.config, run.normalize = SimpleNamespace(model=model), lambda images: TrainRun.normalize(run, images)
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert prepare_batch({"image": pixels}, run)["image"][0, :, 0, 0].tolist() == [1.0, 1.0, 0.5]
    model.cache_trunk_features = True  # the trunk does it
    assert torch.equal(prepare_batch({"image": pixels}, run)["image"], pixels)
