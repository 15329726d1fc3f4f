"""A small study's output, written without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from report_material import METRICS, items_table, put_result
from study_material import SMALL

from benchmarks.study import study_commands
from benchmarks.study.step_state import StepRecord, write_record
from benchmarks.study.study_record import write_study_record


def make_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's output in which one branch failed, as the runner would have left it."""
    monkeypatch.setattr(study_commands, "check_command", lambda words: None)
    monkeypatch.setattr(study_commands, "command_version", lambda words: 1)
    output = tmp_path / "out"
    content = {**SMALL, "output": str(output), "question": "Which is better?", "notes": ["A note for the reader."]}
    content["benchmarks"] = {name: {"data": "$data/test"} for name in METRICS}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    keyed = study_commands.resolve_study(study_commands.StudyConfig(study=str(file)))
    write_study_record(output, study_commands.study_record(keyed, str(file)))
    for number, step in enumerate(keyed.plan.steps):
        failed = step.name.startswith("llava-net")
        if step.name.startswith("evaluate-llava-net"):
            continue
        record = StepRecord(
            name=step.name,
            kind=step.kind,
            command=" ".join(step.command),
            key=keyed.keys[step.name].key,
            status="failed" if failed else "done",
            started=1000.0 + 10 * number,
            seconds=9.0,
            peak_memory_mb=512.0,
            exit_status=1 if failed else 0,
            log_tail=("loading", "these weights are not of this architecture") if failed else (),
        )
        write_record(output, record)
        if step.kind in {"encoder", "llava"} and not failed:
            step.outputs[0].mkdir(parents=True)
            lines = [
                {
                    "step": i,
                    "samples_seen": 8 * i,
                    "loss": 5 / (i + 1),
                    "contrastive_loss": 4 / (i + 1),
                    "stage": "align",
                }
                for i in range(20)
            ]
            text = "\n".join([*map(json.dumps, lines), '{"step": 20, "lo'])
            (step.outputs[0] / "metrics.jsonl").write_text(text, encoding="utf-8")
    for encoder, skill in (("clip", 0.4), ("clips", 0.7)):
        for benchmark in METRICS:
            row = f"{encoder}-s0" if benchmark == "retrieval" else f"{encoder}-tiny-s0"
            put_result(output / "results", row, benchmark, items_table(skill, benchmark=benchmark))
    return output
