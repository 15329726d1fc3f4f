"""Tasks that the user wrote for lmms-eval, by ``task:`` and by ``clips-bench score``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_world as world
import pytest
from docs_blocks import blocks

from benchmarks.results.results import Result, read_items, read_result, result_path
from benchmarks.tasks.mllm.download import DownloadConfig, run_download
from benchmarks.tasks.mllm.lmms_benchmarks import data_hash
from benchmarks.tasks.mllm.score_answers import ScoreConfig, run_score
from benchmarks.tasks.registry import configure
from clips.errors import UserError

pytestmark = world.LMMS_EVAL_WARNS

QUESTIONS = 5
TEMPLATE = """
dataset_path: mine/street
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: "answer"
generation_kwargs: {max_new_tokens: 4}
process_results: !function utils.results
"""
TASK = """
include: _template_yaml
task: street_signs
test_split: test
metric_list:
  - {metric: right, aggregation: mean, higher_is_better: true}
  - {metric: points, aggregation: mean, higher_is_better: true}
"""
UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, answers):
    right = float(answers[0].strip().lower() == doc["answer"])
    return {"right": right, "points": 4 * right + 1}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    world.write_parquet(
        tmp_path / "data/mine/street/data/test-00000-of-00001.parquet",
        {
            "question": [f"Is sign {number} red?" for number in range(QUESTIONS)],
            "answer": ["yes"] * QUESTIONS,
            "image": [world.draw_image(number) for number in range(QUESTIONS)],
        },
    )
    return tmp_path / "data"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in {"_template_yaml": TEMPLATE, "signs.yaml": TASK, "utils.py": UTILS}.items():
        (folder / name).write_text(text)
    return folder


SAID = ("yes", "yes", "no", "no", "no")


def _score(data: Path, task: str, said: Sequence[str] = SAID, **more: Any) -> Result:
    rows = [{"doc_id": number, "answer": text} for number, text in enumerate(said)]
    answers = str(world.write_lines(data.parent / "answers.jsonl", rows))
    results = str(data.parent / "results")
    config = {
        "task": task,
        "answers": answers,
        "data": str(data),
        "output": results,
        "model_name": "m",
        "name": "street",
    }
    run_score(ScoreConfig(**config, **more))
    return read_result(result_path(results, "m", "street"))


FILTER = """
filter_list:
  - name: get
    filter:
      - {function: regex, regex_pattern: "answer is ([a-z]+)"}
      - {function: take_first}
"""


@pytest.mark.parametrize(
    ("more", "scorer", "said"),
    [
        (FILTER, UTILS, [f"The answer is {word}" for word in SAID]),
        ("", UTILS.replace(".strip().lower()", ""), ["yes", " yes", "yes ", "no", "no"]),
    ],
    ids=["filter", "white space"],
)  # fmt: skip
def test_the_answers_that_are_scored_again_are_those_of_the_model(data, tasks, monkeypatch, more, scorer, said):
    (tasks / "_template_yaml").write_text(TEMPLATE + more)
    (tasks / "utils.py").write_text(scorer)
    first = _score(data, str(tasks), said)
    monkeypatch.chdir(tasks.parent)
    tasks.rename("street_signs")  # the name of a custom task is where it is found again
    run_score(ScoreConfig(results=str(data.parent / "results"), data=str(data), output="again"))
    again = read_result(result_path("again", "m", "street"))
    assert first.metrics["right"].value == again.metrics["right"].value == (0.4 if more else 0.6)
    items, others = read_items(first), read_items(again)
    assert items["raw_answer"].tolist() == others["raw_answer"].tolist() == said
    assert items["score"].tolist() == others["score"].tolist()


def test_a_file_a_folder_and_a_task_in_a_folder_are_one_task(data, tasks, capsys):
    shown = [_score(data, str(task)) for task in (tasks / "signs.yaml", tasks, tasks / "street_signs")]
    assert {found.fingerprint for found in shown} == {shown[0].fingerprint}
    right, points = shown[0].metrics["right"], shown[0].metrics["points"]
    assert (right.value, right.scale, right.ci_method) == (0.4, 100.0, "wilson")
    assert (points.value, points.scale) == (2.6, 1.0)  # numbers above 1 are no share
    assert "right 40.0, points 2.6, answers not read 0.0 (5 questions)" in capsys.readouterr().err
    assert shown[0].protocol["task"] == "custom task street_signs"
    assert read_items(shown[0])["question"].tolist()[0] == "Is sign 0 red?"


def test_a_llava_is_evaluated_on_it(places, data, tasks, tmp_path):
    benchmark = configure(name="signs", task=str(tasks), data=str(data))
    found = world.measure(tmp_path / "r", benchmark, llava=places / "llava")
    assert (found.status, found.metrics["right"].n) == ("ok", QUESTIONS)
    again = world.measure(tmp_path / "r", benchmark, llava=places / "llava")
    assert again.created == found.created  # done already
    (tasks / "utils.py").write_text(UTILS.replace('doc["question"]', '"Look. " + doc["question"]'))
    assert data_hash(benchmark) != found.protocol["data_hash"]  # another question: not done


def test_the_documentations_task_reads_a_directory_of_images(tmp_path):
    for block in blocks("docs/protocols.md"):
        if block.title.startswith("tasks/signs/"):
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.title).write_text(block.text)
    folder = tmp_path / "data/signs/test"
    folder.mkdir(parents=True)
    lines = []
    for number in range(QUESTIONS):
        world.draw_image(number).save(folder / f"{number:03}.png")
        line = {"file_name": f"{number:03}.png", "question": "Which?", "options": ["no", "yes"], "answer": "B"}
        lines.append(line)
    world.write_lines(folder / "metadata.jsonl", lines)
    rows = [{"doc_id": number, "answer": text} for number, text in enumerate(["B", "b.", "A", "B. yes", ""])]
    answers = str(world.write_lines(tmp_path / "answers.jsonl", rows))
    config = {"task": str(tmp_path / "tasks/signs"), "answers": answers, "data": str(tmp_path / "data")}
    output = {"output": str(tmp_path / "results"), "model_name": "m", "name": "signs"}
    run_score(ScoreConfig(**config, **output))
    found = read_result(result_path(tmp_path / "results", "m", "signs"))
    assert found.metrics["accuracy"].value == 0.6
    assert read_items(found)["question"].tolist()[0] == "Which?"
    with pytest.raises(UserError, match=r"signs' names no dataset on the Hub"):
        run_download(DownloadConfig(tasks=config["task"], output=str(tmp_path / "hub")))
    hint = r"of pope in lmms-lab-encoder/POPE/ below it; `clips-bench download pope --output \S+` fetches it$"
    with pytest.raises(UserError, match=hint):
        run_score(ScoreConfig(**config | {"task": "pope"}, **{**output, "name": "pope"}))
    folder.parent.rename(tmp_path / "data/moved")
    with pytest.raises(UserError, match=r"data: expected the data of signs in signs/ below it$"):
        run_score(ScoreConfig(**config, **{**output, "name": "again"}))


def test_the_scale_can_be_set_and_different_ones_are_not_compared(data, tasks):
    shares = _score(data, str(tasks))
    said = _score(data, str(tasks), scale=1.0)
    assert said.metrics["right"].scale == said.metrics["points"].scale == 1.0
    assert said.metrics["right"].value == shares.metrics["right"].value
    assert shares.fingerprint != said.fingerprint
    with pytest.raises(UserError, match="scale: the metrics of 'pope' define their own"):
        _score(data, "pope", scale=1.0)
