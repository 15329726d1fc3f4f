"""``clips-bench score``: answers made elsewhere get the numbers that our own run gives for the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_world as world
import pytest

from benchmarks.config import BenchmarkConfig, RunConfig
from benchmarks.mllm.elsewhere import ScoreConfig, score_answers
from benchmarks.results import Result, read_items, read_result, result_path
from benchmarks.run import run
from clips.errors import UserError

PICTURES = 4
SHORT = "\nAnswer the question using a single word or phrase."

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::SyntaxWarning"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_hub(tmp_path_factory.mktemp("score") / "hub", PICTURES)


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _score(hub: Path, folder: Path, task: str, rows: list[dict[str, Any]], **more: Any) -> Result:
    answers = _write(folder / "answers.jsonl", rows)
    config = ScoreConfig(task=task, answers=answers, data=str(hub), results=str(folder / "r"), row="them", **more)
    score_answers(config)
    return read_result(result_path(folder / "r", "them", more.get("name", task)))


def _pope() -> list[tuple[str, str]]:
    """(question, right answer) as ``write_hub`` asks them."""
    pairs = [(number, answer) for number in range(PICTURES) for answer in ("yes", "no")]
    names = [world.colour(number if answer == "yes" else number + 1) for number, answer in pairs]
    return [
        (f"Is there a {name} square in the picture?", answer) for name, (_, answer) in zip(names, pairs, strict=True)
    ]


def test_our_own_format_and_the_result_is_like_any_other(hub, tmp_path):
    said = [answer for _, answer in _pope()]
    rows = [{"question_id": str(index), "answer": answer} for index, answer in enumerate(said)]
    rows[1]["answer"] = "Yes, there is."  # wrong, in a sentence: the scorer's affair
    found = _score(hub, tmp_path, "pope", rows[::-1], name="pope_of_them")
    assert found.metrics["pope_accuracy"].value == 7 / 8
    assert found.metrics["pope_accuracy"].clusters == PICTURES  # pictures are looked at, though no model is
    assert found.model["path"].endswith("answers.jsonl")
    assert found.protocol["decoding"] == "made elsewhere"
    items = read_items(found)
    assert items["prediction"].tolist() == [said[0], "Yes, there is.", *said[2:]]
    assert items["thumbnail"].notna().sum() == PICTURES


def test_lmms_evals_samples_give_what_the_run_gave(hub, tmp_path):
    """The answers of a real model, scored a second time without it."""
    llava = world.write_llava(tmp_path / "llava")
    benchmark = BenchmarkConfig(name="gqa", data=str(hub), max_new_tokens=4)
    run(RunConfig(row="ours", results=str(tmp_path / "r"), llava=str(llava), benchmarks=[benchmark]))
    ours = read_result(result_path(tmp_path / "r", "ours", "gqa"))
    items = read_items(ours)
    rows = [
        {"doc_id": int(item), "resps": [[said]], "filtered_resps": [said]}
        for item, said in zip(items["item"], items["prediction"], strict=True)
    ]
    theirs = _score(hub, tmp_path, "gqa", rows)
    assert theirs.metrics == ours.metrics
    assert read_items(theirs)[["item", "image", "score"]].equals(items[["item", "image", "score"]])
    assert theirs.fingerprint != ours.fingerprint  # nobody knows how they were made


def test_llavas_playground_files(hub, tmp_path):
    """MME's two questions share an id, TextVQA's id is the picture's, GQA's the question's."""
    pairs = [(number, answer) for number in range(PICTURES) for answer in ("Yes", "No")]
    mme = [
        {"question_id": f"{number}.png", "prompt": f"{text} Please answer yes or no.{SHORT}", "text": answer}
        for (number, answer), (text, _) in zip(pairs, _pope(), strict=True)
    ]
    assert _score(hub, tmp_path, "mme", mme).metrics["mme_total"].value == 400.0
    gqa = [
        {"question_id": str(number), "prompt": f"What colour is the square?{SHORT}", "text": world.colour(number)}
        for number in range(PICTURES)
    ]
    assert _score(hub, tmp_path, "gqa", gqa).metrics["exact_match"].value == 1.0
    folder = tmp_path / "textvqa"
    world.write_parquet(
        folder / world.HUB / "textvqa/data/validation-00000-of-00001.parquet",
        {
            "question_id": [10, 11],
            "image_id": ["0a", "0a"],
            "question": ["what does the square say?", "who made it?"],
            "answers": [["stop"] * 10, ["acme"] * 10],
            "image": [world.picture(0)] * 2,
        },
    )
    textvqa = [
        {"question_id": "0a", "prompt": f"who made it?\nReference OCR token: ACME{SHORT}", "text": "Acme"},
        {"question_id": "0a", "prompt": f"what does the square say?\nReference OCR token: ACME{SHORT}", "text": "go"},
    ]
    found = _score(folder, tmp_path, "textvqa_val", textvqa)
    assert read_items(found)["score"].tolist() == [0.0, 1.0]


