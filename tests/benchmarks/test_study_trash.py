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
from typing import Any

import pytest
from report_material import items_table, put_result
from study_engine import rerun_study, run_study, states, use_fakes, write_study
from study_material import SMALL

from benchmarks.analysis.provenance import ProvenanceConfig, run_provenance
from benchmarks.analysis.study_with_report import rerun_study_with_report, run_study_with_report
from benchmarks.study import trash
from benchmarks.study.accept import AcceptConfig, accept_outputs
from benchmarks.study.commands import (
    RerunConfig,
    StatusConfig,
    StudyPlanConfig,
    plan_study,
    resolve_study,
    study_status,
)
from benchmarks.study.locks import acquire, locked
from benchmarks.study.state import Step, read_record, write_record
from benchmarks.study.status import read_statuses
from clips.core.artifact import write_manifest
from clips.core.locks import lock_output
from clips.errors import UserError

OTHER = {**SMALL["encoders"], "clips": {"optimizer": {"lr": 4}}}
OF_CLIPS = ["encoder-clips-s0", "evaluate-encoder-clips-s0", "llava-clips-tiny-s0", "evaluate-llava-clips-tiny-s0"]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    use_fakes(monkeypatch)


def trashed(folder: Path) -> set[str]:
    """The files in the trash, without the directories that say when they came there."""
    trash = folder / "out/trash"
    return {path.relative_to(trash / path.relative_to(trash).parts[0]).as_posix() for path in trash.rglob("*.*")}


def test_outputs_of_another_key_are_in_the_trash_with_what_tells_how_they_were_made(tmp_path, finished_study):
    finished_study(tmp_path)
    (tmp_path / "out/encoders/clips-s0/weights.safetensors").write_text("forty hours")
    config = write_study(tmp_path, encoders=OTHER)
    run_study(config)
    assert set(states(config).values()) == {"done"}
    assert trashed(tmp_path) >= {"encoders/clips-s0/weights.safetensors", "results/clips-tiny-s0/pope.json"}
    assert trashed(tmp_path) >= {f"steps/encoder-clips-s0/{name}" for name in ("step.json", "config.yaml")}
    assert "llava/clips-tiny-s0/made.txt" in trashed(tmp_path)
    assert not [path for path in trashed(tmp_path) if "clip-" in path]
    [weights] = (tmp_path / "out/trash").rglob("weights.safetensors")
    assert weights.read_text() == "forty hours"
    assert weights.parts[-4].endswith("Z-encoder-clips-s0")


