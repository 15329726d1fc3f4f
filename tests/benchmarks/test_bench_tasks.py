"""lmms-eval's tasks beyond the first five: their metrics against hand-made answers, parts of the questions, faults."""

from __future__ import annotations

import json
import shutil
import sys
import types

import bench_world as world
import numpy as np
import pytest
from bench_tasks import NUMBERS, PICTURES, TASKS, cv_bench, images, mmbench, run, six, write_task
from bench_tasks import answers as answers
from bench_tasks import llava as llava
from families import quick_of
from PIL import Image

from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.tasks.eval_model import LmmsModel
from benchmarks.tasks.mllm import evaluate_task
from benchmarks.tasks.mllm.items import in_whole_groups
from benchmarks.tasks.mllm.offline_tasks import dataset_name, task_folders, task_groups
from benchmarks.tasks.mllm.task_metrics import MMMU_DISCIPLINES, default_task_metrics
from benchmarks.tasks.registry import all_benchmarks, configure, get_benchmark
from clips.errors import UserError

pytestmark = world.LMMS_EVAL_WARNS


@pytest.mark.parametrize("name", quick_of(TASKS, "chartqa", "mmstar", "seedbench"))
def test_metrics_by_hand(name, llava, tmp_path, answers):
    columns, split, said, expected = TASKS[name]
    answers += said
    pictures = [[image] for image in images()] if name == "seedbench" else images()
    found = run(llava, tmp_path, name, columns | {"image": pictures}, split)
    assert {metric: found.metrics[metric].value for metric in expected} == pytest.approx(expected)
    first = found.metrics[found.primary[0]]
    assert first.ci_low < first.value < first.ci_high
    assert first.ci_method == "wilson"
    assert read_items(found)["score"].sum() > 0


def test_a_task_that_is_not_listed(llava, tmp_path, answers, monkeypatch):
    """Any of lmms-eval's tasks works, and only its own dataset counts; its mean metrics get intervals.

    It is not known whether its scorer asks a judge by the openai client, as it is of the listed tasks.
    """
    patched = []
    original = evaluate_task.patched_judge
    monkeypatch.setattr(
        evaluate_task,
        "patched_judge",
        lambda judge, **how: patched.append(how["openai_client"]) or original(judge, **how),
    )
    answers += ["A", "A", "B"]
    columns = six(options=[["x", "y"]] * 6, answer="0", image=images())
    found = run(llava, tmp_path, "ai2d_no_mask", columns)
    assert found.metrics["exact_match"].value == pytest.approx(2 / 6)
    assert found.metrics["exact_match"].ci_method == "wilson"
    (tmp_path / "hub/other").mkdir()
    (tmp_path / "hub/other/file").write_text("of another data set")
    again = run(llava, tmp_path, "ai2d_no_mask")
    assert again.created == found.created  # done already
    run(llava, tmp_path, "ai2d", columns)
    assert patched == [True, False]


def test_mmvps_main_number_is_that_of_pairs(llava, tmp_path, answers):
    """Both questions of a pair must be right, which guesses are in a quarter of the pairs."""
    answers += ["A", "B", "A", "A", "B", "A"]
    columns = {"Index": [*range(1, 7)], "Question": ["Which?"] * 6, "Options": ["(a) x (b) y"] * 6}
    columns |= {"Correct Answer": ["(a)", "(b)"] * 3, "image": images()}
    found = run(llava, tmp_path, "mmvp", columns, "train")
    assert found.primary == ["mmvp_pair_accuracy"]
    pairs, each = found.metrics["mmvp_pair_accuracy"], found.metrics["mmvp_accuracy"]
    assert (pairs.value, pairs.n, each.value) == (1 / 3, 3, 0.5)
    assert pairs.ci_low < 1 / 3 < pairs.ci_high
    assert (pairs.chance_levels, each.chance_levels) == ({"chance": 0.25}, {"chance": 0.5})


def test_no_point_in_six_questions_is_not_certainly_none_in_a_thousand(llava, tmp_path, answers):
    columns, split, *_ = TASKS["ocrbench"]
    answers += ["no"]
    points = run(llava, tmp_path, "ocrbench", columns | {"image": images()}, split).metrics["ocrbench_points"]
    assert (points.value, points.ci_low, points.scale) == (0.0, 0.0, 1000.0)
    assert points.ci_high * points.scale > 300


