"""A number that was measured on a part of its benchmark says so wherever it is shown."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from bench_reader import evaluate
from bench_world import write_images, write_lines
from fuzz_world import run
from report_material import items_table, put_result, rendered

from benchmarks.report.report import build_report
from benchmarks.results.protocol import ranked_together
from benchmarks.results.results import Result, read_result
from benchmarks.tasks.data.classification_sets import load_classification_set
from benchmarks.tasks.data.pair_sets import load_pair_set
from benchmarks.tasks.listing import full_size, item_count_text, subset_text
from benchmarks.tasks.registry import configure

TASK = "lmms-eval's pope"


def result(folder: Path, benchmark: str, row: str = "clip", count: int = 120, **protocol: str | int) -> Result:
    items = items_table(0.5, benchmark=benchmark, count=count)
    return read_result(put_result(folder, row, benchmark, items, protocol=protocol))


@pytest.mark.parametrize(
    ("benchmark", "protocol", "part", "n"),
    [
        ("pope", {"task": TASK, "questions": 120}, "120 of 9,000 questions", "120 of 9,000"),
        ("pope", {"task": TASK, "questions": 9000}, "", "120"),
        ("pope", {"task": TASK, "questions": 300}, "300 of 9,000 questions", "120 (300 of 9,000 questions)"),
        ("gqa", {"task": "lmms-eval's mine", "questions": 120}, "", "120"),
        ("gqa", {"task": TASK, "questions": 120}, "", "120"),  # other data by POPE's prompt and scorer
        ("gqa", {"task": "lmms-eval's mine", "questions": 120, "full_size": 500}, "120 of 500 questions", "120 of 500"),
        ("gqa", {"format": "winoground", "cases": 120}, "120 of 400 cases", "120 of 400"),
        ("retrieval", {"task": "retrieval", "images": 30}, "", "120"),
        ("retrieval", {"images": 30, "full_size": 1000}, "30 of 1,000 images", "120 (30 of 1,000 images)"),
    ],
)
def test_the_words(tmp_path: Path, benchmark: str, protocol: dict[str, str | int], part: str, n: str) -> None:
    found = result(tmp_path, benchmark, **protocol)
    assert subset_text(found) == part
    assert item_count_text(found, next(iter(found.metrics.values()))) == n


@pytest.mark.parametrize(
    ("name", "full"),
    [("flickr30k", 1000), ("Flickr30k", 1000), ("urban1k", 1000), ("coco", 5000), ("imagenet", 50000),
     ("imagenet_v2", 10000), ("mine", None)],
)  # fmt: skip
def test_a_published_set_is_known_by_the_name_of_its_column(tmp_path: Path, name: str, full: int | None) -> None:
    found = result(tmp_path, "retrieval", images=30)
    path = tmp_path / "clip/retrieval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"benchmark": name}))
    assert full_size(read_result(path)) == full
    assert found.fingerprint == read_result(path).fingerprint


def test_every_format_says_n_and_of_how_many(tmp_path: Path) -> None:
    """Before: no word of either."""
    for row in ("clip", "clips"):
        result(tmp_path, "pope", row, task=TASK, questions=120)
        result(tmp_path, "gqa", row)
    built = build_report(tmp_path)
    for name in ("html", "markdown", "latex"):
        text = rendered(built, name)
        assert "120 of 9,000" in text, name
        assert "Measured on a part of the benchmark: pope: 120 of 9,000 questions." in text, name
    latex = rendered(built, "latex")
    assert "n & 120 & 120/9,000" in latex
    assert latex.index(r"\end{tabular}") < latex.index("Measured on a part") < latex.index(r"\end{table*}")
    result(tmp_path, "pope", "other", task=TASK, questions=9000)  # of all of it
    assert any(
        note.endswith(": pope: 120 of 9,000 questions (clip and clips).") for note in build_report(tmp_path).texts
    )
    assert "| n | 120 | 120 of 9,000 |" in re.sub(" +", " ", rendered(built, "markdown"))
    lines = pd.read_csv(io.StringIO(rendered(built, "csv"))).fillna({"n_full": 0})
    assert {*zip(lines["benchmark"], lines["n"], lines["n_full"], strict=True)} == {
        ("pope", 120, 9000),
        ("gqa", 120, 0),
    }
    ended = run("clips-bench", ["report", str(tmp_path), "--formats=csv"])
    assert "120 of 9,000" in ended.out
    ended = run("clips-bench", ["compare", str(tmp_path / "clip"), str(tmp_path / "clips")])
    assert "Measured on a part of the benchmark: pope: 120 of 9,000 questions." in " ".join(ended.out.split())


def test_limit_is_stated_with_the_size_of_the_data(tmp_path: Path, monkeypatch, capsys) -> None:
    """Before: of 4 images of 6 nothing was said, here, in the result or in the report."""
    write_images(tmp_path / "images", 6)
    rows = [{"image": f"images/{n}.png", "captions": [f"thing{n}", f"a thing{n}"]} for n in range(6)]
    data = str(write_lines(tmp_path / "captions.jsonl", rows))
    kinds: dict[str, Result] = {}
    for limit in (None, 4):
        benchmark = configure(name=f"mine{limit}", task="retrieval", data=data, limit=limit)
        kinds[str(limit)] = evaluate(monkeypatch, tmp_path, benchmark, pictures=6)
    assert "full_size" not in kinds["None"].protocol
    assert kinds["4"].protocol["full_size"] == 6
    assert item_count_text(kinds["4"], kinds["4"].metrics["t2i_r1"]) == "8 (4 of 6 images)"
    assert item_count_text(kinds["4"], kinds["4"].metrics["i2t_r1"]) == "4 of 6"
    said = capsys.readouterr().err
    assert "T→I R@1 100.0, I→T R@1 100.0, mean R@1 100.0 (4 of 6 images)" in said
    assert said.count(" images)") == 1
    older = {name: value for name, value in kinds["4"].protocol.items() if name != "full_size"}
    assert ranked_together(kinds["4"].protocol, older)


def test_every_kind_of_data_knows_its_full_size(tmp_path: Path) -> None:
    for number, name in enumerate(("red", "blue")):
        write_images(tmp_path / "classes" / name, 3 + number)
    assert load_classification_set(str(tmp_path / "classes"), limit=2).available == 7
    pairs = [{"image": f"{n}.png", "caption": "a", "negative": "b"} for n in range(5)]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    found = load_pair_set(str(tmp_path / "pairs.jsonl"), "jsonl", limit=2)
    assert (len(found.cases), found.available) == (2, 5)


def test_a_limit_of_questions_is_stated(places: Path, tmp_path: Path) -> None:
    from benchmarks.tasks.mllm.score_answers import ScoreConfig, run_score

    answers = write_lines(tmp_path / "answers.jsonl", [{"doc_id": number, "answer": "red"} for number in range(4)])
    paths = {"answers": str(answers), "data": str(places / "hub"), "output": str(tmp_path / "r")}
    run_score(ScoreConfig(task="textvqa_val", model_name="them", partial=True, **paths))
    found = read_result(tmp_path / "r/them/textvqa_val.json")
    assert (found.protocol["questions"], found.protocol["full_size"]) == (4, 6)
    assert subset_text(found) == "4 of 5,000 questions"
