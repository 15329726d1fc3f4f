"""Differences of two results in words."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from report_material import edit, items_table, put_failure, put_result, put_results
from report_study import make_study

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.analysis.find_results import find_result
from benchmarks.report.load_results import read_source
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.protocol import ranked_together
from benchmarks.results.results import read_result
from clips.errors import UserError


def compared(first: Path, second: Path) -> list[str]:
    return build_comparison(CompareConfig(first=str(first), second=str(second))).texts


def test_rows_of_one_protocol_differ_in_the_model_alone(tmp_path):
    put_results(tmp_path)
    report = build_comparison(
        CompareConfig(first=str(tmp_path / "clip/gqa.json"), second=str(tmp_path / "clips/gqa.json"))
    )
    assert [(column.benchmark, column.label) for column in report.table.columns] == [("gqa", "exact match")]
    assert (
        "clip and clips: the model is the same (0123456789ab, once as encoders/clip, once as encoders/clips)."
        in report.texts
    )
    assert "clip and clips: evaluated under the same settings, and ranked together, on gqa." in report.texts
    for second in ("clips", "clips/gqa.json"):  # a file is of one benchmark, also next to a directory
        sides = CompareConfig(first=str(tmp_path / "clip/gqa.json"), second=str(tmp_path / second))
        assert {column.benchmark for column in build_comparison(sides).table.columns} == {"gqa"}
    with pytest.raises(UserError, match=r"second: .*clips/pope\.json: expected a result on gqa, got pope"):
        compared(tmp_path / "clip/gqa.json", tmp_path / "clips/pope.json")


def test_other_evaluation_settings_prevent_a_comparison(tmp_path):
    put_results(tmp_path)
    other = {"prompt": "Say it.", "input_size": 224}
    files = tmp_path / "clip/gqa.json", tmp_path / "large/gqa.json"
    put_result(tmp_path, "large", "gqa", items_table(0.6, benchmark="gqa"), protocol=other)
    edit(files[1], model={"path": "x", "hash": "feed"})
    notes = "\n".join(compared(*files))
    assert "clip and large: the models differ: encoders/clip (0123456789ab) against x (feed)." in notes
    assert "Input settings differ between the models. size: 64 for A clip; 224 for B large." in notes
    (dagger,) = re.findall(r"A clip .* is not ranked with the rest of its column \((.*)\)", notes)
    assert dagger == 'its settings against theirs: prompt: not stated against "Say it."'
    assert "ranked together" not in notes
    put_result(tmp_path, "large", "gqa", items_table(0.6, benchmark="gqa"), protocol={"input_size": 224})
    assert "ranked together, on gqa" in "\n".join(compared(*files))
    put_failure(tmp_path, "large", "gqa", "no picture")
    with pytest.raises(UserError, match=r"second: .*large/gqa\.json: this evaluation failed: no picture"):
        compared(*files)


def test_the_name_of_a_split_does_not_matter_for_equal_data(tmp_path):
    put_results(tmp_path)
    for row, changes in (("old", {"split": "test"}), ("new", {"split": "taken whole"}), ("other", {"data_hash": "x"})):
        changes = {"split": "taken whole"} | changes
        put_result(tmp_path, row, "gqa", items_table(0.6, benchmark="gqa"), protocol=changes)
    same = 'old and new: evaluated with the same data (A against B: split: "test" against "taken whole"), and ranked '
    assert f"{same}together, on gqa." in compared(tmp_path / "old", tmp_path / "new")
    assert not any("ranked together" in note for note in compared(tmp_path / "old", tmp_path / "other"))
    source = read_source(tmp_path)
    groups = source.protocol_groups(source.results("gqa"))
    assert groups["old"] == groups["new"] != groups["other"]
    nameless = [{"split": name, "scorer": "x"} for name in ("test", "taken whole")]
    assert not ranked_together(*nameless)  # nothing else says what the data are


def test_a_path_without_a_result_is_rejected(tmp_path):
    put_results(tmp_path)
    for path, benchmark, message in (
        (tmp_path / "clip", None, "expected --benchmark with one of gqa, pope, retrieval"),
        (tmp_path / "clip", "gqu", "unknown benchmark of .* 'gqu'; did you mean 'gqa'"),
        (tmp_path, "gqa", "result: .* has several models; expected the directory of one of clip, clips, untrained"),
    ):
        with pytest.raises(UserError, match=message):
            find_result(str(path), benchmark, "result")


@pytest.mark.parametrize("change", ["names", "images", "missing"])
def test_seeds_with_different_items_have_no_mean(tmp_path, change):
    items = items_table(0.5, benchmark="gqa")
    put_result(tmp_path, "one", "gqa", items, digest="1" * 64)
    other = items_table(0.5, benchmark="gqa", seed=1)
    if change == "names":
        other["item"] = [f"other {name}" for name in other["item"]]
    elif change == "images":
        other["image"] = [f"other {name}" for name in other["image"]]
    put_result(tmp_path, "same", "gqa", items_table(0.5, benchmark="gqa", seed=1), digest="2" * 64)
    if change == "missing":
        other.loc[0, "hit"] = None
    put_result(tmp_path, "other", "gqa", other, digest="3" * 64)
    one, same, other = (read_result(tmp_path / name / "gqa.json") for name in ("one", "same", "other"))
    scores = ItemScores()
    assert scores.of_model([one, same], "exact_match").num_seeds == 2
    assert scores.of_model([one, other], "exact_match") is None
    assert scores.why_not([one, other], "exact_match") == "the seeds have scores for different items"


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A study and its copy."""
    first = make_study(tmp_path, monkeypatch)
    second = tmp_path / "later"
    shutil.copytree(first, second)
    return first, second


def test_a_result_of_an_older_study_is_out_of_date(studies: tuple[Path, Path]) -> None:
    edit(studies[1] / "steps/evaluate-llava-clips-tiny-s0/step.json", key="of an older study")
    first, second = (next((study / "results").glob("*clips*/pope.json")) for study in studies)
    (note,) = (note for note in compared(first, second) if "Out of date" in note)
    assert note.startswith("B: Out of date: ")
    assert note.endswith(" on pope: not run since the study or the version of its command changed.")
