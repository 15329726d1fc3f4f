"""Which code made a number: a hash of the scorer, next to its version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bench_world as world
import pandas as pd
import pytest
from bench_tasks import score
from report_material import items_table, put_result

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.report.report import build_report
from benchmarks.results.baselines import add_blind_columns
from benchmarks.results.contradictions import contradictions
from benchmarks.results.protocol import BLIND_PREFIX, SCORER_HASH, describe_differences, ranked_together, ranking_keys
from benchmarks.results.results import Result, read_items, read_result
from benchmarks.tasks.mllm import caption_metrics, evaluate_task, offline_tasks, scorer_code
from benchmarks.tasks.mllm.score_answers import ScoreConfig, run_score
from benchmarks.tasks.registry import configure, get_benchmark
from clips.errors import UserError

pytestmark = world.LMMS_EVAL_WARNS


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what lmms-eval has of three tasks, in its place."""
    installed, copy = offline_tasks.task_directory().parent, tmp_path / "lmms_eval"
    for folder in ("api", "filters", "llm_judge", "tasks/_task_utils", "tasks/pope", "tasks/textvqa", "tasks/nocaps"):
        shutil.copytree(installed / folder, copy / folder)
    defined = {name: copy / offline_tasks.definition_of(name).relative_to(installed) for name in TASKS}
    monkeypatch.setattr(scorer_code, "task_directory", lambda: copy / "tasks")
    monkeypatch.setattr(scorer_code, "definition_of", defined.__getitem__)
    return copy


TASKS = ("pope", "textvqa_val", "nocaps_val")


def hashes() -> dict[str, str]:
    scorer_code.scorer_hash.cache_clear()
    return {task: scorer_code.scorer_hash(task) for task in TASKS}


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new", "affected"),
    [
        ("tasks/pope/utils.py", "lower().strip()", 'lower().strip().rstrip(".")', {"pope"}),
        ("tasks/pope/pope.yaml", "single word or phrase", "single word", {"pope"}),
        ("tasks/pope/pope.yaml", "dataset_path:", "# a comment\ndataset_path:", set()),
        ("tasks/pope/pope_adv.yaml", "max_new_tokens: 128", "max_new_tokens: 12", set()),
        ("tasks/textvqa/_default_template_textvqa_yaml", "pre_prompt", "prompt", {"textvqa_val"}),
        ("tasks/_task_utils/vqa_eval_metric.py", "class ", "# other\nclass ", {"textvqa_val"}),
        ("tasks/nocaps/utils.py", "CIDEr", "CIDER", {"nocaps_val"}),
        ("filters/extraction.py", "class ", "# other\nclass ", set(TASKS)),
        ("api/metrics.py", "def mean", "def other():\n    pass\n\n\ndef mean", set(TASKS)),
    ],
)
def test_the_hash_changes_with_all_code_that_scores(
    file: str, old: str, new: str, affected: set[str], library: Path
) -> None:
    before = hashes()
    change(library / file, old, new)
    after = hashes()
    assert {task for task in TASKS if before[task] != after[task]} == affected


