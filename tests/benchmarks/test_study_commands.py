"""``clips-bench study run | plan``, the programs behind the steps replaced by a small one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from study_engine import run_study, states, use_fakes, write_study
from study_material import SMALL

from benchmarks.analysis.study_with_report import run_study_with_report
from benchmarks.study import commands
from benchmarks.study.commands import StudyConfig, StudyPlanConfig, log_files, plan_study
from benchmarks.study.steps import build_plan
from benchmarks.study.study_record import read_study_record
from clips.core.parent_death import usable_cores
from clips.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    use_fakes(monkeypatch)


def table_of(folder: Path) -> str:
    return (folder / "out/report/table.md").read_text(encoding="utf-8")


def test_a_study_runs_ends_with_its_report_and_is_then_done(tmp_path, capsys):
    config = write_study(tmp_path)
    assert set(states(config).values()) == {"new"}
    plan_study(StudyPlanConfig(study=config.study, check=False))
    planned = capsys.readouterr().out
    assert "13 of 13 steps would run" in planned
    assert "models: clip, clips, net" in planned
    run_study_with_report(config)
    assert set(states(config).values()) == {"done"}
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    captured = capsys.readouterr()
    assert "retrieval score" in captured.out
    assert "encoder-clip-s0: done" in captured.err

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "steps").rglob("*")}
    run_study(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "steps").rglob("*")} == before
    assert "done before" in capsys.readouterr().err
    without = {name: entry for name, entry in SMALL["encoders"].items() if name != "clips"}
    run_study_with_report(write_study(tmp_path, encoders=without))  # a row that left the study leaves the report
    assert "| clip |" in table_of(tmp_path)
    assert "| clips |" not in table_of(tmp_path)
    assert [row.name for row in read_study_record(tmp_path / "out").rows] == ["clip", "net"]
    write_study(tmp_path)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert set(states(dataclasses.replace(config, output=str(tmp_path / "moved"))).values()) == {"done"}
    assert set(states(config).values()) == {"new"}


def test_one_changed_line_runs_only_what_depends_on_it(tmp_path, finished_study, capsys):
    config = finished_study(tmp_path, encoders={**SMALL["encoders"], "clips": {"optimizer": {"lr": 4}}})
    assert {name: state for name, state in states(config).items() if state != "done"} == {
        "encoder-clips-s0": "changed: config",
        "evaluate-encoder-clips-s0": "changed: parents",
        "llava-clips-tiny-s0": "changed: parents",
        "evaluate-llava-clips-tiny-s0": "changed: parents",
    }
    capsys.readouterr()
    plan_study(StudyPlanConfig(study=config.study, check=False))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "changed: config " in lines["encoder-clips-s0"]


def test_a_plan_warns_of_models_without_a_baseline_and_of_more_steps_at_a_time_than_cores(tmp_path, capsys):
    def warnings(**fields: Any) -> list[str]:
        plan_study(StudyPlanConfig(study=write_study(tmp_path, **fields).study, check=False))
        said = capsys.readouterr().err.splitlines()
        return [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]

    without = "baseline: not set, so the report compares models with the best of each column only"
    assert warnings(jobs=1) == []
    assert warnings(jobs=1, baseline=None) == [without]
    assert warnings(jobs=1, baseline=None, encoders={"clip": {}}) == []
    assert warnings(jobs=999) == [f"jobs: up to 999 steps at a time share {usable_cores()} cores"]
    assert warnings(jobs=999, profile="cluster") == []
    idle = {
        "baseline": None,
        "encoders": {"net": "timm:vit_tiny_patch16_224@random"},
        "benchmarks": {"retrieval": {}},
        "llms": {},
    }
    assert warnings(jobs=1, **idle) == ["benchmarks: none evaluates net"]


def test_failures_are_reported_and_the_exit_status_is_1(tmp_path, capsys):
    encoders = {**SMALL["encoders"], "clips": {"fail": "loss is nan"}}
    config = write_study(
        tmp_path, encoders=encoders, benchmarks={**SMALL["benchmarks"], "gqa": {"judge_model": "broken file"}}
    )
    with pytest.raises(SystemExit) as stop:
        run_study_with_report(config)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "loss is nan" in said
    failed = said.rpartition("failed: ")[2].partition(";")[0].split(", ")
    assert set(failed) == {"encoder-clips-s0", "evaluate-llava-clip-tiny-s0", "evaluate-llava-net-tiny-s0"}
    page = (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "step encoder-clips-s0 failed: loss is nan" in page
    row = next(line for line in table_of(tmp_path).splitlines() if line.replace(" ", "").startswith("|clip|"))
    assert (row.count("50.0"), row.count("failed")) == (2, 1)  # other benchmarks and models have numbers
    same = "clip and net on gqa: failed for the same reason, see results/clip-tiny-s0/gqa.json."
    assert same in table_of(tmp_path)


def test_a_step_that_could_not_be_started_is_explained_by_snakemakes_log(tmp_path):
    (tmp_path / "steps/encoder").mkdir(parents=True)
    (tmp_path / "steps/encoder/log.txt").touch()
    own, engine = f"{tmp_path}/steps/<step>/log.txt", f"{tmp_path}/.snakemake.log"
    assert log_files(tmp_path, ["encoder"]) == own
    assert log_files(tmp_path, ["encoder", "llava"]) == f"{own} and {engine} (not started: llava)"
    assert log_files(tmp_path, ["llava"]) == f"{engine} (not started: llava)"


def test_each_missing_file_is_named_before_anything_starts(tmp_path, capsys):
    encoders = {**SMALL["encoders"], "clips": "$shared/clips", "net": f"timm:net@{tmp_path}/none.safetensors"}
    config = write_study(tmp_path, encoders=encoders, paths={"shared": str(tmp_path / "gone")})
    checked = dataclasses.replace(config, check=True)
    for command in (run_study, lambda config: plan_study(StudyPlanConfig(study=config.study))):
        with pytest.raises(UserError) as last:
            command(checked)
        named = [line for line in capsys.readouterr().err.splitlines() if "no such file" in line]
        named.append(str(last.value))
        assert [line.partition(";")[0] for line in named] == [
            f"{tmp_path}/gone/clips: no such file or directory",
            f"{tmp_path}/none.safetensors: no such file or directory",
        ]
        assert named[0].endswith("; needed by evaluate-encoder-clips and 1 more")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "told"),
    [("a-file/below", "a-file: is a file; expected a directory"), ("/proc/nowhere", "/proc/nowhere: cannot write")],
)
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, place, told):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("mine", encoding="utf-8")
    config = write_study(tmp_path)
    with pytest.raises(UserError, match=f"^{told}"):
        run_study(dataclasses.replace(config, output=place))
    assert Path("a-file").read_text(encoding="utf-8") == "mine"


def test_the_command_line_overrides_the_study_file(tmp_path):
    file = write_study(tmp_path, paths={"shared": "one"}, jobs=3).study
    changed = StudyConfig(study=file, output="elsewhere", jobs=5, paths={"shared": "two"}, confirm_hours=0.0).read()
    assert (changed.output, changed.jobs, changed.paths) == ("elsewhere", 5, {"shared": "two"})
    assert (changed.confirm_hours, changed.seeds, StudyConfig(study=file).read().jobs) == (0.0, (0,), 3)
    plan = build_plan(StudyConfig(study=file, seeds=(7, 8), include=("clip*",)).read())
    assert sorted({row.encoder for row in plan.rows}) == ["clip", "clips"]
    assert {row.seed for row in plan.rows} == {7, 8}
    assert not [step for step in plan.steps if "net" in step.name]
    for wrong, message in (
        ({"paths": {"sharde": "two"}}, "unknown name in 'paths' 'sharde'; did you mean 'shared'"),
        ({"include": ("clisp",)}, "unknown encoder in 'include' 'clisp'; did you mean 'clip'"),
    ):
        with pytest.raises(UserError, match=message):
            StudyConfig(study=file, **wrong).read()


def test_the_runner_is_light():
    code = (
        "import sys\n"
        "from benchmarks.study import commands, preflight, run, status, accept\n"
        "commands.resolve_study(commands.StudyConfig(study='scripts/studies/demo.yaml'))\n"
        "heavy = {'torch', 'transformers', 'pandas', 'open_clip', 'lmms_eval', 'snakemake'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.slow
def test_a_runner_that_waited_runs_the_study_as_it_is_then_and_records_the_file_as_it_ran(tmp_path, monkeypatch):
    config = dataclasses.replace(write_study(tmp_path), wait_for_lock=True)
    held, run_steps, text = commands.locked, commands.run_steps, ""

    def edited_meanwhile(*args: Any, **options: Any) -> Any:
        nonlocal text
        write_study(tmp_path, encoders={**SMALL["encoders"], "late": {"recipe": "clip"}})
        text = Path(config.study).read_text(encoding="utf-8")
        return held(*args, **options)

    def edited_again(*args: Any, **options: Any) -> Any:
        Path(config.study).write_text("name: another\n", encoding="utf-8")
        return run_steps(*args, **options)

    monkeypatch.setattr(commands, "locked", edited_meanwhile)
    monkeypatch.setattr(commands, "run_steps", edited_again)
    run_study(config)
    assert read_study_record(tmp_path / "out").text == text
    Path(config.study).write_text(text, encoding="utf-8")
    assert states(config)["encoder-late-s0"] == "done"


def test_the_plan_names_parts_of_the_hub_that_may_change(tmp_path, capsys):
    config = write_study(tmp_path, llms={"a": "org/a", "b": "org/b@v1"})
    plan_study(StudyPlanConfig(study=config.study, check=False, include=("net",)))
    printed = capsys.readouterr().out
    assert "from the Hub org/a (not pinned: add @REVISION)" in printed
    assert "from the Hub org/b@v1\n" in printed
