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
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from clips.cli import COMMANDS
from clips.commandline.commands import run_commands
from clips.commandline.parsing import parse_config
from clips.errors import UserError
from clips.method.model import ClipsModel, build_model
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.parallel.config import ScaleConfig
from clips.planning import dryrun, utilisation
from clips.planning.command import plan
from clips.planning.config import PlanConfig
from clips.planning.dryrun import (
    SIGN,
    Step,
    contrast_flops,
    dry_contrast,
    dry_step,
    dry_validation,
    fake_batch,
    fake_model,
)
from clips.planning.footprint import PARALLELS, Allowance, Rehearsal, Spread, largest
from clips.planning.hardware import GPUS, gpu_of
from clips.planning.instruments import FlopCount, MemoryTrace
from clips.planning.plan import StagePlan, bandwidth, cluster, mfu_of
from clips.planning.utilisation import Utilisation, flops_per_sample
from clips.training.config import TrainConfig
from clips.training.stages import stage_configs
from clips.training.start import open_data, start_run
from clips.training.validate import Validation

MODEL = ModelConfig(architecture="clips-tiny", image_size=16, context_length=12)
RECIPE = RecipeConfig(name="clips")
SHIPPED = Path(__file__).resolve().parents[1] / "scripts" / "configs" / "clips-l-14.yaml"


@pytest.fixture(scope="module")
def fake() -> ClipsModel:
    return fake_model(MODEL, RECIPE)


def dry(fake: ClipsModel, samples: int, **options: Any) -> Step:
    return dry_step(fake, samples, **{"device": "cpu", "bf16": False, **options})


def real_step(model: ClipsModel, samples: int, fake: ClipsModel) -> None:
    image = torch.randn(samples, 3, model.image_size, model.image_size)
    outputs = model({**fake_batch(fake, samples), "image": image})
    torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum().backward()


# ---------------------------------------------------------------- a step without numbers, and a real one


def test_a_dry_step_holds_what_a_real_one_holds(fake: ClipsModel):
    model = build_model(MODEL, RECIPE, seed=0)
    with MemoryTrace(model) as trace:
        real_step(model, 32, fake)
    image = 32 * 3 * 16 * 16 * 4  # made within the trace here, before it there
    real, counted = np.asarray(trace.timeline), dry(fake, 32).timeline
    assert abs(real.sum(1).max() - image - counted.sum(1).max()) <= 0.001 * counted.sum(1).max()
    assert counted[-1, 0] == sum(value.nbytes for value in model.parameters() if value.requires_grad)


@pytest.mark.filterwarnings("ignore::UserWarning")  # profilers look for GPUs
@pytest.mark.slow
def test_the_allocator_tells_the_same(fake: ClipsModel):
    model = build_model(MODEL, RECIPE, seed=0)
    real_step(model, 2, fake)
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        real_step(model, 64, fake)
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    measured = np.cumsum([size for _, size in changes]).max()
    assert dry(fake, 64).timeline.sum(1).max() == pytest.approx(measured, rel=0.05)


