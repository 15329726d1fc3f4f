"""A study's trash, the limit on what it makes again, and ``study accept``; the programs replaced by a small one."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from study_material import SMALL
from test_study_commands import _fakes, states, write_study  # noqa: F401  (the fixture counts)

from benchmarks.analysis.provenance import ProvenanceConfig, run_provenance
from benchmarks.analysis.study_with_report import rerun_study_with_report, run_study_with_report
from benchmarks.study import trash
from benchmarks.study.locks import acquire, locked
from benchmarks.study.rerun_clean import AcceptConfig, CleanConfig, RerunConfig, accept_outputs, run_clean
from benchmarks.study.step_state import read_record, write_record
from benchmarks.study.study_commands import StudyConfig, StudyPlanConfig, plan_study
from clips.errors import UserError

OTHER = {**SMALL["encoders"], "clips": {"optimizer": {"lr": 4}}}


def trashed(folder: Path) -> set[str]:
    """The files in the trash, without the directories that say when they came there."""
    trash = folder / "out/trash"
    return {path.relative_to(trash / path.relative_to(trash).parts[0]).as_posix() for path in trash.rglob("*.*")}


def test_outputs_of_another_key_are_in_the_trash_with_what_tells_how_they_were_made(tmp_path):
    run_study_with_report(write_study(tmp_path))
    (tmp_path / "out/encoders/clips-s0/weights.safetensors").write_text("forty hours")
    config = write_study(tmp_path, encoders=OTHER)
    run_study_with_report(config)
    assert set(states(config).values()) == {"done"}
    assert {
        "encoders/clips-s0/weights.safetensors",
        "llava/clips-tiny-s0/made.txt",
        "results/clips-tiny-s0/pope.json",
        "steps/encoder-clips-s0/step.json",
        "steps/encoder-clips-s0/config.yaml",
    } <= trashed(tmp_path)
    assert not [path for path in trashed(tmp_path) if "clip-" in path]
    [weights] = (tmp_path / "out/trash").rglob("weights.safetensors")
    assert weights.read_text() == "forty hours"
    assert weights.parts[-4].endswith("Z-encoder-clips-s0")


def test_a_change_can_be_undone_with_what_is_in_the_trash(tmp_path):
    config = write_study(tmp_path)
    run_study_with_report(config)
    visits = tmp_path / "out/encoders/clips-s0/visits.txt"
    visits.write_text("the first\n")
    run_study_with_report(write_study(tmp_path, encoders=OTHER))
    for made in (tmp_path / "out/trash").glob("*/*/*"):
        place = tmp_path / "out" / Path(*made.parts[-2:])
        shutil.rmtree(place)
        made.rename(place)
    write_study(tmp_path)
    assert set(states(config).values()) == {"done"}
    assert visits.read_text() == "the first\n"


def spend(folder: Path, name: str, seconds: float) -> None:
    """Have a step's last run taken so long."""
    record = read_record(folder / "out", name)
    assert record is not None
    write_record(folder / "out", dataclasses.replace(record, seconds=seconds))


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.name != ".lock"}


def test_what_took_long_is_not_made_again_without_yes(tmp_path):
    run_study_with_report(write_study(tmp_path))
    spend(tmp_path, "encoder-clips-s0", 12 * 3600)
    spend(tmp_path, "llava-clips-tiny-s0", 3599)
    before = everything(tmp_path)
    config = write_study(tmp_path, encoders=OTHER)
    expected = (
        "would make again what took more than 1 h 00 min: encoder-clips-s0 (took 12 h 00 min; changed: config); "
        f"--yes does it (into the trash first), `clips-bench study accept {config.study} [STEP ...]` keeps the outputs "
        "as they are"
    )
    with pytest.raises(UserError) as refused:
        run_study_with_report(config)
    assert str(refused.value) == expected
    assert everything(tmp_path) == before
    with pytest.raises(UserError, match=r"than 30 min 00 s: encoder-clips-s0 .*, llava-clips-tiny-s0 .*parents\);"):
        run_study_with_report(dataclasses.replace(config, confirm_hours=0.5))
    with pytest.raises(UserError, match="than 12 min 00 s: encoder-clips-s0 "):
        run_study_with_report(write_study(tmp_path, encoders=OTHER, confirm_hours=0.2))
    with pytest.raises(UserError, match="encoder-clips-s0"):
        rerun_study_with_report(RerunConfig(study=config.study, steps=("data-train",), check=False))
    assert everything(tmp_path) == before
    run_study_with_report(dataclasses.replace(write_study(tmp_path, encoders=OTHER), yes=True))
    assert set(states(config).values()) == {"done"}
    assert "encoders/clips-s0/made.txt" in trashed(tmp_path)


