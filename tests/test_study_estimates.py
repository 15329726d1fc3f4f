"""Estimates of a study's steps: from records, from similar steps, derived from sizes, or unknown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from study_material import SMALL

from benchmarks.study import study_commands
from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.estimate import CostEstimate, analytic_estimate, total_cost
from benchmarks.study.estimate_steps import estimate_steps
from benchmarks.study.executors import GpusConfig, LocalConfig, SlurmConfig
from benchmarks.study.resources import Resources, resolve_resources
from benchmarks.study.schema import parse_study
from benchmarks.study.step_state import StepRecord, write_record
from benchmarks.study.steps import Step, time_left
from benchmarks.study.study_commands import StudyPlanConfig, plan_study
from clips.core.artifact import atomic_write
from clips.training.train_config import EncoderTrainConfig
from clips.typed_data import to_yaml

ENCODER = {"global_batch_size": 10, "optimizer": {}}


def planned(output: Path, **fields: object) -> StudyPlan:
    encoders = {
        "clip": {**ENCODER, "max_steps": 100},
        "longer": {**ENCODER, "max_steps": 300},
        "other": {"recipe": "clips"},
    }
    return build_plan(parse_study({**SMALL, "output": str(output), "encoders": encoders, **fields}))


def estimated(plan: StudyPlan, gpu: str | None = None) -> dict[str, CostEstimate]:
    given = {step.name: resolve_resources({}, step) for step in plan.steps}
    return estimate_steps(plan.steps, plan.study.directory, resources=given, gpu=gpu)


def ran(plan: StudyPlan, name: str, seconds: float, **fields: object) -> None:
    """Note a run of a step, with a file of a thousand bytes for its output."""
    step = next(step for step in plan.steps if step.name == name)
    record = StepRecord(name=name, kind=step.kind, command="", key="old", status="done", started=0.0, seconds=seconds)
    write_record(plan.study.directory, dataclasses.replace(record, **fields))  # type: ignore[arg-type]
    step.outputs[0].mkdir(parents=True, exist_ok=True)
    (step.outputs[0] / "weights").write_bytes(bytes(1000))


def test_a_step_is_estimated_by_its_last_run_or_by_similar_ones(tmp_path):
    plan = planned(tmp_path)
    ran(plan, "encoder-clip-s0", 50.0, peak_memory_mb=2.0)
    found = estimated(plan)
    own, longer = found["encoder-clip-s0"], found["encoder-longer-s0"]
    assert (own.seconds, own.memory, own.disk, own.basis) == (50.0, 2.0 * 2**20, 1000.0, "its last run")
    assert (longer.seconds, longer.memory, longer.disk) == (150.0, 2.0 * 2**20, 1000.0)  # three times the samples
    assert longer.basis == "the last runs of 1 similar steps, scaled by samples"
    assert found["data-train"] == CostEstimate(basis="has not run yet")
    assert found["encoder-other-s0"].seconds is None  # another recipe


def test_a_batch_size_that_is_not_given_is_the_default_of_the_training(tmp_path):
    default = EncoderTrainConfig.global_batch_size
    explicit = {"global_batch_size": default, "max_steps": 100}
    plan = planned(tmp_path, encoders={"clip": {"max_steps": 100}, "explicit": explicit})
    ran(plan, "encoder-clip-s0", 50.0)
    assert estimated(plan)["encoder-explicit-s0"].seconds == 50.0


def test_a_step_that_was_changed_since_is_estimated_by_what_it_was(tmp_path):
    """Ten times the samples take ten times as long, also for the steps that are like it."""
    plan = planned(tmp_path)
    ran(plan, "encoder-clip-s0", 50.0)
    config = next(step.config for step in plan.steps if step.name == "encoder-clip-s0")
    atomic_write(tmp_path / "steps/encoder-clip-s0/config.yaml", to_yaml({**config, "max_steps": 10}))
    found = estimated(plan)
    assert found["encoder-clip-s0"].seconds == 500.0
    assert found["encoder-clip-s0"].basis == "the last runs of 1 similar steps, scaled by samples"
    assert found["encoder-longer-s0"].seconds == 1500.0
    atomic_write(tmp_path / "steps/encoder-clip-s0/config.yaml", to_yaml({**config, "recipe": "clips"}))
    found = estimated(plan)
    assert found["encoder-clip-s0"].seconds is None  # another recipe tells nothing


def encoder_evaluation(encoder: str, *benchmarks: dict[str, object]) -> Step:
    return Step(name="evaluate-encoder-a", kind="evaluation", command=("clips-bench", "run"), outputs=(Path("out"),),
                config={"encoder": encoder, "benchmarks": list(benchmarks)})  # fmt: skip


COCO = {"name": "coco", "task": "retrieval", "data": "x"}
IMAGENET = {"name": "imagenet1k", "task": "classification", "data": "x", "templates": "openai_imagenet"}
CLIP = "hf-hub:timm/vit_base_patch32_clip_224.openai"


def test_an_evaluation_of_an_encoder_reads_images_and_texts_of_published_sets():
    def asked(*benchmarks: dict[str, object]) -> CostEstimate:
        return analytic_estimate(encoder_evaluation(CLIP, *benchmarks), {}, Resources(gpus=1), "h200")

    whole = asked(COCO, IMAGENET)
    assert "55,000 images and 105,000 texts" in whole.basis
    assert whole.seconds == pytest.approx(asked(COCO).seconds + asked(IMAGENET).seconds)
    assert "100 images and 200 texts" in asked({**COCO, "limit": 100, "captions_per_image": 2}).basis


def test_a_record_on_gpus_tells_gpu_hours_and_one_on_a_cpu_does_not(tmp_path):
    plan = planned(tmp_path)
    given = {step.name: Resources(gpus=4, nodes=2) for step in plan.steps}
    for machine, hours in (({"accelerators": "H200"}, 8.0), ({"accelerators": "none"}, None), ({}, None)):
        ran(plan, "encoder-clip-s0", 3600.0, machine=machine)
        found = estimate_steps(plan.steps, tmp_path, resources=given, gpu=None)
        assert found["encoder-clip-s0"].gpu_hours == hours


def test_a_failed_run_tells_nothing(tmp_path):
    plan = planned(tmp_path)
    ran(plan, "llm-tiny", 50.0, status="failed")
    assert estimated(plan)["llm-tiny"].seconds is None


def test_the_sum_names_what_is_unknown_and_what_cannot_be_shared():
    known = {
        "long": CostEstimate(basis="", seconds=100.0, memory=1e9, disk=1e6, most=5e6, gpu_hours=2.0),
        "short": CostEstimate(basis="", seconds=20.0, memory=2e9, disk=1e6, gpu_hours=1.0),
        "dark": CostEstimate(basis=""),
    }
    steps = [bare(name) for name in known]
    text = total_cost(known, steps, {name: {"jobs": 0.25} for name in known})
    figures = ("2 min 00 s of steps", "at least 1 min 40 s", "3 GPU hours", "2 GB memory", "2 MB disk, and 4 MB for")
    assert [part for part in (*figures, "the time of 1 steps is unknown") if part not in text] == []
    assert "in parallel" not in total_cost(known, steps, {name: {"jobs": 1.0} for name in known})
    assert total_cost({"dark": CostEstimate(basis="")}, steps, {"dark": {"jobs": 1.0}}) == "total: time unknown"


def bare(name: str, *parents: str) -> Step:
    return Step(name=name, kind="encoder", command=("clips", "train"), config={}, outputs=(), parents=parents)


def test_time_left_knows_the_room_of_the_executor_and_that_children_wait_for_parents():
    steps = [bare("one"), bare("two"), bare("wide"), bare("child", "one"), bare("done")]
    rests = {"one": 10.0, "two": 10.0, "wide": 10.0, "child": 10.0}
    given = {name: Resources(gpus=1) for name in ("one", "two", "child", "done")} | {"wide": Resources(gpus=4)}
    four = GpusConfig(devices=("0", "1", "2", "3")).shares(given, 1)
    quarters = dict.fromkeys(("one", "two", "child", "done"), 0.25)
    assert {name: share["gpus"] for name, share in four.items()} == quarters | {"wide": 1.0}
    assert time_left(steps, rests, four) == 20  # the chain; the GPUs are busy for 17.5
    assert time_left(steps, rests, GpusConfig(devices=("0",)).shares(given, 8)) == 40
    assert GpusConfig(devices=("0",)).shares({"data": Resources(gpus=0)}, 8) == {"data": {"jobs": 0.125}}
    beside = given | {"two": Resources(gpus=0)}
    assert time_left(steps, rests, GpusConfig(devices=("0",)).shares(beside, 1)) == 30  # it waits for no GPU
    assert time_left(steps, rests, LocalConfig().shares(given, 2)) == 20
    assert time_left(steps, rests, LocalConfig().shares(given, 1)) == 40
    assert time_left(steps, rests, SlurmConfig(max_jobs=100).shares(given, 1)) == 20  # no sooner, however wide
    assert time_left(steps, {}, four) == 0


def llava_step(**config: object) -> Step:
    data = [{"path": "not/here.json"}]
    stages = {"align": {"data": data, "max_steps": 10}, "instruct": {"data": data, "max_steps": 10}}
    parts = {"encoder": "transformers:openai/clip-vit-large-patch14-336", "llm": "lmsys/vicuna-7b-v1.5"}
    whole = {"output": "out", **parts, **stages, **config}
    return Step(name="llava-a", kind="llava", command=("llava-bridge", "train"), config=whole, outputs=(Path("out"),))


def test_a_llava_of_known_parts_is_computed_and_one_of_unknown_parts_says_so():
    one = analytic_estimate(llava_step(), {}, Resources(gpus=1), "h200")
    eight = analytic_estimate(llava_step(), {}, Resources(gpus=4, nodes=2), "h200")
    assert one.gpu_hours == eight.gpu_hours
    assert one.seconds == pytest.approx(8 * eight.seconds)
    assert one.memory > eight.memory
    assert "576 tokens an image" in one.basis
    cpu = analytic_estimate(llava_step(), {}, Resources(), None)
    assert (cpu.seconds, cpu.disk) == (None, one.disk)
    assert "no GPU is named" in cpu.basis
    for field, name in (("encoder", "transformers:nobody/knows"), ("llm", "nobody/knows")):
        unknown = analytic_estimate(llava_step(**{field: name}), {}, Resources(), "h200")
        assert unknown == CostEstimate(basis="unknown size of nobody/knows (no local copy)")
    endless = analytic_estimate(llava_step(align={"data": [{"path": "not/here.json"}]}), {}, Resources(), "h200")
    assert endless.gpu_hours is None
    assert "the data of align are missing" in endless.basis
    wrong = llava_step(projector={"type": "perceiver", "num_heads": 7})
    assert analytic_estimate(wrong, {}, Resources(), None).basis.startswith(
        "projector.num_heads: expected a divisor of 1024"
    )


def test_the_plan_prints_estimates_and_names_of_the_hub_that_may_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_commands, "check_command", lambda words: None)
    monkeypatch.setattr(study_commands, "command_version", lambda words: 1)
    content = {**SMALL, "output": str(tmp_path / "out"), "llms": {"a": "org/a", "b": "org/b@v1"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = build_plan(parse_study(content))
    ran(plan, "data-train", 65.0)
    plan_study(StudyPlanConfig(study=str(tmp_path / "study.yaml"), check=False, include=("net",)))
    printed = capsys.readouterr().out
    assert "about 1 min 05 s, memory unknown, 1 kB disk (its last run)" in printed
    assert "from the Hub org/a (not pinned: add @REVISION)" in printed
    assert "from the Hub org/b@v1\n" in printed
    assert "total: about 1 min 05 s of steps" in printed
    plan_study(StudyPlanConfig(study=str(tmp_path / "study.yaml"), check=False, estimates=False))
    assert "total:" not in capsys.readouterr().out
