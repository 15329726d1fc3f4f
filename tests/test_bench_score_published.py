"""``clips-bench score`` on lines of LLaVA-1.5-13B's published files, and on what must not be taken for a match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_world as world
import published_answers as published
import pytest

from benchmarks.results.results import Result, read_items, read_result, result_path
from benchmarks.tasks.mllm.answers import Answer
from benchmarks.tasks.mllm.matching import match
from benchmarks.tasks.mllm.score_answers import ScoreConfig, run_score
from clips.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::SyntaxWarning"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published lines' questions in the hub's layout, with small images of ours."""
    root = tmp_path_factory.mktemp("published") / "hub"
    for file, columns in {
        "MME/data/test-00000-of-00001.parquet": published.MME_DATA,
        "POPE/data/test-00000-of-00001.parquet": published.POPE_DATA,
        "textvqa/data/validation-00000-of-00001.parquet": published.TEXTVQA_DATA,
    }.items():
        images = [world.picture(number) for number in range(len(columns["question"]))]
        world.write_parquet(root / world.HUB / file, columns | {"image": images})
    return root


def _write(path: Path, lines: str) -> str:
    path.write_text(lines.lstrip())
    return str(path)


def _score(hub: Path, folder: Path, task: str, lines: str, **more: Any) -> Result:
    answers = _write(folder / "answers.jsonl", lines)
    run_score(
        ScoreConfig(task=task, answers=answers, data=str(hub), output=str(folder / "r"), model_name="them", **more)
    )
    return read_result(result_path(folder / "r", "them", task))


def test_mmes_own_file(hub, tmp_path, capsys):
    """Questions without lmms-eval's tail, ids with the folder `images`; another order than the data's."""
    found = _score(hub, tmp_path, "mme", published.MME)
    assert found.metrics["mme_perception_score"].value == (50 + 200) / 2
    assert found.metrics["mme_cognition_score"].value == 50
    said = capsys.readouterr().err
    assert "2 without what says how to answer, 4 by the id without inner folders or 'v1_'" in said
    assert "0 answers without a question, 0 questions without an answer" in said
    assert "perception points 125.0, cognition points 50.0" in said
    assert found.model["matched"] in said


def test_popes_own_file(hub, tmp_path, capsys):
    """The same words of one image in three kinds; "imange" in the answers' questions, mended in the data's."""
    questions = _write(tmp_path / "questions.jsonl", published.POPE_QUESTIONS)
    with pytest.raises(UserError, match=r"1 of 9 questions have no answer, 0 of 8 .*--partial true scores"):
        _score(hub, tmp_path, "pope", published.POPE, questions=questions)
    found = _score(hub, tmp_path, "pope", published.POPE, questions=questions, partial=True)
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values["pope_f1_random"] == values["pope_f1_popular"] == 1.0
    assert values["pope_f1_adversarial"] == pytest.approx(2 * 2 / (2 * 2 + 1))  # the handbag is not there
    assert values["pope_f1_kinds"] == pytest.approx((1 + 1 + 0.8) / 3)
    assert values["pope_f1_score"] == pytest.approx(2 * 4 / (2 * 4 + 1))  # over all, which papers do not print
    sizes = {name: found.metrics[f"pope_f1_{name}"].n for name in ("random", "popular", "adversarial", "kinds")}
    assert sizes == {"random": 2, "popular": 2, "adversarial": 4, "kinds": 8}
    assert values["pope_f1_random"] > found.metrics["pope_f1_random"].ci_low
    said = capsys.readouterr().err
    assert "6 without what says how to answer, 2 with known misspellings mended" in said
    assert "8 of 9 questions answered" in said
    assert "F1, random 100.0, F1, popular 100.0, F1, adversarial 80.0, F1, mean of three kinds 93.3" in said


def test_textvqas_own_file(hub, tmp_path, capsys):
    """Questions that the data have in lower case; two of one image, whose name is the id."""
    found = _score(hub, tmp_path, "textvqa_val", published.TEXTVQA)
    assert read_items(found)["prediction"].tolist() == ["22", "10 years", "Longmorn"]
    assert read_items(found)["score"].tolist() == [1.0, 1.0, 0.0]
    assert "told by image_id and words: 3 in lower case" in capsys.readouterr().err


def test_older_data_that_say_a_umbrella(hub, tmp_path):
    """POPE's labels before they were mended have one kind with "a umbrella": articles are a way of their own."""
    prompts = [json.loads(line) for line in published.POPE_QUESTIONS.split("\n") if line]
    answers = [Answer(text="Yes", id=str(row["question_id"]), prompt=row["text"], image=Path(row["image"]).stem,
                      category=row["category"]) for row in prompts]  # fmt: skip
    docs = [dict(zip(published.POPE_DATA, row, strict=True)) for row in zip(*published.POPE_DATA.values(), strict=True)]
    for doc in docs:
        doc["question"] = doc["question"].replace("an umbrella", "a umbrella")
    found = match(answers, docs, "f", partial=True)
    assert found.ways == {"without what says how to answer": 6, "with known misspellings mended": 2}
    mended = [Answer(**{**vars(each), "prompt": (each.prompt or "").replace("imange", "image")}) for each in answers]
    found = match(mended, docs, "f", partial=True)
    assert found.ways == {"without what says how to answer": 6, "with 'an' read as 'a'": 2}


def test_partial_excuses_answers_without_a_question_and_counts_them(hub, tmp_path, capsys):
    stray = published.MME.replace("c++ code shown", "fortran code shown").replace("type of historical", "kind of war")
    with pytest.raises(UserError) as caught:
        _score(hub, tmp_path, "mme", stray)
    said = str(caught.value)
    assert "2 of 6 questions have no answer, 2 of 6 answers no question of their own" in said
    assert "\n" not in said
    assert (
        "without a question: 'code_reasoning/0020.png Is a fortran code shown in the picture?' "
        "(nearest question: 'code_reasoning/0020.png Is a python code shown in the picture?'); "
    ) in said
    lines = published.TEXTVQA.replace("What number", "Which number")
    with pytest.raises(UserError, match="1 of 3 questions have no answer, 1 of 3 answers"):
        _score(hub, tmp_path, "textvqa_val", lines)
    found = _score(hub, tmp_path, "textvqa_val", lines, partial=True)
    assert "1 answers without a question, 1 questions without an answer" in capsys.readouterr().err
    assert "1 answers without a question" in found.model["matched"]
    assert found.protocol["questions"] == 2
    assert "answered" in found.protocol


def test_what_two_questions_have_in_common_finds_neither():
    docs = [{"question_id": "a/images/1.jpg", "question": "Red?"}, {"question_id": "a/1.jpg", "question": "Red?"}]
    told = [Answer(text="yes", id="a/x/1.jpg", prompt="Red?"), Answer(text="no", id="a/1.jpg", prompt="Red?")]
    found = match(told, docs, "f", partial=True)
    assert {place: answer.text for place, answer in found.places.items()} == {1: "no"}
    assert (found.unanswered, [each.text for each in found.strangers]) == (1, ["yes"])