def test_a_limit_of_the_study_may_be_higher_and_is_checked(tmp_path):
    run_study_with_report(write_study(tmp_path))
    spend(tmp_path, "encoder-clips-s0", 2 * 3600)
    run_study_with_report(write_study(tmp_path, encoders=OTHER, confirm_hours=3))
    with pytest.raises(UserError, match="confirm_hours: expected a number, got '"):
        run_study_with_report(write_study(tmp_path, confirm_hours="long"))
    for wrong in (-1, float("nan")):
        with pytest.raises(UserError, match="confirm_hours: expected a number from 0 on, got"):
            run_study_with_report(write_study(tmp_path, confirm_hours=wrong))
        with pytest.raises(UserError, match="confirm_hours: expected a number from 0 on, got"):
            StudyConfig(study="study.yaml", confirm_hours=wrong)


def test_what_goes_on_and_what_is_new_needs_no_yes(tmp_path):
    run_study_with_report(write_study(tmp_path))
    record = read_record(tmp_path / "out", "encoder-clips-s0")
    write_record(tmp_path / "out", dataclasses.replace(record, status="interrupted", seconds=1e6))
    spend(tmp_path, "evaluate-llava-clips-tiny-s0", 1e6)
    more = {**SMALL["benchmarks"], "gqa": None}
    run_study_with_report(
        write_study(tmp_path, benchmarks=more, encoders={**SMALL["encoders"], "late": {"recipe": "clip"}})
    )
    assert read_record(tmp_path / "out", "encoder-clips-s0").seconds > 1e6
    assert not (tmp_path / "out/trash").exists()


def test_a_column_costs_what_its_results_took_and_not_what_the_last_run_of_its_step_took(tmp_path):
    config = write_study(tmp_path)
    run_study_with_report(config)
    result = tmp_path / "out/results/clips-tiny-s0/pope.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"seconds": 7200.0}))
    write_study(tmp_path, benchmarks={**SMALL["benchmarks"], "pope": {"limit": 9}})
    with pytest.raises(UserError, match=r": evaluate-llava-clips-tiny-s0 \(took 2 h 00 min; changed: config\); --yes"):
        run_study_with_report(config)


def test_costly_outputs_that_are_missing_are_not_made_again_unasked(tmp_path):
    config = write_study(tmp_path)
    run_study_with_report(config)
    spend(tmp_path, "encoder-clip-s0", 7200)
    (tmp_path / "out/encoders/clip-s0").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"encoder-clip-s0 \(took 2 h 00 min; outputs missing\); --yes does it") as told:
        run_study_with_report(config)
    assert "accept" not in str(told.value)
    run_study_with_report(dataclasses.replace(config, yes=True))
    assert set(states(config).values()) == {"done"}


def test_outputs_without_a_record_are_not_lost_either(tmp_path):
    config = write_study(tmp_path)
    run_study_with_report(config)
    weights = tmp_path / "out/encoders/clip-s0"
    (weights / "manifest.json").write_text('{"seconds": 90000.0}')
    (tmp_path / "out/steps/encoder-clip-s0/step.json").write_text("{")
    with pytest.raises(UserError, match=r"encoder-clip-s0 \(took 25 h 00 min; no record of its run\)"):
        run_study_with_report(config)
    accept_outputs(AcceptConfig(study=config.study, steps=("encoder-clip-s0",)))
    assert set(states(config).values()) == {"done"}
    record = read_record(tmp_path / "out", "encoder-clip-s0")
    assert (record.seconds, record.output_paths) == (90000.0, ("encoders/clip-s0",))
    assert record.accepted[0]["changed"] == ["not recorded"]