def test_saved_tensors_are_what_a_real_forward_pass_saves(fake: ClipsModel):
    model = build_model(MODEL, RECIPE, seed=0)
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    saved: dict[int, int] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    batch = {**fake_batch(fake, 32), "image": torch.randn(32, 3, 16, 16)}
    own |= {value.untyped_storage().data_ptr() for value in batch.values()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        outputs = model(batch)
    step = dry(fake, 32)
    features = sum(value.nbytes for value in outputs.values())
    assert step.timeline[step.turn - 1, 2] == pytest.approx(sum(saved.values()) + features, rel=0.01)


@pytest.mark.slow
def test_bytes_grow_with_the_samples(fake: ClipsModel):
    small, middle, large = (dry(fake, size, device="cuda", bf16=True).timeline[:, 2].max() for size in (32, 64, 128))
    assert large - middle == pytest.approx(2 * (middle - small), rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.slow
def test_many_samples_are_told_from_one_step(checkpointing: bool):
    recipe = RecipeConfig(name="coca", captioner=dataclasses.replace(RECIPE.captioner, layers=2))
    model = fake_model(dataclasses.replace(MODEL, text_attention="causal"), recipe)
    rehearsed, real = (dry(model, size, checkpointing=checkpointing) for size in (8 * SIGN, 512))
    assert rehearsed.timeline_of(512).sum(1).max() == pytest.approx(real.timeline.sum(1).max(), rel=0.002)
    assert rehearsed.flops_of_sample == pytest.approx(real.flops_of_sample, rel=1e-6)
    assert rehearsed.timeline_of(512).max() > 1.4 * rehearsed.timeline.max()


def test_flops_are_torchs_but_for_what_it_miscounts():
    towers = fake_model(MODEL, RecipeConfig(name="clip"))  # it misses products that the caption loss adds in place
    batch = fake_batch(towers, 4)
    with FlopCount() as ours, FlopCounterMode(display=False) as theirs:
        towers(batch)  # the scores of fused attention are computed once here
    assert ours.total == theirs.get_total_flops() > 0


def test_checkpointing_holds_less_and_computes_more(fake: ClipsModel):
    plain, again = dry(fake, 64), dry(fake, 64, checkpointing=True)
    assert again.timeline[again.turn - 1, 2] < 0.4 * plain.timeline[plain.turn - 1, 2]
    assert plain.flops < again.flops < plain.flops + plain.forward_flops
    assert again.forward_flops == plain.forward_flops
    assert dry(fake, 64).timeline.max() == plain.timeline.max()  # and nothing of it stays


def test_bf16_halves_most_activations_and_copies_weights():
    towers = fake_model(MODEL, RecipeConfig(name="clip"))  # the caption loss holds float32 logits either way
    full, half = (dry(towers, 64, device="cuda", bf16=bf16) for bf16 in (False, True))
    assert 0.4 < half.timeline[half.turn - 1, 2] / full.timeline[full.turn - 1, 2] < 0.8
    assert half.timeline[:, 1].max() > full.timeline[:, 1].max() == 0


# ---------------------------------------------------------------- FLOPs


def test_flops_of_parts_that_can_be_told_by_hand(fake: ClipsModel):
    all_counted = fake_batch(fake, 8, 20)["target_mask"]
    one_less = all_counted.clone()
    one_less[5, 3] = False
    more, fewer = (dry(fake, 8, texts={"target_mask": mask}).flops for mask in (all_counted, one_less))
    assert fake.captioner is not None
    assert more - fewer == 3 * 2 * fake.captioner.head.weight.numel()
    for loss in ("softmax", "supcon", "sigmoid"):
        model = fake_model(MODEL, RecipeConfig(name="clips", loss=loss, caption_weight=0))
        for processes in (1, 8):
            assert dry_contrast(model, 16, processes).flops == contrast_flops(model, 16, processes)
    assert (
        dry_contrast(fake, 256, 64).peak > 4 * 256 * 64 * 4 * fake.model_cfg["embed_dim"]
    )  # a gradient by each matrix
    locked = fake_model(dataclasses.replace(MODEL, lock_image=True, lock_text=True), RECIPE)
    assert dry(locked, 8).flops < dry(fake, 8).flops
    assert dry(locked, 8).forward_flops == dry(fake, 8).forward_flops


@pytest.mark.parametrize("architecture", ["clips-rn-tiny", "clips-tinyvit"])
def test_other_towers(architecture: str):
    step = dry(fake_model(ModelConfig(architecture=architecture), RecipeConfig(name="clip")), 4)
    assert 2.5 * step.forward_flops < step.flops <= 3.01 * step.forward_flops


def test_a_trunk_of_timm_is_never_held_in_memory(monkeypatch: pytest.MonkeyPatch):
    built: list[ClipsModel] = []
    monkeypatch.setattr(dryrun, "_empty", built.append)
    fake_model(ModelConfig(architecture="clips-tinyvit"), RecipeConfig(name="clip"))
    assert all(value.is_meta for value in built[0].parameters())


def test_utilisation_of_a_run(tmp_path: Path, fake: ClipsModel):
    config = clips_world.train_config(tmp_path, tmp_path / "run")
    batch = fake_batch(fake, 4, 3) | {"target": torch.ones(4, 12, dtype=torch.long)}
    batch["target_mask"] = batch["target_mask"][:, :12]
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32"}
    flops = flops_per_sample(config, batch, 1)
    counted = {"flops_per_sample": flops}  # alone, since a CPU's peak is not known
    assert Utilisation(config, **cpu, processes=1).read(batch, 100.0) == counted
    longer = {**batch, "target_mask": torch.ones(4, 12, dtype=torch.bool)}
    more = flops_per_sample(config, longer, 1)
    assert flops < more
    kept: list[float] = []
    assert Utilisation(config, **cpu, processes=1, counted=kept).read(batch, 1.0) == counted
    resumed = Utilisation(config, **cpu, processes=1, counted=list(kept)).read(longer, 1.0)
    assert resumed == {"flops_per_sample": pytest.approx((flops + more) / 2)}
    stated = dataclasses.replace(config, scale=ScaleConfig(peak_tflops=2.0))
    read = Utilisation(stated, **cpu, processes=1).read(batch, 100.0)
    assert read == pytest.approx(counted | {"mfu": flops * 0.5e-10, "tflops": flops * 1e-10})
    halved = Utilisation(stated, **cpu, processes=2).read(batch, 100.0)
    assert halved["mfu"] == pytest.approx(read["mfu"] / 2, rel=0.01)


def test_a_training_goes_on_where_its_flops_cannot_be_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: Any) -> float:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(utilisation, "flops_per_sample", fail)
    config = clips_world.train_config(tmp_path, tmp_path / "run")
    of_run = Utilisation(config, device=torch.device("cpu"), precision="fp32", processes=1)
    assert of_run.read({}, 1.0) == of_run.read({}, 1.0) == {}
    assert capsys.readouterr().err.count("FLOPs: cannot be counted (no such operator)") == 1  # said once


# ---------------------------------------------------------------- plans


def write_config(folder: Path, **fields: Any) -> Path:
    path = folder / "train.yaml"
    stages = [
        {"samples": 1_000_000, "batch_size": 4096},
        {"samples": 100_000, "batch_size": 2048, "model.image_size": 32},
    ]
    settings = {
        "output": str(folder / "run"),
        "data": {"sources": [{"path": "s3://nowhere/{0..9}.tar"}]},
        "model": {"architecture": "clips-tiny", "image_size": 16, "context_length": 12},
        "recipe": {"name": "clips", "captioner": {"layers": 1}},
        "stages": stages,
    }
    path.write_text(json.dumps({**settings, **fields}))
    return path


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[StagePlan]:
    training = read_config(write_config(tmp_path_factory.mktemp("plan"), average=0.999))
    return [StagePlan(PlanConfig(training="", gpu="l4"), stage) for stage in stage_configs(training)]


@pytest.fixture(scope="module")
def told(stages: list[StagePlan]) -> dict[int, list[dict[str, Any]]]:
    return {count: [stage.tell(count) for stage in stages] for count in (4, 8)}


def read_config(path: Path) -> TrainConfig:
    config = parse_config(TrainConfig, ["--config", str(path)], prog="test")
    assert config is not None
    return config


def test_twice_the_gpus_half_the_hours(stages: list[StagePlan], told: dict[int, list[dict[str, Any]]]):
    for few, many in zip(told[4], told[8], strict=True):
        assert many["speed"]["computing_seconds"] == pytest.approx(few["speed"]["computing_seconds"] / 2)
        assert many["samples_per_gpu"] * 2 == few["samples_per_gpu"]
        assert many["flops_per_sample"] == few["flops_per_sample"]
        speed = many["speed"]
        assert speed["samples_per_second_nothing_overlapped"] < speed["samples_per_second"]
        assert speed["samples_per_second"] < many["batch_size"] / speed["computing_seconds"]
        assert speed["hours"] == pytest.approx(many["samples"] / speed["samples_per_second"] / 3600)
    assert [stage["image_size"] for stage in told[4]] == [16, 32]
    assert [stage["steps"] for stage in told[4]] == [245, 49]
    clusters = {count: cluster(stages, count) for count in (8, 512, 4096)}
    assert clusters[8]["hours"] == pytest.approx(sum(stage["speed"]["hours"] for stage in told[8]))
    assert clusters[512]["hours"] < clusters[8]["hours"]
    assert clusters[4096]["reason"] == "the batch cannot be divided by it"


def test_what_each_parallelism_divides(told: dict[int, list[dict[str, Any]]]):
    stage = told[8][0]
    whole = {"parameters": 4, "gradients": 4, "optimizer": 8, "average": 4}
    divided = {
        "ddp": set(),
        "fsdp": set(whole),
        "zero1": {"optimizer"},
        "zero2": {"optimizer", "gradients"},
        "zero3": set(whole),
    }
    for parallel in PARALLELS:
        parts = stage["memory"][parallel]["parts"]
        for name, size in whole.items():
            share = 8 if name in divided[parallel] else 1
            own_copy = 4 if name == "optimizer" and parallel.startswith("zero") else 0
            bound = stage["parameters"]["all"] * (size + own_copy) / share
            if name == "gradients":  # not all of them need be there at the fullest instant
                assert parts[name] <= bound
            else:
                assert parts[name] == pytest.approx(bound, rel=0.01)
    totals = {parallel: sum(entry["parts"].values()) for parallel, entry in stage["memory"].items()}
    assert totals["fsdp"] < totals["zero2"] <= totals["zero1"]


def test_the_largest_batch_fits_and_the_next_does_not(tmp_path: Path):
    rehearsal = Rehearsal(read_config(write_config(tmp_path, stages=[], steps=9)))
    spread, none = Spread(parallel="ddp", count=4, checkpointing=False), Allowance()

    def size(samples: int) -> float:
        return sum(rehearsal.footprint(spread, local=samples, at_once=samples, allowance=none).values())

    room = size(200)
    assert largest(lambda samples: size(samples) <= room, 4000) == 200
    assert [largest(lambda samples, most=most: samples <= most, 1000) for most in (0, 5, 8, 15, 16, 5000)] == [
        *(0, 5, 8, 8, 16, 1000),
    ]
    step = rehearsal.step(180, False)
    between = rehearsal.footprint(spread, local=180, at_once=180, allowance=none)
    exact = step.timeline.sum(1).max()
    assert between["gradients"] + between["copies"] + between["activations"] == pytest.approx(exact, rel=0.03)
    parts = rehearsal.footprint(spread, local=1024, at_once=64, allowance=none)
    assert sum(parts.values()) < 0.5 * size(1024)
    assert rehearsal.computed_flops(spread, in_parts=True) > 1.25 * rehearsal.computed_flops(spread, in_parts=False)


def test_the_shipped_schedule_is_the_papers():
    stages = stage_configs(read_config(SHIPPED))
    assert [stage.model.image_size for stage in stages] == [84, 224, 336]
    assert [stage.samples for stage in stages] == [12_800_000_000, 512_000_000, 128_000_000]
    assert [stage.batch_size for stage in stages] == [32768, 16384, 8192]
    assert [stage.optim.warmup_samples for stage in stages] == pytest.approx([51.2e6, 25.6e6, 0], rel=0.01)
    rehearsal = Rehearsal(stages[0])
    assert rehearsal.parameters == pytest.approx(525.4e6, rel=0.01)
    # 2 FLOPs a parameter and token forward, twice that backward: 36 patches and a class token, 2 texts of 80, and
    # 36 + 79 + 127 tokens of the captioner, its head on 127 of them
    visual = 24 * 12 * 1024**2 * 37
    text = 12 * 12 * 768**2 * 160
    captioner = 12 * 12 * 768**2 * 242 + 768 * 32000 * 127
    assert rehearsal.flops(64) == pytest.approx(6 * (visual + text + captioner), rel=0.05)


@pytest.mark.slow
def test_clipa_is_shipped_with_smaller_pictures_and_shorter_texts_first():
    first, last = stage_configs(read_config(SHIPPED.with_name("clipa-b-16.yaml")))
    assert (first.model.image_size, last.model.image_size) == (112, 224)
    assert (first.model.context_length, last.model.context_length) == (16, 32)
    costs = [Rehearsal(stage).flops(8) for stage in (first, last)]
    assert costs[0] < 0.3 * costs[1]


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, file = write_config(tmp_path, stages=[], samples=10_000), tmp_path / "plan.json"
    data = ["--pictures", "1000000", "--bytes_per_picture", "40000"]
    assert run_commands("clips", "", COMMANDS, ["plan", str(path), "--gpu", "l4", "--json", str(file), *data]) == 0
    shown = capsys.readouterr().out
    assert "training data: 40.0 GB" in shown
    assert "Stage 1 of 1: 16 pixels, 8 × l4" in shown
    assert "activations, work space" in shown
    assert "extrapolated" in shown
    assert "tensors within 10 %; a CPU process held up to 23 % more" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    written = json.loads(file.read_text())
    assert written["mfu_from"] == "assumed"
    assert written["stages"][0]["storage"]["encoder"] > 4 * written["stages"][0]["parameters"]["all"] - 1


def test_a_measured_mfu_is_taken(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step, "mfu": mfu}) + "\n" for step, mfu in enumerate((0.1, 0.31, 0.33))))
    assert mfu_of(PlanConfig(training="", mfu=0.2, measured=str(log))) == 0.31
    assert mfu_of(PlanConfig(training="", mfu=0.2)) == 0.2
    log.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="has no mfu"):
        mfu_of(PlanConfig(training="", measured=str(log)))


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"gpu": "h20"}, "unknown kind of GPU 'h20'; did you mean 'h200'"),
        ({}, {"count": 0}, "count: expected 1 or more, got 0"),
        ({}, {"count": 3}, "count: expected a divisor of batch_size 4096, got 3"),
        ({}, {"mfu": 1.5}, "mfu: expected a share"),
        ({}, {"pictures": 10}, "bytes_per_picture: expected together with pictures"),
        ({}, {"training": "none.yaml"}, "none.yaml"),
        ({"stages": [], "epochs": 2}, {}, "epochs: expected samples or steps"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, fields: dict[str, Any], options: dict[str, Any], message: str):
    path = write_config(tmp_path, **fields)
    with pytest.raises(UserError, match=message):
        plan(PlanConfig(**{"training": str(path), "gpu": "l4", **options}))


