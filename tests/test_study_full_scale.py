"""The full-scale studies: planned dry as they are, and really run in miniature."""

from __future__ import annotations

import gc
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import bridge_world
import pytest
import yaml
from study_miniature import STUDIES, ZOO_BENCHMARKS, full, miniature

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.estimate_steps import estimate_steps
from benchmarks.study.launchers import commands_of
from benchmarks.study.preflight import first_config_error
from benchmarks.study.resources import resolve_resources
from benchmarks.study.schema import read_study
from benchmarks.study.steps import Step, topological_order
from clips.commandline.commands import dispatch
from clips.method.recipes import RECIPES
from clips.typed_data import to_plain, to_yaml

ROOT = Path(__file__).parents[1]
NAMES = ("paper_retrieval", "paper_llava", "encoder_zoo", "encoders_2026")
EIGHT = {"mme", "mmmu_val", "mmvet", "gqa", "chartqa", "pope", "nocaps_val", "textvqa_val"}  # as the paper prints


def planned(name: str) -> StudyPlan:
    return build_plan(read_study(STUDIES / f"{name}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_one_that_its_command_accepts(name):
    plan = planned(name)
    unlike = {(step.kind, step.name.rpartition(".")[2]): step for step in plan.steps if step.kind != "evaluation"}
    unlike |= {(step.kind, ""): step for step in plan.steps if step.kind == "evaluation"}
    asked = [(step.name, list(step.command), to_plain(step.config)) for step in unlike.values()]
    assert first_config_error(asked) is None
    assert all(row.cells for row in plan.rows)


def test_the_retrieval_study_has_the_papers_rows():
    rows = {row.name: row for row in planned("paper_retrieval").rows}
    table = [f"{size}.{recipe}" for size in "sbl" for recipe in ("clipa", "coca", "clips")]
    assert list(rows)[:9] == table
    assert {rows[name].baseline for name in table} == {None, "s.clipa", "b.clipa", "l.clipa"}
    assert rows["l14.clips"].baseline == rows["released_clips"].baseline == "openai"
    assert all(set(row.cells) == {"coco", "flickr30k", "imagenet1k"} for row in rows.values())


def test_the_llava_study_has_the_papers_columns_and_the_zoo_ten_encoders():
    paper, zoo = planned("paper_llava"), planned("encoder_zoo")
    assert set(paper.benchmarks) == set(zoo.benchmarks) == EIGHT
    assert [row.name for row in paper.rows] == ["clip", "clips"]
    assert len(zoo.rows) == 10
    recipes = [{**full(name)["defaults"]["llava"]} for name in ("paper_llava", "encoder_zoo")]
    assert recipes[0] == recipes[1]


def test_the_study_of_2026_has_the_recipe_of_its_config_three_seeds_and_thirteen_benchmarks():
    study = full("encoders_2026")
    recipe = yaml.safe_load((ROOT / "scripts/configs/llava/llava-next-qwen2.5-7b.yaml").read_text(encoding="utf-8"))
    mine = study["defaults"]["llava"]
    for name in ("output", "encoder", "llm", "image_grid_pinpoints"):  # each encoder has tiles of its own size
        recipe.pop(name)
    for stage, samples in (("align", 558_128), ("instruct", 780_000)):
        assert mine[stage].pop("max_steps") == math.ceil(samples / mine[stage]["global_batch_size"])
        assert recipe[stage].pop("num_epochs") == 1
        sources = [part[stage].pop("data")[0]["path"] for part in (mine, recipe)]
        assert sources[0].replace("$images", "data") == sources[1]
    assert mine == recipe
    plan = planned("encoders_2026")
    assert len(plan.rows) == 3 * 8
    assert len(plan.benchmarks) == 13


def test_the_study_of_objectives_has_a_row_for_each_recipe_and_way_to_train():
    rows = full("objectives")["encoders"].values()
    assert {row["recipe"]["name"] for row in rows} >= {*RECIPES} - {"clipa", "coca", "recap", "veclip"}
    assert {name for row in rows for name in row["recipe"]} >= {"positive_weights", "embedding_widths", "distillation"}
    assert any(row.get("optimizer") == {"name": "muon"} for row in rows)
    loras = [row["model"]["lora"] for row in rows if "lora" in row.get("model", {})]
    assert [lora.get("apply_to") for lora in loras] == [["text"], None]  # by default both towers
    plan = planned("objectives")
    asked = [(step.name, list(step.command), to_plain(step.config)) for step in plan.steps if step.name.endswith("-s0")]
    assert first_config_error(asked) is None
    assert len(plan.rows) == 3 * len(rows)


def test_blind_questions_are_planned_and_a_blank_square_is_encoded_once():
    plan = planned("encoders_2026")
    steps = [step for step in plan.steps if "-dinov3-" in step.name and step.name.endswith("-s0")]
    given = {step.name: resolve_resources(plan.study.resources, step) for step in steps}
    found = estimate_steps(steps, Path("nowhere"), resources=given, gpu=plan.study.gpu)
    total = {"small": 1000 + 765 + 1500 + 900, "all": 41_244}  # questions of four benchmarks, and of all
    basis = found["evaluate-llava-dinov3-qwen2.5-s0"].basis
    asked = int(re.search(r"([\d,]+) questions", basis)[1].replace(",", ""))  # type: ignore[index]
    assert asked == pytest.approx(
        total["all"] + 2 * total["small"] + 2 * 0.075 * (total["all"] - total["small"]), abs=15
    )


def test_a_llava_is_worked_out_without_a_network():
    plan = planned("paper_llava")
    given = {step.name: resolve_resources(plan.study.resources, step) for step in plan.steps}
    steps = [step for step in plan.steps if "-clip-" in step.name]
    found = estimate_steps(steps, Path("nowhere"), resources=given, gpu=plan.study.gpu)
    training = found["llava-clip-llama3-s0"]
    assert training.gpu_hours is not None
    assert 20 < training.gpu_hours < 80
    assert training.disk == pytest.approx(2 * 8.36e9, rel=0.01)  # Llama 3 8B, CLIP L/14 and the projector, in bf16
    assert training.memory is not None
    assert training.memory < 80e9
    assert "37,070 questions" in found["evaluate-llava-clip-llama3-s0"].basis


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper_retrieval", "encoder_zoo", "encoders_2026"])
def test_every_training_is_worked_out_without_a_network(name):
    plan = planned(name)
    given = {step.name: resolve_resources(plan.study.resources, step) for step in plan.steps}
    alike = {f"encoder-{size}.{recipe}-s0" for size in "bl" for recipe in ("clipa", "coca")}  # as the small ones
    trainings = [step for step in plan.steps if step.kind != "evaluation" and step.name not in alike]
    found = estimate_steps(trainings, Path("nowhere"), resources=given, gpu=plan.study.gpu)
    for step in trainings:
        assert found[step.name].gpu_hours, found[step.name].basis
        assert found[step.name].disk


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:3])  # the last one's recipe trains in tests/test_bridge_recipes_2026.py
def test_the_study_runs_in_miniature(name, tmp_path):
    file = miniature(name, tmp_path)
    made = build_plan(read_study(file))
    if name == "paper_llava":
        words = [sys.executable, "-m", "benchmarks.cli", "study", "run", str(file)]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=3000, cwd=ROOT, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        (tmp_path / "out" / "report" / "index.html").stat()
    else:
        run_in_this_process(made.steps, tmp_path)
    asked = {"paper_retrieval": {"coco", "flickr30k", "imagenet1k"}, "encoder_zoo": {*ZOO_BENCHMARKS}}.get(name, EIGHT)
    assert [row.name for row in made.rows] == [row.name for row in planned(name).rows]
    for row in made.rows:
        assert set(row.cells) == asked
        for cell in row.cells.values():
            result = json.loads((tmp_path / "out" / cell.result).read_text(encoding="utf-8"))
            assert result["status"] == "ok"
            assert result["metrics"] or "judge" in str(result["missing_metrics"])


def run_in_this_process(steps: Sequence[Step], folder: Path) -> None:
    """Run the steps' commands one after another, LLaVAs in one other process: a step of the engine imports torch."""
    files = {step.name: folder / f"{step.name}.yaml" for step in steps}
    for step in steps:
        files[step.name].write_text(to_yaml(step.config), encoding="utf-8")
    llavas = [files[step.name] for step in steps if step.kind == "llava"]
    if llavas:
        bridge_world.trained_alone(*llavas)
    for step in topological_order(steps):
        program, *words = step.command
        if step.kind != "llava":
            status = dispatch(program, "", commands_of(program), [*words, "--config", str(files[step.name])])
            assert status == 0, step.name
            gc.freeze()  # lmms-eval collects garbage after every task, see conftest.py