@pytest.fixture
def other_file_system(monkeypatch):
    """Have the trash be on another file system than the rest of the study."""
    rename = Path.rename

    def checked(path: Path, target: Path) -> Path:
        if ("trash" in path.parts) != ("trash" in target.parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", checked)


@pytest.mark.usefixtures("other_file_system")
def test_outputs_on_another_file_system_are_moved_and_moves_of_one_second_do_not_collide(tmp_path):
    for number in range(3):
        (tmp_path / "made").mkdir()
        (tmp_path / "made/weights").write_text(f"{number}")
        (tmp_path / "made/link").symlink_to("weights")
        (tmp_path / "pope.json").write_text(f"{number}")
        trash.move(tmp_path, "step", [tmp_path / "made", tmp_path / "pope.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["trash"]
    for name in ("made/weights", "pope.json"):
        assert sorted(path.read_text() for path in tmp_path.glob(f"trash/*/{name}")) == ["0", "1", "2"]
    assert len([path for path in tmp_path.glob("trash/*/made/link") if path.is_symlink()]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("other_file_system")
@pytest.mark.parametrize("killed", ["copytree", "rmtree"])
def test_a_kill_leaves_no_part_of_an_output_under_its_name(killed, tmp_path, finished_study, monkeypatch):
    finished_study(tmp_path)
    encoder, config = tmp_path / "out/encoders/clips-s0", write_study(tmp_path, encoders=OTHER)
    (encoder / "weights.safetensors").write_text("forty hours")
    copytree, rmtree = shutil.copytree, shutil.rmtree

    def half_copied(path: Path, copy: Path, **options: Any) -> None:
        copytree(path, copy, **options)
        (copy / "weights.safetensors").unlink()
        raise KeyboardInterrupt

    def half_removed(path: Path, **options: Any) -> None:
        if not (path / "weights.safetensors").exists():
            rmtree(path, **options)
            return
        (path / "weights.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, killed, half_copied if killed == "copytree" else half_removed)
        with pytest.raises(KeyboardInterrupt):
            run_study(config)
    parts = [encoder, *(tmp_path / "out/trash").glob("*/encoders/clips-s0")]
    whole = [path for path in parts if path.exists()]
    assert whole == (parts[:1] if killed == "copytree" else parts[1:])
    assert [(path / "weights.safetensors").read_text() for path in whole] == ["forty hours"]
    assert states(write_study(tmp_path))["encoder-clips-s0"] == ("done" if killed == "copytree" else "missing")
    run_study(write_study(tmp_path, encoders=OTHER))
    assert set(states(config).values()) == {"done"}
    [weights] = (tmp_path / "out/trash").glob("*/encoders/clips-s0/weights.safetensors")
    assert weights.read_text() == "forty hours"


def test_the_lock_of_a_training_outside_of_the_study_stays(tmp_path, finished_study):
    finished_study(tmp_path)
    lock, encoder = tmp_path / "out/encoders/.clips-s0.lock", tmp_path / "out/encoders/clips-s0"
    with lock_output(lock, encoder):
        run_study(write_study(tmp_path, encoders=OTHER))
        with pytest.raises(UserError, match="another run is writing"), lock_output(lock, encoder):
            pass


def spend(folder: Path, name: str, seconds: float, **fields: Any) -> None:
    """Have a step's last run taken so long."""
    record = read_record(folder / "out", name)
    assert record is not None
    write_record(folder / "out", dataclasses.replace(record, seconds=seconds, **fields))


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.name != ".lock"}


def test_what_took_long_is_not_made_again_without_yes(tmp_path, finished_study):
    finished_study(tmp_path)
    spend(tmp_path, "encoder-clips-s0", 12 * 3600)
    spend(tmp_path, "llava-clips-tiny-s0", 3590)
    for name in OF_CLIPS[1::2]:  # the evaluations
        spend(tmp_path, name, 0.5)
    before = everything(tmp_path)
    config = write_study(tmp_path, encoders=OTHER)
    expected = (
        "would recompute steps that took 12 h 59 min, more than 1 h 00 min: encoder-clips-s0 (took 12 h 00 min; "
        "changed: config), llava-clips-tiny-s0 (took 59 min 50 s; changed: parents), evaluate-"
    )
    rest = (
        "; changed: parents) and 1 more; --yes recomputes them (their outputs go to the trash first), "
        f"`clips-bench study accept {config.study} [STEP ...]` keeps them"
    )
    with pytest.raises(UserError, match=rf"^{re.escape(expected)}\S+ \(took (under )?\d s{re.escape(rest)}$"):
        run_study(config)
    with pytest.raises(UserError, match="than 12 h 30 min: encoder-clips-s0 "):  # only their sum is longer
        run_study(dataclasses.replace(config, confirm_hours=12.5))
    with pytest.raises(UserError, match="than 12 min 00 s: encoder-clips-s0 "):
        run_study(write_study(tmp_path, encoders=OTHER, confirm_hours=0.2))
    with pytest.raises(UserError, match="encoder-clips-s0"):
        rerun_study(RerunConfig(study=config.study, steps=("data-train",), check=False))
    assert everything(tmp_path) == before
    run_study(dataclasses.replace(write_study(tmp_path, encoders=OTHER), yes=True))
    assert set(states(config).values()) == {"done"}
    assert "encoders/clips-s0/made.txt" in trashed(tmp_path)


def test_resumed_and_new_steps_need_no_yes(tmp_path, finished_study):
    finished_study(tmp_path)
    spend(tmp_path, "encoder-clips-s0", 1e6, status="interrupted")
    spend(tmp_path, "evaluate-llava-clips-tiny-s0", 1e6)
    more = {**SMALL["benchmarks"], "gqa": None}
    run_study(write_study(tmp_path, benchmarks=more, encoders={**SMALL["encoders"], "late": {"recipe": "clip"}}))
    assert read_record(tmp_path / "out", "encoder-clips-s0").seconds > 1e6
    assert not (tmp_path / "out/trash").exists()


def test_a_column_costs_what_its_results_took_and_missing_outputs_what_they_did(tmp_path, finished_study):
    config = finished_study(tmp_path)
    result = tmp_path / "out/results/clips-tiny-s0/pope.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"seconds": 7200.0}))
    write_study(tmp_path, benchmarks={**SMALL["benchmarks"], "pope": {"limit": 9}})
    with pytest.raises(UserError, match=r": evaluate-llava-clips-tiny-s0 \(took 2 h 00 min; changed: config\), "):
        run_study(config)
    write_study(tmp_path)
    spend(tmp_path, "encoder-clip-s0", 7200)
    shutil.rmtree(tmp_path / "out/encoders/clip-s0")
    missing = r"encoder-clip-s0 \(took 2 h 00 min; outputs missing or incomplete\); --yes"
    with pytest.raises(UserError, match=missing) as rejected:
        run_study(config)
    assert "accept" not in str(rejected.value)


def test_plan_says_what_would_be_made_again_and_what_would_go_to_the_trash(tmp_path, finished_study, capsys):
    finished_study(tmp_path)
    spend(tmp_path, "encoder-clips-s0", 7200)
    (tmp_path / "out/encoders/clips-s0/weights").write_bytes(b"0" * 5_000_000)
    config = write_study(tmp_path, encoders=OTHER)
    capsys.readouterr()
    plan_study(StudyPlanConfig(study=config.study, check=False))
    said = capsys.readouterr().out
    assert "recomputed (changed: config; took 2 h 00 min); to the trash: encoders/clips-s0 (5.0 MB)\n" in said
    assert "to the trash: results/clips-tiny-s0/pope.json (0.0 MB)\n" in said
    assert "4 recomputed, 5.0 MB to the trash; --yes is needed, since they took 2 h 00 min\n" in said
    assert not (tmp_path / "out/trash").exists()


def test_each_replaced_step_has_its_reason(tmp_path, finished_study):
    finished_study(tmp_path)
    config, output = write_study(tmp_path, encoders=OTHER), tmp_path / "out"
    shutil.rmtree(output / "encoders/clip-s0")
    (output / "steps/data-train/step.json").unlink()
    spend(tmp_path, "data-test", 1, key="", outputs={})  # by an interrupted rerun
    spend(tmp_path, "llava-clip-tiny-s0", 1, key="of a version without parts", parts={})
    reasons = {
        each.name: each.reason for each in trash.replacements(resolve_study(config).steps, ["llava-clips-tiny-s0"])
    }
    assert {name: reason for name, reason in reasons.items() if not name.startswith("evaluate-")} == {
        "data-train": "no record",
        "encoder-clip-s0": "outputs missing or incomplete",
        "encoder-clips-s0": "changed: config",
        "llava-clips-tiny-s0": "rerun",
        "llava-clip-tiny-s0": "changed",
        "data-test": "rerun",
    }


def test_a_damaged_study_says_which_file_is_damaged_and_what_follows(tmp_path, finished_study, capsys):
    config, output = finished_study(tmp_path), tmp_path / "out"
    (output / "steps/data-train/step.json").unlink()
    cut = output / "steps/encoder-clip-s0/step.json"
    cut.write_bytes(cut.read_bytes()[:100])
    shutil.rmtree(output / "encoders/clips-s0")
    kept = "; the step runs again unless `clips-bench study accept` keeps its outputs"
    lines = {
        f"{output}/steps/data-train/step.json: missing, but {output}/data/train exists{kept}",
        f"{cut}: not readable{kept}",
        f"{output}/encoders/clips-s0: not written; the step runs again",
    }
    last = {status.last for status in read_statuses(resolve_study(config)) if status.last}
    assert last == lines
    capsys.readouterr()
    for command in (lambda: plan_study(StudyPlanConfig(study=config.study, check=False)), lambda: run_study(config)):
        command()
        said = capsys.readouterr().err.splitlines()
        assert {line.removeprefix("warning: ") for line in said if line.startswith("warning: ")} == lines
    assert set(states(config).values()) == {"done"}
    study_status(StatusConfig(study=config.study, output=f"{output}s"))  # a slip of the pen
    assert f"0 of 13 done, no step was run in {output}s" in capsys.readouterr().out.replace("\n", "")


def test_accepted_outputs_stay_and_say_what_differs(tmp_path, capsys):
    run_study(write_study(tmp_path))
    spend(tmp_path, "encoder-clips-s0", 7200)
    config = write_study(tmp_path, encoders=OTHER)
    capsys.readouterr()
    accept_outputs(AcceptConfig(study=config.study, steps=("encoder-clips-*",)))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == OF_CLIPS
    assert said[0].endswith("; changed since creation: optimizer.lr 3 → 4")
    assert said[1].endswith("; changed since creation: parents")
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


@pytest.mark.parametrize("output", ["moved", "deeper/moved"])
def test_paths_inside_a_moved_study_are_not_accepted_as_changed_settings(tmp_path, finished_study, output):
    finished_study(tmp_path)
    (tmp_path / output).parent.mkdir(exist_ok=True)
    (tmp_path / "out").rename(tmp_path / output)
    encoders = {**OTHER, "clip": {"recipe": "clip", "data": {"path": "$data/test"}}}
    config = write_study(tmp_path, encoders=encoders, output=str(tmp_path / output))
    accept_outputs(AcceptConfig(study=config.study))
    accepted = {name: read_record(tmp_path / output, f"encoder-{name}-s0").accepted for name in ("clips", "clip")}
    assert accepted["clips"][0]["settings"] == {"optimizer.lr": [3, 4]}
    assert accepted["clip"][0]["settings"] == {"data.path": ["$data/train", "$data/test"]}


def test_an_invalid_acceptance_is_reported_and_nothing_is_accepted(tmp_path, finished_study, capsys):
    config = finished_study(tmp_path)
    capsys.readouterr()
    accept_outputs(AcceptConfig(study=config.study))
    assert capsys.readouterr().out == f"{tmp_path}/out: no step has changed\n"

    config = write_study(tmp_path, encoders=OTHER)
    before = everything(tmp_path)
    with pytest.raises(UserError, match="llava-clips-tiny-s0: cannot be accepted: it depends on encoder-clips-s0, wh"):
        accept_outputs(AcceptConfig(study=config.study, steps=("llava-clips-tiny-s0",)))
    assert everything(tmp_path) == before

    shutil.rmtree(tmp_path / "out/encoders/clips-s0")
    with pytest.raises(UserError, match=r"encoder-clips-s0: cannot be accepted: .*clips-s0: not written"):
        accept_outputs(AcceptConfig(study=config.study, steps=("encoder-clips-s0",)))
    capsys.readouterr()
    accept_outputs(AcceptConfig(study=config.study))
    said = capsys.readouterr().out
    assert "not encoder-clips-s0: " in said
    assert "not llava-clips-tiny-s0: it depends on encoder-clips-s0, which would be recomputed" in said


def test_an_accepted_interrupted_training_resumes_from_its_own_work(tmp_path, finished_study):
    finished_study(tmp_path)
    output = tmp_path / "out"
    config = write_study(tmp_path, encoders=OTHER)
    accepted = AcceptConfig(study=config.study, steps=("encoder-clips-s0",))
    (output / "encoders/clips-s0").rename(output / "encoders/.clips-s0.work")  # as of a training that is not finished
    record = dataclasses.replace(read_record(output, "encoder-clips-s0"), status="interrupted", seconds=9e4)
    write_record(output, dataclasses.replace(record, status="running"))
    lock = acquire(output / "steps/encoder-clips-s0/.lock")
    with pytest.raises(UserError, match="encoder-clips-s0: cannot be accepted: "):
        accept_outputs(accepted)
    os.close(lock)
    write_record(output, record)
    accept_outputs(accepted)
    run_study(config)
    assert (output / "encoders/.clips-s0.work/visits.txt").is_file()
    record = read_record(output, "encoder-clips-s0")
    assert record.seconds > 9e4
    assert [entry["settings"]["optimizer.lr"] for entry in record.accepted] == [[3, 4]]


def test_rerun_moves_to_the_trash_what_it_makes_again_and_what_models_gave(tmp_path, finished_study):
    config = finished_study(tmp_path)
    (tmp_path / "out/results/.cache/answers").mkdir(parents=True)
    (tmp_path / "out/results/.cache/answers/0.jsonl").write_text("hours")
    spend(tmp_path, "evaluate-llava-clip-tiny-s0", 7200)
    asked = RerunConfig(study=config.study, steps=("evaluate-llava-*",), check=False)
    with pytest.raises(UserError, match=r"evaluate-llava-clip-tiny-s0 \(took 2 h 00 min; rerun\)"):
        rerun_study(asked)
    assert (tmp_path / "out/results/.cache/answers/0.jsonl").is_file()
    rerun_study(dataclasses.replace(asked, yes=True))
    assert {"results/.cache/answers/0.jsonl", "results/clip-tiny-s0/pope.json"} <= trashed(tmp_path)
    assert set(states(config).values()) == {"done"}


KILLED = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import pytest, study_engine
from benchmarks.study import commands, run, trash
study_engine.use_fakes(pytest.MonkeyPatch())
calls = []
def die(*args, **options):
    calls.append(1)
    if len(calls) == {after}:
        os.kill(os.getpid(), 9)
    return was(*args, **options)
was, {place} = {place}, die
study_engine.run_study(commands.StudyConfig(study={study!r}, check=False, yes=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "after"),
    [
        ("trash.rename_path", 2),  # one output of two is in the trash
        ("run.to_yaml", 1),  # all of them are, and nothing says so
    ],
)
def test_a_kill_between_the_trash_and_the_start_is_harmless(tmp_path, finished_study, place, after):
    finished_study(tmp_path)
    output = tmp_path / "out"
    for name in ("clips-s0/weights.bin", "clips-s0.stages/1/state.bin", ".clips-s0.work/state.bin"):
        (output / "encoders" / name).parent.mkdir(parents=True, exist_ok=True)
        (output / "encoders" / name).write_text("hours")
    spend(tmp_path, "encoder-clips-s0", 7200)
    config = write_study(tmp_path, encoders=OTHER)
    tests = Path(__file__).parent
    code = KILLED.format(tests=str(tests), root=str(tests.parent), place=place, after=after, study=config.study)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if place.startswith("run."):  # nothing is left that the limit would keep
        run_study(config)
    else:
        run_study(dataclasses.replace(config, yes=True))
    assert set(states(config).values()) == {"done"}
    found = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.bin"))
    assert sorted(path.split("/", 2)[2] for path in found) == [
        "encoders/.clips-s0.work/state.bin",
        "encoders/clips-s0.stages/1/state.bin",
        "encoders/clips-s0/weights.bin",
    ]
    assert all(path.startswith("trash/") for path in found)
    assert (output / "encoders/clips-s0/visits.txt").read_text() == "visit\n"


def steps_run(folder: Path, since: dict[Path, int]) -> set[str]:
    """The steps whose record is new."""
    return {path.parent.name for path, stamp in step_records(folder).items() if since.get(path) != stamp}


def step_records(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "out/steps").glob("*/step.json")}


@pytest.mark.parametrize("chosen", [{"steps": ("encoder-clips-*",)}, {"include": ("clips",)}])
def test_chosen_steps_run_again_with_what_depends_on_them(chosen, tmp_path, finished_study, capsys):
    config = finished_study(tmp_path)
    before = step_records(tmp_path)
    rerun_study(RerunConfig(study=config.study, check=False, **chosen))
    assert steps_run(tmp_path, before) == set(OF_CLIPS)
    assert set(states(config).values()) == {"done"}
    assert "again encoder-clips-s0, " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^steps: expected names of steps, or 'include'"):
        RerunConfig(study="study.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda encoder: (encoder / "manifest.json").write_bytes(b""),
        lambda encoder: (encoder / "weights.safetensors").unlink(),
        lambda encoder: (encoder / "weights.safetensors").write_bytes(b""),
        lambda encoder: [path.unlink() for path in encoder.iterdir()],
    ],
)
def test_a_hollow_output_is_not_done(damage, tmp_path, finished_study):
    config = finished_study(tmp_path)
    encoder = tmp_path / "out/encoders/clip-s0"
    (encoder / "weights.safetensors").write_bytes(b"weights")
    write_manifest(encoder, kind="encoder", config={})
    assert states(config)["encoder-clip-s0"] == "done"
    damage(encoder)
    assert states(config)["encoder-clip-s0"] == "missing"
    before = step_records(tmp_path)
    run_study(config)
    assert steps_run(tmp_path, before) == {"encoder-clip-s0"}
    assert states(config)["encoder-clip-s0"] == "done"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda items: items.unlink(), "missing, but pope.json names it"),
        (lambda items: items.write_bytes(items.read_bytes()[:-100]), "has another content than pope.json states"),
        (lambda items: items.write_bytes(bytes(items.stat().st_size)), "has another content than pope.json states"),
    ],
)
def test_a_result_without_its_items_is_not_done(damage, said, tmp_path):
    path = put_result(tmp_path, "clip", "pope", items_table(0.5, benchmark="pope"))
    step = Step(name="evaluate", kind="evaluate_llava", command=(), outputs=(path,), study=tmp_path, config={})
    assert step.problems() == []
    items = path.with_name("pope.items.parquet")
    damage(items)
    (problem,) = step.problems()
    assert problem.startswith(f"{items}: {said}")


def test_nothing_is_changed_while_a_runner_works(tmp_path, finished_study):
    config = finished_study(tmp_path)
    write_study(tmp_path, encoders=OTHER)
    before = everything(tmp_path)
    changes = [
        lambda: rerun_study_with_report(RerunConfig(study=config.study, steps=("*",), check=False)),
        lambda: accept_outputs(AcceptConfig(study=config.study)),
    ]
    for change in changes:
        with locked(tmp_path / "out"), pytest.raises(UserError, match="another runner"):
            change()
    assert everything(tmp_path) == before
