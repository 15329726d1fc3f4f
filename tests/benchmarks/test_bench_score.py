"""``clips-bench score``: precomputed answers get the numbers that our own run gives for the same answers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import bench_world as world
import published_answers as published
import pytest
from bench_tasks import score, write_task
from generators import explore, sizes
from hypothesis import strategies as st

from benchmarks.results.results import Result, read_items, read_result, result_path
from benchmarks.tasks.evaluation import Evaluation
from benchmarks.tasks.mllm.evaluate_task import evaluate_task
from benchmarks.tasks.mllm.matching import Answer, match, read_answers
from benchmarks.tasks.mllm.score_answers import ScoreConfig, run_score
from benchmarks.tasks.registry import configure, get_benchmark
from clips.core.chat_client import REASONING_TAGS
from clips.errors import UserError

PICTURES = 4
SHORT = "\nAnswer the question using a single word or phrase."

pytestmark = world.LMMS_EVAL_WARNS


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_hub(tmp_path_factory.mktemp("score") / "hub", PICTURES)


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    return str(world.write_lines(path, rows))


def _pope() -> list[tuple[str, str]]:
    """(question, right answer) as ``write_hub`` asks them."""
    pairs = [(number, answer) for number in range(PICTURES) for answer in ("yes", "no")]
    names = [world.color(number if answer == "yes" else number + 1) for number, answer in pairs]
    return [
        (f"Is there a {name} square in the picture?", answer) for name, (_, answer) in zip(names, pairs, strict=True)
    ]


def test_our_own_format_and_the_result_is_like_any_other(hub, tmp_path):
    said = [answer for _, answer in _pope()]
    rows = [{"question_id": str(index), "answer": answer} for index, answer in enumerate(said)]
    rows[1]["answer"] = "Yes, there is."  # wrong, in a sentence: the scorer's affair
    found = score(hub, tmp_path, "pope", rows[::-1], name="pope_of_them")
    assert found.metrics["pope_accuracy"].value == 7 / 8
    assert found.metrics["pope_accuracy"].clusters == PICTURES  # images are looked at, though no model is
    assert found.model["path"].endswith("answers.jsonl")
    assert found.protocol["decoding"] == "precomputed"
    items = read_items(found)
    assert items["prediction"].tolist() == [said[0], "Yes, there is.", *said[2:]]
    assert items["thumbnail"].notna().sum() == PICTURES


def test_a_metric_without_a_value_is_missing(hub, tmp_path, monkeypatch):
    def evaluate(*arguments: Any, **settings: Any) -> Evaluation:
        found = evaluate_task(*arguments, **settings)
        empty = dataclasses.replace(found.metrics["pope_recall"], value=math.nan, ci_low=None, ci_high=None)
        return dataclasses.replace(found, metrics={**found.metrics, "pope_recall": empty})

    monkeypatch.setattr("benchmarks.tasks.mllm.score_answers.evaluate_task", evaluate)
    rows = [{"question_id": str(index), "answer": answer} for index, (_, answer) in enumerate(_pope())]
    found = score(hub, tmp_path, "pope", rows)
    assert found.missing_metrics["pope_recall"] == "no item has a value"
    assert found.metrics["pope_accuracy"].value == 1.0


def test_lmms_evals_samples_give_what_the_run_gave(places, hub, tmp_path):
    """The answers of a real model, scored a second time without it."""
    benchmark = configure(name="gqa", data=str(hub), max_new_tokens=4)
    ours = world.measure(tmp_path / "r", benchmark, row="ours", llava=places / "llava")
    items = read_items(ours)
    rows = [
        {"doc_id": int(item), "resps": [[said]], "filtered_resps": [said]}
        for item, said in zip(items["item"], items["prediction"], strict=True)
    ]
    theirs = score(hub, tmp_path, "gqa", rows)
    assert theirs.metrics == ours.metrics
    assert read_items(theirs)[["item", "image", "score"]].equals(items[["item", "image", "score"]])
    assert theirs.fingerprint != ours.fingerprint  # it is not known how they were made


def _samples(hub: Path, folder: Path, task_name: str, answers: list[str]) -> list[dict[str, Any]]:
    """What lmms-eval's own writer makes of answers: the lines of its ``*_samples_*.jsonl``."""
    import datetime

    from benchmarks.tasks.mllm.evaluate_task import run_and_score
    from benchmarks.tasks.mllm.llava_model import RecordedAnswersModel
    from benchmarks.tasks.mllm.lmms_task import make_judge
    from benchmarks.tasks.mllm.offline_tasks import data_root, go_offline, load_task

    go_offline()
    from lmms_eval.loggers import EvaluationTracker

    entry = get_benchmark(task_name)
    task = load_task(entry.task, entry.folder, data_root(str(hub)), entry.dataset)
    judge = make_judge(configure(name=task_name, data=str(hub)), entry.task, str(folder))
    scored = run_and_score(RecordedAnswersModel(dict(enumerate(answers))), task, entry, {}, judge=judge)
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = "theirs"
    tracker.date_id = datetime.date(2024, 1, 1).isoformat()
    tracker.save_results_samples(task_name, [dict(sample) for sample in scored.samples])
    (file,) = folder.rglob("*_samples_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


THOUGHT = "<think>Is it there? {not_said}, I thought first.</think>\n{said}"


def test_samples_of_reasoning_models_score_as_lmms_eval_scored_them(hub, tmp_path, capsys):
    """lmms-eval stores the whole reply as ``resps``, what it scored as ``filtered_resps``, and the score."""
    rows = _samples(hub, tmp_path, "pope", [answer for _, answer in _pope()])
    for row, (_, answer) in zip(rows, _pope(), strict=True):
        row["resps"] = [[THOUGHT.format(not_said="No" if answer == "yes" else "Yes", said=answer)]]
    found = score(hub, tmp_path, "pope", rows)
    assert found.metrics["pope_accuracy"].value == 1.0
    assert read_items(found)["prediction"].tolist() == [answer for _, answer in _pope()]
    assert "another score" not in capsys.readouterr().err
    for row in rows[2:4]:
        row["resps"] = [["I cannot tell."]]
    found = score(hub, tmp_path, "pope", rows)
    assert "2 of 8 answers have another score in the file" in capsys.readouterr().err
    assert "first question 2: pope_" in found.model["matched"]
    assert "1.0, here 0.0" in found.model["matched"]


def test_reasoning_tags_are_lmms_evals_default(monkeypatch):
    from benchmarks.tasks.mllm.offline_tasks import go_offline

    go_offline()
    from lmms_eval.__main__ import parse_eval_args

    monkeypatch.setattr("sys.argv", ["lmms_eval"])
    _, theirs = parse_eval_args()
    assert theirs.reasoning_tags == json.dumps(REASONING_TAGS)


def test_a_reading_that_an_earlier_version_logged_otherwise_is_no_difference(hub, tmp_path, capsys):
    """MMMU's scorer logs no score, but the letter; a list of one since there are repetitions."""
    rows = _samples(hub, tmp_path, "mmmu_val", ["B", "red"] * PICTURES)
    assert rows[0]["mmmu_acc"]["parsed_pred"] == ["B"]
    for row in rows[::2]:
        row["mmmu_acc"]["parsed_pred"] = "B"
    score(hub, tmp_path, "mmmu_val", rows)
    assert "another score" not in capsys.readouterr().err
    rows[4]["mmmu_acc"]["parsed_pred"] = "C"
    score(hub, tmp_path, "mmmu_val", rows)
    said = capsys.readouterr().err
    assert f"1 of {2 * PICTURES} answers have another score in the file" in said
    assert 'first question 4: mmmu_acc {"parsed_pred": "C"}, here {"parsed_pred": "B"}' in said


@pytest.mark.parametrize("key", ["answer", "text", "prediction", "response", "caption"])
def test_a_json_list_and_other_names_of_the_answer(key, hub, tmp_path):
    rows = [{"question_id": str(number), key: answer} for number, (_, answer) in enumerate(_pope())]
    (tmp_path / "answers.json").write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    config = {"task": "pope", "data": str(hub), "output": str(tmp_path / "r"), "model_name": "them"}
    run_score(ScoreConfig(answers=str(tmp_path / "answers.json"), **config))
    assert read_result(result_path(tmp_path / "r", "them", "pope")).metrics["pope_accuracy"].value == 1.0
    labeled = [row | {"answer": "yes"} for row in rows] if key in {"prediction", "response"} else rows
    assert score(hub, tmp_path, "pope", labeled).metrics["pope_accuracy"].value == 1.0


def test_an_answer_given_twice_is_named(hub, tmp_path, capsys):
    rows = [{"question_id": str(number), "answer": answer} for number, (_, answer) in enumerate(_pope())]
    found = score(hub, tmp_path, "pope", [*rows, rows[0]])
    assert found.metrics["pope_accuracy"].value == 1.0
    assert "8 of 8 questions answered (matched by question_id: 8 unchanged; 1 answers are given twice)" in (
        capsys.readouterr().err
    )
    with pytest.raises(
        UserError, match=r"1 of 8 questions have no answer.*1 questions have different answers, first '0'"
    ):
        score(hub, tmp_path, "pope", [*rows, rows[0] | {"answer": "no"}])


def _permuted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "doc_id": (row["doc_id"] + 1) % len(rows)} for row in rows]