def test_llavas_answers_to_pope_take_their_pictures_from_its_questions(tmp_path):
    """The same words are asked of two pictures and in two categories, and the ids are LLaVA's own."""
    asked = [(image, category) for category in ("popular", "random") for image in ("COCO_1", "COCO_2")]
    world.write_parquet(
        tmp_path / "hub" / world.HUB / "POPE/data/test-00000-of-00001.parquet",
        {
            "question_id": ["1", "2", "1", "2"],
            "question": ["Is there a dog in the image?"] * 4,
            "answer": ["yes", "no", "yes", "no"],
            "image_source": [image for image, _ in asked],
            "category": [category for _, category in asked],
            "image": [world.picture(number) for number in (0, 1, 0, 1)],
        },
    )
    prompt = f"Is there a dog in the image?{SHORT}"
    places = list(enumerate(reversed(asked)))
    questions = _write(
        tmp_path / "llava_pope_test.jsonl",
        [{"question_id": id, "image": f"{image}.jpg", "category": category, "text": prompt}
         for id, (image, category) in places],
    )  # fmt: skip
    rows = [
        {"question_id": id, "prompt": prompt, "text": "yes" if image == "COCO_1" else "no"} for id, (image, _) in places
    ]
    with pytest.raises(UserError, match=r"neither ids nor words tell|answers no question"):
        _score(tmp_path / "hub", tmp_path, "pope", rows)
    found = _score(tmp_path / "hub", tmp_path, "pope", rows, questions=questions)
    assert found.metrics["pope_accuracy"].value == 1.0
    with pytest.raises(UserError, match="neither ids nor words tell which of its 1 answers and 4 questions"):
        _score(tmp_path / "hub", tmp_path, "pope", rows[1:2], partial=True)
    with pytest.raises(UserError, match=r"1 of 4 questions have no answer, 0 of 3 .*--partial true scores"):
        _score(tmp_path / "hub", tmp_path, "pope", rows[1:], questions=questions)
    found = _score(tmp_path / "hub", tmp_path, "pope", rows[1:], questions=questions, partial=True)
    assert found.protocol["questions"] == 3
    assert found.metrics["pope_accuracy"].value == 1.0


def test_answers_to_other_questions_are_neither_ranked_nor_paired(hub, tmp_path):
    """Two files with four answers each, to the first and to the last questions of the data."""
    from benchmarks.trust.compare import compared

    rows = [{"doc_id": number, "answer": answer} for number, (_, answer) in enumerate(_pope())]
    first, last = (
        _score(hub, tmp_path / name, "pope", some, partial=True)
        for name, some in (("first", rows[:4]), ("last", rows[4:]))
        if (tmp_path / name).mkdir() is None
    )
    assert read_items(last)["item"].tolist() == ["4", "5", "6", "7"]
    assert read_items(last)["prediction"].tolist() == [row["answer"] for row in rows[4:]]
    assert first.fingerprint != last.fingerprint
    (line, *_) = compared([({"pope": first}, {"pope": last})])
    assert line.verdict == "not comparable"
    whole = _score(hub, tmp_path, "pope", rows, partial=True)
    assert "answered" not in whole.protocol


def test_a_line_without_an_answer_is_not_answered_by_the_question(tmp_path):
    from benchmarks.mllm.elsewhere import read_answers

    asked = _write(tmp_path / "questions.jsonl", [{"question_id": 1, "text": "Is it red?", "image": "a.jpg"}])
    answers = _write(tmp_path / "answers.jsonl", [{"question_id": 1}])
    with pytest.raises(UserError, match="line 1: expected a text as 'answer'"):
        read_answers(Path(answers), Path(asked))
    answers = _write(tmp_path / "answers.jsonl", [{"question_id": "1", "answer": "yes"}])
    (found,) = read_answers(Path(answers), Path(asked))
    assert (found.text, found.prompt, found.image) == ("yes", "Is it red?", "a")


def test_ids_of_mmvet_without_their_beginning(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    world.write_parquet(
        tmp_path / "hub" / world.HUB / "MMVet/data/test-00000-of-00001.parquet",
        {
            "question_id": ["v1_0", "v1_1"],
            "question": ["What is x?", "What is x?"],
            "answer": ["1", "2"],
            "capability": ["math", "math"],
            "image": [world.picture(0), world.picture(1)],
        },
    )
    rows = [{"question_id": number, "prompt": "What is x?", "text": str(number)} for number in (1, 0)]
    found = _score(tmp_path / "hub", tmp_path, "mmvet", rows)
    assert read_items(found)["prediction"].tolist() == ["0", "1"]
    assert found.absent["gpt_eval_score"].startswith("no judge: no key")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question_id": "0", "answer": "yes"}], "7 of 8 questions have no answer, 0 of 1 answers no question"),
        (
            [{"question_id": str(number), "answer": "yes"} for number in [*range(8), 99]],
            "0 of 8 questions have no answer, 1 of 9 answers no question of their own (told by question_id)",
        ),
        ([{"question_id": "0", "answer": "yes"}] * 8, "7 of 8 questions have no answer, 7 of 8 answers no question"),
        ([{"doc_id": 8, "answer": "yes"}], "8 of 8 questions have no answer, 1 of 1 answers no question"),
        ([{"answer": "yes"}], "line 1: expected 'doc_id', 'question_id' or 'prompt'"),
        ([{"question_id": "0", "answer": 7}], "line 1: expected a text as 'answer'"),
        ([{"doc_id": "first", "answer": "yes"}], "line 1: doc_id: expected the number of the question"),
        ([], "answers.jsonl: no answers in it"),
    ],
)
def test_what_does_not_fit_takes_one_line(rows, said, hub, tmp_path):
    with pytest.raises(UserError) as caught:
        _score(hub, tmp_path, "pope", rows)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_not_a_task_with_answers(hub, tmp_path):
    with pytest.raises(UserError, match="task: 'retrieval' asks no questions"):
        _score(hub, tmp_path, "retrieval", [{"question_id": "0", "answer": "yes"}])
