"""lmms-eval's tasks beyond the first five: their metrics against hand-made answers, groups, and what goes wrong."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_world as world
import pytest

from benchmarks.results.results import Result, read_items, read_result, result_path
from benchmarks.tasks.mllm.offline_tasks import dataset_config_name, dataset_name, task_folders, task_groups
from benchmarks.tasks.mllm.task_metrics import default_task_metrics
from benchmarks.tasks.registry import BENCHMARKS, get_benchmark
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, LmmsModel, RunConfig
from clips.errors import UserError

PICTURES = 6
NUMBERS = range(PICTURES)

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::SyntaxWarning"
)


@pytest.fixture
def llava(places: Path) -> Path:
    return places / "llava"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model says to the questions, in order; the last answer is repeated."""
    said: list[str] = []

    def answer_batches(
        model: Any, processor: Any, images: Any, prompts: list[str], **_: Any
    ) -> Iterator[dict[int, str]]:
        for place in range(len(prompts)):
            yield {place: said.pop(0) if len(said) > 1 else said[0]}

    monkeypatch.setattr("llava_bridge.inference.generate.iter_answer_batches", answer_batches)
    return said


def _run(
    llava: Path, root: Path, name: str, columns: dict[str, list[Any]] | None = None, split: str = "test"
) -> Result:
    if columns is not None:
        entry = get_benchmark(name)
        folder = dataset_config_name(entry.task) or "data"
        world.write_parquet(root / "hub" / entry.dataset / folder / f"{split}-00000-of-00001.parquet", columns)
        if folder != "data":
            card = {"configs": [{"config_name": folder, "data_files": [{"split": split, "path": f"{folder}/*"}]}]}
            (root / "hub" / entry.dataset / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    (root / "hub").mkdir(exist_ok=True)
    benchmark = BenchmarkConfig(name=name, data=str(root / "hub"))
    run_benchmarks(RunConfig(model_name="row", output=str(root / "results"), llava=str(llava), benchmarks=[benchmark]))
    return read_result(result_path(root / "results", "row", name))


def _images() -> list[Any]:
    return [world.picture(number) for number in NUMBERS]


CHOICES = {f"choice_{letter}": list("pqrstu") for letter in "abcd"}
TASKS: dict[str, tuple[dict[str, list[Any]], str, list[str], dict[str, float], str]] = {
    # task: columns, split, what is answered, expected values, kind of the first one's interval
    "chartqa": (
        {"type": ["human_test", "augmented_test"] * 3, "question": ["How many?"] * 6, "answer": ["100"] * 6},
        "test",
        ["104", "106", "100", "100", "x", "95"],  # within 5 %: 1, 0, 1, 1, 0, 1
        {"relaxed_overall": 4 / 6, "relaxed_human_split": 2 / 3, "relaxed_augmented_split": 2 / 3},
        "wilson",
    ),
    "scienceqa_img": (
        {"question": ["Which?"] * 6, "choices": [["x", "y"]] * 6, "answer": [0, 1] * 3, "hint": [""] * 6},
        "test",
        ["A", "b", "A. x", "x", "B", "B"],
        {"exact_match": 4 / 6},
        "wilson",
    ),
    "ocrbench": (
        {
            "dataset": ["any"] * 6,
            "question": ["What is written?"] * 6,
            "question_type": ["Regular Text Recognition"] * 6,
            "answer": [["Stop"]] * 6,
        },
        "test",
        ["a stop sign", "stop", "no"],
        {"ocrbench_points": 2 / 6, "ocrbench_accuracy": 2 / 1000},
        "wilson",
    ),
    "docvqa_val": (
        {"question": ["What number?"] * 6, "answers": [["1234"]] * 6},
        "validation",
        ["1234", "1235", "9"],  # one letter of four is wrong: 0.75
        {"anls": 1.75 / 6},
        "wilson",
    ),
    "mmstar": (
        {
            "index": list(range(6)),
            "question": ["Which?"] * 6,
            "answer": ["A"] * 6,
            "category": ["math"] * 6,
            "l2_category": ["geometry"] * 2 + ["statistical reasoning"] * 4,
        },
        "val",
        ["A", "B", "A", "A", "A", "A"],
        {"average": (0.5 + 1.0) / 2, "mmstar_accuracy": 5 / 6},
        "wilson",
    ),
    "seedbench": (
        {
            "question_id": list(range(6)),
            "question": ["Which?"] * 6,
            "data_type": ["image"] * 4 + ["video"] * 2,
            "answer": ["A"] * 6,
            **CHOICES,
        },
        "test",
        ["A", "A. p", "C", "a", "B", "A"],
        {"seed_image": 0.75, "seed_video": 0.5, "seed_all": 4 / 6},
        "wilson",
    ),
    "realworldqa": (
        {"question": ["Which?"] * 6, "answer": ["A", "B", "3", "left", "C", "A"]},
        "test",
        ["A", "A", "3", "Left.", "C", "D"],
        {"exact_match": 4 / 6},
        "wilson",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_metrics_by_hand(name, llava, tmp_path, answers):
    columns, split, said, expected, interval = TASKS[name]
    answers += said
    images = [[image] for image in _images()] if name == "seedbench" else _images()
    found = _run(llava, tmp_path, name, columns | {"image": images}, split)
    assert {metric: found.metrics[metric].value for metric in expected} == pytest.approx(expected)
    first = found.metrics[found.primary[0]]
    assert first.ci_low < first.value < first.ci_high
    assert read_items(found)["score"].sum() > 0
    assert first.ci_method == interval


def test_mmmu_scores_options_and_open_answers(llava, tmp_path, answers):
    world.write_mmmu(tmp_path / "hub", PICTURES)
    answers += ["A", "red", "(B)", "Green.", "A", "blue", "D", "the answer is red", "A", "no idea"]
    metric = _run(llava, tmp_path, "mmmu_val").metrics["mmmu_acc"]
    assert metric.value == pytest.approx(7 / 12, abs=1e-5)  # lmms-eval rounds; the tail repeats 'no idea'
    assert metric.ci_method == "wilson"  # on the effective size
    assert metric.ci_low < metric.value < metric.ci_high


def test_a_task_that_is_not_listed(llava, tmp_path, answers):
    """Any of lmms-eval's tasks works, and only its own data set counts; its mean metrics get intervals."""
    answers += ["A", "A", "B"]
    columns = {"question": ["Which?"] * 6, "options": [["x", "y"]] * 6, "answer": ["0"] * 6, "image": _images()}
    found = _run(llava, tmp_path, "ai2d_no_mask", columns)
    assert found.metrics["exact_match"].value == pytest.approx(2 / 6)
    assert found.metrics["exact_match"].ci_method == "wilson"
    (tmp_path / "hub/other").mkdir()
    (tmp_path / "hub/other/file").write_text("of another data set")
    again = _run(llava, tmp_path, "ai2d_no_mask")
    assert again.created == found.created  # done already


def test_no_point_in_six_questions_is_not_certainly_none_in_a_thousand(llava, tmp_path, answers):
    columns, split, *_ = TASKS["ocrbench"]
    answers += ["no"]
    points = _run(llava, tmp_path, "ocrbench", columns | {"image": _images()}, split).metrics["ocrbench_points"]
    assert (points.value, points.ci_low, points.scale) == (0.0, 0.0, 1000.0)
    assert points.ci_high * points.scale > 300


def test_hallucinations_are_better_few():
    samples = [{"amber_chair": 0.5, "amber_cover": 1.0, "unstated": 1.0}]
    reader = default_task_metrics(samples, samples[0], {"amber_chair": False, "amber_cover": True, "unstated": None})
    assert {name: spec.higher_is_better for name, spec in reader.metrics.items()} == {
        "amber_chair": False,
        "amber_cover": True,
        "unstated": True,
    }


@pytest.mark.parametrize(
    ("numbers", "higher", "scale", "shown"),
    [
        ([0, 1, 0, 1], False, None, 1.0),  # a number of errors, by chance none above 1
        ([0, 1, 0, 2], False, None, 1.0),
        ([0, 1, 0, 1], True, None, 100.0),
        ([0, 1, 0, 1], None, None, 100.0),
        ([0, 1, 0, 1], False, 100.0, 100.0),
    ],
)
def test_what_is_better_low_is_shown_as_it_is(numbers, higher, scale, shown):
    """Two rows of one benchmark were 40 and 0.6 errors, as the first had none above 1."""
    samples = [{"errors": number} for number in numbers]
    mean = sum(numbers) / len(numbers)
    assert default_task_metrics(samples, {"errors": mean}, {"errors": higher}, scale).metrics["errors"].scale == shown


def test_pictures_of_the_same_pixels_in_other_colors_are_two():
    from benchmarks.tasks.mllm.llava_model import image_hash_name

    shape = world.picture(0).convert("L").convert("P")
    red, blue = shape.copy(), shape.copy()
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    assert red.tobytes() == blue.tobytes()
    assert image_hash_name(red) != image_hash_name(blue)
    assert image_hash_name(red) == image_hash_name(red.convert("RGB"))


def test_the_data_are_read_for_their_hash_once_and_again_when_they_change(llava, tmp_path, answers, monkeypatch):
    from benchmarks.tasks.mllm import evaluate_task

    hashed = []
    compute = evaluate_task.directory_hash
    monkeypatch.setattr(
        evaluate_task, "directory_hash", lambda *args, **more: hashed.append(1) or compute(*args, **more)
    )
    answers += ["A"]
    columns = {"question": ["Which?"] * 6, "answer": ["A"] * 6, "image": _images()}
    first = _run(llava, tmp_path, "realworldqa", columns)
    assert len(hashed) == 1
    again = _run(llava, tmp_path, "realworldqa", columns | {"answer": ["B"] * 6})
    assert len(hashed) == 2
    assert again.protocol["data_hash"] != first.protocol["data_hash"]


def test_answers_that_were_kept_have_their_pictures(llava, tmp_path, answers):
    answers += ["A", "B"]
    columns = {"question": ["Which?"] * 6, "answer": ["A"] * 6, "image": [world.picture(each // 2) for each in NUMBERS]}
    first = _run(llava, tmp_path, "realworldqa", columns)
    answers[:] = ["not asked again"]
    benchmark = BenchmarkConfig(name="again", task="realworldqa", data=str(tmp_path / "hub"))
    run_benchmarks(
        RunConfig(model_name="row", output=str(tmp_path / "results"), llava=str(llava), benchmarks=[benchmark])
    )
    again = read_result(result_path(tmp_path / "results", "row", "again"))
    assert again.metrics == first.metrics
    assert again.metrics["exact_match"].clusters == 3
    assert read_items(again).equals(read_items(first))


def test_groups_name_their_members():
    with pytest.raises(UserError, match=r"'mmmu' is a group of lmms-eval's; name its members: mmmu_val, mmmu_test$"):
        get_benchmark("mmmu")
    assert task_groups()["refcoco_bbox_rec"] == tuple(f"refcoco_bbox_rec_{split}" for split in
                                                      ("test", "testA", "testB", "val"))  # fmt: skip
    assert task_groups()["scienceqa_full"] == ("scienceqa", "scienceqa_img")
    with pytest.raises(UserError, match="unknown benchmark 'mmmu_vall'; did you mean 'mmmu_val'"):
        get_benchmark("mmmu_vall")


def test_the_catalogue_names_the_data_sets_that_the_definitions_name():
    entries = {name: entry for name, entry in BENCHMARKS.items() if entry.benchmark_type == "mllm"}
    assert {name: entry.dataset for name, entry in entries.items()} == {name: dataset_name(name) for name in entries}
    assert {name: entry.folder for name, entry in entries.items()} == {name: task_folders()[name] for name in entries}


@pytest.mark.parametrize(
    ("columns", "said", "failure_reason"),
    [
        ({}, [""], r"the model answers nothing: all 6 answers are empty"),
        (
            {"image": [*_images()[:5], None]},
            ["A"],
            "realworldqa: the picture of the question 'Which 5' is missing or broken",
        ),
        (
            {"image": [*_images()[:5], b"no picture"]},
            ["A"],
            "the question 'Which 5' is missing or broken .*identify image",
        ),
        ({"answer": [None] * 6}, ["A"], "lmms-eval's scorer of realworldqa refuses the question 'Which 0'"),
    ],
)
def test_what_goes_wrong_takes_one_line(columns, said, reason, llava, tmp_path, answers, capsys):
    answers += said
    whole = {"question": [f"Which {number}" for number in NUMBERS], "answer": ["A"] * 6, "image": _images()}
    with pytest.raises(UserError, match=reason) as caught:
        _run(llava, tmp_path, "realworldqa", whole | columns)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capsys.readouterr().err
    assert read_result(result_path(tmp_path / "results", "row", "realworldqa")).status == "failed"


def test_a_task_whose_answers_are_only_submitted(llava, tmp_path, answers):
    answers += ["A"]
    columns = {"question_id": list(NUMBERS), "question": ["Which?"] * PICTURES, "image": _images()}
    with pytest.raises(UserError, match="lmms-eval's vqav2_test gives no score, only a file to submit to its server"):
        _run(llava, tmp_path, "vqav2_test", columns)


def test_a_scorer_that_refuses_the_data(llava, tmp_path, answers):
    """MME wants exactly two questions a picture and category."""
    answers += ["Yes"]
    columns = {"question_id": ["a"], "question": ["Is it red?"], "answer": ["Yes"], "category": ["color"]}
    with pytest.raises(UserError, match=r"scorer of mme refuses the data .*pairwise"):
        _run(llava, tmp_path, "mme", columns | {"image": [world.picture(0)]})


@pytest.mark.parametrize("name", ["llava_bridge", "llava_hf"])
def test_a_model_of_lmms_evals_own_is_a_row(name, llava, tmp_path, monkeypatch):
    """Ours under its name there, and its own for LLaVAs: the same answers, items and numbers."""
    video = types.ModuleType("decord")  # llava_hf wants it, for videos alone
    video.VideoReader = video.cpu = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decord", video)
    world.write_hub(tmp_path / "hub", 2)
    benchmark = BenchmarkConfig(name="pope", data=str(tmp_path / "hub"), max_new_tokens=4)
    device = "device=cpu" if name == "llava_bridge" else "device=cpu,device_map=cpu,dtype=float32"
    other = LmmsModel(model=name, model_args=f"pretrained={llava},{device}")
    for row, model in (("ours", {"llava": str(llava)}), ("theirs", {"lmms": other})):
        run_benchmarks(
            RunConfig(model_name=row, output=str(tmp_path / "results"), benchmarks=[benchmark], device="cpu", **model)
        )
    ours, theirs = (read_result(result_path(tmp_path / "results", row, "pope")) for row in ("ours", "theirs"))
    assert theirs.metrics == ours.metrics
    columns = ["item", "image", "question", "prediction", "score"]
    assert read_items(theirs)[columns].equals(read_items(ours)[columns])
    assert theirs.protocol["input_model"] == f"lmms-eval's {name}"
    assert theirs.model["hash"] != ours.model["hash"]
    with pytest.raises(UserError, match=r"unknown model of lmms-eval's .*'llava_hff'; did you mean 'llava_hf'"):
        run_benchmarks(RunConfig(model_name="x", output="x", benchmarks=[benchmark], lmms=LmmsModel(model="llava_hff")))
