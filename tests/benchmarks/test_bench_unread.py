"""Answers that name nothing: what lmms-eval's scorers make of them, and how many there are."""

from __future__ import annotations

from typing import Any

import bench_world as world
import numpy as np
import pytest
from bench_tasks import mmbench, score, write_task

from benchmarks.report.report import build_report
from benchmarks.results.results import read_items
from benchmarks.tasks.mllm.unread import unread_answers

pytestmark = world.LMMS_EVAL_WARNS
COLORS = {"options": str(list(world.COLORS))}  # as MMMU's: a list as text
ARTICLE = "A photo of a dog on a couch"


def _sample(answer: str, target: str = "B", doc: dict[str, Any] | None = None, prompt: str = "") -> dict[str, Any]:
    return {"filtered_resps": [answer], "target": target, "doc": doc or {}, "arguments": [prompt]}


@pytest.mark.parametrize(
    ("answers", "more"),
    [
        (["B", "(b)", "C.", "D: white", "The answer is A", "**B**", r"\boxed{C}", "It is green", "A\n\nIt is", "选B",
          "b. because it is white", "Answer: b", "the answer is b."],
         {"doc": COLORS}),
        (["B", "(A) x"], {"prompt": "Which?\nA. x\nB. y\nAnswer with the letter."}),
        (["B", "blue"], {"doc": {"A": "red", "B": "blue", "C": "nan", "D": "nan"}}),
        (["Yes", "no.", "Yes, there is.", "There is no dog.", "y"], {"target": "yes"}),
        (["two", "I", "A man", "cannot"], {"target": "2"}),
        (["A", "Brazil"], {"target": "A", "prompt": "Which bar is highest?"}),  # a bar's name, no option
    ],
)  # fmt: skip
def test_answers_that_can_be_read(answers, more):
    assert not unread_answers([_sample(answer, **more) for answer in answers]).any()


@pytest.mark.parametrize(
    ("answers", "more"),
    [
        (["", ARTICLE, "I cannot see the image.", "E", "<think>B or C? B", "It is a dog"], {"doc": COLORS}),
        (
            ["I'm sorry, I can't help with that.", "The voltage is v_C of C3."],
            {"doc": {"choices": [f"the {number}th" for number in range(10)]}},
        ),
        (["x?", "A dog"], {"prompt": "Which?\nA. one\nB. two\nAnswer with the letter."}),
        (["I cannot tell.", "not sure", "maybe", "yn"], {"target": "yes"}),
        (["", " ", "I'm sorry, but I cannot see it.", "I don’t know"], {"target": "2"}),
    ],
)
def test_answers_that_cannot_be_read(answers, more):
    assert unread_answers([_sample(answer, **more) for answer in answers]).all()


def test_a_free_answer_that_scores_is_read_although_it_begins_as_an_apology():
    samples = [_sample("Sorry Sam", target="Sorry Sam"), _sample("Sorry, no", target="Sorry Sam")]
    assert unread_answers(samples, np.array([1.0, 0.0])).tolist() == [0, 1]


def test_an_option_that_the_scorer_guesses_is_not_read(tmp_path, capsys):
    """MMMU's reader takes the article for an option, and guesses for an empty answer; both may be right."""
    from lmms_eval.tasks.mmmu.utils import get_multi_choice_info, parse_multi_choice_response

    world.write_mmmu(tmp_path / "hub", 8)
    index_to_answer, letters = get_multi_choice_info(list(world.COLORS))
    assert parse_multi_choice_response(ARTICLE, letters, index_to_answer) == "A"
    assert parse_multi_choice_response("", letters, index_to_answer) in letters
    rows = [{"doc_id": number, "answer": "no idea" if number % 2 else ARTICLE} for number in range(16)]
    rows[2] = {"doc_id": 2, "answer": "B"}
    found = score(tmp_path / "hub", tmp_path, "mmmu_val", rows)
    assert found.metrics["mmmu_acc"].value == pytest.approx(3 / 16, abs=1e-5)  # B, and twice the article
    assert found.metrics["unread"].value == 7 / 16  # of questions with options; "no idea" is an answer to the others
    assert found.metrics["mmmu_acc_unread_wrong"].value == 1 / 16
    assert "mmmu_val: 43.8 % of the answers were not read" in (said := capsys.readouterr().err)
    assert f"first item 0: '{ARTICLE}', expected 'A'" in said
    world.check_formulas(found)