def test_gpus():
    names = {
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
        "NVIDIA GeForce RTX 4090": "4090",
    }
    assert {name: gpu_of(name) for name in names} == {name: GPUS[kind] for name, kind in names.items()}
    assert gpu_of("NVIDIA H100 PCIe") is None  # slower than what the table has
    assert bandwidth(GPUS["h200"], 8) == 450e9
    assert bandwidth(GPUS["h200"], 64) == 400e9


# ---------------------------------------------------------------- validation


def validating(data: Path, output: Path, samples: int, **fields: Any) -> TrainConfig:
    validation = {"source": {"path": str(data)}, "samples": samples, "batch_size": 8}
    return clips_world.train_config(data, output, validation=validation, **fields)


def test_a_dry_validation_holds_what_a_real_one_holds(tmp_path: Path):
    """The same with many samples, of which the similarities take most, and with few, of which activations do."""
    data = clips_world.write_shards(tmp_path / "data", sizes=(60,))
    run = start_run(config := validating(data, tmp_path / "run", 60), open_data(config))
    for samples in (8, 60):
        chosen = dataclasses.replace(config.validation, samples=samples)
        validation = Validation(chosen, run)
        with MemoryTrace(run.encoder) as trace:
            validation.measure(run.encoder)
        measured = max(map(sum, trace.timeline))
        planned = dry_validation(fake_model(config.model, config.recipe), chosen, device="cpu", bf16=False)
        assert planned.peak == pytest.approx(measured, rel=0.1)


