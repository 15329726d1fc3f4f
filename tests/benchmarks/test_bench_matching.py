"""Which question a precomputed answer is matched to, where a wrong one would look right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.tasks.mllm.matching import Answer, match, read_answers
from benchmarks.tasks.mllm.score_answers import reject_contradictions
from clips.errors import UserError


def _answers(tmp_path, *lines: str) -> list[Answer]:
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return read_answers(file)


def test_ids_alone_match_no_column_of_another_name(tmp_path):
    """Numbers from 1 against an index from 0: all of them are found there, each one off."""
    docs = [{"question_id": f"q{number}", "index": number, "question": f"Q{number}?"} for number in range(8)]
    told = _answers(tmp_path, *[f'{{"question_id": {number}, "answer": "{number - 1}"}}' for number in range(1, 8)])
    with pytest.raises(UserError, match=r"8 of 8 questions have no answer, 7 of 7 answers have no question"):
        match(told, docs, "f", partial=True)
    told = _answers(tmp_path, *[f'{{"index": {number}, "answer": "{number}"}}' for number in range(8)])
    found = match(told, docs, "f")
    assert {place: answer.text for place, answer in found.answers.items()} == {n: str(n) for n in range(8)}
    assert found.key == "index"
    del docs[0]["question_id"]
    told = _answers(tmp_path, '{"question_id": 1, "answer": "0"}')
    with pytest.raises(UserError, match=r"neither ids nor texts .* \(expected 'doc_id' or 'index'\)"):
        match(told, docs, "f", partial=True)


def test_gqas_own_form_matches_by_its_unique_ids(tmp_path):
    """``questionId`` of the file is ``id`` of the data; of 9 digits none is there by chance."""
    ids = [str(201_307_251 + 37_911 * number) for number in range(8)]
    docs = [{"id": each, "imageId": f"n{number // 2}", "question": "Is it red?"} for number, each in enumerate(ids)]
    lines = [f'{{"questionId": "{each}", "prediction": "{number}"}}' for number, each in enumerate(ids)]
    found = match(_answers(tmp_path, *lines[::-1]), docs, "f")
    assert {place: answer.text for place, answer in found.answers.items()} == {n: str(n) for n in range(8)}
    part = match(_answers(tmp_path, *lines[:3]), docs, "f", partial=True)
    assert (part.key, [*part.answers]) == ("id", [0, 1, 2])
    other = _answers(tmp_path, *lines, '{"questionId": "7", "prediction": "no"}')
    with pytest.raises(UserError, match="1 of 9 answers have no question"):
        match(other, docs, "f", partial=True)


@pytest.mark.parametrize("key", ["doc_id", "question_id"])
def test_a_question_with_two_answers_is_left_out_of_a_part(key, tmp_path):
    docs = [{"question_id": number, "question": f"Q{number}?"} for number in range(4)]
    answers = [(0, "a"), (1, "b"), (1, "c"), (1, "d"), (2, "e")]
    told = _answers(tmp_path, *(f'{{"{key}": {number}, "answer": "{text}"}}' for number, text in answers))
    with pytest.raises(UserError, match=r"2 of 4 questions have no answer, 0 of 5 .* 1 questions have different answ"):
        match(told, docs, "f")
    found = match(told, docs, "f", partial=True)
    assert {place: answer.text for place, answer in found.answers.items()} == {0: "a", 2: "e"}
    assert (found.num_unanswered, [*found.contested]) == (2, [1])


def test_ids_with_words_may_stand_in_another_column(tmp_path):
    """LLaVA's `question_id` is TextVQA's `image_id`; the words tell that it is meant."""
    docs: list[dict[str, Any]] = [
        {"question_id": number, "image_id": f"image{number}", "question": f"What is {number}?"} for number in range(2)
    ]
    lines = [f'{{"question_id": "image{n}", "prompt": "What is {n}?", "text": "{n}"}}' for n in (1, 0)]
    found = match(_answers(tmp_path, *lines), docs, "f")
    assert found.key == "image_id, with the question in each prompt"
    assert {place: answer.text for place, answer in found.answers.items()} == {0: "0", 1: "1"}


def test_two_answers_to_one_question_match_none():
    docs = [{"question_id": "1", "question": "Is it an apple?"}, {"question_id": "2", "question": "Is it red?"}]
    told = [
        Answer(text="yes", id="1", prompt="Is it an apple?"),
        Answer(text="no", id="1", prompt="is it a apple?"),
        Answer(text="no", id="2", prompt="Is it red?"),
    ]
    with pytest.raises(UserError, match=r"1 of 2 questions have no answer, 0 of 3 answers have no question"):
        match(told, docs, "f")
    for order in (told, told[::-1]):
        found = match(order, docs, "f", partial=True)
        assert found.answers == {1: told[2]}
        assert found.counts == {"unchanged": 1}
        assert found.unmatched == []
        assert [*found.contested] == [0]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("What is shown?\nHint: left half only.", []),  # the first line is another question
        ("What is shown?\nAnswer the question using a single word or phrase.", [0]),
        ("What is shown?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly.", [0]),
        ("What is shown?\n(A) a cat\n(B) a dog", [0]),
        ("What is shown?\nReference OCR token: CAT, Hint\nAnswer the question using a single word or phrase.", [0]),
        ("What is shown?\nHint: the left half.\nAnswer the question using a single word or phrase.", [1]),
        ("What is shown?\nHint: left half only.\nReference OCR token: CAT", []),
        ("What is shown?\nA. a cat.\nA man is in the middle.", []),  # not options to its end
    ],
)
def test_only_known_instruction_lines_are_ignored(prompt, found):
    answers = [Answer(text="yes", prompt=prompt), Answer(text="no", prompt="Who?")]  # the second has its question
    asked = ["What is shown?", "What is shown?\nHint: the left half.", "Who?"]
    places = match(answers, [{"question": text} for text in asked], "f", partial=True).answers
    assert [place for place, answer in places.items() if answer is answers[0]] == found


QUERY = SimpleNamespace(doc_to_target=lambda doc: doc["answer"], doc_to_text=lambda doc: doc["query"] + " Answer.")
"""A task of lmms-eval's whose column of questions has another name."""


