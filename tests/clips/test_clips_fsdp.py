"""FSDP2 under bf16 and in groups (HSDP): the same gradients, fewer bytes, and checkpoints for any strategy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import clips_world
import fsdp_driver
import pytest
import torch
from clips_world import assert_same_training, drive, torchrun

from clips.errors import UserError
from clips.method.clips_model import build_model
from clips.model.compute import bf16_weights
from clips.parallel import parallel_model
from clips.parallel.parallel_model import FLOAT32
from clips.train import train

HSDP = {"distributed": {"strategy": "fsdp", "shard_group_size": 2}}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Loss, gathered bytes and gradients of each case of the driver, by "name-precision"."""
    folder = tmp_path_factory.mktemp("gradients")
    two = ("ddp:bf16", "ddp:fp32", "fsdp:bf16", "fsdp:fp32", "wide:bf16", "recomputed:bf16", "parts:fp32")
    for processes, cases in ((1, ("one:fp32", "one:bf16")), (2, two), (4, ("hsdp:fp32", "hsdp:bf16"))):
        command = (str(Path(fsdp_driver.__file__)), str(folder), *cases)
        assert torchrun(folder / "log", *command, processes=processes).wait(300) == 0, (folder / "log").read_text()
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The norm of the gradients' difference, to that of the gradient."""
    names = sorted(one.keys() - {"loss", "gathered"})
    mine, theirs = (torch.cat([found[name].flatten() for name in names]) for found in (one, other))
    return float((mine - theirs).norm() / theirs.norm())


@pytest.mark.slow
def test_weights_gathered_in_bf16_give_the_gradients_of_autocast(found: dict[str, dict[str, Any]]) -> None:
    """To the bit: autocast rounds the same weights, and gradients are added in float32."""
    for name in ("fsdp-bf16", "wide-bf16", "recomputed-bf16"):
        assert torch.equal(found[name]["loss"], found["ddp-bf16"]["loss"]), name
        assert distance(found[name], found["ddp-bf16"]) < 1e-6, name
    assert distance(found["ddp-bf16"], found["ddp-fp32"]) > 1e-3  # bf16 is felt
    assert found["fsdp-bf16"]["gathered"] < found["fsdp-fp32"]["gathered"]


@pytest.mark.slow
def test_groups_of_shards_give_the_gradients_of_one_process(found: dict[str, dict[str, Any]]) -> None:
    for name in ("hsdp", "fsdp", "parts"):
        assert float(found[f"{name}-fp32"]["loss"]) == pytest.approx(float(found["one-fp32"]["loss"]), rel=1e-6)
        assert distance(found[f"{name}-fp32"], found["one-fp32"]) < 1e-5, name
    assert distance(found["hsdp-bf16"], found["one-bf16"]) < 0.01  # sums of a batch in other parts


@pytest.mark.slow
def test_a_run_in_groups_resumes_in_other_strategies(tmp_path: Path) -> None:
    """Four processes, two groups of two: to the end, and stopped and resumed without groups, and the other way."""
    data = clips_world.write_shards(tmp_path / "data")
    validation = {"source": {"path": str(data)}, "eval_steps": 3, "num_samples": 5}
    fields = {"optimizer": {"max_grad_norm": 5.0}, "validation": validation, "logging_steps": 3}
    train(clips_world.train_config(data, tmp_path / "one", **fields))
    ways = {"groups": (HSDP, HSDP), "to_ddp": (HSDP, {}), "from_ddp": ({}, HSDP), "average": (HSDP, HSDP)}
    for stop in (4, None):
        for name, way in ways.items():
            more = {"ema_decay": 0.5} if name == "average" else {}
            clips_world.train_config(data, tmp_path / name, **fields, **way[stop is None], **more)
        drive(tmp_path, [{"config": str(tmp_path / f"{name}.json"), "stop": stop} for name in ways], 4)
    train(clips_world.train_config(data, tmp_path / "one_average", **fields, ema_decay=0.5))
    for name in ways:
        assert_same_training(tmp_path / name, tmp_path / ("one_average" if name == "average" else "one"))


def test_the_weights_that_only_products_read() -> None:
    model = build_model(fsdp_driver.MODEL, fsdp_driver.RECIPE, seed=0)
    names = {id(value): name for name, value in model.named_parameters()}
    cast = {names[id(value)] for value in bf16_weights(model)}
    assert {"captioner.blocks.0.mlp_in.bias", "clip.visual.conv1.weight"} < cast
    assert {f"clip.transformer.resblocks.0.attn.{name}" for name in ("in_proj_weight", "out_proj.bias")} < cast
    kept = set(names.values()) - cast
    assert {"clip.logit_scale", "clip.token_embedding.weight", "captioner.head.weight"} < kept
    assert all("resblocks" not in name or ".ln_" in name for name in kept)


def test_sizes_of_groups_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shard_group_size: expected null, or .* strategy: fsdp; got 2 with ddp"):
        clips_world.train_config(tmp_path, tmp_path / "x", distributed={"shard_group_size": 2})
    with pytest.raises(UserError, match=r"shard_group_size: expected a divisor of the 3 processes, got 2"):
        clips_world.train_config(tmp_path, tmp_path / "x", global_batch_size=6, **HSDP).check_processes(3)


def test_a_torch_with_one_dtype_for_a_layer_gathers_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class OlderPolicy:
        param_dtype: torch.dtype | None = None
        reduce_dtype: torch.dtype | None = None

    monkeypatch.setattr(parallel_model, "MixedPrecisionPolicy", OlderPolicy)
    assert parallel_model.bf16_gathers(torch.nn.Linear(2, 2)) is FLOAT32