@pytest.mark.parametrize(
    ("numbers", "higher", "scale", "shown"),
    [
        ([0, 1, 0, 1], False, None, 1.0),  # a number of errors, by chance none above 1
        ([0, 1, 0, 2], False, None, 1.0),
        ([0, 1, 0, 1], True, None, 100.0),
        ([0, 1, 0, 1], False, 100.0, 100.0),
    ],
)
def test_a_lower_is_better_metric_is_shown_unscaled(numbers, higher, scale, shown):
    """Two rows of one benchmark were 40 and 0.6 errors, as the first had none above 1."""
    means = {"errors": sum(numbers) / len(numbers), "other": 0.5}
    samples = [{"errors": number, "other": 0.5} for number in numbers]
    found = default_task_metrics(samples, means, {"errors": higher, "other": None}, scale).metrics
    assert (found["errors"].scale, found["errors"].higher_is_better) == (shown, higher is not False)
    assert found["other"].higher_is_better is None  # lmms-eval states neither


def test_images_of_equal_pixels_in_other_colors_are_two():
    from benchmarks.tasks.mllm.llava_model import image_hash_name

    shape = world.draw_image(0).convert("L").convert("P")
    red, blue = shape.copy(), shape.copy()
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    assert red.tobytes() == blue.tobytes()
    assert image_hash_name(red) != image_hash_name(blue)
    assert image_hash_name(red) == image_hash_name(red.convert("RGB"))


def test_the_data_are_read_for_their_hash_once_and_again_when_they_change(llava, tmp_path, answers, monkeypatch):
    from benchmarks.tasks.mllm import offline_tasks

    hashed, compute = [], offline_tasks.directory_hash
    monkeypatch.setattr(
        offline_tasks, "directory_hash", lambda *args, **more: hashed.append(1) or compute(*args, **more)
    )
    answers += ["A"]
    found = [run(llava, tmp_path, "realworldqa", six(answer=right, image=images())) for right in "AB"]
    assert len(hashed) == 2
    assert found[0].protocol["data_hash"] != found[1].protocol["data_hash"]


