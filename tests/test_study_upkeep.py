"""``clips-bench study rerun | clean``, the programs behind the steps replaced by a small one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from study_material import SMALL
from test_study_commands import _fakes, states, write_study  # noqa: F401  (the fixture counts)

from benchmarks.analysis.study_with_report import rerun_study_with_report, run_study_with_report
from benchmarks.study import rerun_clean, study_commands
from benchmarks.study.locks import locked
from benchmarks.study.rerun_clean import CleanConfig, RerunConfig, run_clean
from benchmarks.study.step_state import read_record, write_record
from clips.errors import UserError


def ran(folder: Path, since: dict[Path, int]) -> set[str]:
    """The steps whose record is new."""
    return {path.parent.name for path, stamp in records(folder).items() if since.get(path) != stamp}


def records(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "out/steps").glob("*/step.json")}


@pytest.mark.parametrize("chosen", [{"steps": ("encoder-clips-*",)}, {"include": ("clips",)}])
def test_chosen_steps_run_again_with_what_depends_on_them_and_without_what_others_share(chosen, tmp_path, capsys):
    config = write_study(tmp_path)
    run_study_with_report(config)
    before = records(tmp_path)
    rerun_study_with_report(RerunConfig(study=config.study, check=False, **chosen))
    assert ran(tmp_path, before) == {
        "encoder-clips-s0",
        "evaluate-encoder-clips-s0",
        "llava-clips-tiny-s0",
        "evaluate-llava-clips-tiny-s0",
    }
    assert set(states(config).values()) == {"done"}
    assert "again encoder-clips-s0, " in capsys.readouterr().err


def test_rerun_wants_to_be_told_what():
    with pytest.raises(UserError, match=r"^steps: expected names of steps, or 'include'"):
        RerunConfig(study="study.yaml")


def test_what_models_gave_is_forgotten_with_their_evaluation(tmp_path):
    config = write_study(tmp_path)
    run_study_with_report(config)
    kept = tmp_path / "out/results/.cache/answers"
    kept.mkdir(parents=True)
    rerun_study_with_report(RerunConfig(study=config.study, steps=("data-*",), check=False))
    assert not kept.exists()


def test_a_step_that_the_study_has_not(tmp_path):
    config = write_study(tmp_path)
    with pytest.raises(UserError, match="unknown step in 'steps' 'encoder-clip-s1'; did you mean 'encoder-clip-s0'"):
        rerun_study_with_report(RerunConfig(study=config.study, steps=("encoder-clip-s1",), check=False))
    assert not (tmp_path / "out").exists()


def test_only_what_no_step_makes_is_removed(tmp_path, capsys):
    run_study_with_report(write_study(tmp_path))
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "out/results/.cache/vectors").mkdir(parents=True)
    for name in ("clip-s0", "clips-s0"):
        (tmp_path / f"out/encoders/{name}.stages/1").mkdir(parents=True)
    encoders = {name: value for name, value in SMALL["encoders"].items() if name != "clips"}
    config = write_study(tmp_path, encoders=encoders)
    everything = set((tmp_path / "out").rglob("*"))

    run_clean(CleanConfig(study=config.study))
    said = capsys.readouterr().out
    assert "would be removed" in said
    assert "encoders/clips-s0  " in said
    assert set((tmp_path / "out").rglob("*")) == everything

    run_clean(CleanConfig(study=config.study, force=True))
    left = set((tmp_path / "out").rglob("*"))
    gone = {path.relative_to(tmp_path / "out").as_posix() for path in everything - left}
    assert {"encoders/clips-s0", "encoders/clips-s0.stages", "llava/clips-tiny-s0", "steps/encoder-clips-s0"} <= gone
    assert all("clips" in path for path in gone)
    assert (tmp_path / "out/notes.txt").exists()
    assert (tmp_path / "out/results/.cache").exists()
    assert set(states(config).values()) == {"done"}
    capsys.readouterr()
    run_clean(CleanConfig(study=config.study, force=True))
    assert "nothing that the study does not make" in capsys.readouterr().out
    run_clean(CleanConfig(study=config.study, force=True, include_cache=True))
    assert not (tmp_path / "out/results/.cache").exists()


@pytest.mark.parametrize("change", [rerun_study_with_report, run_clean])
def test_nothing_is_changed_while_a_runner_works(change, tmp_path):
    config = write_study(tmp_path)
    run_study_with_report(config)
    before = records(tmp_path)
    (tmp_path / "out/encoders/left-over").mkdir()
    asked = {
        rerun_study_with_report: RerunConfig(study=config.study, steps=("*",), check=False),
        run_clean: CleanConfig(study=config.study, force=True),
    }
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another"):
        change(asked[change])
    assert records(tmp_path) == before
    assert (tmp_path / "out/encoders/left-over").is_dir()
    assert study_commands.resolve_study(config).plan.steps


def test_a_step_that_is_made_again_keeps_the_record_of_its_job(tmp_path):
    run_study_with_report(write_study(tmp_path))
    output = tmp_path / "out"
    record = read_record(output, "data-train")
    assert record is not None
    write_record(output, dataclasses.replace(record, job="7"))
    rerun_clean._forget(output, "data-train")
    left = read_record(output, "data-train")
    assert left is not None
    assert (left.key, left.outputs, left.job) == ("", {}, "7")


def test_a_runner_that_is_refused_changes_nothing(tmp_path):
    run_study_with_report(write_study(tmp_path))
    before = (tmp_path / "out/study.json").read_text(encoding="utf-8")
    other = write_study(tmp_path, title="Another", encoders={"clip": {}})
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another runner"):
        run_study_with_report(other)
    assert (tmp_path / "out/study.json").read_text(encoding="utf-8") == before