def test_plan_says_what_would_be_made_again_and_what_would_go_to_the_trash(tmp_path, capsys):
    run_study_with_report(write_study(tmp_path))
    spend(tmp_path, "encoder-clips-s0", 7200)
    (tmp_path / "out/encoders/clips-s0/weights").write_bytes(b"0" * 5_000_000)
    config = write_study(tmp_path, encoders=OTHER)
    capsys.readouterr()
    plan_study(StudyPlanConfig(study=config.study, estimates=False, check=False))
    said = capsys.readouterr().out
    assert "made again (changed: config; took 2 h 00 min); to the trash: encoders/clips-s0 (5.0 MB)\n" in said
    assert "to the trash: results/clips-tiny-s0/pope.json (0.0 MB)\n" in said
    assert "4 made again, 5.0 MB to the trash; --yes is needed, since 1 took more than 1 h 00 min\n" in said
    assert not (tmp_path / "out/trash").exists()


def test_accepted_outputs_stay_and_say_what_differs(tmp_path, capsys):
    run_study_with_report(write_study(tmp_path))
    spend(tmp_path, "encoder-clips-s0", 7200)
    config = write_study(tmp_path, encoders=OTHER)
    capsys.readouterr()
    accept_outputs(AcceptConfig(study=config.study, steps=("encoder-clips-*",)))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "encoder-clips-s0",
        "evaluate-encoder-clips-s0",
        "llava-clips-tiny-s0",
        "evaluate-llava-clips-tiny-s0",
    ]
    assert said[0].endswith("; differs from what it was made with: optimizer.lr 3 → 4")
    assert said[1].endswith("; differs from what it was made with: parents")
    assert set(states(config).values()) == {"done"}
    before = everything(tmp_path)
    run_study_with_report(config)
    assert not [path for path in before if "report" not in path.parts and path.stat().st_mtime_ns != before[path]]
    page = (tmp_path / "out/report/index.html").read_text(encoding="utf-8")
    assert "encoder-clips-s0 was accepted " in page
    run_provenance(ProvenanceConfig(result=str(tmp_path / "out/results/clips-s0/retrieval.json"), check=False))
    assert "step evaluate-encoder-clips-s0 accepted 20" in capsys.readouterr().out

    again = {**SMALL["encoders"], "clips": {"optimizer": {"lr": 5}}}
    accept_outputs(AcceptConfig(study=write_study(tmp_path, encoders=again).study))
    settings = [entry["settings"] for entry in read_record(tmp_path / "out", "encoder-clips-s0").accepted]
    assert settings == [{"optimizer.lr": [3, 4]}, {"optimizer.lr": [3, 5]}]  # against what it was made with, both times
    run_study_with_report(dataclasses.replace(write_study(tmp_path, encoders=OTHER), yes=True))
    assert read_record(tmp_path / "out", "encoder-clips-s0").accepted == ()  # it was made again
    assert "was accepted" not in (tmp_path / "out/report/index.html").read_text(encoding="utf-8")


def test_accepted_results_are_not_replaced_when_a_column_is_added(tmp_path):
    run_study_with_report(write_study(tmp_path))
    changed = {**SMALL["benchmarks"], "pope": {"limit": 9}}
    config = write_study(tmp_path, benchmarks=changed)
    accept_outputs(AcceptConfig(study=config.study))
    spend(tmp_path, "evaluate-llava-net-tiny-s0", 7200)
    config = write_study(tmp_path, benchmarks={**changed, "gqa": None})
    with pytest.raises(UserError, match="again what took more than 1 h 00 min: evaluate-llava-net-tiny-s0"):
        run_study_with_report(config)
    run_study_with_report(dataclasses.replace(config, yes=True))
    assert "results/net-tiny-s0/pope.json" in trashed(tmp_path)


