"""A published row against a result, and against a re-run of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from report_material import items_table, put_result

from benchmarks.analysis.diff_command import DiffConfig, run_diff
from benchmarks.analysis.published_diff import NOTE, _plain
from benchmarks.results.reference_results import SETTINGS, load_reference_results, select_reference_results
from clips.core.artifact import write_manifest
from clips.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "scripts/configs/llava"
CLIP = "mlcd:CLIP ViT-L/14 336"


def diff_lines(capsys: pytest.CaptureFixture[str], first: object, second: object, benchmark: str | None = None):
    run_diff(DiffConfig(first=str(first), second=str(second), benchmark=benchmark))
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    protocol = {"scorer": "lmms-eval 0.7.1", "input_resolution": 336, "task": "lmms-eval's gqa"}
    put_result(tmp_path, "mine", "gqa", items_table(0.6, benchmark="gqa"), protocol=protocol)
    return tmp_path / "mine" / "gqa.json"


def test_the_averages_of_rice_are_those_of_the_copied_numbers():
    """Of table 1's first seven columns, as printed; OCRBench counts a tenth."""
    printed = [52.27, 53.57, 54.23, 56.18, 49.80, 54.38, 54.27, 55.98, 58.02, 60.88, 62.97, 61.06]
    columns = ("infovqa_val/anls", "docvqa_val/anls", "chartqa/relaxed_overall", "textvqa_val/exact_match")
    columns += ("ocrbench_v2/unstated", "livexiv_vqa/unstated")
    rows = [row.values for row in select_reference_results(["rice"]) if "OneVision" not in row.name]
    found = [(sum(row[name] for name in columns) + row["ocrbench/ocrbench_points"] / 10) / 7 for row in rows]
    assert found == pytest.approx(printed, abs=0.011)


def test_settings_are_those_of_a_training_and_never_empty():
    rows = [row for row in load_reference_results() if row.settings]
    assert {row.set for row in rows} >= {"mlcd", "rice", "onevision_2_reruns", "pe_lang"}
    assert all(set(row.settings) <= set(SETTINGS) and all(row.settings.values()) for row in rows)
    assert select_reference_results([CLIP])[0].settings["llm"] == "Qwen2.5-7B-Instruct"


def test_a_published_row_against_its_rerun(capsys):
    said = diff_lines(capsys, "rice:SigLIP 2 So400m/14 384", "onevision_2_reruns:SigLIP 2*")
    assert "  infovqa_val/anls: 43.66, 34.90, −8.76" in said
    assert "  chartqa/relaxed_overall: 70.16, 75.30, +5.14" in said
    assert "  llm: Qwen2.5-7B against Qwen2.5-7B-Instruct" in said
    assert "Equal settings: encoder, instruct.data, image_size, image_aspect_ratio." in said
    (unknown,) = [line for line in said if line.startswith("Not known of A: ")]
    assert unknown.startswith("Not known of A: align.data, vision_feature_layer, projector.type, chat_template, ")
    assert said[-1] == NOTE
    said = diff_lines(capsys, "rice:SigLIP So400m/14 384", "onevision_2_reruns:SigLIP So*", "ocrbench_v2")
    assert [line for line in said if line.startswith("  ") and "/" in line.split(":")[0]] == [
        "  ocrbench_v2/unstated: 23.97, 31.94, +7.97"
    ]


def test_a_published_row_against_a_result(ours, capsys):
    said = diff_lines(capsys, CLIP, ours)
    (line,) = [line for line in said if "gqa/exact_match" in line]
    value = float(line.split(", ")[1])
    assert f"63.31, {value:.2f}, {value - 63.31:+.2f}".replace("-", "−") in line
    assert "(the published one is outside the 95 % interval" in line
    assert "  scorer: lmms-eval 0.2.0 against lmms-eval 0.7.1" in said
    assert "Equal settings: image_size." in said
    assert "Not known of A" not in " ".join(said)
    (unknown,) = [line for line in said if line.startswith("Not known of B: encoder, llm, align.data")]
    assert "scorer" not in unknown
    backwards = diff_lines(capsys, ours, CLIP)
    assert "  scorer: lmms-eval 0.7.1 against lmms-eval 0.2.0" in backwards