def test_captions_are_scored_by_pycocoevalcap_and_a_tokenizer(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes()
    caption_metrics.caption_scorer_hash.cache_clear()
    other = "without Java" if caption_metrics.is_java_available() else "with Java"
    monkeypatch.setattr(caption_metrics, "tokenizer_name", lambda: other)
    after = hashes()
    caption_metrics.caption_scorer_hash.cache_clear()
    assert {task for task in TASKS if before[task] != after[task]} == {"nocaps_val"}


def test_every_listed_task_has_a_hash() -> None:
    scorer_code.scorer_hash.cache_clear()
    found = {
        name: scorer_code.scorer_hash(name)
        for name in ("pope", "mme", "gqa", "mmmu_val", "nocaps_val", "mmbench_en_dev")
    }
    assert len(set(found.values())) == len(found)


def test_results_without_a_hash_are_ranked_with_those_of_one_scorer() -> None:
    old = {"task": "pope", "data_hash": "d", "scorer": "lmms-eval 0.7.3"}
    one, other = old | {SCORER_HASH: "1" * 64}, old | {SCORER_HASH: "2" * 64}
    assert ranked_together(old, old)
    assert ranked_together(old, one)
    assert not ranked_together(one, other)
    assert describe_differences(old, one) == []
    assert describe_differences(one, other) == [f'scorer hash: "{"1" * 12}…" against "{"2" * 12}…"']
    assert len({*ranking_keys([old, one, other])}) == 3  # it may be of either
    elsewhere = old | {"data_hash": "e", SCORER_HASH: "2" * 64}
    assert len({*ranking_keys([old, one, elsewhere])}) == 2


def test_a_result_has_the_hash_and_is_made_again_with_another_scorer(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = world.write_hub(tmp_path / "hub", 3)
    benchmark = configure(name="gqa", data=str(hub), max_new_tokens=4)

    def run() -> tuple[str, str]:
        found = world.measure(tmp_path / "r", benchmark, llava=places / "llava")
        return found.protocol[SCORER_HASH], (tmp_path / "r/row/gqa.json").read_text()

    first, again = run(), run()
    assert first == again
    assert first[0] == get_benchmark("gqa").scorer_hash()
    monkeypatch.setattr("benchmarks.tasks.mllm.lmms_task.scorer_hash", lambda *_: "0" * 64)
    assert run()[0] == "0" * 64


def put(results: Path, row: str, hits: int, answers: str = "yes", **protocol: str) -> Path:
    """A result with given answers; the scorer counts ``hits`` of them."""
    items = items_table(0.5, benchmark="gqa", count=20).assign(prediction=answers)
    items["hit"] = items["score"] = [float(number < hits) for number in range(20)]
    return put_result(results, row, "gqa", items, protocol={"scorer": "lmms-eval 0.7.3", **protocol})


def test_other_numbers_for_the_same_answers_are_a_contradiction(tmp_path: Path) -> None:
    said = "contradict each other on gqa: the same answers have other numbers under the same protocol (exact match "
    for name, protocol in (("old", {}), ("new", {SCORER_HASH: "1" * 64})):
        folder = tmp_path / name
        one, other = (read_result(put(folder, row, hits, **protocol)) for row, hits in (("a", 9), ("b", 14)))
        (sentence,) = contradictions({"A": one, "B": other})
        assert sentence == f"A and B {said}45.0 and 70.0), so they were not scored by the same code."
        (note,) = (note for note in build_report(folder).texts if "contradict" in note)
        assert note.startswith(f"a and b {said}45.0 and 70.0)")
        version_only = [note for note in build_report(folder).texts if "version is known" in note]
        assert len(version_only) == (name == "old")
    for settings in ({"answers": "no"}, {SCORER_HASH: "2" * 64}):  # other answers, another protocol
        one = read_result(put(tmp_path / "c", "a", 9, **{SCORER_HASH: "1" * 64}))
        other = read_result(put(tmp_path / "c", "b", 14, **{SCORER_HASH: "1" * 64, **settings}))
        assert not [*contradictions({"A": one, "B": other})]
        assert not any("contradict" in note for note in build_report(tmp_path / "c").texts)


def test_two_scorers_of_one_version_are_two_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers to POPE, scored twice: the second scorer drops a final full stop."""
    hub = world.write_hub(tmp_path / "hub", 4)
    rows = [{"doc_id": number, "answer": ("yes", "No.")[number % 2]} for number in range(8)]
    first = score(hub, tmp_path / "stock", "pope", rows)
    load = evaluate_task.load_task

    def patched(*arguments: object, **settings: object) -> object:
        task = load(*arguments, **settings)
        process = task.process_results
        task.process_results = lambda doc, results, **more: process(doc, [results[0].rstrip(".")], **more)
        return task

    monkeypatch.setattr(evaluate_task, "load_task", patched)
    monkeypatch.setattr("benchmarks.tasks.mllm.lmms_task.scorer_hash", lambda *_: "0" * 64)
    second = score(hub, tmp_path / "patched", "pope", rows)
    assert (first.metrics["pope_accuracy"].value, second.metrics["pope_accuracy"].value) == (0.5, 1.0)
    assert first.fingerprint != second.fingerprint
    report = build_comparison(CompareConfig(first=str(tmp_path / "stock/r"), second=str(tmp_path / "patched/r")))
    assert not report.table.tested
    assert any("the model is the same" in note for note in report.texts)
    assert not any("ranked together" in note for note in report.texts)
    assert any("was measured under different settings" in note and "scorer hash" in note for note in report.texts)


def test_stored_answers_are_scored_again_and_what_moved_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    """First by the same scorer, then by one that drops a final full stop."""
    hub = world.write_hub(tmp_path / "hub", 4)
    first = score(
        hub, tmp_path, "pope", [{"doc_id": number, "answer": ("yes", "No.")[number % 2]} for number in range(8)]
    )
    stored = (tmp_path / "r" / "them" / "pope.json").read_bytes()

    def again(name: str) -> Result:
        run_score(ScoreConfig(results=str(tmp_path / "r"), data=str(hub), output=str(tmp_path / name)))
        return read_result(tmp_path / name / "them" / "pope.json")

    def moved(name: str) -> list[str]:
        sides = CompareConfig(first=str(tmp_path / "r"), second=str(tmp_path / name))
        return [note for note in build_comparison(sides).texts if note.startswith("them on pope: ")]

    same = again("same")
    assert (same.metrics, same.protocol, same.model) == (first.metrics, first.protocol, first.model)
    pd.testing.assert_frame_equal(read_items(same), read_items(first))
    assert "accuracy 50.0, F1 100.0; before: accuracy 50.0, F1 100.0" in capsys.readouterr().err
    assert moved("same") == [
        "them on pope: of 8 items 0 have another answer, 0 another score; B − A in points: accuracy ±0.00, F1 ±0.00."
    ]
    path = tmp_path / "same" / "them" / "pope.json"
    items = pd.read_parquet(path.with_name("pope.items.parquet"))
    changed = items.assign(prediction=["yes.", *items["prediction"][1:]])
    changed.to_parquet(path.with_name("pope.items.parquet"), index=False)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"items_hash": ""}))
    although = "although the model and its settings are the same; B"
    assert f"of 8 items 1 have another answer, 0 another score, {although}" in moved("same")[0]
    load = evaluate_task.load_task

    def patched(*arguments: object, **settings: object) -> object:
        task = load(*arguments, **settings)
        process = task.process_results
        task.process_results = lambda doc, results, **more: process(doc, [results[0].rstrip(".")], **more)
        return task

    monkeypatch.setattr(evaluate_task, "load_task", patched)
    monkeypatch.setattr("benchmarks.tasks.mllm.lmms_task.scorer_hash", lambda *_: "0" * 64)
    assert again("patched").metrics["pope_accuracy"].value == 1.0
    count, *items = moved("patched")
    assert count.startswith(
        "them on pope: of 8 items 0 have another answer, 4 another score; B − A in points: accuracy +50"
    )
    assert items == [f"them on pope: item {number}: A 'No.' (0), B 'No.' (1)." for number in (1, 3, 5)]
    assert (tmp_path / "r" / "them" / "pope.json").read_bytes() == stored


def test_captions_are_scored_again_by_another_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose tokens are letters."""
    hub = world.write_hub(tmp_path / "hub", 4)
    rows = [{"doc_id": number, "answer": "a picture of a square, which is red"} for number in range(4)]
    first = score(hub, tmp_path, "nocaps_val", rows, exclude_metrics=("nocaps_METEOR",))  # which takes 10 s
    caption_metrics.caption_scorer_hash.cache_clear()
    monkeypatch.setattr(caption_metrics, "ptb_tokenize", lambda lines: [" ".join(line.lower()) for line in lines])
    for module in (caption_metrics, evaluate_task):
        monkeypatch.setattr(module, "tokenizer_name", lambda: "letters")
    run_score(ScoreConfig(results=str(tmp_path / "r"), data=str(hub), output=str(tmp_path / "again")))
    caption_metrics.caption_scorer_hash.cache_clear()
    again = read_result(tmp_path / "again" / "them" / "nocaps_val.json")
    assert again.protocol["caption_tokenizer"] == "letters"
    assert not ranked_together(first.protocol, again.protocol)
    assert again.missing_metrics == first.missing_metrics
    assert read_items(again)["length"].tolist() != read_items(first)["length"].tolist()
    assert read_items(again)["prediction"].tolist() == read_items(first)["prediction"].tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": "a.jsonl"}, "answers: expected none with 'results', which have it"),
        ({"results": None}, "task: expected a value, or 'results', whose answers are scored again"),
        ({"output": "r"}, "expected another directory than that of the results"),
        ({"data": "other"}, "expected the data of them on pope"),
        ({"task": "gqa"}, "expected results of LLaVAs with items, found none"),
        ({"results": "nowhere"}, "expected results of LLaVAs with items, found none"),
    ],
)
def test_what_cannot_be_scored_again_is_named(fields, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = world.write_hub(tmp_path / "hub", 4)
    world.write_hub(tmp_path / "other", 5)
    score(hub, tmp_path, "pope", [{"doc_id": number, "answer": "yes"} for number in range(8)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_score(ScoreConfig(**({"results": "r", "data": "hub", "output": "again"} | fields)))
    assert not (tmp_path / "again").exists()


def test_blind_runs_of_other_parts_are_no_contradiction(tmp_path: Path) -> None:
    """Their baselines have other values; the protocol of the score is the same."""
    for row, size in (("a", 4), ("b", 16)):
        items = items_table(0.5, benchmark="gqa", count=20).assign(prediction="yes")
        hit = items["hit"].to_numpy()[:size]
        add_blind_columns(items, range(size), {"sighted": {"hit": hit}, "blank": {"hit": 0 * hit + (row == "a")}})
        put_result(tmp_path, row, "gqa", items, protocol={SCORER_HASH: "1" * 64, f"{BLIND_PREFIX}items": size / 20})
    one, other = (read_result(tmp_path / row / "gqa.json") for row in ("a", "b"))
    assert one.metrics["exact_match_blank"].value != other.metrics["exact_match_blank"].value
    assert not [*contradictions({"A": one, "B": other})]
