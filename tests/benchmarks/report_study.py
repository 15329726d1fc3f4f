"""Studies whose steps are recorded as done without running anything, and what is in a report's page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_material import METRICS, items_table, put_result
from study_material import SMALL

from benchmarks.study import commands, steps
from benchmarks.study.state import Step, StepRecord, write_record
from benchmarks.study.study_record import StudyRecord, write_study_record

_VOID = {"meta", "link", "br", "img", "input", "col", "path", "use", "rect", "circle", "line"}


def record_study(
    text: str, output: Path, change: Callable[[Step], dict[str, Any] | None] = lambda step: {}
) -> StudyRecord:
    """Record the steps of a study file as done; ``change`` gives other fields of a step's record, or None for none."""
    file = output.with_name("study.yaml")
    file.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "check_command", lambda words: None)
        patch.setattr(steps, "command_version", lambda words: 1)
        keyed = commands.resolve_study(commands.StudyConfig(study=str(file), output=str(output)))
        record = commands.study_record(keyed, str(file))
    write_study_record(output, record)
    for number, step in enumerate(keyed.steps):
        if (changes := change(step)) is not None:
            fields = {"key": step.key.key, "command": " ".join(step.command), "status": "done"}
            times = {"started": 1000.0 + 10 * number, "seconds": 9.0}
            write_record(output, StepRecord(**{"name": step.name, "kind": step.kind, **fields, **times, **changes}))
    return record


def make_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's output in which one branch failed, as the runner would have left it."""
    monkeypatch.setattr(commands, "check_command", lambda words: None)
    monkeypatch.setattr(steps, "command_version", lambda words: 1)
    output = tmp_path / "out"
    content = {**SMALL, "output": str(output), "question": "Which is better?", "notes": ["A note for the reader."]}
    content["benchmarks"] = {name: {"data": "$data/test"} for name in METRICS}

    def change(step: Step) -> dict[str, Any] | None:
        if step.name.startswith("evaluate-llava-net"):
            return None
        if step.name.startswith("llava-net"):
            said = ("loading", "these weights are not of this architecture")
            return {"status": "failed", "exit_status": 1, "log_tail": said}
        if step.kind in {"encoder", "llava"}:  # a step without outputs is not done
            step.outputs[0].mkdir(parents=True)
            (step.outputs[0] / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
        return {"peak_memory_mb": 512.0, "exit_status": 0}

    record_study(yaml.safe_dump(content), output, change)
    for encoder, skill in (("clip", 0.4), ("clips", 0.7)):
        for benchmark in METRICS:
            row = f"{encoder}-s0" if benchmark == "retrieval" else f"{encoder}-tiny-s0"
            put_result(output / "results", row, benchmark, items_table(skill, benchmark=benchmark))
    return output


SHARES = {
    "pretrained": (0.1, 0.1, 0.1),
    "whole": (0.2, 0.25, 0.3),
    "part.block.8": (0.5, 0.55, 0.6),
    "part.block.16": (0.3, 0.36, 0.42),
}
STUDY = """
name: small
baseline: whole
seeds: [0, 1, 2]
encoders:
  pretrained: {}
  whole: {recipe: {strategy: full}}
  part: {sweep: {recipe.caption_strategy: [block], recipe.caption_tokens: [8, 16]}}
benchmarks: {retrieval: {data: d}}
figures:
  - {benchmark: retrieval, encoders: part, x: recipe.caption_tokens, reference_lines: [whole], title: <Lengths>,
     label: tokens}
"""


def write_study(output: Path, scores: dict[str, tuple[float, ...]], text: str = STUDY) -> Path:
    """A study's output with three seeds of each encoder, by the share of right answers of each."""
    record_study(text, output)
    for encoder, shares in scores.items():
        for seed, share in enumerate(shares):
            items = items_table(0.0, benchmark="retrieval", count=200)
            items["hit"] = items["score"] = [float(number < round(200 * share)) for number in range(200)]
            more = {"primary": ("t2i_r1",), "digest": f"{encoder} {seed}"}
            put_result(output / "results", f"{encoder}-s{seed}", "retrieval", items, **more)  # type: ignore[arg-type]
    return output


class Page(HTMLParser):
    """A page's elements and words; a tag that is not closed, an id twice or a link to nowhere is an error.

    Args:
        html: the page.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.fetched: list[str] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self._ids: list[str] = []
        self._links: list[str] = []
        self.feed(html)
        assert self._open == []
        assert len(self._ids) == len({*self._ids})
        assert {*self._links} <= {*self._ids}
        self.text = " ".join("".join(self._words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        self.handlers += [name for name in given if name.startswith("on")]
        self._ids += [given["id"]] if given.get("id") else []
        for name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            target = given.get(name) or ""
            self._links += [target[1:]] if target.startswith("#") and tag == "a" else []
            self.fetched += [f"{tag} {name}={target}"] if target and not target.startswith(("#", "data:")) else []
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self._open}:
            self._words.append(f" {data}")


def section(page: str, name: str) -> str:
    """The part of a page from an id to the next section."""
    return re.split(r'<(?:section|details class="section")', page[page.index(f'id="{name}"') :])[0]
