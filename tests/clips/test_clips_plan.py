"""What a training will need, against what it takes on this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import clips_world
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clips.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.commandline.parsing import parse_config
from clips.data.tar_index import index_shard
from clips.errors import UserError
from clips.gpus import GPUS, find_gpu
from clips.method.clips_model import build_model, compute_losses, contrastive_loss
from clips.method.recipes import RECIPES, Recipe, RecipeConfig
from clips.model import losses
from clips.model.architectures import ModelConfig
from clips.plan import StagePlan, TrainPlanConfig, plan_stage, run_plan
from clips.training import mfu
from clips.training.mfu import MfuMeter, contrastive_flops, fake_model, flops_per_sample, full_batch, peak_bytes
from clips.training.train_config import EncoderTrainConfig, stage_configs
from clips.typed_data import from_plain

SMALL = {"architecture": str(Path(__file__).with_name("small_towers.json")), "image_size": 16, "context_length": 12}
MODEL = ModelConfig(**SMALL)
RECIPE = RecipeConfig(name="clips")
CAPTIONER = {"max_length": 12, "num_layers": 1, "width": 32}
CONTRASTS = [name for name, spec in RECIPES.items() if Recipe(RecipeConfig(name=name)).texts]
SHIPPED = Path(__file__).resolve().parents[2] / "scripts" / "configs" / "clips-l-14.yaml"


def real_batch(model: Any, samples: int) -> dict[str, torch.Tensor]:
    batch = full_batch(fake_model(MODEL, RECIPE), samples)
    return {**batch, "image": torch.randn(samples, 3, model.image_size, model.image_size)}


@pytest.mark.slow
def test_a_traced_step_holds_what_a_real_one_holds(monkeypatch):
    monkeypatch.setattr(losses, "chunk_rows", losses.gpu_chunk_rows)
    model = build_model(MODEL, RECIPE, seed=0)
    weights = [*model.parameters(), *model.buffers()]
    with mfu.PeakBytes(weights) as trace:
        batch = real_batch(model, 32)
        outputs = model(batch)
        loss = compute_losses(model.recipe, outputs)["loss"]
        del outputs
        loss.backward()
    fake = fake_model(MODEL, RECIPE)
    assert peak_bytes(fake, 32, bf16=False, checkpointing=False) == pytest.approx(trace.peak, rel=0.05)
    gradients = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    assert trace.peak > gradients
    assert all(value.grad is None for value in fake.parameters())


@pytest.mark.slow
def test_bf16_and_checkpoints_hold_less():
    layers = dataclasses.replace(RECIPE.captioner, num_layers=4)
    fake = fake_model(MODEL, dataclasses.replace(RECIPE, captioner=layers))
    plain, half = (peak_bytes(fake, 256, bf16=bf16, checkpointing=False) for bf16 in (False, True))
    assert half < plain
    assert peak_bytes(fake, 256, bf16=False, checkpointing=True) < plain
    assert plain == peak_bytes(fake, 256, bf16=False, checkpointing=False)


def test_a_traced_layer_norm_keeps_float32_as_under_autocast_of_a_gpu(monkeypatch):
    x, width = torch.ones(2, 4, dtype=torch.bfloat16), (4,)
    layer_norm = torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", mfu.float32_norm)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.layer_norm(x, width).dtype == torch.float32
        assert torch.nn.LayerNorm(4)(x).dtype == torch.float32
    assert layer_norm(x, width).dtype == torch.bfloat16


def test_flops_are_those_of_a_real_step():
    config = parse_config(EncoderTrainConfig, ["--config", str(SHIPPED)], prog="test")
    assert config is not None
    config = dataclasses.replace(config, model=MODEL, recipe=RECIPE)
    model = build_model(MODEL, RECIPE, seed=0)
    batch = real_batch(model, 4)
    formula = {torch.ops.aten.addmm_: mfu._FORMULAS[torch.ops.aten.addmm_]}
    with FlopCounterMode(display=False, custom_mapping=formula) as counter, sdpa_kernel(SDPBackend.MATH):
        compute_losses(model.recipe, model(batch))["loss"].backward()
    assert flops_per_sample(config, batch, 1) == pytest.approx(counter.get_total_flops() / 4, rel=1e-5)
    locked = dataclasses.replace(config, model=dataclasses.replace(MODEL, lock_image=True, lock_text=True))
    assert flops_per_sample(locked, batch, 1) < flops_per_sample(config, batch, 1)
    assert flops_per_sample(config, batch, 8) - flops_per_sample(config, batch, 1) == pytest.approx(
        contrastive_flops(fake_model(MODEL, RECIPE), 28)
    )


@pytest.mark.parametrize("name", CONTRASTS)
def test_flops_of_the_contrast(name: str):
    model = fake_model(MODEL, RecipeConfig(name=name))
    outputs = {key: torch.randn(6, 64, requires_grad=True) for key in ("image", *model.recipe.encoded)}
    outputs |= {key: torch.ones((), requires_grad=True) for key in ("logit_scale", "logit_bias")}
    with FlopCounterMode(display=False, custom_mapping=mfu._FORMULAS) as counter:
        contrastive_loss(model.recipe, outputs).backward()
    assert counter.get_total_flops() / 6 == contrastive_flops(model, 6) * 64 / model.model_cfg["embed_dim"] > 0


@pytest.mark.slow
def test_flops_of_convolutions_in_groups():
    fake = fake_model(ModelConfig(architecture="timm:convnext_atto", image_size=64), RecipeConfig(name="clip"))
    trunk = fake.clip.visual.trunk
    with FlopCounterMode(display=False, custom_mapping=mfu._FORMULAS) as forward, torch.no_grad():
        trunk(mfu.fake_images(fake, 2))
    with FlopCounterMode(display=False, custom_mapping=mfu._FORMULAS) as both, mfu.fake_mode(fake):
        trunk(mfu.fake_images(fake, 2)).sum().backward()
    fake.zero_grad()
    assert 2.8 * forward.get_total_flops() < both.get_total_flops() <= 3 * forward.get_total_flops()


@pytest.mark.slow
def test_mfu_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = clips_world.train_config(tmp_path, tmp_path / "run", model=SMALL)
    batch = full_batch(fake_model(config.model, config.recipe), 4)
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32"}
    shorter = {**batch, "target_mask": batch["target_mask"].clone()}
    shorter["target_mask"][:, 3:] = False
    flops, more = (mfu.flops_per_sample(config, one, 1) for one in (shorter, batch))
    assert flops < more
    counted = {"flops_per_sample": flops}  # alone, since a CPU's peak is not known
    kept: list[float] = []
    assert MfuMeter(config, **cpu, processes=1, counted=kept).read(shorter, 100.0) == counted
    resumed = MfuMeter(config, **cpu, processes=1, counted=list(kept)).read(batch, 1.0)
    assert resumed == {"flops_per_sample": pytest.approx((flops + more) / 2)}
    meter = MfuMeter(config, **cpu, processes=2, counted=[])
    meter.peak = 2e12
    read = meter.read(shorter, 100.0)
    assert read == pytest.approx(counted | {"mfu": flops * 0.25e-10, "tflops": flops * 0.5e-10}, rel=0.01)


def test_a_training_continues_if_its_flops_cannot_be_counted(tmp_path, monkeypatch, capsys):
    def fail(*_: Any) -> float:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(mfu, "flops_per_sample", fail)
    config = clips_world.train_config(tmp_path, tmp_path / "run")
    of_run = MfuMeter(config, device=torch.device("cpu"), precision="fp32", processes=1, counted=[])
    assert of_run.read({}, 1.0) == of_run.read({}, 1.0) == {}
    assert capsys.readouterr().err.count("FLOPs: cannot be counted (no such operator)") == 1  # said once


def write_config(folder: Path, **fields: Any) -> Path:
    path = folder / "train.yaml"
    stages = [
        {"max_samples": 1_000_000, "global_batch_size": 4096},
        {"max_samples": 100_000, "global_batch_size": 2048, "model.image_size": 32},
    ]
    settings = {
        "output": str(folder / "run"),
        "data": {"sources": [{"path": "s3://nowhere/{0..9}.tar"}]},
        "model": SMALL,
        "recipe": {"name": "clips", "captioner": CAPTIONER},
        "stages": stages,
    }
    path.write_text(json.dumps({**settings, **fields}))
    return path


def read_config(path: Path) -> EncoderTrainConfig:
    return parse_config(EncoderTrainConfig, ["--config", str(path)], prog="test")  # type: ignore[return-value]


def planned(folder: Path, count: int = 8, **fields: Any) -> StagePlan:
    training = read_config(write_config(folder, stages=[], max_steps=9, **{"global_batch_size": 64, **fields}))
    return plan_stage(TrainPlanConfig(train_config="", num_gpus=count), training)


@pytest.mark.slow
def test_a_plan_of_one_stage(tmp_path: Path):
    plan = planned(tmp_path)
    model = fake_model(read_config(tmp_path / "train.yaml").model, read_config(tmp_path / "train.yaml").recipe)
    assert plan.parameters == plan.trained == sum(value.numel() for value in model.parameters())
    assert plan.hours == pytest.approx(9 * 64 * plan.flops / (989e12 * 0.4 * 8) / 3600)
    assert plan.steps == 9
    assert plan.memory["parameters"] == plan.memory["communication"] == 4 * plan.parameters
    assert plan.memory["optimizer state"] == 8 * plan.trained
    few = planned(tmp_path, micro_batch_size=2)
    assert few.memory["activations and gradients of a step"] < plan.memory["activations and gradients of a step"]
    assert few.memory["gradients between micro-batches"] == 4 * plan.trained
    assert planned(tmp_path, ema_decay=0.9).memory["EMA of weights"] == 4 * plan.parameters
    frozen = planned(tmp_path, model={**SMALL, "lock_image": True})
    assert frozen.memory["optimizer state"] < plan.memory["optimizer state"]


@pytest.mark.slow
def test_shards_are_divided_by_their_group(tmp_path: Path):
    whole = planned(tmp_path)
    for group in (None, 2):
        plan = planned(tmp_path, distributed={"strategy": "fsdp", "shard_group_size": group})
        assert plan.memory["optimizer state"] == whole.memory["optimizer state"] // (group or 8)
        assert plan.memory["communication"] < 1.5 * whole.memory["communication"]
    with pytest.raises(
        UserError, match=r"distributed.shard_group_size: expected a divisor of 4 GPUs \(--num_gpus\), got 8"
    ):
        planned(tmp_path, 4, distributed={"strategy": "fsdp", "shard_group_size": 8})


def test_the_shipped_schedule_is_the_papers():
    stages = stage_configs(read_config(SHIPPED))
    assert [stage.model.image_size for stage in stages] == [84, 224, 336]
    assert [stage.max_samples for stage in stages] == [12_800_000_000, 512_000_000, 128_000_000]
    assert [stage.global_batch_size for stage in stages] == [32768, 16384, 8192]
    assert [stage.optimizer.warmup_samples for stage in stages] == pytest.approx([51.2e6, 25.6e6, 0], rel=0.01)


@pytest.mark.slow
def test_the_large_model_by_hand_and_as_measured():
    stage = stage_configs(read_config(SHIPPED))[0]
    plan = plan_stage(TrainPlanConfig(train_config="", num_gpus=64), stage)
    assert plan.parameters == pytest.approx(525.4e6, rel=0.01)
    # 2 FLOPs a parameter and token forward, twice that backward: 36 patches and a class token, 2 texts of 80, and
    # 36 + 79 + 127 tokens of the captioner, its head on 127 of them
    visual = 24 * 12 * 1024**2 * 37
    text = 12 * 12 * 768**2 * 160
    captioner = 12 * 12 * 768**2 * 242 + 768 * 32000 * 127
    assert plan.flops == pytest.approx(6 * (visual + text + captioner), rel=0.05)
    for recipe, measured in (("clip", 71.4e9), ("clips", 122.5e9)):  # on an H200, see docs/scores/measurements.md
        fields = {"model": dataclasses.replace(stage.model, image_size=224), "global_batch_size": 256}
        step = dataclasses.replace(stage, recipe=RecipeConfig(name=recipe), **fields)
        memory = plan_stage(TrainPlanConfig(train_config="", num_gpus=1), step).memory
        assert sum(memory.values()) - memory["reserve"] == pytest.approx(measured, rel=0.02)


def test_the_command_prints_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_config(tmp_path, ema_decay=0.999)
    assert dispatch("clips", "", COMMANDS, ["plan", str(path), "--gpu", "l4", "--mfu", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "Stage 1 of 2: 8 × l4, the default of --num_gpus  " in shown
    assert "Stage 2 of 2: 8 × l4" in shown
    assert max(map(len, shown.splitlines())) <= 80
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if "│" in line}
    plan = plan_stage(TrainPlanConfig(train_config="", gpu="l4", mfu=0.3), stage_configs(read_config(path))[1])
    assert rows["FLOPs per sample"].startswith(f"{plan.flops / 1e9:,.1f} G")
    assert rows["memory under ddp"] == f"{sum(plan.memory.values()) / 1e9:.1f} GB of 24.0 GB"
    assert "micro_batch_size" not in shown
    assert "at an MFU of 30%" in shown


@pytest.mark.slow
def test_what_does_not_fit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_config(
        tmp_path,
        stages=[],
        max_steps=1,
        global_batch_size=2**15,
        model={"architecture": "clips-ti-16"},
        recipe={"name": "clip"},
    )
    run_plan(TrainPlanConfig(train_config=str(path), gpu="l4"))
    assert "lower micro_batch_size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"gpu": "h20"}, "unknown type of GPU 'h20'; did you mean 'h200'"),
        ({}, {"num_gpus": 3}, r"global_batch_size: 4,096 samples cannot be divided among 3 GPUs \(--num_gpus\)"),
        (
            {"stages": [], "max_steps": 9, "global_batch_size": 2},
            {},
            "global_batch_size: 2 samples cannot be divided among 8 GPUs",
        ),
        ({}, {"train_config": "none.yaml"}, "none.yaml"),
        ({"stages": [], "num_epochs": 2}, {}, "num_epochs: expected max_samples or max_steps"),
        ({"data": {"sources": [{"format": "table", "path": "photos.csv"}]}}, {}, "in photos.csv 'web_caption'"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], options: dict[str, Any], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("photos.csv").write_text("file_name,caption\na.jpg,a red cube\n")
    path = write_config(tmp_path, **fields)
    with pytest.raises(UserError, match=message):
        run_plan(from_plain(TrainPlanConfig, {"train_config": str(path), "gpu": "l4", **options}))


def test_gpus():
    names = {"NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
    names |= {"NVIDIA L40S": "l40s", "NVIDIA L4": "l4", "NVIDIA GeForce RTX 4090": "4090"}
    assert {name: find_gpu(name) for name in names} == {name: GPUS[kind] for name, kind in names.items()}
    assert find_gpu("NVIDIA H100 PCIe") is None  # slower than what the table has


def test_the_start_with_shards_that_are_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    uncounted, counted = (
        clips_world.write_shards(tmp_path / name, sizes=(40,) * count) for name, count in (("a", 3), ("b", 2))
    )
    clips_world.write_sizes(counted, (40, 40))
    sources = [{"path": str(path)} for path in (uncounted, counted, tmp_path / "elsewhere")]
    path = write_config(tmp_path, stages=[], max_steps=1, data={"sources": sources})
    run_plan(TrainPlanConfig(train_config=str(path), num_gpus=1))
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in shown.splitlines() if "│" in line]
    assert [row for row in rows if row[0].startswith("start")] == [
        ["start with 3 shards", "headers read once in 0 CPU s"],
        ["start with 2 shards", "counts in sizes.json"],
    ]
    size = 5 * sum(array.nbytes for array in vars(index_shard(uncounted / "shard-00000.tar")).values())
    assert ["indexes of shards in a process", f"{size / 1e9:.2g} GB"] in rows