def test_cached_answers_have_their_images(llava, tmp_path, answers):
    answers += ["A", "B"]
    first = run(llava, tmp_path, "realworldqa", six(answer="A", image=[world.draw_image(n // 2) for n in NUMBERS]))
    answers[:] = ["not asked again"]
    benchmark = configure(name="again", task="realworldqa", data=str(tmp_path / "hub"))
    again = world.measure(tmp_path / "results", benchmark, llava=llava)
    assert again.metrics == first.metrics
    assert again.metrics["exact_match"].clusters == 3
    assert read_items(again).equals(read_items(first))


def test_groups_name_their_members():
    with pytest.raises(UserError, match=r"'mmmu' is a group.*; use its members: mmmu_val, mmmu_test; for"):
        get_benchmark("mmmu")
    assert task_groups()["refcoco_bbox_rec"] == tuple(f"refcoco_bbox_rec_{split}" for split in
                                                      ("test", "testA", "testB", "val"))  # fmt: skip
    assert task_groups()["scienceqa_full"] == ("scienceqa", "scienceqa_img")
    with pytest.raises(UserError, match="'cocoqa' is a format of data, not a benchmark; see docs/"):
        get_benchmark("cocoqa")
    with pytest.raises(UserError, match="unknown benchmark 'mmmu_vall'; did you mean 'mmmu_val'"):
        get_benchmark("mmmu_vall")


def test_the_registry_names_the_datasets_of_the_task_definitions():
    entries = {name: entry for name, entry in all_benchmarks().items() if entry.benchmark_type == "mllm"}
    assert {name: entry.dataset for name, entry in entries.items()} == {name: dataset_name(name) for name in entries}
    assert {name: entry.folder for name, entry in entries.items()} == {name: task_folders()[name] for name in entries}


@pytest.mark.parametrize(
    ("name", "columns", "said", "reason"),
    [
        ("realworldqa", {}, "", r"all 6 answers of the model are empty"),
        (
            "realworldqa",
            {"image": [*images()[:5], None]},
            "A",
            "image of the question 'Which 5' is missing or broken",
        ),
        ("realworldqa", {"image": [*images()[:5], b"no"]}, "A", "'Which 5' is missing or broken .*undecodable image"),
        ("realworldqa", {"answer": [None] * 6}, "A", "scorer of realworldqa rejects the question 'Which 0'"),
        ("vqav2_test", {"question_id": [*NUMBERS]}, "A", "vqav2_test has no score, only a file to submit"),
        # MME wants exactly two questions a picture and category
        (
            "mme",
            {"question_id": [*"abcdef"], "category": ["color"] * 6, "answer": ["Yes"] * 6},
            "Yes",
            "pairwise",
        ),
    ],
)
def test_errors_are_one_line(name, columns, said, reason, llava, tmp_path, answers, capsys):
    answers += [said]
    whole = six(question=[f"Which {number}" for number in NUMBERS], answer="A", image=images())
    with pytest.raises(UserError, match=reason) as caught:
        run(llava, tmp_path, name, whole | columns)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capsys.readouterr().err
    assert read_result(result_path(tmp_path / "results", "row", name)).status == "failed"


@pytest.mark.parametrize(("name", "left"), [("realworldqa", "01345"), ("mmbench_en_dev_static", "0134")])
def test_a_question_with_an_image_of_unknown_range_is_left_out(name, left, llava, tmp_path, answers, capsys):
    """One gray image of 16 bits: its question alone, or with its other order, is not in the score, and is counted."""
    answers += ["A", "B", "A", "B", "A", "B"]
    columns, split = (mmbench(), "dev") if name.startswith("mmbench") else (six(answer="A"), "test")
    columns["image"] = images()
    columns["image"][2] = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    found = run(llava, tmp_path, name, columns, split)
    assert "".join(read_items(found)["item"]) == left
    assert (found.protocol["questions"], found.protocol["full_size"]) == (len(left), 6)
    assert f"{6 - len(left)} of 6 questions are left out" in capsys.readouterr().err
    benchmark = configure(name="limited", task=name, data=str(tmp_path / "hub"), limit=2)
    assert "".join(read_items(world.measure(tmp_path / "results", benchmark, llava=llava))["item"]) == "01"


@pytest.mark.parametrize("name", quick_of(["llava_bridge", "llava_hf"], "llava_hf"))
def test_a_model_of_lmms_evals_own_is_a_row(name, llava, tmp_path, monkeypatch):
    """Ours under its name there, and its own for LLaVAs: the same answers, items and numbers."""
    video = types.ModuleType("decord")  # llava_hf wants it, for videos alone
    video.VideoReader = video.cpu = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decord", video)
    world.write_hub(tmp_path / "hub", 2)
    benchmark = configure(name="pope", data=str(tmp_path / "hub"), max_new_tokens=4)
    device = "device=cpu" if name == "llava_bridge" else "device=cpu,device_map=cpu,dtype=float32"
    other = LmmsModel(model=name, model_args=f"pretrained={llava},{device}")
    ours, theirs = (
        world.measure(tmp_path / "results", benchmark, row=row, device="cpu", **model)
        for row, model in (("ours", {"llava": llava}), ("theirs", {"lmms": other}))
    )
    assert theirs.metrics == ours.metrics
    columns = ["item", "image", "question", "prediction", "score"]
    assert read_items(theirs)[columns].equals(read_items(ours)[columns])
    assert theirs.protocol["input_model"] == f"lmms-eval's {name}"
    assert theirs.model["hash"] != ours.model["hash"]
    with pytest.raises(UserError, match=r"unknown model of lmms-eval's .*'llava_hff'; did you mean 'llava_hf'"):
        world.measure(tmp_path / "x", benchmark, lmms=LmmsModel(model="llava_hff"))


@pytest.mark.slow
def test_an_answer_is_as_long_as_that_of_lmms_evals_own_model(llava, tmp_path, monkeypatch):
    """Its own LLaVAs do not stop at the default stop string, an empty line, and generate up to 1,024 tokens."""
    from transformers import AutoTokenizer

    monkeypatch.setitem(sys.modules, "decord", types.SimpleNamespace(VideoReader=None, cpu=None))
    directory = tmp_path / "llava"
    shutil.copytree(llava, directory)
    b, line, a, end = AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids(["b", "\u010a", "a", "</s>"])
    said = [[b], [b] * 149 + [line], [line, line], [line, line, a], [line, a, end]]  # each outweighs those before it
    settings = {"sequence_bias": [[ids, 100.0 * (1 + place)] for place, ids in enumerate(said)], "eos_token_id": end}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    columns, split, *_ = TASKS["mmstar"]
    ours = run(directory, tmp_path, "mmstar", columns | {"image": images()}, split)
    other = LmmsModel(model="llava_hf", model_args=f"pretrained={directory},device=cpu,device_map=cpu,dtype=float32")
    benchmark = configure(name="mmstar", data=str(tmp_path / "hub"))
    theirs = world.measure(tmp_path / "results", benchmark, row="theirs", device="cpu", lmms=other)
    assert set(read_items(theirs)["prediction"]) == {149 * "b" + "\n\na"}
    assert read_items(ours)["prediction"].equals(read_items(theirs)["prediction"])


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