def test_a_right_answer_that_scores_nothing_is_named(tmp_path, capsys):
    """POPE's scorer of lmms-eval compares whole answers."""
    from lmms_eval.tasks.pope.utils import pope_process_results

    theirs = pope_process_results({"answer": "yes", "question_id": "1"}, ["Yes."])
    assert theirs["pope_accuracy"]["score"] == 0.0
    world.write_hub(tmp_path / "hub", 4)
    rows = [{"doc_id": number, "answer": "No." if number % 2 else "Yes."} for number in range(8)]
    found = score(tmp_path / "hub", tmp_path, "pope", rows)
    assert (found.metrics["pope_accuracy"].value, found.metrics["unread"].value) == (0.0, 1.0)
    assert "pope: 100.0 % of the answers were not read" in (said := capsys.readouterr().err)
    assert "first item 0: 'Yes.', expected 'yes'" in said
    found = score(tmp_path / "hub", tmp_path, "pope", [row | {"answer": row["answer"][:-1]} for row in rows])
    assert (found.metrics["pope_accuracy"].value, found.metrics["unread"].value) == (1.0, 0.0)
    assert "pope_accuracy_unread_wrong" not in found.metrics
    assert "were not read" not in capsys.readouterr().err


def test_f1_of_pope_leaves_out_what_it_does_not_read(tmp_path):
    """And the accuracy of 50 % was stated to be 50 % if these answers counted as wrong."""
    world.write_hub(tmp_path / "hub", 4)
    said = ["yes", "no", "yes", "no", "maybe", "maybe", "maybe", "Yes, there is."]  # the last is read, and left out
    rows = [{"doc_id": number, "answer": answer} for number, answer in enumerate(said)]
    found = score(tmp_path / "hub", tmp_path, "pope", rows)
    assert (found.metrics["pope_accuracy"].value, found.metrics["pope_f1_score"].value) == (0.5, 1.0)
    assert found.metrics["pope_f1_score_unread_wrong"].value == pytest.approx(2 * 2 / (4 + 4))
    (note,) = [note for note in build_report(found.path.parents[1]).texts if note.startswith("Answers not read")]
    share = f"37.5 % of {found.model_name} on pope"
    assert note.endswith(f": {share} (as wrong answers: F1, which leaves them out, 50.0 instead of 100.0).")


def test_an_unread_order_of_mmbench_makes_its_question_wrong(tmp_path):
    task = "mmbench_en_dev_static"
    write_task(tmp_path / "hub", task, mmbench(), "dev")
    said = ["A", "B", "here", "B", "something else", "here"]
    rows = [{"doc_id": number, "answer": answer} for number, answer in enumerate(said)]
    found = score(tmp_path / "hub", tmp_path, task, rows)
    assert read_items(found)["unread"].tolist() == [0, 0, 0, 0, 1, 0]
    rows[4]["answer"] = "A nice thing"  # lmms-eval takes the article for the option, the right one
    found = score(tmp_path / "hub", tmp_path, task, rows)
    assert found.metrics["gpt_eval_score"].value == 100.0
    assert found.metrics["gpt_eval_score_unread_wrong"].value == pytest.approx(200 / 3)
    world.check_formulas(found)


def test_points_of_mmes_pairs_with_unread_answers_as_wrong(tmp_path):
    """Its scorer reads the first four letters: "not sure" is a no."""
    world.write_hub(tmp_path / "hub", 4)
    rows = [{"doc_id": number, "answer": "not sure" if number % 2 else "Yes"} for number in range(8)]
    found = score(tmp_path / "hub", tmp_path, "mme", rows)
    assert found.metrics["mme_total"].value == 400.0
    assert found.metrics["mme_total_unread_wrong"].value == 100.0
    assert found.metrics["unread"].value == 0.5
    world.check_formulas(found)
