"""FSDP2 under bf16 and in groups (HSDP): the same gradients, fewer bytes, and checkpoints for any strategy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import clips_world
import fsdp_driver
import pytest
import torch
from test_clips_distributed import assert_same_training, drive, fields, torchrun

from clips.errors import UserError
from clips.method.clips_model import build_model
from clips.model.layers import bf16_weights, repeated_layers
from clips.parallel import fsdp
from clips.parallel.distributed import DistributedContext
from clips.parallel.fsdp import shard_model
from clips.planning.hardware import GPUS
from clips.planning.memory import Layout, MemoryModel
from clips.planning.plan import StagePlan, ring_bandwidth
from clips.planning.plan_config import TrainPlanConfig
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


@pytest.mark.slow
def test_groups_of_shards_give_the_gradients_of_one_process(found: dict[str, dict[str, Any]]) -> None:
    for name in ("hsdp", "fsdp", "parts"):
        assert float(found[f"{name}-fp32"]["loss"]) == pytest.approx(float(found["one-fp32"]["loss"]), rel=1e-6)
        assert distance(found[f"{name}-fp32"], found["one-fp32"]) < 1e-5, name
    assert distance(found["hsdp-bf16"], found["one-bf16"]) < 0.01  # sums of a batch in other parts


@pytest.mark.slow
def test_the_plan_counts_the_gathered_bytes(found: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    config = clips_world.train_config(tmp_path, tmp_path / "run", max_steps=1)
    config = dataclasses.replace(config, model=fsdp_driver.MODEL, recipe=fsdp_driver.RECIPE)
    for name, bf16 in (("fsdp-bf16", True), ("fsdp-fp32", False)):
        model = MemoryModel(config, bf16=bf16)
        layers = repeated_layers(model.model.clip.transformer)  # of two calls for two texts, the plan counts one
        low = set(bf16_weights(model.model)) if bf16 else set()
        again = sum(value.numel() * (2 if value in low else 4) for layer in layers for value in layer.parameters())
        assert found[name]["gathered"] == pytest.approx(model.gathered_bytes("fsdp") + 2 * again, rel=1e-3), name


@pytest.mark.slow
def test_a_run_in_groups_resumes_in_other_strategies(tmp_path: Path) -> None:
    """Four processes, two groups of two: to the end, and stopped and resumed without groups, and the other way."""
    data = clips_world.write_shards(tmp_path / "data")
    train(clips_world.train_config(data, tmp_path / "one", **fields(data)))
    ways = {"groups": (HSDP, HSDP), "to_ddp": (HSDP, {}), "from_ddp": ({}, HSDP), "average": (HSDP, HSDP)}
    for stop in (4, None):
        for name, way in ways.items():
            more = {"ema_decay": 0.5} if name == "average" else {}
            clips_world.train_config(data, tmp_path / name, **fields(data, **way[stop is None], **more))
        drive(tmp_path, [{"config": str(tmp_path / f"{name}.json"), "stop": stop} for name in ways], 4)
    train(clips_world.train_config(data, tmp_path / "one_average", **fields(data, ema_decay=0.5)))
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
    with pytest.raises(UserError, match=r"shard_group_size: .* got 0 with fsdp"):
        clips_world.train_config(tmp_path, tmp_path / "x", distributed={"strategy": "fsdp", "shard_group_size": 0})
    with pytest.raises(UserError, match=r"shard_group_size: expected a divisor of the 3 processes, got 2"):
        shard_model(torch.nn.Linear(2, 2), DistributedContext(count=3), group_size=2)


def plan_of(path: Path, **distributed: Any) -> StagePlan:
    config = clips_world.train_config(
        path, path / "run", global_batch_size=64, distributed=distributed, precision="bf16"
    )
    return StagePlan(TrainPlanConfig(train_config="", gpu="h200"), config)


def test_the_plan_divides_by_the_group_and_sends_within_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, strategy="fsdp", shard_group_size=8)
    with pytest.raises(UserError, match=r"num_gpus: expected a multiple of distributed.shard_group_size 8, got 4"):
        plan.layout(4)
    groups, whole = plan.layout(64), Layout(parallel="fsdp", count=64, checkpointing=0)
    assert plan.model.parts(groups, local=1, at_once=1)["optimizer"] == plan.model.trained * 8 / 8
    assert plan.model.parts(whole, local=1, at_once=1)["optimizer"] == plan.model.trained * 8 / 64
    within, between, features = plan.bytes_sent(groups, 1)
    gathered, gradients = plan.model.gathered_bytes("fsdp"), plan.model.trained * 4
    assert within == pytest.approx(7 / 8 * (gathered + gradients))
    assert between == pytest.approx(2 * 7 / 8 * gradients / 8)
    gpu = GPUS["h200"]
    seconds = (within / gpu.link + between / gpu.network, features / ring_bandwidth(gpu, 64))
    assert plan.sending_seconds(groups, 1) == pytest.approx(seconds)
    assert plan.bytes_sent(whole, 1)[1] == 0
    assert [ring_bandwidth(gpu, 64, rings=rings) for rings in (1, 2, 8, 16)] == [400e9, 200e9, 50e9, 50e9]


def test_the_plan_has_no_second_copies_of_what_is_gathered_in_bf16(tmp_path: Path) -> None:
    parts = {}
    for parallel in ("ddp", "fsdp", "zero3"):
        layout = Layout(parallel=parallel, count=8, checkpointing=0)  # type: ignore[arg-type]
        parts[parallel] = plan_of(tmp_path).model.parts(layout, local=1, at_once=1)
    assert parts["zero3"]["copies"] == parts["ddp"]["copies"] > 2 * parts["fsdp"]["copies"]


def test_a_torch_with_one_dtype_for_a_layer_is_planned_as_it_gathers(tmp_path: Path, monkeypatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class OlderPolicy:
        param_dtype: torch.dtype | None = None
        reduce_dtype: torch.dtype | None = None

    monkeypatch.setattr(fsdp, "MixedPrecisionPolicy", OlderPolicy)
    model = plan_of(tmp_path, strategy="fsdp").model
    assert fsdp.bf16_gathers(model.model) is fsdp.FLOAT32
    layers = sum(value.numel() for layer in repeated_layers(model.model) for value in layer.parameters())
    assert model.gathered_bytes("fsdp") == 4 * (model.parameters + layers)
