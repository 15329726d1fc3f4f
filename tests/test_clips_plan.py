"""What a training will need, against what it takes on this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import clips_world
import numpy as np
import pytest
import torch
from families import quick_of
from torch.utils.flop_counter import FlopCounterMode

from clips.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.commandline.parsing import parse_config
from clips.errors import UserError
from clips.method.clips_model import ClipsModel, build_model
from clips.method.recipes import RecipeConfig
from clips.model import losses
from clips.model.architectures import ModelConfig
from clips.model.tokenizer import VOCAB_SIZE
from clips.parallel.distributed_config import DistributedConfig
from clips.planning import Cost, dry_run, mfu, plan_command, plan_tables
from clips.planning.dry_run import (
    BATCH_DIVISOR,
    StepProfile,
    contrastive_flops,
    fake_batch,
    fake_model,
    profile_contrastive_loss,
    profile_step,
    profile_validation,
)
from clips.planning.hardware import GPUS, find_gpu
from clips.planning.memory import PARALLELS, Layout, MemoryModel, largest
from clips.planning.mfu import MfuMeter
from clips.planning.plan import StagePlan, plan_stages, resolve_mfu, ring_bandwidth, training_cost
from clips.planning.plan_config import TrainPlanConfig
from clips.planning.plan_tables import speeds
from clips.planning.profilers import FlopCounter, MemoryTrace
from clips.training.setup import open_train_dataset, setup_run
from clips.training.stages import stage_configs
from clips.training.train_config import EncoderTrainConfig
from clips.training.validation import RetrievalValidation

SMALL = {"architecture": str(Path(__file__).with_name("small_towers.json")), "image_size": 16, "context_length": 12}
MODEL = ModelConfig(**SMALL)
RECIPE = RecipeConfig(name="clips")
SHIPPED = Path(__file__).resolve().parents[1] / "scripts" / "configs" / "clips-l-14.yaml"


@pytest.fixture(scope="module")
def fake() -> ClipsModel:
    return fake_model(MODEL, RECIPE)


def dry(fake: ClipsModel, samples: int, **options: Any) -> StepProfile:
    return profile_step(fake, samples, **{"device": "cpu", "bf16": False, **options})


def real_step(model: ClipsModel, samples: int, fake: ClipsModel) -> None:
    image = torch.randn(samples, 3, model.image_size, model.image_size)
    outputs = model({**fake_batch(fake, samples), "image": image})
    torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum().backward()


def test_a_profile_step_holds_what_a_real_one_holds(fake: ClipsModel):
    model = build_model(MODEL, RECIPE, seed=0)
    with MemoryTrace(model) as trace:
        real_step(model, 32, fake)
    image = 32 * 3 * 16 * 16 * 4  # made within the trace here, before it there
    real, counted = np.asarray(trace.timeline), dry(fake, 32).timeline
    assert abs(real.sum(1).max() - image - counted.sum(1).max()) <= 0.001 * counted.sum(1).max()
    assert counted[-1, 0] == sum(value.nbytes for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.slow
def test_the_memory_of_many_samples_is_scaled_from_one_step(checkpointing: bool):
    recipe = RecipeConfig(name="coca", captioner=dataclasses.replace(RECIPE.captioner, num_layers=2))
    model = fake_model(dataclasses.replace(MODEL, text_attention="causal"), recipe)
    rehearsed, real = (dry(model, size, checkpointing=checkpointing) for size in (8 * BATCH_DIVISOR, 512))
    assert rehearsed.scaled_timeline(512).sum(1).max() == pytest.approx(real.timeline.sum(1).max(), rel=0.002)
    assert rehearsed.flops_per_sample == pytest.approx(real.flops_per_sample, rel=1e-6)
    assert rehearsed.scaled_timeline(512).max() > 1.4 * rehearsed.timeline.max()


def test_flops_are_torchs_but_for_what_it_miscounts():
    towers = fake_model(MODEL, RecipeConfig(name="clip"))  # it misses products that the caption loss adds in place
    batch = fake_batch(towers, 4)
    with FlopCounter() as ours, FlopCounterMode(display=False) as theirs:
        towers(batch)  # the scores of fused attention are computed once here
    assert ours.total == theirs.get_total_flops() > 0


def test_checkpointing_holds_less_and_computes_more():
    fake = fake_model(MODEL, dataclasses.replace(RECIPE, captioner=dataclasses.replace(RECIPE.captioner, num_layers=4)))
    plain, again = dry(fake, 64), dry(fake, 64, checkpointing=1)
    assert again.timeline[again.forward_end - 1, 2] < 0.4 * plain.timeline[plain.forward_end - 1, 2]
    assert plain.flops < again.flops < 1.36 * plain.flops  # a forward pass is a third
    assert again.feature_flops == plain.feature_flops
    assert dry(fake, 64).timeline.max() == plain.timeline.max()  # and nothing of it stays


def test_bf16_halves_most_activations_and_copies_weights():
    towers = fake_model(MODEL, RecipeConfig(name="clip"))  # the caption loss holds float32 logits either way
    full, half = (dry(towers, 64, device="cuda", bf16=bf16) for bf16 in (False, True))
    assert 0.4 < half.timeline[half.forward_end - 1, 2] / full.timeline[full.forward_end - 1, 2] < 0.8
    assert half.timeline[:, 1].max() > full.timeline[:, 1].max() == 0


def test_flops_of_parts_against_formulas(fake: ClipsModel):
    all_counted = fake_batch(fake, 8, 20)["target_mask"]
    one_less = all_counted.clone()
    one_less[5, 3] = False
    more, fewer = (dry(fake, 8, texts={"target_mask": mask}).flops for mask in (all_counted, one_less))
    assert fake.captioner is not None
    assert more - fewer == 3 * 2 * fake.captioner.head.weight.numel()
    for loss in ("softmax", "sigmoid"):
        model = fake_model(MODEL, RecipeConfig(name="clips", loss=loss, caption_loss_weight=0))
        for processes in (1, 8):
            assert profile_contrastive_loss(model, 16, processes)[0] == contrastive_flops(model, 16, processes)
    held = 4 * 256 * 64 * 4 * fake.model_cfg["embed_dim"]  # a gradient by each matrix
    assert profile_contrastive_loss(fake, 256, 64)[1] > held
    locked = fake_model(dataclasses.replace(MODEL, lock_image=True, lock_text=True), RECIPE)
    assert dry(locked, 8).flops < dry(fake, 8).flops
    assert dry(locked, 8).feature_flops == dry(fake, 8).feature_flops
    with FlopCounter() as counter, torch.no_grad():
        fake(fake_batch(fake, 8), captions=False)
    assert 0 < dry(fake, 8, device="cuda").feature_flops == counter.total


@pytest.mark.parametrize("architecture", quick_of(("clips-rn-tiny", "clips-tinyvit"), "clips-rn-tiny"))
def test_other_towers(architecture: str):
    step = dry(fake_model(ModelConfig(architecture=architecture), RecipeConfig(name="clip")), 4)
    assert 2.5 * step.feature_flops < step.flops <= 3.01 * step.feature_flops


def test_a_trunk_of_timm_is_never_held_in_memory(monkeypatch: pytest.MonkeyPatch):
    built: list[ClipsModel] = []
    monkeypatch.setattr(dry_run, "replace_by_empty", built.append)
    fake_model.__wrapped__(ModelConfig(architecture="clips-tinyvit"), RecipeConfig(name="clip"))
    assert all(value.is_meta for value in built[0].parameters())


def test_mfu_of_a_run(tmp_path: Path):
    config = clips_world.train_config(tmp_path, tmp_path / "run", model=SMALL)
    batch = fake_batch(fake_model(config.model, config.recipe), 4, 3) | {"target": torch.ones(4, 12, dtype=torch.long)}
    batch["target_mask"] = batch["target_mask"][:, :12]
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32"}
    longer = {**batch, "target_mask": torch.ones(4, 12, dtype=torch.bool)}
    flops, more = (mfu.flops_per_sample(config, one, 1) for one in (batch, longer))
    assert flops < more
    counted = {"flops_per_sample": flops}  # alone, since a CPU's peak is not known
    kept: list[float] = []
    assert MfuMeter(config, **cpu, processes=1, counted=kept).read(batch, 100.0) == counted
    resumed = MfuMeter(config, **cpu, processes=1, counted=list(kept)).read(longer, 1.0)
    assert resumed == {"flops_per_sample": pytest.approx((flops + more) / 2)}
    stated = dataclasses.replace(config, distributed=DistributedConfig(device_peak_tflops=2.0))
    read = MfuMeter(stated, **cpu, processes=2).read(batch, 100.0)
    assert read == pytest.approx(counted | {"mfu": flops * 0.25e-10, "tflops": flops * 0.5e-10}, rel=0.01)


def test_a_training_continues_if_its_flops_cannot_be_counted(tmp_path, monkeypatch, capsys):
    def fail(*_: Any) -> float:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(mfu, "flops_per_sample", fail)
    config = clips_world.train_config(tmp_path, tmp_path / "run")
    of_run = MfuMeter(config, device=torch.device("cpu"), precision="fp32", processes=1)
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
        "recipe": {"name": "clips", "captioner": {"num_layers": 1}},
        "stages": stages,
    }
    path.write_text(json.dumps({**settings, **fields}))
    return path


def read_config(path: Path) -> EncoderTrainConfig:
    return parse_config(EncoderTrainConfig, ["--config", str(path)], prog="test")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[StagePlan]:
    training = read_config(write_config(tmp_path_factory.mktemp("plan"), ema_decay=0.999))
    # with all of the memory the largest batches of these small towers take a minute to find
    return plan_stages(TrainPlanConfig(train_config="", gpu="l4", reserve_gb=18.0), training)


def test_twice_the_gpus_half_the_hours(stages: list[StagePlan]):
    timed = {count: [stage.speed(stage.layout(count)) for stage in stages] for count in (4, 8)}
    for stage, few, many in zip(stages, timed[4], timed[8], strict=True):
        assert many.computing == pytest.approx(few.computing / 2)
        assert many.slowest < many.samples_per_second < stage.stage.global_batch_size / many.computing
        samples = stage.steps * stage.stage.global_batch_size
        assert many.hours == pytest.approx(samples / many.samples_per_second / 3600)
    assert [stage.steps for stage in stages] == [245, 49]
    assert speeds(stages, 8) == timed[8]
    assert sum(speed.hours for speed in speeds(stages, 512)) < sum(speed.hours for speed in timed[8])
    assert speeds(stages, 4096) == "the batch cannot be divided by it"


def test_the_cost_of_a_training_is_that_of_its_stages(stages: list[StagePlan], tmp_path: Path):
    training, config = read_config(write_config(tmp_path, ema_decay=0.999)), stages[0].config
    cost, disk_alone = training_cost(config, training), training_cost(config, training, timed=False)
    assert cost.seconds == pytest.approx(3600 * sum(speed.hours for speed in speeds(stages, 8)))
    assert cost.gpu_hours == pytest.approx(8 * cost.seconds / 3600)
    weights = 4 * stages[-1].model.parameters + stages[-1].model.buffers  # with its longer positions
    assert cost.disk == weights
    assert cost.most == weights + 3 * (2 * weights + 8 * stages[-1].model.trained)  # two are kept, one is written
    assert disk_alone == Cost(basis=disk_alone.basis, disk=cost.disk, most=cost.most)


def test_state_that_each_strategy_shards(stages: list[StagePlan]):
    plan, whole = stages[0], {"parameters": 4, "gradients": 4, "optimizer": 8, "average": 4}
    divided = {"ddp": set(), "fsdp": set(whole), "zero1": {"optimizer"}, "zero2": {"optimizer", "gradients"}}
    totals = {}
    for parallel in PARALLELS:
        layout = dataclasses.replace(plan.layout(8), parallel=parallel)
        parts = plan.memory(layout, local=512, at_once=512)
        totals[parallel] = sum(parts.values())
        for name, size in whole.items():
            share = 8 if name in divided.get(parallel, whole) else 1
            own_copy = 4 if name == "optimizer" and parallel.startswith("zero") else 0
            bound = plan.model.parameters * (size + own_copy) / share
            if name == "gradients":  # not all of them need be there at the fullest instant
                assert parts[name] <= bound
            else:
                assert parts[name] == pytest.approx(bound, rel=0.01)
        counted = totals[parallel] - parts["allowance"]
        assert parts["allowance"] == pytest.approx(plan.config.reserve_gb * 1e9 + 0.05 * counted)
    assert totals["fsdp"] < totals["zero2"] <= totals["zero1"]


def test_the_largest_batch_fits_and_the_next_does_not(tmp_path: Path):
    memory = MemoryModel(read_config(write_config(tmp_path, stages=[], max_steps=9)))
    spread = Layout(parallel="ddp", count=4, checkpointing=0)

    def size(samples: int) -> float:
        return sum(memory.parts(spread, local=samples, at_once=samples).values())

    room = size(200)
    assert largest(lambda samples: size(samples) <= room, 4000) == 200
    assert [largest(lambda samples, most=most: samples <= most, 1000) for most in (0, 5, 8, 15, 16, 5000)] == [
        *(0, 5, 8, 8, 16, 1000)
    ]
    step = memory.step(180, False)
    between = memory.parts(spread, local=180, at_once=180)
    exact = step.timeline.sum(1).max()
    assert between["gradients"] + between["copies"] + between["activations"] == pytest.approx(exact, rel=0.03)
    parts = memory.parts(spread, local=1024, at_once=64)
    chunk = 2 * 4 * losses.GPU_CHUNK_ROWS * VOCAB_SIZE  # logits and log-probabilities of the caption loss do not shrink
    assert sum(parts.values()) - chunk < 0.45 * (size(1024) - chunk)
    first_pass = memory.computed_flops(spread, in_parts=True) - memory.computed_flops(spread, in_parts=False)
    assert first_pass * step.samples == pytest.approx(step.feature_flops, rel=0.05)


def test_the_shipped_schedule_is_the_papers():
    stages = stage_configs(read_config(SHIPPED))
    assert [stage.model.image_size for stage in stages] == [84, 224, 336]
    assert [stage.max_samples for stage in stages] == [12_800_000_000, 512_000_000, 128_000_000]
    assert [stage.global_batch_size for stage in stages] == [32768, 16384, 8192]
    assert [stage.optimizer.warmup_samples for stage in stages] == pytest.approx([51.2e6, 25.6e6, 0], rel=0.01)


@pytest.mark.slow
def test_parameters_and_flops_of_the_large_model_by_hand():
    memory = MemoryModel(stage_configs(read_config(SHIPPED))[0])
    assert memory.parameters == pytest.approx(525.4e6, rel=0.01)
    # 2 FLOPs a parameter and token forward, twice that backward: 36 patches and a class token, 2 texts of 80, and
    # 36 + 79 + 127 tokens of the captioner, its head on 127 of them
    visual = 24 * 12 * 1024**2 * 37
    text = 12 * 12 * 768**2 * 160
    captioner = 12 * 12 * 768**2 * 242 + 768 * 32000 * 127
    assert memory.flops(64) == pytest.approx(6 * (visual + text + captioner), rel=0.05)


def test_the_command_prints_every_figure(stages, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan_tables, "plan_stages", lambda *_: stages)  # as of the same config
    path = write_config(tmp_path, ema_decay=0.999)
    data = ["--num_images", "1000000", "--bytes_per_image", "40000"]
    assert dispatch("clips", "", COMMANDS, ["plan", str(path), "--gpu", "l4", "--roofline", *data]) == 0
    shown = capsys.readouterr().out
    assert "training data: 40.0 GB" in shown
    assert "Stage 1 of 2: 16 pixels, 8 × l4" in shown
    assert "tensors within 10 %; a CPU process used up to 23 % more" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    stage, layout = stages[1], stages[1].layout(8)
    memory = stage.memory(layout, local=stage.local(8), at_once=stage.at_once(layout))
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if "│" in line}
    assert rows["optimizer state"] == f"{memory['optimizer'] / 1e9:.2g}"  # below 0.05 GB
    assert rows["total, of 24.0"] == f"{sum(memory.values()) / 1e9:.1f}"
    assert (
        rows["ddp"]
        == f"{sum(stage.bytes_sent(layout, 256)) / 1e9:.2g} ({1e3 * sum(stage.bytes_sent(layout, 256)) / 32e9:,.0f} ms)"
    )
    assert rows["largest batch of a GPU"] == f"{stage.largest_batch(layout):,}"


def test_a_measured_mfu_is_taken(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step, "mfu": mfu}) + "\n" for step, mfu in enumerate((0.1, 0.31, 0.33))))
    assert resolve_mfu(TrainPlanConfig(train_config="", mfu=0.2, metrics_file=str(log))) == 0.31
    log.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="has no mfu"):
        resolve_mfu(TrainPlanConfig(train_config="", metrics_file=str(log)))


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"gpu": "h20"}, "unknown type of GPU 'h20'; did you mean 'h200'"),
        ({}, {"num_gpus": 0}, "num_gpus: expected a number above 0, got 0"),
        ({}, {"num_gpus": 3}, "num_gpus: expected a divisor of global_batch_size 4096, got 3"),
        ({}, {"num_gpus": 8192}, "num_gpus: expected a divisor of global_batch_size 4096, got 8192"),
        ({}, {"mfu": 1.5}, "mfu: expected a ratio"),
        ({}, {"num_images": 10}, "bytes_per_image: expected together with num_images"),
        ({}, {"train_config": "none.yaml"}, "none.yaml"),
        ({"stages": [], "num_epochs": 2}, {}, "num_epochs: expected max_samples or max_steps"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, fields: dict[str, Any], options: dict[str, Any], message: str):
    path = write_config(tmp_path, **fields)
    with pytest.raises(UserError, match=message):
        plan_command.run_plan(TrainPlanConfig(**{"train_config": str(path), "gpu": "l4", **options}))


def test_gpus():
    names = {"NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
    names |= {"NVIDIA L40S": "l40s", "NVIDIA L4": "l4", "NVIDIA GeForce RTX 4090": "4090"}
    assert {name: find_gpu(name) for name in names} == {name: GPUS[kind] for name, kind in names.items()}
    assert find_gpu("NVIDIA H100 PCIe") is None  # slower than what the table has
    assert [ring_bandwidth(GPUS["h200"], count) for count in (8, 64)] == [450e9, 400e9]


def validating(data: Path, output: Path, samples: int, **fields: Any) -> EncoderTrainConfig:
    validation = {"source": {"path": str(data)}, "num_samples": samples, "batch_size": 8}
    return clips_world.train_config(data, output, validation=validation, model=SMALL, **fields)


def test_a_profile_validation_holds_what_a_real_one_holds(tmp_path: Path):
    """The same with many samples, of which the similarities take most, and with few, of which activations do."""
    data = clips_world.write_shards(tmp_path / "data", sizes=(60,))
    run = setup_run(config := validating(data, tmp_path / "run", 60), open_train_dataset(config))
    for samples in (8, 60):
        chosen = dataclasses.replace(config.validation, num_samples=samples)
        validation = RetrievalValidation(chosen, run)
        with MemoryTrace(run.encoder) as trace:
            validation.measure(run.encoder)
        measured = max(map(sum, trace.timeline))
        planned = profile_validation(fake_model(config.model, config.recipe), chosen, device="cpu", bf16=False)
        assert sum(planned.values()) == pytest.approx(measured, rel=0.1)


def test_similarities_grow_with_the_samples_and_fill_a_gpu_in_the_plan(tmp_path: Path):
    """A million samples: 6 GB of similarities in a batch of 1,024, which a step of 4 samples does not take."""
    data = clips_world.write_shards(tmp_path / "data")
    config = validating(data, tmp_path / "run", 1_000_000)
    few = MemoryModel(dataclasses.replace(config, validation=dataclasses.replace(config.validation, num_samples=8)))
    many = MemoryModel(dataclasses.replace(config, validation=dataclasses.replace(config.validation, batch_size=1024)))
    spread = Layout(parallel="ddp", count=2, checkpointing=0)
    width = few.model.model_cfg["embed_dim"]
    found = many.validation(spread)
    assert found["features"] == 4 * 1_000_000 * width * 4
    assert 1024 * 1_000_000 * 4 <= found["similarities and activations"] <= 1024 * 1_000_000 * 8
    parts = many.parts(spread, local=2, at_once=2)
    assert parts["validation"] == sum(found.values())
    assert parts["activations"] == parts["gradients"] == 0
    less = few.parts(spread, local=2, at_once=2)
    assert sum(parts.values()) > sum(less.values()) + 4e9


def test_shards_and_averages_are_validated_in_a_model_of_their_own(tmp_path: Path):
    data = clips_world.write_shards(tmp_path / "data")
    for average in (None, 0.9):
        found = MemoryModel(validating(data, tmp_path / "run", 8, ema_decay=average))
        for parallel in PARALLELS:
            held = found.validation(Layout(parallel=parallel, count=2, checkpointing=0))["model"]
            whole = found.parameters * 4 + found.buffers
            assert held == (whole if average or parallel in {"fsdp", "zero3"} else 0)
    without = MemoryModel(clips_world.train_config(data, tmp_path / "run"))
    assert without.validation(Layout(parallel="fsdp", count=2, checkpointing=0)) == {}