def test_samples_whose_targets_contradict_the_data(hub, tmp_path):
    """lmms-eval's own file with other numbers; each line still says what was asked and which answer is right."""
    rows = _samples(hub, tmp_path, "pope", [answer for _, answer in _pope()])
    assert rows[0].keys() >= {"doc_id", "target", "input", "doc_hash"}
    assert len({row["doc_hash"] for row in rows}) == 1  # of `null`: it tells nothing
    assert "resps" not in rows[0]  # equal to filtered_resps
    assert score(hub, tmp_path, "pope", rows).metrics["pope_accuracy"].value == 1.0
    with pytest.raises(UserError, match=r"answers.jsonl: 8 of 8 answers contradict the data.* question 0: target"):
        score(hub, tmp_path, "pope", _permuted(rows))
    same = [row | {"target": _pope()[(row["doc_id"] + 1) % 8][1]} for row in rows]  # then only the words tell
    with pytest.raises(UserError, match=r"4 of 8 answers .*question 1: input 'Is there a .*, in the data 'is there a"):
        score(hub, tmp_path, "pope", _permuted(same), partial=True)


def test_samples_whose_rows_contradict_the_data(hub, tmp_path):
    """Older versions of lmms-eval wrote the question's row as ``doc``."""
    docs = [{"question_id": str(number), "question": text, "answer": answer, "category": None}
            for number, (text, answer) in enumerate(_pope())]  # fmt: skip
    rows = [{"doc_id": number, "doc": doc, "resps": [[doc["answer"]]]} for number, doc in enumerate(docs)]
    assert score(hub, tmp_path, "pope", rows).metrics["pope_accuracy"].value == 1.0
    with pytest.raises(UserError, match=r"8 of 8 answers contradict the data.*: doc.question_id '7', in the data '0'"):
        score(hub, tmp_path, "pope", _permuted(rows))
    rows[3]["doc"] = docs[3] | {"answer": "yes"}
    with pytest.raises(
        UserError, match=r"1 of 8 answers contradict the data.*question 3: doc.answer 'yes', in the data"
    ):
        score(hub, tmp_path, "pope", rows)


