"""The roofline of a training step, and the utilization that a plan takes from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_clips_plan import MODEL, RECIPE, dry, read_config, write_config

from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model.layers import repeated_layers
from clips.planning.dry_run import fake_model
from clips.planning.hardware import GPUS
from clips.planning.plan import StagePlan, plan_stages
from clips.planning.plan_config import TrainPlanConfig
from clips.planning.roofline import KernelTrace, rates_of, roofline, trace_step


def test_the_roofline_has_the_kernels_of_a_step():
    fake = fake_model(MODEL, RECIPE)
    trace, rates = trace_step(fake, 8), rates_of(GPUS["h200"], "bf16")
    kernels = roofline(trace, 10**6, rates)
    assert sum(part.flops for part in kernels.values()) == dry(fake, 8, device="cuda").flops
    assert kernels["optimizer", "fused AdamW"].seconds == 32e6 / rates.memory
    kinds = {kind for _, kind in kernels}
    assert kinds >= {"attention", "attention backward", "matmul"}
    assert "attention under a mask" not in kinds  # also of the captioner; in this text tower all tokens are visible
    mode = next(fake.parameters()).fake_mode
    with mode, KernelTrace() as traced:
        left, right = torch.empty(64, 32), torch.empty(32, 16)
        ((left @ right).t() + 1).relu_()
    assert [kernel[1:] for kernel in traced.kernels] == [
        ("matmul", 2 * 64 * 32 * 16, 2 * 64 * 32 * 16, 4 * (64 * 32 + 32 * 16 + 64 * 16)),
        ("add", 0, 0, 2 * 4 * 64 * 16),
        ("relu_", 0, 0, 2 * 4 * 64 * 16),
    ]
    with mode, KernelTrace() as packed:
        torch.stack(torch.empty(3, 64).unbind())
    assert packed.kernels[0][-1] == 2 * 4 * 3 * 64  # each view of one tensor is read
    with mode:
        table, rows, columns = torch.empty(1000, 64), torch.zeros(5).long(), torch.zeros(1000, 1).long()
    with mode, KernelTrace() as sparse:
        table[rows]
        table.new_zeros(7)
        table.scatter_(1, columns, torch.empty(1000, 1))
    assert [kernel[-1] for kernel in sparse.kernels] == [2 * 4 * 5 * 64, 4 * 7, 3 * 4 * 1000]
    assert rates.seconds("matmul", 1e12, 1.0) == pytest.approx(1e12 / (0.66 * 989e12))
    assert rates.seconds("add", 0.0, 1e9) == pytest.approx(1e9 / (0.53 * 4.8e12))
    assert rates.seconds("add", 0.0, 1.0) == 10.5e-6


def test_compiled_layers_have_the_same_flops_in_fewer_kernels():
    fake = fake_model(ModelConfig(architecture="clips-ti-16", image_size=64), RecipeConfig(name="clip"))
    rates, layers, totals = rates_of(GPUS["h200"], "bf16"), repeated_layers(fake), []
    for compiled in (False, True):
        trace = trace_step(fake, 16, compiled=compiled)
        assert all(size > 0 for _, kind, *_, size in trace.kernels if kind.startswith("fused"))
        kernels = roofline(trace, 10**6, rates)
        totals.append([sum(getattr(part, name) for part in kernels.values()) for name in ("flops", "count", "bytes")])
        assert all(layer._compiled_call_impl is None for layer in layers)
    (flops, count, size), (compiled_flops, compiled_count, compiled_size) = totals
    assert compiled_flops == pytest.approx(flops, rel=1e-9)
    assert compiled_count < count
    assert compiled_size < 0.9 * size
    assert {phase for phase, kind in kernels if kind == "fused reduction"} == {"forward", "backward"}
    assert ("forward", "attention") in kernels


def test_the_utilization_is_the_rooflines_unless_one_is_given(tmp_path: Path):
    training = read_config(write_config(tmp_path, stages=[], max_steps=9))
    (plan,) = plan_stages(TrainPlanConfig(train_config="", gpu="l4"), training)
    assert 0 < plan.mfu(16, checkpointing=0) < plan.mfu(128, checkpointing=False) < 0.66
    assert plan.mfu(4096, checkpointing=0) == plan.mfu(256, checkpointing=False)
    given = StagePlan(dataclasses.replace(plan.config, mfu=0.3), plan.stage)
    assert given.mfu(16, checkpointing=0) == 0.3
