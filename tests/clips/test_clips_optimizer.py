"""Learning rate, weight decay, precision, and mistakes in the config of a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips_world
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip_train.scheduler import const_lr, const_lr_cooldown, cosine_lr

from clips.errors import UserError
from clips.method.clips_model import build_model
from clips.method.optimizer import SCHEDULES, OptimizerConfig, build_optimizer, scheduled_lr
from clips.model.compute import resolve_precision
from clips.parallel.parallel_model import ParallelModel
from clips.train import train


def test_the_rate_climbs_then_follows_a_cosine_to_zero():
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1)
    rates = [scheduled_lr(step, 100, config, 4) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert scheduled_lr(0, 1, OptimizerConfig(learning_rate=1.0), 4) == 1.0


def of_open_clip(name: str, peak: float, warmup: int, steps: int, decay: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    adjust = {
        "cosine": lambda: cosine_lr(optimizer, peak, warmup, steps),
        "constant": lambda: const_lr(optimizer, peak, warmup, steps),
        "wsd": lambda: const_lr_cooldown(optimizer, peak, warmup, steps, decay),
    }[name]()
    rates = []
    for step in range(steps):
        adjust(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def of_transformers(name: str, peak: float, warmup: int, steps: int, decay: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    scheduler = {
        "cosine": lambda: transformers.get_cosine_schedule_with_warmup(optimizer, warmup, steps),
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps),
        "wsd": lambda: transformers.get_wsd_schedule(
            optimizer, warmup, decay, num_training_steps=steps, decay_type="linear"
        ),
    }[name]()
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(1, 60),
    warmup=st.floats(0, 0.6),
    decay=st.floats(0.01, 0.4),
    peak=st.floats(1e-5, 10),
)
@settings(max_examples=200, deadline=None)
def test_schedules_are_those_of_open_clip_and_transformers(name, steps, warmup, decay, peak):
    of_wsd = {"decay_ratio": decay} if name == "wsd" else {}
    config = OptimizerConfig(learning_rate=peak, warmup_ratio=warmup, schedule=name, **of_wsd)
    rates = [scheduled_lr(step, steps, config, 4) for step in range(steps)]
    first = config.warmup_steps(steps, 4)
    decay_steps = max(1, round(config.decay_ratio * steps))
    theirs = (peak, first, steps, decay_steps)
    if name != "linear":
        assert rates == pytest.approx(of_open_clip(name, *theirs))
    if first + decay_steps <= steps:  # transformers would decay during the warm-up
        # transformers' warm-up begins with a step at 0
        assert rates[first:] == pytest.approx(of_transformers(name, *theirs)[first:], abs=1e-9)


def test_rate_and_warmup_by_samples_are_the_authors():
    config = OptimizerConfig(base_learning_rate=8e-6, warmup_samples=40 * 1_281_167)
    batch, steps = 32_768, 390_625  # of 12.8 billion samples
    assert config.peak_rate(batch) == pytest.approx(1.024e-3)
    assert config.warmup_steps(steps, batch) == 1564
    rates = [scheduled_lr(step, steps, config, batch) for step in (781, 1563, 1564, steps)]
    assert rates == pytest.approx([0.512e-3, 1.024e-3, 1.024e-3, 0.0])
    assert OptimizerConfig(base_learning_rate=8e-6).peak_rate(1024) == pytest.approx(3.2e-5)
    neither = OptimizerConfig().resolved()
    assert (neither.learning_rate, neither.warmup_ratio, neither.base_learning_rate) == (1e-3, 0.05, None)


def test_weight_decay_spares_what_it_should(tmp_path: Path):
    config = clips_world.train_config(tmp_path, tmp_path / "x")
    model = build_model(config.model, config.recipe, 0)
    optimizer = build_optimizer(model, config.optimizer, model.no_decay_names())
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed, spared = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert len(decayed) + len(spared) == len(names)
    assert "clip.logit_scale" in spared
    assert any(name.endswith("mlp.c_fc.weight") for name in decayed)
    assert not any("ln_" in name or name.endswith("bias") for name in decayed)


def test_steps_are_those_of_the_papers_adamw():
    """Decoupled weight decay regularization (arXiv 1711.05101), algorithm 2, with decay only where it should be."""
    config = OptimizerConfig(learning_rate=0.1, adam_beta2=0.7, weight_decay=0.3)
    layer = torch.nn.Linear(3, 2).double()
    optimizer = build_optimizer(layer, config, {"bias"})
    inputs = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = {name: value.detach().clone() for name, value in layer.named_parameters()}
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    square = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step, batch in enumerate(inputs, 1):
        optimizer.zero_grad()
        layer(batch).square().sum().backward()
        for name, value in layer.named_parameters():
            mean[name] = 0.9 * mean[name] + 0.1 * value.grad
            square[name] = 0.7 * square[name] + 0.3 * value.grad**2
            direction = mean[name] / (1 - 0.9**step) / ((square[name] / (1 - 0.7**step)).sqrt() + 1e-8)
            expected[name] -= 0.1 * (direction + (0.3 if name == "weight" else 0) * expected[name])
        optimizer.step()
        for name, value in layer.named_parameters():
            torch.testing.assert_close(value.detach(), expected[name])


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    assert resolve_precision("bf16", cpu) == ("bf16", "as configured")
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=supported: answer, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert resolve_precision("auto", cpu)[0] == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": None}, "max_steps, max_samples, num_epochs: expected exactly one of them, got none"),
        ({"num_epochs": 1.0}, "expected exactly one of them, got max_steps, num_epochs"),
        (
            {"optimizer": {"schedule": "cosin"}},
            "optimizer.schedule: expected one of cosine, constant, linear, wsd",
        ),
        ({"optimizer": {"decay_ratio": 0.1}}, "optimizer.decay_ratio: expected none with schedule: cosine; wsd has"),
        (
            {"optimizer": {"lr_scheduler": "wsd"}},
            "'optimizer.lr_scheduler'; did you mean 'optimizer.schedule'",
        ),
        ({"optimizer": {"learning_rate": 1e-3, "base_learning_rate": 1e-6}}, "base_learning_rate: expected one"),
        ({"optimizer": {"warmup_ratio": 0.1, "warmup_samples": 0}}, "warmup_samples: expected one of them, got both"),
        ({"optimizer": {"warmup_samples": 24}}, "optimizer.warmup_samples: expected fewer than the 24 samples"),
    ],
)
def test_a_wrong_config_names_its_field(tmp_path: Path, fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        clips_world.train_config(tmp_path, tmp_path / "x", **fields)


def test_a_config_made_in_python_is_checked_before_it_trains(tmp_path: Path):
    config = clips_world.train_config(tmp_path, tmp_path / "x")
    with pytest.raises(UserError, match=r"^max_steps: expected an integer of at least 0 or null, got -5"):
        train(dataclasses.replace(config, max_steps=-5))
    assert not (tmp_path / "x").exists()


def test_the_length_is_counted_in_steps_samples_or_epochs(tmp_path: Path):
    config = clips_world.train_config(tmp_path, tmp_path / "x", global_batch_size=8)
    for fields, steps in (
        ({"max_steps": 5}, 5),
        ({"max_samples": 33}, 5),
        ({"num_epochs": 1.5}, 4),
        ({"num_epochs": 0}, 0),
    ):
        sized = dataclasses.replace(config, **{"max_steps": None, **fields})
        assert sized.steps_for(21) == steps


@pytest.mark.parametrize(("limit", "factor"), [(None, 1.0), (20.0, 1.0), (2.5, 0.25)])
def test_the_norm_is_that_before_clipping(limit: float | None, factor: float):
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[6.0, 8.0]])  # the bias has none
    norm = ParallelModel.clip_grad_norm(SimpleNamespace(encoder=layer), limit)  # type: ignore[arg-type]
    assert float(norm) == 10.0
    assert layer.weight.grad.flatten().tolist() == pytest.approx([6.0 * factor, 8.0 * factor], rel=1e-6)
