"""The costs of a model in the report: its parameters, tokens, resolution and the samples that its encoder saw."""

from __future__ import annotations

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from report_material import edit, items_table, put_result, put_results
from safetensors.torch import save_file

from benchmarks.report.costs import Cost, count_parameters, model_costs
from benchmarks.report.page import render_page
from benchmarks.report.report import build_report
from clips.core.artifact import write_manifest


def encoder(directory: Path, width: int, samples: int) -> int:
    """An encoder directory with a captioner; returns open_clip's number of parameters."""
    tower = {"image_size": 32, "layers": 1, "width": width, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": width, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=width, vision_cfg=tower, text_cfg=text)
    directory.mkdir(parents=True)
    save_file(
        {name: each.contiguous() for name, each in model.state_dict().items()},
        directory / "open_clip_model.safetensors",
    )
    for other in ("captioner", "model"):  # the second as after an export to the same directory
        save_file({"more": torch.zeros(10_000)}, directory / f"{other}.safetensors")
    stages = [{"steps": samples // 4, "samples_seen": samples}]
    write_manifest(directory, kind="encoder", config={"recipe": {"name": "clip"}}, seed=0, stages=stages)
    return sum(each.numel() for each in model.state_dict().values())


def test_costs_are_those_of_the_model_and_of_its_training(tmp_path: Path) -> None:
    expected = {name: encoder(tmp_path / name, width, 4800) for name, width in (("small", 32), ("large", 64))}
    for name, tokens in (("small", 4), ("large", 16)):
        for benchmark in ("gqa", "pope"):
            protocol: dict[str, str | int] = {"input_tokens": tokens, "input_resolution": 32}
            items = items_table(0.5, benchmark=benchmark)
            put_result(tmp_path / "results", name, benchmark, items, protocol=protocol, model=tmp_path / name)
    put_result(tmp_path / "results", "elsewhere", "gqa", items_table(0.4, benchmark="gqa"))
    report = build_report(tmp_path / "results")
    costs = {cost.title: dict(cost.values) for cost in model_costs(report.table)}
    assert costs == {
        "parameters": expected,
        "tokens": {"small": 4, "large": 16},
        "resolution": {"small": 32, "large": 32},
        "samples": {"small": 4800, "large": 4800},
    }
    page = render_page(report)
    assert page.count('class="cost') == 3 * 4  # empty where it is not known
    assert ">4,800</td>" in page


def test_weights_that_the_result_is_not_of_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a path with another model by now, and of no path, where the working directory has a model."""
    monkeypatch.chdir(tmp_path)
    encoder(tmp_path / "trained", 32, 4800)
    put_result(tmp_path / "results", "trained", "gqa", items_table(0.5, benchmark="gqa"), model=tmp_path / "trained")
    edit(put_result(tmp_path / "results", "imported", "gqa", items_table(0.4, benchmark="gqa")), model={"hash": "0"})
    save_file({"a": torch.zeros(30)}, tmp_path / "model.safetensors")
    parameters, *_ = model_costs(build_report(tmp_path / "results").table)
    assert parameters.values.keys() == {"trained"}
    shutil.rmtree(tmp_path / "trained")
    encoder(tmp_path / "trained", 64, 9600)
    assert [cost.title for cost in model_costs(build_report(tmp_path / "results").table)] == []


def test_a_page_without_known_costs_has_no_such_columns(tmp_path: Path) -> None:
    assert 'data-group="costs"' not in render_page(build_report(put_results(tmp_path)))


def test_damaged_weights_have_no_number(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(30)}, tmp_path / "model-1.safetensors")
    (tmp_path / "model-2.safetensors").write_bytes(b"\xff" * 40)
    assert count_parameters(tmp_path) is None
    assert count_parameters(tmp_path / "gone") is None


SHORT = {0: "0", 2880: "2,880", 57_600: "57.6K", 86_192_641: "86.2M", 7.06e9: "7.1B", 999_960: "1.0M", 2e12: "2,000.0B"}


@pytest.mark.parametrize(("value", "text"), SHORT.items())
def test_a_cost_is_short(value: float, text: str) -> None:
    assert Cost(title="x", about="", values={"a": value}).text("a") == text