def test_similarities_grow_with_the_samples_and_fill_a_gpu_in_the_plan(tmp_path: Path):
    """A million samples: 6 GB of similarities in a batch of 1,024, which a step of 4 samples does not take."""
    data = clips_world.write_shards(tmp_path / "data")
    config = validating(data, tmp_path / "run", 1_000_000)
    few = Rehearsal(dataclasses.replace(config, validation=dataclasses.replace(config.validation, samples=8)))
    many = Rehearsal(dataclasses.replace(config, validation=dataclasses.replace(config.validation, batch_size=1024)))
    spread = Spread(parallel="ddp", count=2, checkpointing=False)
    width = few.model.model_cfg["embed_dim"]
    found = many.validation(spread)
    assert found["features"] == 4 * 1_000_000 * width * 4
    assert 1024 * 1_000_000 * 4 <= found["similarities and activations"] <= 1024 * 1_000_000 * 8
    parts = many.footprint(spread, local=2, at_once=2, allowance=Allowance())
    assert parts["validation"] == sum(found.values())
    assert parts["activations"] == parts["gradients"] == 0
    less = few.footprint(spread, local=2, at_once=2, allowance=Allowance())
    assert sum(parts.values()) > sum(less.values()) + 4e9


@pytest.mark.parametrize("parallel", PARALLELS)
def test_shards_and_averages_are_validated_in_a_model_of_their_own(tmp_path: Path, parallel: Any):
    data = clips_world.write_shards(tmp_path / "data")
    for average in (None, 0.9):
        found = Rehearsal(validating(data, tmp_path / "run", 8, average=average))
        held = found.validation(Spread(parallel=parallel, count=2, checkpointing=False))["model"]
        whole = found.parameters * 4 + found.buffers
        assert held == (whole if average or parallel in {"fsdp", "zero3"} else 0)
    assert (
        Rehearsal(clips_world.train_config(data, tmp_path / "run")).validation(
            Spread(parallel=parallel, count=2, checkpointing=False)
        )
        == {}
    )