def test_llava_answers_to_pope_take_images_from_its_questions(tmp_path):
    """The same words are asked of two images and in two categories, and the ids are LLaVA's own."""
    asked = [(image, category) for category in ("popular", "random") for image in ("COCO_1", "COCO_2")]
    world.write_parquet(
        tmp_path / "hub" / world.HUB / "POPE/data/test-00000-of-00001.parquet",
        {
            "question_id": ["1", "2", "1", "2"],
            "question": ["Is there a dog in the image?"] * 4,
            "answer": ["yes", "no", "yes", "no"],
            "image_source": [image for image, _ in asked],
            "category": [category for _, category in asked],
            "image": [world.draw_image(number) for number in (0, 1, 0, 1)],
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
    with pytest.raises(UserError, match=r"neither ids nor texts match|answers have no question"):
        score(tmp_path / "hub", tmp_path, "pope", rows)
    found = score(tmp_path / "hub", tmp_path, "pope", rows, questions=questions)
    assert found.metrics["pope_accuracy"].value == 1.0
    with pytest.raises(UserError, match="neither ids nor texts match its 1 answers and 4 questions"):
        score(tmp_path / "hub", tmp_path, "pope", rows[1:2], partial=True)
    with pytest.raises(UserError, match=r"1 of 4 questions have no answer, 0 of 3 .*--partial true scores"):
        score(tmp_path / "hub", tmp_path, "pope", rows[1:], questions=questions)
    found = score(tmp_path / "hub", tmp_path, "pope", rows[1:], questions=questions, partial=True)
    assert found.protocol["questions"] == 3
    assert found.metrics["pope_accuracy"].value == 1.0


def test_answers_to_other_questions_are_neither_ranked_nor_paired(hub, tmp_path):
    """Two files with four answers each, to the first and to the last questions of the data."""
    from benchmarks.analysis.compare_command import CompareConfig, build_comparison

    rows = [{"doc_id": number, "answer": answer} for number, (_, answer) in enumerate(_pope())]
    first, last = (
        score(hub, tmp_path / name, "pope", some, partial=True)
        for name, some in (("first", rows[:4]), ("last", rows[4:]))
        if (tmp_path / name).mkdir() is None
    )
    assert read_items(last)["item"].tolist() == ["4", "5", "6", "7"]
    assert read_items(last)["prediction"].tolist() == [row["answer"] for row in rows[4:]]
    assert first.fingerprint != last.fingerprint
    sides = [str(tmp_path / name / "r") for name in ("first", "last")]
    assert not build_comparison(CompareConfig(first=sides[0], second=sides[1])).table.tested
    whole = score(hub, tmp_path, "pope", rows, partial=True)
    assert "answered" not in whole.protocol


def test_a_line_without_an_answer_is_not_answered_by_the_question(tmp_path):
    asked = _write(tmp_path / "questions.jsonl", [{"question_id": 1, "text": "Is it red?", "image": "a.jpg"}])
    answers = _write(tmp_path / "answers.jsonl", [{"question_id": 1}])
    with pytest.raises(UserError, match="line 1: expected a string as 'answer'"):
        read_answers(Path(answers), Path(asked))
    answers = _write(tmp_path / "answers.jsonl", [{"question_id": "1", "answer": "yes"}])
    (found,) = read_answers(Path(answers), Path(asked))
    assert (found.text, found.prompt, found.image) == ("yes", "Is it red?", "a")


ANSWERS = ("resps", "prediction", "response", "caption", "answer", "text")


@sizes
def test_no_line_is_answered_by_another_key_than_the_others(examples: int, tmp_path: Path) -> None:
    """Lines of pandas or Spark with null for what failed, and references that somebody joined to them."""

    def check(data: st.DataObject) -> None:
        of_model = data.draw(st.sampled_from(ANSWERS), "key of the answers")
        weaker = [key for key in ANSWERS[ANSWERS.index(of_model) + 1 :] if key in {"answer", "text"}]
        beside = data.draw(st.sets(st.sampled_from(weaker)) if weaker else st.just(set()), "keys of references")
        lines, whole = [], True
        for number in range(data.draw(st.integers(1, 6), "lines")):
            kind = data.draw(st.sampled_from(["answered", "answered", "null", "lacking"]), "line")
            line = {"question_id": number, **{key: "reference" for key in beside if data.draw(st.booleans())}}
            line |= {"answered": {of_model: f"model {number}"}, "null": {of_model: None}}.get(kind, {})
            whole &= kind == "answered"
            lines.append(line)
        if not any(of_model in line for line in lines):
            return
        file = Path(_write(tmp_path / "answers.jsonl", lines))
        if whole:
            assert [answer.text for answer in read_answers(file)] == [f"model {number}" for number in range(len(lines))]
            return
        with pytest.raises(UserError, match=rf"line \d: expected .*, got none as '{of_model}'"):
            read_answers(file)

    explore(check, examples)


def test_an_answer_beside_llavas_own_is_not_guessed(tmp_path: Path) -> None:
    line = {"question_id": 1, "prompt": "Is it red?", "text": "no", "answer": "yes"}
    file = Path(_write(tmp_path / "answers.jsonl", [line]))
    with pytest.raises(UserError, match=r"line 1: expected one answer, got 'answer' and 'text' \(LLaVA's"):
        read_answers(file)
    file = Path(_write(tmp_path / "answers.jsonl", [{**line, "answer": "no"}]))
    assert read_answers(file)[0].text == "no"


def test_ids_of_mmvet_without_their_beginning(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    columns = {"question_id": ["v1_0", "v1_1"], "question": ["What is x?"] * 2, "capability": ["math"] * 2}
    columns |= {"answer": ["1", "2"], "image": [world.draw_image(0), world.draw_image(1)]}
    world.write_parquet(tmp_path / "hub" / world.HUB / "MMVet/data/test-00000-of-00001.parquet", columns)
    rows = [{"question_id": number, "prompt": "What is x?", "text": str(number)} for number in (1, 0)]
    found = score(tmp_path / "hub", tmp_path, "mmvet", rows)
    assert read_items(found)["prediction"].tolist() == ["0", "1"]
    assert found.missing_metrics["gpt_eval_score"].startswith("no judge: no key")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question_id": "0", "answer": "yes"}], "7 of 8 questions have no answer, 0 of 1 answers have no question"),
        (
            [{"question_id": str(number), "answer": "yes"} for number in [*range(8), 99]],
            "0 of 8 questions have no answer, 1 of 9 answers have no question (matched by question_id: 8 un",
        ),
        ([{"answer": "yes"}], "line 1: expected 'doc_id', 'question_id' or 'prompt'"),
        ([{"question_id": "0", "answer": 7}], "line 1: expected a string as 'answer'"),
        ([{"question_id": "0", "answer": None}], "'resps' (lmms-eval's), got none"),
        ([{"question_id": "0", "answer": True}], "'resps' (lmms-eval's), got true as 'answer'"),
        ([{"doc_id": 0, "resps": [["yes", "no"]]}], "line 1: resps: expected one answer, got 2 (of repeated runs)"),
        ([{"0": "yes", "1": "no"}], "line 1: expected an object for each answer, got one with the keys ['0', '1']"),
        ([], "answers.jsonl: contains no answers"),
    ],
)
def test_unmatched_answers_are_reported_in_one_line(rows, said, hub, tmp_path):
    with pytest.raises(UserError) as caught:
        score(hub, tmp_path, "pope", rows)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def hub_published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published lines' questions in the hub's layout, with small images of ours."""
    root = tmp_path_factory.mktemp("published") / "hub"
    for file, columns in {
        "MME/data/test-00000-of-00001.parquet": published.MME_DATA,
        "POPE/data/test-00000-of-00001.parquet": published.POPE_DATA,
        "textvqa/data/validation-00000-of-00001.parquet": published.TEXTVQA_DATA,
        "MMBench/en/dev-00000-of-00001.parquet": published.MMBENCH_DATA,
    }.items():
        images = [world.draw_image(number) for number in range(len(columns["question"]))]
        world.write_parquet(root / world.HUB / file, columns | {"image": images})
    card = "---\nconfigs:\n- {config_name: en, data_files: [{split: dev, path: en/dev-*}]}\n---\n"
    (root / world.HUB / "MMBench/README.md").write_text(card)
    return root


def _score_lines(hub: Path, folder: Path, task: str, lines: str, **more: Any) -> Result:
    return score(hub, folder, task, [json.loads(line) for line in lines.split("\n") if line], **more)


def test_mmes_own_file(hub_published, tmp_path, capsys):
    """Questions without lmms-eval's tail, ids with the folder `images`; another order than the data's."""
    found = _score_lines(hub_published, tmp_path, "mme", published.MME)
    assert found.metrics["mme_perception_score"].value == (50 + 200) / 2
    assert found.metrics["mme_cognition_score"].value == 50
    said = capsys.readouterr().err
    assert "2 without the answer instruction, 4 by the id without inner directories or 'v1_'" in said
    assert "0 answers without a question, 0 questions without an answer" in said
    assert "perception points 125.0, cognition points 50.0" in said
    assert found.model["matched"] in said


def test_popes_own_file(hub_published, tmp_path, capsys):
    """The same words of one image in three kinds; "imange" in the answers' questions, corrected in the data."""
    questions = str(tmp_path / "questions.jsonl")
    Path(questions).write_text(published.POPE_QUESTIONS.lstrip())
    with pytest.raises(UserError, match=r"1 of 9 questions have no answer, 0 of 8 .*--partial true scores"):
        _score_lines(hub_published, tmp_path, "pope", published.POPE, questions=questions)
    found = _score_lines(hub_published, tmp_path, "pope", published.POPE, questions=questions, partial=True)
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values["pope_f1_random"] == values["pope_f1_popular"] == 1.0
    assert values["pope_f1_adversarial"] == pytest.approx(2 * 2 / (2 * 2 + 1))  # the handbag is not there
    assert values["pope_f1_kinds"] == pytest.approx((1 + 1 + 0.8) / 3)
    assert values["pope_f1_score"] == pytest.approx(2 * 4 / (2 * 4 + 1))  # over all, which papers do not print
    sizes = {name: found.metrics[f"pope_f1_{name}"].n for name in ("random", "popular", "adversarial", "kinds")}
    assert sizes == {"random": 2, "popular": 2, "adversarial": 4, "kinds": 8}
    assert values["pope_f1_random"] > found.metrics["pope_f1_random"].ci_low
    said = capsys.readouterr().err
    assert "6 without the answer instruction, 2 with known misspellings fixed" in said
    assert "8 of 9 questions answered" in said
    assert "F1, random 100.0, F1, popular 100.0, F1, adversarial 80.0, F1, mean of three kinds 93.3" in said


def test_textvqas_own_file(hub_published, tmp_path, capsys):
    """Questions that the data have in lower case; two of one image, whose name is the id."""
    found = _score_lines(hub_published, tmp_path, "textvqa_val", published.TEXTVQA)
    assert read_items(found)["prediction"].tolist() == ["22", "10 years", "Longmorn"]
    assert read_items(found)["score"].tolist() == [1.0, 1.0, 0.0]
    assert "matched by image_id and text: 3 in lower case" in capsys.readouterr().err


def test_mmbenchs_own_file(hub_published, tmp_path, capsys):
    """A hint before the question and options on lines: the id decides, as the question stands in each prompt."""
    task = "mmbench_en_dev_static"
    assert _score_lines(hub_published, tmp_path, task, published.MMBENCH).metrics["gpt_eval_score"].value == 100.0
    assert "matched by index, with the question in each prompt: 4 unchanged" in capsys.readouterr().err
    lines = published.MMBENCH.strip().split("\n")
    wrong = "\n".join([*lines[:3], lines[3].replace('"text": "B"', '"text": "A"')])
    assert _score_lines(hub_published, tmp_path, task, wrong).metrics["gpt_eval_score"].value == 50.0
    other = published.MMBENCH.replace("spatula", "fork")
    with pytest.raises(UserError, match=r"2 of 4 questions have no answer, 2 of 4 answers have no question"):
        _score_lines(hub_published, tmp_path, task, other)


def test_a_part_of_a_questions_orders_is_no_answer_to_it(hub_published, hub, tmp_path, capsys):
    """The first orders alone would be an accuracy in one pass, and a half pair of MME's cannot be scored."""
    lines = published.MMBENCH.strip().split("\n")
    task = "mmbench_en_dev_static"
    wrong = lines[1].replace('"text": "A"', '"text": "B"')
    found = _score_lines(hub_published, tmp_path, task, "\n".join([lines[0], wrong, lines[2]]), partial=True)
    assert (found.metrics["gpt_eval_score"].value, found.metrics["gpt_eval_score"].n) == (100.0, 1)
    assert found.protocol["questions"] == 2
    assert "1 answers not used, to questions that lack" in capsys.readouterr().err
    with pytest.raises(
        UserError, match="expected a question of 'mmbench_en_dev_static' with answers to all its orders"
    ):
        _score_lines(hub_published, tmp_path, task, "\n".join(lines[:2]), partial=True)
    pairs = published.MME.strip().split("\n")
    found = _score_lines(hub_published, tmp_path, "mme", "\n".join(pairs[:5]), partial=True)
    assert found.metrics["mme_perception_score"].value == 50.0  # yes to both of the first painting's
    assert found.protocol["questions"] == 4


def _naturalbench(groups: int) -> dict[str, list[Any]]:
    """NaturalBench's rows: of each group the two questions about the first image and about the second."""
    questions = [f"Is the {world.color(number)} square left?" for number in range(2 * groups)]
    return {
        "Index": [*range(4 * groups)],
        "Image": [world.draw_image(2 * group + image) for group in range(groups) for image in (0, 1) * 2],
        "Question": [questions[2 * group + which] for group in range(groups) for which in (0, 0, 1, 1)],
        "Answer": ["Yes", "No", "No", "Yes"] * groups,
        "Question_Type": ["yes_no"] * 4 * groups,
        "Source": ["Flickr30K"] * 4 * groups,
    }


def test_a_part_of_naturalbenchs_group_is_no_answer_to_it(tmp_path, capsys):
    """Its scores of whole groups are those of lmms-eval's own aggregation, which takes all 1,900 groups only."""
    from lmms_eval.tasks.naturalbench import utils

    own = {
        "G": utils.naturalbench_aggregate_results_G_ACC,
        "Q": utils.naturalbench_aggregate_results_Q_ACC,
        "I": utils.naturalbench_aggregate_results_I_ACC,
    }
    data = _naturalbench(5)
    write_task(tmp_path / "hub", "naturalbench", data, "test")
    said = ["Yes", "No", "No", "Yes", "Yes", "Yes", "No", "Yes", "Yes.", "No", "Yes", "no", "?", "No", "No", "Yes"]
    rows = [{"doc_id": number, "resps": [[text]]} for number, text in enumerate([*said, "Yes", "No", "No"])]
    found = score(tmp_path / "hub", tmp_path, "naturalbench", rows, partial=True)
    assert found.protocol["questions"] == 16
    assert "3 answers not used, to questions that lack others' answers" in capsys.readouterr().err
    metrics = {name: found.metrics[f"naturalbench_{name}_ACC"] for name in own}
    assert [(each.value, each.n) for each in metrics.values()] == [(1 / 4, 4), (5 / 8, 4), (4 / 8, 4)]
    assert found.metrics["naturalbench_accuracy"].value == 12 / 16
    assert found.primary == ["naturalbench_G_ACC"]
    assert (metrics["G"].ci_low or 0) < 1 / 4 < (metrics["G"].ci_high or 0)
    whole = [
        utils.naturalbench_process_results(
            {key: values[number % 16] for key, values in data.items()}, [said[number % 16]]
        )
        | {"number": number}
        for number in range(7600)
    ]
    for name, aggregate in own.items():
        key = f"naturalbench_{name}_ACC"
        assert aggregate([{**entry[key], "id": entry["number"]} for entry in whole]) == metrics[name].value
    with pytest.raises(UserError, match="expected a question of 'naturalbench' with answers to all its orders"):
        score(tmp_path / "hub", tmp_path / "hub", "naturalbench", rows[16:], partial=True)


def _science(count: int) -> dict[str, list[Any]]:
    """ScienceQA's questions, which differ in their options or context, and the last three in their image only."""
    choices = [[f"{number}, of course", f"not {number}"] for number in range(count - 3)] + [["salty", "yellow"]] * 3
    return {
        "question": ["Which is right?"] * count,
        "choices": choices,
        "answer": [number % 2 for number in range(count)],
        "hint": ["" if number % 2 else f"Figure {number % 4}: a thing." for number in range(count - 3)] + [""] * 3,
        "image": [world.draw_image(number) for number in range(count)],
    }


def test_scienceqas_own_format(tmp_path, capsys):
    """Its ids are not in the data: the whole prompt decides, and the order where that is equal too."""

    data = _science(13)
    write_task(tmp_path / "hub", "scienceqa_img", data, "test")
    rows = []
    for number in range(13):
        context = f"Context: {data['hint'][number]}\n" if data["hint"][number] else ""
        options = "\n".join(f"{letter}. {text}" for letter, text in zip("AB", data["choices"][number], strict=True))
        prompt = (
            f"{context}Which is right?\n{options}\nAnswer with the option's letter from the given choices directly."
        )
        rows.append({"question_id": str(7 * number), "prompt": prompt, "text": "AB"[data["answer"][number]]})
    rows[3]["text"] = "A"  # the only wrong answer
    text_only = {"question_id": "5", "prompt": "Who wrote it?\nA. he\nB. she", "text": "A"}
    with pytest.raises(UserError, match=r"0 of 13 questions have no answer, 1 of 14 .* --partial true scores"):
        score(tmp_path / "hub", tmp_path, "scienceqa_img", [text_only, *rows])
    found = score(tmp_path / "hub", tmp_path, "scienceqa_img", [text_only, *rows], partial=True)
    assert read_items(found)["score"].tolist() == [1.0] * 3 + [0.0] + [1.0] * 9
    assert "answered" not in found.protocol
    assert "the whole prompt: 10 unchanged, 3 unchanged, by the order of all others" in capsys.readouterr().err
    rows[0], rows[1] = rows[1], rows[0]
    with pytest.raises(UserError, match=r"3 of 13 questions have no answer, 3 of 13 answers have no question"):
        score(tmp_path / "hub", tmp_path, "scienceqa_img", rows)


def test_older_data_that_say_a_umbrella(hub_published, tmp_path):
    """POPE's labels before their correction have one kind with "a umbrella": articles are a way of their own."""
    prompts = [json.loads(line) for line in published.POPE_QUESTIONS.split("\n") if line]
    answers = [Answer(text="Yes", id=str(row["question_id"]), prompt=row["text"], image=Path(row["image"]).stem,
                      category=row["category"]) for row in prompts]  # fmt: skip
    docs = [dict(zip(published.POPE_DATA, row, strict=True)) for row in zip(*published.POPE_DATA.values(), strict=True)]
    for doc in docs:
        doc["question"] = doc["question"].replace("an umbrella", "a umbrella")
    found = match(answers, docs, "f", partial=True)
    assert found.counts == {"without the answer instruction": 6, "with known misspellings fixed": 2}
    mended = [Answer(**{**vars(each), "prompt": (each.prompt or "").replace("imange", "image")}) for each in answers]
    found = match(mended, docs, "f", partial=True)
    assert found.counts == {"without the answer instruction": 6, "with 'an' read as 'a'": 2}


def test_partial_excuses_answers_without_a_question_and_counts_them(hub_published, tmp_path, capsys):
    stray = published.MME.replace("c++ code shown", "fortran code shown").replace("type of historical", "kind of war")
    with pytest.raises(UserError) as caught:
        _score_lines(hub_published, tmp_path, "mme", stray)
    said = str(caught.value)
    assert "2 of 6 questions have no answer, 2 of 6 answers have no question" in said
    assert "\n" not in said
    assert (
        "without a question: 'code_reasoning/0020.png Is a fortran code shown in the picture?' "
        "(nearest question: 'code_reasoning/0020.png Is a python code shown in the picture?'); "
    ) in said
    lines = published.TEXTVQA.replace("What number", "Which number")
    with pytest.raises(UserError, match="1 of 3 questions have no answer, 1 of 3 answers"):
        _score_lines(hub_published, tmp_path, "textvqa_val", lines)
    found = _score_lines(hub_published, tmp_path, "textvqa_val", lines, partial=True)
    assert "1 answers without a question, 1 questions without an answer" in capsys.readouterr().err
    assert "1 answers without a question" in found.model["matched"]
    assert found.protocol["questions"] == 2
    assert "answered" in found.protocol


def test_text_that_two_questions_share_matches_neither():
    docs = [{"question_id": "a/images/1.jpg", "question": "Red?"}, {"question_id": "a/1.jpg", "question": "Red?"}]
    told = [Answer(text="yes", id="a/x/1.jpg", prompt="Red?"), Answer(text="no", id="a/1.jpg", prompt="Red?")]
    found = match(told, docs, "f", partial=True)
    assert {place: answer.text for place, answer in found.answers.items()} == {1: "no"}
    assert (found.num_unanswered, [each.text for each in found.unmatched]) == (1, ["yes"])