def test_what_cannot_be_accepted_is_told_and_nothing_is_accepted(tmp_path, capsys):
    config = write_study(tmp_path)
    with pytest.raises(UserError, match="out: no study was run here"):
        accept_outputs(AcceptConfig(study=config.study))
    run_study_with_report(config)
    capsys.readouterr()
    accept_outputs(AcceptConfig(study=config.study))
    assert capsys.readouterr().out == f"{tmp_path}/out: nothing has changed since it was made\n"

    config = write_study(tmp_path, encoders=OTHER)
    before = everything(tmp_path)
    with pytest.raises(UserError, match="llava-clips-tiny-s0: cannot be accepted: it depends on encoder-clips-s0, wh"):
        accept_outputs(AcceptConfig(study=config.study, steps=("llava-clips-tiny-s0",)))
    with pytest.raises(UserError, match="unknown step in 'steps' 'encoder-klips-s0'; did you mean 'encoder-clips-s0'"):
        accept_outputs(AcceptConfig(study=config.study, steps=("encoder-klips-s0",)))
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another runner"):
        accept_outputs(AcceptConfig(study=config.study))
    assert everything(tmp_path) == before

    shutil.rmtree(tmp_path / "out/encoders/clips-s0")
    with pytest.raises(UserError, match=r"encoder-clips-s0: cannot be accepted: .*clips-s0: not written"):
        accept_outputs(AcceptConfig(study=config.study, steps=("encoder-clips-s0",)))
    capsys.readouterr()
    accept_outputs(AcceptConfig(study=config.study))
    said = capsys.readouterr().out
    assert "not encoder-clips-s0: " in said
    assert "not llava-clips-tiny-s0: it depends on encoder-clips-s0, which would be made again" in said


def test_an_interrupted_training_that_is_accepted_goes_on_with_the_work_that_it_left(tmp_path):
    run_study_with_report(write_study(tmp_path))
    output = tmp_path / "out"
    record = read_record(output, "encoder-clips-s0")
    write_record(output, dataclasses.replace(record, status="interrupted", seconds=9e4))
    config = write_study(tmp_path, encoders=OTHER)
    with pytest.raises(UserError, match=r"encoder-clips-s0 \(took 25 h 00 min; changed: config\)"):
        run_study_with_report(config)
    write_record(output, dataclasses.replace(record, status="running", seconds=9e4, job="7"))
    lock = acquire(output / "steps/encoder-clips-s0/.lock")
    with pytest.raises(UserError, match="encoder-clips-s0: cannot be accepted: a job is at work on it"):
        accept_outputs(AcceptConfig(study=config.study, steps=("encoder-clips-s0",)))
    os.close(lock)
    write_record(output, dataclasses.replace(record, status="interrupted", seconds=9e4))
    accept_outputs(AcceptConfig(study=config.study, steps=("encoder-clips-s0",)))
    run_study_with_report(config)
    assert (output / "encoders/clips-s0/visits.txt").read_text() == "visit\nvisit\n"
    record = read_record(output, "encoder-clips-s0")
    assert record.seconds > 9e4
    assert [entry["settings"] for entry in record.accepted] == [{"optimizer.lr": [3, 4]}]


def test_rerun_moves_to_the_trash_what_it_makes_again_and_what_models_gave(tmp_path):
    config = write_study(tmp_path)
    run_study_with_report(config)
    (tmp_path / "out/results/.cache/answers").mkdir(parents=True)
    (tmp_path / "out/results/.cache/answers/0.jsonl").write_text("hours")
    spend(tmp_path, "evaluate-llava-clip-tiny-s0", 7200)
    asked = RerunConfig(study=config.study, steps=("evaluate-llava-*",), check=False)
    with pytest.raises(UserError, match=r"evaluate-llava-clip-tiny-s0 \(took 2 h 00 min; rerun\)"):
        rerun_study_with_report(asked)
    assert (tmp_path / "out/results/.cache/answers/0.jsonl").is_file()
    rerun_study_with_report(dataclasses.replace(asked, yes=True))
    assert {"results/.cache/answers/0.jsonl", "results/clip-tiny-s0/pope.json"} <= trashed(tmp_path)
    assert set(states(config).values()) == {"done"}


