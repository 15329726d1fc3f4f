"""Differences of two results in words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from report_material import edit, items_table, put_failure, put_result, put_results
from report_study import make_study

from benchmarks.analysis.diff_command import DiffConfig, run_diff
from benchmarks.report.load_results import read_source
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.protocol import ranked_together
from benchmarks.results.results import read_result
from clips.errors import UserError


def diff_text(capsys: pytest.CaptureFixture[str], first: object, second: object, benchmark: str | None = None) -> str:
    run_diff(DiffConfig(first=str(first), second=str(second), benchmark=benchmark))
    return capsys.readouterr().out


def test_rows_of_one_protocol_differ_in_the_model_alone(tmp_path, capsys):
    put_results(tmp_path)
    said = diff_text(capsys, tmp_path / "clip/gqa.json", tmp_path / "clips/gqa.json")
    assert "A: clip on gqa, exact match " in said
    assert "The model is the same (0123456789ab, once as encoders/clip, once as encoders/clips)." in said
    assert said.endswith("The evaluation settings are equal: they are ranked together.\n")


def test_other_evaluation_settings_prevent_a_comparison(tmp_path, capsys):
    put_results(tmp_path)
    other = {"prompt": "Say it.", "input_size": 224}
    put_result(tmp_path, "large", "gqa", items_table(0.6, benchmark="gqa"), protocol=other)
    edit(tmp_path / "large/gqa.json", model={"path": "x", "hash": "feed"})
    said = diff_text(capsys, tmp_path / "clip", tmp_path / "large", "gqa")
    assert "encoders/clip (0123456789ab) against x (feed)" in said
    assert "part of the model (A against B):\n  size: 64 against 224\n" in said
    assert '(A against B):\n  prompt: not stated against "Say it."\n' in said
    assert said.endswith("not ranked together: numbers of different protocols are shown, never compared.\n")
    put_result(tmp_path, "large", "gqa", items_table(0.6, benchmark="gqa"), protocol={"input_size": 224})
    assert "they are ranked together" in diff_text(capsys, tmp_path / "clip", tmp_path / "large", "gqa")
    put_failure(tmp_path, "large", "gqa", "no picture")
    said = diff_text(capsys, tmp_path / "clip", tmp_path / "large", "gqa")
    assert "B: large on gqa, failed: no picture" in said
    assert "They cannot be ranked" in said
    assert "ranked together" not in said


def test_the_name_of_a_split_does_not_matter_for_equal_data(tmp_path, capsys):
    put_results(tmp_path)
    for row, changes in (("old", {"split": "test"}), ("new", {"split": "taken whole"}), ("other", {"data_hash": "x"})):
        changes = {"split": "taken whole"} | changes
        put_result(tmp_path, row, "gqa", items_table(0.6, benchmark="gqa"), protocol=changes)
    said = diff_text(capsys, tmp_path / "old", tmp_path / "new", "gqa")
    assert 'split: "test" against "taken whole"\n' in said
    assert said.endswith("They are ranked together: the data are the same under different names of the split.\n")
    assert "not ranked together" in diff_text(capsys, tmp_path / "old", tmp_path / "other", "gqa")
    source = read_source(tmp_path)
    groups = source.protocol_groups(source.results("gqa"))
    assert groups["old"] == groups["new"] != groups["other"]
    nameless = [{"split": name, "scorer": "x"} for name in ("test", "taken whole")]
    assert not ranked_together(*nameless)  # nothing else says what the data are


def test_a_path_without_a_result_is_rejected(tmp_path):
    put_results(tmp_path)
    for first, benchmark, message in (
        (tmp_path / "clip", None, "expected --benchmark with one of gqa, pope, retrieval"),
        (tmp_path / "clip", "gqu", "unknown benchmark of .* 'gqu'; did you mean 'gqa'"),
        (tmp_path, "gqa", "first: .* has several models; expected the directory of one of clip, clips, untrained"),
    ):
        with pytest.raises(UserError, match=message):
            run_diff(DiffConfig(first=str(first), second=str(tmp_path / "clip"), benchmark=benchmark))


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


def test_a_result_of_an_older_study_is_out_of_date(studies: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    edit(studies[1] / "steps/evaluate-llava-clips-tiny-s0/step.json", key="of an older study")
    first, second = (next((study / "results").glob("*clips*/pope.json")) for study in studies)
    run_diff(DiffConfig(first=str(first), second=str(second)))
    said = capsys.readouterr().out
    assert "B is out of date: not run since the study or the version of its command changed." in said
    assert "A is out of date" not in said