def test_the_shipped_config_of_a_published_row_has_its_settings(tmp_path, capsys):
    """A LLaVA's manifest, as training writes it: with paths and hashes of parents and data, and grids in pixels."""
    config = yaml.safe_load((CONFIGS / "llava-next-qwen2.5-7b.yaml").read_text(encoding="utf-8"))
    parents = {"encoder": tmp_path / "clip-vit-large-patch14-336", "llm": tmp_path / "models/Qwen2.5-7B-Instruct"}
    for parent in parents.values():
        parent.mkdir(parents=True)
        (parent / "config.json").write_text(f'"{parent.name}"')
    stages = ("align", "instruct")
    data = {stage: [{**source, "hash": "c" * 64} for source in config[stage]["data"]] for stage in stages}
    trained = tmp_path / "trained"
    trained.mkdir()
    write_manifest(trained, kind="llava", config={**config, "stages": stages}, data=data, parents=parents)
    protocol = {"scorer": "lmms-eval 0.2.0", "input_resolution": 336, "task": "lmms-eval's gqa"}
    put_result(tmp_path / "results", "mine", "gqa", items_table(0.6, benchmark="gqa"), protocol=protocol, model=trained)
    said = diff_lines(capsys, CLIP, tmp_path / "results/mine/gqa.json")
    assert f"Equal settings: {', '.join(SETTINGS)}." in said
    assert not [line for line in said if line.startswith(("Settings that differ", "Not known"))]

    data["instruct"].append({"path": "data/mine.json", "hash": "d" * 64})
    (trained / "manifest.json").unlink()
    config |= {"image_grid_pinpoints": [[336, 672], [672, 336]]}
    config["instruct"]["learning_rate"] = 1.0e-4
    config["vision_feature_layer"] = 2
    write_manifest(trained, kind="llava", config={**config, "stages": stages}, data=data, parents=parents)
    said = diff_lines(capsys, CLIP, tmp_path / "results/mine/gqa.json")
    (first, second, rate) = [line for line in said if line.startswith(("  instruct", "  image"))]
    assert first.startswith("  instruct.data: LLaVA-NeXT-Data against data/llava_next_raw_format/")
    assert second.endswith("tiles against 1 × 2, 2 × 1 tiles")
    assert "  vision_feature_layer: -2 against 2" in said
    assert rate == "  instruct.learning_rate: 1e-5 against 0.0001"


def test_a_part_of_a_benchmark_and_a_metric_that_is_not_stated_are_said(tmp_path, capsys):
    items = items_table(0.6, benchmark="pope")
    protocol: dict[str, str | int] = {"task": "lmms-eval's pope", "questions": len(items)}
    put_result(tmp_path, "mine", "pope", items, protocol=protocol)
    said = diff_lines(capsys, CLIP, tmp_path / "mine/pope.json")
    assert any(line.startswith("  pope/unstated against pope/accuracy: 88.83, ") for line in said)
    assert not any("pope/yes" in line for line in said)  # no main metric
    assert f"B has only a part of the benchmark: {len(items)} of 9,000 questions." in said
    said = diff_lines(capsys, "rice:SigLIP 2 So400m/14 384", "genlip:GenLIP So/16 + Qwen2.5-7B")
    assert "  docvqa_val/anls against docvqa/unstated: 79.14, 66.30, −12.84" in said
    assert not any(line.startswith("  mmmu") for line in said)
    put_result(tmp_path, "mine", "docvqa", items, protocol={"task": "lmms-eval's docvqa_val"})
    said = diff_lines(capsys, "genlip:GenLIP So/16 + Qwen2.5-7B", tmp_path / "mine/docvqa.json")
    assert len([line for line in said if "docvqa/unstated against" in line]) == 1  # not again by the task's name


def test_a_slash_in_a_model_name_is_no_path(capsys):
    said = diff_lines(capsys, "mlcd:CLIP ViT-L/14 336", "rice:RICE ViT-L/14 336")
    assert any(line.startswith("  encoder: ") for line in said)
    names = ["CLIP L/14", "RICE ViT-L/14", "ViT-L/14", "ViT-L/14@336px", "ViT-H/14", "PE-Core L/14", "14"]
    assert len({_plain(name) for name in names}) == len(names)
    paths = ("transformers:openai/clip-vit-large-patch14-336@main", "/models/clip-vit-large-patch14-336/")
    assert {_plain(path) for path in paths} == {_plain("CLIP-ViT-large-patch14-336")}


def test_a_source_with_few_settings_and_a_number_inside_the_interval(ours, capsys):
    said = diff_lines(capsys, "clips:OpenAI CLIP ViT-L/14 + Llama-3", ours)
    assert f"Not known of A: {', '.join(name for name in SETTINGS if name not in ('encoder', 'llm'))}." in said
    assert any("gqa/exact_match: 57.50" in line and "one is inside the 95 %" in line for line in said)
    assert not any(line.startswith(("Equal", "Settings that differ")) for line in said)


@pytest.mark.parametrize(
    ("first", "benchmark", "match"),
    [
        ("rice:SigLIP", None, "unknown published row of rice 'SigLIP'"),
        ("rice", None, "rice: no such result file"),
        ("rice:RICE*", None, "first: expected one published row, got 4: RICE ViT-L/14 336"),
        ("rice:RICE ViT-L/14 336", None, "second: expected a number in common with rice:RICE ViT-L/14 336; they have"),
        (CLIP, "pope", "benchmark"),
    ],
)
def test_what_cannot_be_compared_is_rejected_in_one_line(first, benchmark, match, ours):
    with pytest.raises(UserError, match=match) as caught:
        run_diff(DiffConfig(first=first, second=str(ours if benchmark is None else ours.parent), benchmark=benchmark))
    assert "\n" not in str(caught.value)