def test_clean_empties_the_trash(tmp_path, capsys):
    run_study_with_report(write_study(tmp_path))
    (tmp_path / "out/encoders/clips-s0/weights").write_bytes(b"0" * 3_000_000)
    config = write_study(tmp_path, encoders=OTHER)
    run_study_with_report(config)
    said = capsys.readouterr().err
    assert f"; {tmp_path}/out/trash holds 3.0 MB, which `clips-bench study clean` removes\n" in said
    run_clean(CleanConfig(study=config.study))
    said = capsys.readouterr().out
    assert re.search(r"^trash/\d{8}T\d{6}Z-encoder-clips-s0  3\.0 MB$", said, re.MULTILINE)
    assert trashed(tmp_path)
    run_clean(CleanConfig(study=config.study, force=True))
    assert not trashed(tmp_path)
    assert set(states(config).values()) == {"done"}


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import study_engine as e
from benchmarks.analysis.study_with_report import run_study_with_report
from benchmarks.study import engine, job, study_commands, trash
engine.resolve_executable = job.resolve_executable = e.fake_program
engine.run_engine = e.in_process
study_commands.check_command, study_commands.command_version = (lambda words: None), (lambda words: 1)
calls = []
def die(*_args, **_options):
    calls.append(1)
    if len(calls) == {after}:
        os.kill(os.getpid(), 9)
    return was(*_args, **_options)
was, {place} = {place}, die
run_study_with_report(study_commands.StudyConfig(study={study!r}, check=False, yes=True))
"""


@pytest.mark.parametrize(
    ("place", "after"),
    [
        ("trash._rename", 1),  # the directory in the trash is made, nothing is in it
        ("trash._rename", 2),  # one output of two is in the trash
        ("job.to_yaml", 1),  # all of them are, and nothing says so
        ("job.write_record", 1),
    ],
)
def test_a_kill_between_the_trash_and_the_start_is_harmless(tmp_path, place, after):
    run_study_with_report(write_study(tmp_path))
    output = tmp_path / "out"
    (output / "encoders/.clips-s0.work").mkdir()
    for name in ("encoders/clips-s0/weights.bin", "encoders/.clips-s0.work/state.bin"):
        (output / name).write_text("hours")
    spend(tmp_path, "encoder-clips-s0", 7200)
    config = write_study(tmp_path, encoders=OTHER)
    tests = Path(__file__).parent
    code = KILLED.format(tests=str(tests), root=str(tests.parent), place=place, after=after, study=config.study)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if place.startswith("job."):  # nothing is left that the limit would keep
        run_study_with_report(config)
    else:
        run_study_with_report(dataclasses.replace(config, yes=True))
    assert set(states(config).values()) == {"done"}
    found = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.bin"))
    assert sorted(path.split("/", 2)[2] for path in found) == [
        "encoders/.clips-s0.work/state.bin",
        "encoders/clips-s0/weights.bin",
    ]
    assert all(path.startswith("trash/") for path in found)
    assert (output / "encoders/clips-s0/visits.txt").read_text() == "visit\n"


def test_a_directory_on_another_file_system_is_moved_there(tmp_path, monkeypatch):
    def elsewhere(path: Path, place: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    run_study_with_report(write_study(tmp_path))
    monkeypatch.setattr(Path, "rename", elsewhere)
    monkeypatch.setattr(os, "rename", elsewhere)
    run_study_with_report(write_study(tmp_path, encoders=OTHER))
    assert "encoders/clips-s0/made.txt" in trashed(tmp_path)


def test_what_moved_in_the_same_second_has_a_directory_of_its_own(tmp_path):
    for _ in range(5):
        (tmp_path / "a").mkdir()
        trash.move(tmp_path, "step", [tmp_path / "a"])
    assert len(list((tmp_path / "trash").glob("*/a"))) == 5