def test_input_is_compared_under_any_name_of_the_question_column():
    docs = [{"query": f"Is it {color}?", "answer": "yes"} for color in ("red", "blue", "green")]
    right = [Answer(text="x", number=n, target="yes", input=QUERY.doc_to_text(doc)) for n, doc in enumerate(docs)]
    reject_contradictions(dict(enumerate(right)), docs, QUERY, "f")
    with pytest.raises(UserError, match=r"2 of 3 answers .* question 0: input 'Is it blue\? Answer.', in the data 'Is"):
        reject_contradictions(dict(enumerate([right[1], right[0], right[2]])), docs, QUERY, "f")
    others = [Answer(text="x", number=n, target="yes", input=f"USER: {n}") for n in range(3)]
    reject_contradictions(dict(enumerate(others)), docs, QUERY, "f")  # another model's prompt: nothing contradicts
    framed = [Answer(text="x", number=n, input=f"USER: {each.input} ASSISTANT:") for n, each in enumerate(right)]
    reject_contradictions(dict(enumerate(framed)), docs, QUERY, "f")
    same = [{"query": "Describe it.", "answer": str(number)} for number in range(3)]
    told = [Answer(text="x", number=n, input=QUERY.doc_to_text(doc)) for n, doc in enumerate(same)]
    reject_contradictions(dict(enumerate(told)), same, QUERY, "f")  # all prompts are alike


@pytest.mark.parametrize(
    ("theirs", "ours", "agree"),
    [
        (1, 1.0, True),
        (1, True, True),
        (1, False, False),
        (1, 2.0, False),
        (9007199254740993, 9007199254740992, False),  # the same as floats
        ("12", 12.0, True),
        ("True", 1, True),
        ("red", 1, False),
        ("1.0", "1", False),  # texts
        (float("nan"), float("nan"), True),
    ],
)
def test_numbers_are_compared_as_numbers(theirs, ours, agree):
    task = SimpleNamespace(doc_to_target=lambda doc: doc["label"], doc_to_text=lambda doc: "What?")
    in_doc = Answer(text="x", number=0, doc={"label": theirs})
    as_target = Answer(text="x", number=0, target=str(theirs))  # lmms-eval writes all targets as texts
    for what, answer in (("doc.label", in_doc), ("target", as_target)):
        if agree:
            reject_contradictions({0: answer}, [{"label": ours}], task, "f")
            continue
        with pytest.raises(
            UserError, match=rf"1 of 1 answers contradict the data.*: {what} '{theirs}', in the data '{ours}'"
        ):
            reject_contradictions({0: answer}, [{"label": ours}], task, "f")
