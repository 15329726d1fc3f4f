"""Tasks of lmms-eval with their data in the layout of the Hub, right and wrong answers, and a LLaVA that gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_world as world
import pytest

from benchmarks.results.results import Result, read_result, result_path
from benchmarks.tasks.mllm.offline_tasks import dataset_config_name
from benchmarks.tasks.mllm.score_answers import ScoreConfig, run_score
from benchmarks.tasks.registry import configure, get_benchmark

PICTURES = 6
NUMBERS = range(PICTURES)


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


def write_task(hub: Path, name: str, columns: dict[str, list[Any]], split: str) -> None:
    """A benchmark's data in the layout of the Hub."""
    entry = get_benchmark(name)
    folder = dataset_config_name(entry.task) or "data"
    world.write_parquet(hub / entry.dataset / folder / f"{split}-00000-of-00001.parquet", columns)
    if folder != "data":
        card = {"configs": [{"config_name": folder, "data_files": [{"split": split, "path": f"{folder}/*"}]}]}
        (hub / entry.dataset / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")


def run(llava: Path, root: Path, name: str, columns: dict[str, list[Any]] | None = None, split: str = "test") -> Result:
    if columns is not None:
        write_task(root / "hub", name, columns, split)
    (root / "hub").mkdir(exist_ok=True)
    return world.measure(root / "results", configure(name=name, data=str(root / "hub")), llava=llava)


def score(hub: Path, folder: Path, task: str, rows: list[dict[str, Any]], **more: Any) -> Result:
    answers = str(world.write_lines(folder / "answers.jsonl", rows))
    config = ScoreConfig(task=task, answers=answers, data=str(hub), output=str(folder / "r"), model_name="them", **more)
    run_score(config)
    return read_result(result_path(folder / "r", "them", more.get("name", task)))


def images() -> list[Any]:
    return [world.draw_image(number) for number in NUMBERS]


def six(**columns: Any) -> dict[str, list[Any]]:
    """Columns of six questions; what is no list is the same for all."""
    columns = {"question": "Which?", **columns}
    return {name: each if isinstance(each, list) else [each] * 6 for name, each in columns.items()}


TASKS: dict[str, tuple[dict[str, list[Any]], str, list[str], dict[str, float]]] = {
    # task: columns, split, what is answered, expected values
    "chartqa": (
        six(type=["human_test", "augmented_test"] * 3, answer="100"),
        "test",
        ["104", "106", "100", "100", "x", "95"],  # within 5 %: 1, 0, 1, 1, 0, 1
        {"relaxed_overall": 4 / 6, "relaxed_human_split": 2 / 3, "relaxed_augmented_split": 2 / 3},
    ),
    "scienceqa_img": (
        six(choices=[["x", "y"]] * 6, answer=[0, 1] * 3, hint=""),
        "test",
        ["A", "b", "A. x", "x", "B", "B"],
        {"exact_match": 4 / 6},
    ),
    "ocrbench": (
        six(dataset="any", question_type="Regular Text Recognition", answer=[["Stop"]] * 6),
        "test",
        ["a stop sign", "stop", "no"],
        {"ocrbench_points": 2 / 6, "ocrbench_accuracy": 2 / 1000},
    ),
    "docvqa_val": (
        six(answers=[["1234"]] * 6),
        "validation",
        ["1234", "1235", "9"],  # one letter of four is wrong: 0.75
        {"anls": 1.75 / 6},
    ),
    "infovqa_val": (
        six(questionId=[*"abcdef"], answers=[["pizza", "a pizza"]] * 6),
        "validation",
        ["A pizza", "pizzas", "pie"],  # one letter of six is too many: 5/6; too far from either: 0
        {"anls": (1 + 5 / 6) / 6},
    ),
    "ai2d": (
        six(options=[["sun", "moon", "star", "sky"]] * 6, answer="1"),
        "test",
        ["B", "B.", "C", "A", "A. moon", "D"],
        {"exact_match": 2 / 6},
    ),
    "mmstar": (
        six(index=[*range(6)], answer="A", category="math",
             l2_category=["geometry"] * 2 + ["statistical reasoning"] * 4),
        "val",
        ["A", "B", "A", "A", "A", "A"],
        {"average": (0.5 + 1.0) / 2, "mmstar_accuracy": 5 / 6},
    ),
    "seedbench": (
        six(question_id=[*range(6)], data_type=["image"] * 4 + ["video"] * 2, answer="A",
             **{f"choice_{letter}": [*"pqrstu"] for letter in "abcd"}),
        "test",
        ["A", "A. p", "C", "a", "B", "A"],
        {"seed_image": 0.75, "seed_video": 0.5, "seed_all": 4 / 6},
    ),
    "realworldqa": (
        six(answer=["A", "B", "3", "left", "C", "A"]),
        "test",
        ["A", "A", "3", "Left.", "C", "D"],
        {"exact_match": 4 / 6},
    ),
}  # fmt: skip


def cv_bench() -> dict[str, list[Any]]:
    """Its columns: two questions of each dataset."""
    sources = ["ADE20K", "COCO", "Omni3D"]
    return six(
        idx=[*range(6)],
        type=["2D", "2D", "3D"] * 2,
        task=["Count", "Relation", "Depth", "Relation", "Count", "Distance"],
        question="How many?",
        choices=[["1", "2", "3", "4"], ["left", "right"], ["chair", "table"]] * 2,
        answer="(B)",
        prompt="How many? Select from the following choices.\n(A) 1\n(B) 2",
        filename="img/2D/count/ade20k_10.png",
        source=sources * 2,
        source_dataset=[f"{source} test set" for source in sources] * 2,
        image=images(),
    )


def mmbench() -> dict[str, list[Any]]:
    """Three questions, each with its two options in both orders, as the hub has them: 'nan' for a missing option."""
    return six(
        index=[0, 1, 2, 1_000_000, 1_000_001, 1_000_002],
        question=["Which is red?", "Which is blue?", "Which is green?"] * 2,
        hint="nan",
        answer=["A", "B", "A", "B", "A", "B"],
        A=["this", "one", "here", "that", "two", "there"],
        B=["that", "two", "there", "this", "one", "here"],
        C="nan",
        D="nan",
        category=["color", "color", "shape"] * 2,
        **{"L2-category": "perception"},
        source="test",
        comment="nan",
        split="dev",
        image=images(),
    )
