"""``clips-bench study run | plan | status``, the programs behind the steps replaced by a small one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_engine import run_study, use_fakes, write_study
from study_material import SMALL

from benchmarks.analysis.study_with_report import run_study_with_report
from benchmarks.study import state, study_commands
from benchmarks.study.build_steps import build_plan
from benchmarks.study.launchers import check_command
from benchmarks.study.preflight import check_configs, first_config_error
from benchmarks.study.schema import parse_study
from benchmarks.study.state import step_state
from benchmarks.study.study_commands import (
    StatusConfig,
    StudyConfig,
    StudyPlanConfig,
    log_files,
    plan_study,
    study_status,
)
from benchmarks.study.study_record import read_study_record
from clips.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    use_fakes(monkeypatch)


def states(config: StudyConfig) -> dict[str, str]:
    return {step.name: step_state(step) for step in study_commands.resolve_study(config).steps}


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
    study_status(StatusConfig(study=config.study))
    assert "13 of 13 done" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "steps").rglob("*")}
    run_study_with_report(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "steps").rglob("*")} == before
    assert "done before" in capsys.readouterr().err
    (tmp_path / "out").rename(tmp_path / "moved")
    assert set(states(dataclasses.replace(config, output=str(tmp_path / "moved"))).values()) == {"done"}
    assert set(states(config).values()) == {"new"}


def test_one_changed_line_runs_only_what_depends_on_it(tmp_path, finished_study, capsys):
    config = finished_study(tmp_path, encoders={**SMALL["encoders"], "clips": {"optimizer": {"lr": 4}}})
    assert {name for name, state in states(config).items() if state.startswith("changed")} == {
        "encoder-clips-s0",
        "evaluate-encoder-clips-s0",
        "llava-clips-tiny-s0",
        "evaluate-llava-clips-tiny-s0",
    }
    for show in (
        lambda: study_status(StatusConfig(study=config.study)),
        lambda: plan_study(StudyPlanConfig(study=config.study, check=False)),
    ):
        capsys.readouterr()
        show()
        lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
        assert "changed: config " in lines["encoder-clips-s0"]
        assert "changed: parents " in lines["evaluate-encoder-clips-s0"]


def test_the_record_has_the_study_that_ran_not_the_file_as_it_was_edited_meanwhile(tmp_path, monkeypatch):
    config = write_study(tmp_path)
    file = Path(config.study)
    text = file.read_text(encoding="utf-8")
    run_steps = study_commands.run_steps

    def edited(*args: Any, **options: Any) -> Any:
        file.write_text("name: another\n", encoding="utf-8")
        return run_steps(*args, **options)

    monkeypatch.setattr(study_commands, "run_steps", edited)
    run_study(config)
    assert read_study_record(tmp_path / "out").text == text


def test_a_failed_branch_is_reported_and_the_exit_status_is_1(tmp_path, capsys):
    encoders = {**SMALL["encoders"], "clips": {"fail": "loss is nan"}}
    with pytest.raises(SystemExit) as stop:
        run_study_with_report(write_study(tmp_path, encoders=encoders))
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert "loss is nan" in captured.err
    assert "failed: encoder-clips-s0" in captured.err
    page = (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "step encoder-clips-s0 failed: loss is nan" in page
    assert states(write_study(tmp_path, encoders=encoders))["evaluate-llava-clip-tiny-s0"] == "done"


def test_a_failed_benchmark_is_reported_with_its_reason_and_the_others_have_numbers(tmp_path, capsys):
    benchmarks = {**SMALL["benchmarks"], "gqa": {"split": "broken parquet"}}
    with pytest.raises(SystemExit):
        run_study_with_report(write_study(tmp_path, benchmarks=benchmarks))
    assert "evaluate-llava-clip-tiny-s0" in capsys.readouterr().err
    table = (tmp_path / "out" / "report" / "table.md").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip() == "clip")
    assert (row.count("50.0"), row.count("failed")) == (2, 1)
    assert "clip, clips and net on gqa: failed: broken parquet." in table


def test_a_step_that_could_not_be_started_is_explained_by_snakemakes_log(tmp_path):
    (tmp_path / "steps/encoder").mkdir(parents=True)
    (tmp_path / "steps/encoder/log.txt").touch()
    own, engine = f"{tmp_path}/steps/<step>/log.txt", f"{tmp_path}/.snakemake.log"
    assert log_files(tmp_path, ["encoder"]) == own
    assert log_files(tmp_path, ["encoder", "llava"]) == f"{own} and {engine} (not started: llava)"
    assert log_files(tmp_path, ["llava"]) == f"{engine} (not started: llava)"


def test_each_missing_file_is_named_before_anything_starts(tmp_path, capsys):
    (tmp_path / "here").mkdir()
    encoders = {**SMALL["encoders"], "clips": "$shared/clips", "net": f"timm:net@{tmp_path}/none.safetensors"}
    config = write_study(tmp_path, encoders=encoders, paths={"shared": str(tmp_path / "gone")})
    checked = dataclasses.replace(config, check=True)
    for command in (run_study_with_report, lambda config: plan_study(StudyPlanConfig(study=config.study))):
        with pytest.raises(UserError, match=r"^small: files that no step makes are missing: 2$"):
            command(checked)
        named = [line for line in capsys.readouterr().err.splitlines() if "no such file" in line]
        assert [line.partition(";")[0] for line in named] == [
            f"{tmp_path}/gone/clips: no such file or directory",
            f"{tmp_path}/none.safetensors: no such file or directory",
        ]
        assert named[0].endswith("; needed by evaluate-encoder-clips and 1 more")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["a-file/below", "/proc/nowhere"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("mine", encoding="utf-8")
    config = write_study(tmp_path)
    with pytest.raises(UserError, match=f"^{place}: cannot write here"):
        run_study(dataclasses.replace(config, output=place))
    assert Path("a-file").read_text(encoding="utf-8") == "mine"


def test_a_row_that_left_the_study_leaves_the_report(tmp_path, finished_study):
    finished_study(tmp_path)
    without = {name: entry for name, entry in SMALL["encoders"].items() if name != "clips"}
    run_study_with_report(write_study(tmp_path, encoders=without))
    table = (tmp_path / "out" / "report" / "table.md").read_text(encoding="utf-8")
    assert "| clip |" in table
    assert "| clips |" not in table
    assert [row.name for row in read_study_record(tmp_path / "out").rows] == ["clip", "net"]


def test_the_command_line_overrides_output_jobs_and_paths(tmp_path):
    config = write_study(tmp_path, paths={"shared": "one"})
    changed = StudyConfig(study=config.study, output="elsewhere", jobs=5, paths={"shared": "two"}).read()
    assert (changed.output, changed.jobs, changed.paths) == ("elsewhere", 5, {"shared": "two"})
    with pytest.raises(UserError, match="unknown name in 'paths' 'sharde'; did you mean 'shared'"):
        StudyConfig(study=config.study, paths={"sharde": "two"}).read()


def test_some_encoders_and_other_seeds_by_the_command_line(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    file = str(tmp_path / "study.yaml")
    plan = build_plan(StudyConfig(study=file, seeds=(7, 8), include=("clip*",)).read())
    assert sorted({row.encoder for row in plan.rows}) == ["clip", "clips"]
    assert {row.seed for row in plan.rows} == {7, 8}
    assert not [step for step in plan.steps if "net" in step.name]
    with pytest.raises(UserError, match="unknown encoder in 'include' 'clisp'; did you mean 'clip'"):
        StudyConfig(study=file, include=("clisp",)).read()


def test_a_typo_in_a_step_config_is_reported_before_anything_runs():
    content = {
        **SMALL,
        "data": {**SMALL["data"], "train": {"command": "clips recaption", "path": "a", "modl": "b"}},
    }
    steps = [step for step in build_plan(parse_study(content)).steps if step.name == "data-train"]
    with pytest.raises(UserError, match=r"^step data-train: .*unknown key 'modl'; did you mean 'model'"):
        check_configs(steps)
    right = {"output": "x", "path": "a", "model": "b"}
    assert first_config_error([("data-train", ["clips", "recaption"], right)]) is None


def test_unknown_programs_and_commands_are_rejected():
    with pytest.raises(UserError, match="unknown program of a command 'clip'; did you mean 'clips'"):
        check_command(("clip", "train"))
    with pytest.raises(UserError, match="unknown command 'clips trian'; did you mean 'clips train'"):
        check_command(("clips", "trian"))
    with pytest.raises(UserError, match="expected 'python FILE' with a file that exists"):
        check_command(("python", "no/such/script.py"))


def test_the_runner_is_light():
    code = (
        "import sys, time; began = time.monotonic()\n"
        "from benchmarks.study import preflight, run_step, runner, status, study_commands\n"
        "study_commands.resolve_study(study_commands.StudyConfig(study='scripts/studies/demo.yaml'))\n"
        "heavy = {'torch', 'transformers', 'pandas', 'open_clip', 'lmms_eval', 'snakemake'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_runner_that_waited_runs_the_study_as_it_is_then(tmp_path, monkeypatch):
    config = dataclasses.replace(write_study(tmp_path), wait_for_lock=True)
    held = study_commands.locked

    def edited_meanwhile(*args, **options):
        write_study(tmp_path, encoders={**SMALL["encoders"], "late": {"recipe": "clip"}})
        return held(*args, **options)

    monkeypatch.setattr(study_commands, "locked", edited_meanwhile)
    run_study(config)
    assert states(config)["encoder-late-s0"] == "done"


def test_the_plan_names_parts_of_the_hub_that_may_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_commands, "check_command", lambda words: None)
    monkeypatch.setattr(state, "command_version", lambda words: 1)
    content = {**SMALL, "output": str(tmp_path / "out"), "llms": {"a": "org/a", "b": "org/b@v1"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    plan_study(StudyPlanConfig(study=str(tmp_path / "study.yaml"), check=False, include=("net",)))
    printed = capsys.readouterr().out
    assert "from the Hub org/a (not pinned: add @REVISION)" in printed
    assert "from the Hub org/b@v1\n" in printed
