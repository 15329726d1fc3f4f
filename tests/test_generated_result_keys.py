"""A key that is unknown, misspelled or contradictory is named: in answers, in result files and in tables to import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from generators import explore, sizes
from hypothesis import strategies as st
from report_material import items_table, put_result

from benchmarks.exchange.item_table import COLUMNS, read_item_tables
from benchmarks.results.results import read_fields
from benchmarks.tasks.mllm.matching import Answer, read_answers, unread_keys
from clips.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz_"
ANSWERS: tuple[dict[str, Any], ...] = (
    {"question_id": "3", "prompt": "Is it red?", "text": "Yes", "image": "a.jpg", "category": "random"},
    {"doc_id": 3, "target": "yes", "resps": [["Yes"]], "filtered_resps": ["Yes"], "input": "Is it red?", "doc": {}},
    {"image_id": 3, "caption": "a red square"},
    {"questionId": "3", "prediction": "yes", "metadata": {}},
)
ROW = {
    "model": "m",
    "benchmark": "pope",
    "metric": "pope_accuracy",
    "score": "50",
    "source": "s",
    "n": "8",
    "scale": "100",
}


@st.composite
def misspelled(draw: st.DrawFn, keys: list[str], *, also: str = "") -> tuple[str, str]:
    """One of the keys, and another name for it that is none of them."""
    key, place = draw(st.sampled_from(keys)), draw(st.integers(0, 40))
    place %= len(key)
    letter = draw(st.sampled_from(LETTERS))
    wrong = draw(
        st.sampled_from(
            [
                key[:place] + key[place + 1 :],
                key[:place] + letter + key[place:],
                key[:place] + letter + key[place + 1 :],
                key[:place] + key[place : place + 2][::-1] + key[place + 2 :],
                key.upper(),
                key.replace("_", "-"),
                f" {key}",
            ]
        ).filter(lambda each: each not in keys and each not in also and each.strip() != "")
    )
    return key, wrong


def lines_of(folder: Path, row: str, name: str = "answers.jsonl") -> Path:
    file = folder / name
    file.write_text(row + "\n", encoding="utf-8")
    return file


@sizes
def test_keys_of_answers(examples: int, tmp_path: Path) -> None:
    def check(data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(ANSWERS))
        key, wrong = data.draw(misspelled([*row]))
        what = data.draw(st.sampled_from(["misspelled", "unknown", "twice"]))
        if what == "twice":  # JSON allows it, and Python takes the last
            text = f'{{{json.dumps(key)}: "another", {json.dumps(row)[1:]}'
            with pytest.raises(UserError, match=f"the key '{key}' has two values"):
                read_answers(lines_of(tmp_path, text))
            return
        changed = {wrong if name == key else name: value for name, value in row.items()}
        if what == "unknown":
            changed = {**row, wrong: row[key]}
        error, answers = caught(lambda: read_answers(lines_of(tmp_path, json.dumps(changed))))
        by_chance = {"question_id": "1", "answer": "a", wrong: "x"}  # the name is another key of answers
        _, others = caught(lambda: read_answers(lines_of(tmp_path, json.dumps(by_chance))))
        is_named = answers and any(f"'{wrong}' (1 answers" in each for each in unread_keys(answers, ()))
        assert "line 1: expected" in error or is_named or (others and unread_keys(others, ()) == [])

    explore(check, examples)


def caught(read: Callable[[], list[Answer]]) -> tuple[str, list[Answer]]:
    """The message of a UserError, or what was read."""
    try:
        return "", read()
    except UserError as error:
        return str(error), []


def test_two_answers_in_a_line_contradict_each_other(tmp_path: Path) -> None:
    for names in (("prediction", "response"), ("response", "caption"), ("prediction", "caption")):
        row = {"question_id": "1", names[0]: "yes", names[1]: "no"}
        with pytest.raises(UserError, match=f"expected one answer, got '{names[0]}' and '{names[1]}'"):
            read_answers(lines_of(tmp_path, json.dumps(row)))
        assert len(read_answers(lines_of(tmp_path, json.dumps({**row, names[1]: "yes"})))) == 1
    labeled = {"question_id": "1", "prediction": "yes", "answer": "no"}  # the answer is the right one
    assert read_answers(lines_of(tmp_path, json.dumps(labeled)))[0].text == "yes"


@sizes
def test_keys_of_results(examples: int, tmp_path: Path) -> None:
    path = put_result(tmp_path, "m", "gqa", items_table(0.5, benchmark="gqa", count=12))
    whole = json.loads(path.read_text(encoding="utf-8"))

    def check(data: st.DataObject) -> None:
        content = json.loads(json.dumps(whole))
        inner = data.draw(st.booleans())
        part = content["metrics"]["exact_match"] if inner else content
        key, wrong = data.draw(misspelled([*part]))
        what = data.draw(st.sampled_from(["misspelled", "unknown", "twice"]))
        if what == "twice":
            text = json.dumps(content).replace(f'"{key}":', f'"{key}": "another", "{key}":', 1)
        else:
            part[wrong] = part[key] if what == "unknown" else part.pop(key)
            text = json.dumps(content)
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as raised:
            read_fields(path)
        assert str(path) in str(raised.value)
        assert any(name.strip() in str(raised.value) for name in (key, wrong))

    explore(check, examples)


@sizes
def test_columns_of_a_table_to_import(examples: int, tmp_path: Path) -> None:
    def check(data: st.DataObject) -> None:
        key, wrong = data.draw(misspelled([*ROW], also=" ".join(COLUMNS)))
        what = data.draw(st.sampled_from(["misspelled", "unknown", "twice"]))
        names, cells = [*ROW], [*ROW.values()]
        if what == "misspelled":
            names[names.index(key)] = wrong
        else:
            names.append(key if what == "twice" else wrong)
            cells.append(data.draw(st.sampled_from(["", "51"])))
        file = lines_of(tmp_path, f"{','.join(names)}\n{','.join(cells)}", "table.csv")
        with pytest.raises(UserError) as raised:
            read_item_tables([file])
        assert str(file) in str(raised.value)
        assert any(name.strip() in str(raised.value) for name in (key, wrong))

    explore(check, examples)
    assert len(read_item_tables([lines_of(tmp_path, f"{','.join(ROW)}\n{','.join(ROW.values())}", "table.csv")])) == 1
