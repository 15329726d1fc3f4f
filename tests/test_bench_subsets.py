"""lmms-eval's tasks whose metrics cover parts of the questions: CV-Bench, MMBench, MMMU."""

from __future__ import annotations

import json

import bench_world as world
import pytest
from bench_tasks import NUMBERS, PICTURES, cv_bench, mmbench, run, write_task
from bench_tasks import answers as answers
from bench_tasks import llava as llava

from benchmarks.results.results import read_items
from benchmarks.tasks.mllm.question_groups import in_whole_groups
from benchmarks.tasks.mllm.task_columns import MMMU_DISCIPLINES
from benchmarks.tasks.registry import configure

pytestmark = world.LMMS_EVAL_WARNS


def test_cv_bench_in_2d_and_3d(llava, tmp_path, answers):
    """2D is the mean of its two datasets, as in its paper. The hub has a file for each half, three configurations."""
    folder = tmp_path / "hub/nyu-visionx/CV-Bench"
    columns = cv_bench()
    card = {"configs": []}
    for name, kinds in (("default", ("2D", "3D")), ("2D", ("2D",)), ("3D", ("3D",))):
        files = [f"test_{kind.lower()}.parquet" for kind in kinds]
        card["configs"].append({"config_name": name, "data_files": [{"split": "test", "path": files}]})
    for kind in ("2D", "3D"):
        rows = [row for row in NUMBERS if columns["type"][row] == kind]
        part = {name: [values[row] for row in rows] for name, values in columns.items()}
        world.write_parquet(folder / f"test_{kind.lower()}.parquet", part)
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    answers += ["B", "(A)", "B) 2", "(A)", "(b)", "C"]  # ADE20K, COCO, ADE20K, COCO, then Omni3D twice
    found = run(llava, tmp_path, "cv_bench")
    values = {name: metric.value for name, metric in found.metrics.items()}
    expected = {"cv_bench_acc": 3 / 6, "cv_bench_2d": (1.0 + 0.0) / 2, "cv_bench_3d": 1 / 2}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert [found.metrics[name].n for name in expected] == [6, 4, 2]
    assert values["unread"] == pytest.approx(1 / 6)  # C of two options
    assert found.metrics["cv_bench_2d"].chance_levels["chance"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 2 + 1 / 4) / 4)
    assert found.metrics["cv_bench_3d"].chance_levels["chance"] == pytest.approx(1 / 2)
    assert sorted(read_items(found)["category"].unique()) == ["Count", "Depth", "Distance", "Relation"]
    answers[:] = ["B"]
    assert run(llava, tmp_path, "cv_bench_3d").metrics["cv_bench_3d"].value == 1.0


@pytest.mark.parametrize("name", ["mmbench_en_dev", "mmbench_en_dev_static"])
def test_mmbench_counts_questions_that_are_right_in_every_order(name, llava, tmp_path, answers):
    """By its own scorer, with an interval over the questions; one is right in one order only."""
    answers += ["A", "B", "here", "B", "B", "here"]
    found = run(llava, tmp_path, name, mmbench(), "dev")
    metric = found.metrics["gpt_eval_score"]
    assert (metric.value, metric.n) == (pytest.approx(200 / 3), 3)
    assert metric.ci_low is not None
    assert metric.ci_low < metric.value < (metric.ci_high or 0)
    assert metric.chance_levels["chance"] == pytest.approx(100 / 4)  # two independent guesses between two
    items = world.check_formulas(found)
    assert items["points"].tolist()[:3] == [100.0, 0.0, 100.0]
    assert items["points"].isna().tolist() == [False] * 3 + [True] * 3


def test_a_limit_makes_mmbench_no_accuracy_in_one_pass(llava, tmp_path, answers):
    answers += ["A", "B", "A"]
    write_task(tmp_path / "hub", "mmbench_en_dev_static", mmbench(), "dev")
    config = configure(name="mmbench_en_dev_static", data=str(tmp_path / "hub"), limit=3)
    found = world.measure(tmp_path / "results", config, llava=llava)
    assert "gpt_eval_score" not in found.metrics
    assert found.missing_metrics["gpt_eval_score"] == "the first 3 questions lack some of their orders or pairs"
    assert len(read_items(found)) == 3


def test_mmmu_scores_options_and_open_answers(llava, tmp_path, answers):
    world.write_mmmu(tmp_path / "hub", PICTURES)
    answers += ["A", "red", "(B)", "Green.", "A", "blue", "D", "the answer is red", "A", "no idea"]
    found = run(llava, tmp_path, "mmmu_val")
    metric = found.metrics["mmmu_acc"]
    assert metric.value == pytest.approx(7 / 12, abs=1e-5)  # lmms-eval rounds; the tail repeats 'no idea'
    assert metric.ci_method == "wilson"  # on the effective size
    assert metric.ci_low < metric.value < metric.ci_high
    art, math = (found.metrics[f"mmmu_acc_{subject}"] for subject in ("Art", "Math"))
    assert (art.n, math.n) == (6, 6)
    assert (art.value + math.value) / 2 == pytest.approx(metric.value, abs=1e-5)
    assert (art.chance_levels["chance"], math.chance_levels["chance"]) == (0.25, 0.0)  # options, open answers
    assert read_items(found)["category"].unique().tolist() == ["Art and Design", "Science"]
    assert found.missing_metrics["mmmu_acc_Music"] == "no question of this data enters it"


def test_mmmu_s_subjects_are_those_of_its_scorer():
    from lmms_eval.tasks.mmmu.utils import DOMAIN_CAT2SUB_CAT

    assert {name: list(members) for name, members in MMMU_DISCIPLINES.items()} == DOMAIN_CAT2SUB_CAT


def test_only_distinct_indices_are_those_of_orders():
    """MMBench's indices of one question differ by a million; others count images, or the rows of each category."""
    circular = [{"index": number} for number in (0, 1, 1_000_000, 1_000_001)]
    assert in_whole_groups({0: "a", 1: "b", 2: "a"}, circular, "mmbench") == {0: "a", 2: "a"}
    by_category = [{"index": number, "category": name} for name in "xy" for number in (0, 1)]
    assert in_whole_groups({0: "a", 1: "b"}, by_category, "own") == {0: "a", 1: "b"}
